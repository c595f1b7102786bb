"""Whose the ledger is: nobody else's schema, no other role's to read, no subscriber's to get."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError


def require_room(connection: Connection) -> None:
    """What else stands in a schema of our name would be dropped with the ledger in the end."""
    others = "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('uuid_pipeline') ORDER BY 1 LIMIT 4"
    found = [row.relname for row in sql.rows(connection, others)]
    if found:
        raise RefusedError(
            f"The store has a schema uuid_pipeline that is no ledger; it holds {', '.join(found[:3])}"
            f"{' and more' if len(found) > 3 else ''}. The ledger needs that name for itself: "
            "ALTER SCHEMA uuid_pipeline RENAME TO another name."
        )


# Only what decodes by publications stops at a table that it does not know; other plugins pass on what they are asked.
_PUBLISHES_EVERYTHING = """
SELECT quote_ident(p.pubname) AS name, p.pubname,
       string_agg(quote_ident(s.slot_name), ', ' ORDER BY s.slot_name) AS slots
FROM pg_publication p, pg_replication_slots s
WHERE p.puballtables AND p.pubname <> ALL(%(allowed)s) AND s.database = current_database() AND s.plugin = 'pgoutput'
GROUP BY p.pubname ORDER BY 1
"""


def require_unpublished(connection: Connection, store: Store) -> None:
    """Raise RefusedError where a subscriber may get our tables, which each plan makes some of.

    One that lacks a published table stops there, and gets nothing any more that comes after it.
    """
    allowed = store.spec.ledger_in_publications
    for row in sql.rows(connection, _PUBLISHES_EVERYTHING, {"allowed": allowed}):
        raise RefusedError(
            f"Publication {row.name} is FOR ALL TABLES, those of the ledger too (schema uuid_pipeline), and this "
            f"database has slots that may stream them (pg_replication_slots: {row.slots}). A subscriber that has no "
            "such tables would stop there for good. Publish the application's schemas instead: "
            f"BEGIN; DROP PUBLICATION {row.name}; CREATE PUBLICATION {row.name} FOR TABLES IN SCHEMA … (14: FOR TABLE "
            "…); COMMIT; and on each subscriber ALTER SUBSCRIPTION … REFRESH PUBLICATION. Where what reads it takes no "
            f"harm, say so in the spec: ledger_in_publications: [{row.pubname}]"
        )


def is_owner(connection: Connection) -> bool:
    """Whether this role owns the ledger: only such a one assesses, plans, approves and migrates."""
    owns = "SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'uuid_pipeline'"
    return bool(sql.scalar(connection, owns))


def require_owner(connection: Connection) -> None:
    """Raise RefusedError for a role that may roll back only."""
    if not is_owner(connection):
        raise RefusedError(
            "Refused: this role does not own the ledger, and may roll back only. Connect as the migrator."
        )


# Who got rights on new tables by nobody's word but a default privilege for every schema; one for ours alone was meant
# (deploy/roles.sql).
_GIVEN_UNASKED = """
SELECT DISTINCT c.relname AS name, a.grantee = 0 AS everybody, pg_get_userbyid(a.grantee) AS role
FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.grantee <> c.relowner
  AND (c.oid = to_regclass(%(table)s::text) OR %(table)s::text IS NULL)
  AND NOT EXISTS (SELECT FROM pg_default_acl d CROSS JOIN aclexplode(d.defaclacl) g
                  WHERE d.defaclnamespace = c.relnamespace AND d.defaclobjtype = 'r' AND g.grantee = a.grantee)
"""


def keep_ours(connection: Connection, table: sql.Composable) -> None:
    """Let a new table be nobody's else, and be published where every table is.

    A publication FOR ALL TABLES refuses to let rows of one be changed that has neither primary key nor this identity.
    """
    sql.execute(connection, sql.compose("ALTER TABLE {table} REPLICA IDENTITY FULL", table=table))
    revoke_unasked(connection, sql.shown(table))


def revoke_unasked(connection: Connection, table: str | None) -> None:
    """Of one table, or of all that there are, while all are new."""
    for given in sql.rows(connection, _GIVEN_UNASKED, {"table": table}):
        role = sql.Text("PUBLIC") if given.everybody else sql.name(given.role)
        revoke = sql.compose(
            "REVOKE ALL ON {table} FROM {role}", table=sql.table("uuid_pipeline", given.name), role=role
        )
        sql.execute(connection, revoke)
