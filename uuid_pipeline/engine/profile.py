"""What this store allows and what it would trip over: rights, visibility, tier, traps. Writes nothing."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.store import MovedTable, Store
from uuid_pipeline.errors import RefusedError

LEDGER = "uuid_pipeline"


@dataclass(frozen=True)
class MissingRight:
    right: str
    object: str
    remedy: str


def require_access(connection: Connection, store: Store) -> None:
    """Raise RefusedError when rows are hidden from this role, or its rights do not suffice; nothing is written."""
    hidden = hidden_tables(store)
    if hidden:
        raise RefusedError(_hidden_message(connection, hidden))
    missing = missing_rights(connection, store)
    if missing:
        lines = [f"  {right.right} on {right.object}: {right.remedy}" for right in missing]
        role = sql.scalar(connection, "SELECT current_user")
        raise RefusedError("\n".join([f"The role {role} lacks rights that a migration needs:", *lines]))


def hidden_tables(store: Store) -> list[Table]:
    """Tables of the store whose rows a policy hides from the connected role."""
    return [moved.table for moved in store.tables if moved.table.hides_rows]


def _hidden_message(connection: Connection, hidden: list[Table]) -> str:
    role = sql.scalar(connection, "SELECT quote_ident(current_user)")
    names = ", ".join(f"{table.schema}.{table.name}" for table in hidden)
    owners = ", ".join(sorted({table.owner for table in hidden}))
    return (
        f"Row-level security hides rows of {names} from the role {role}: what it sees must not pass for the store. "
        f"Connect as the owner ({owners}; not while FORCE ROW LEVEL SECURITY is on), "
        f"or let a superuser run: ALTER ROLE {role} BYPASSRLS;"
    )


# has_*_privilege answers for inherited roles too; asking never fails, whatever the role may do.
_RIGHTS = """
SELECT current_user AS role, quote_ident(current_user) AS quoted, current_database() AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'uuid_pipeline') AS owns_ledger,
       pg_is_in_recovery() AS standby,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser
"""


def missing_rights(connection: Connection, store: Store) -> list[MissingRight]:
    """Each right that is missing, with the statement that grants it."""
    who = sql.rows(connection, _RIGHTS)[0]
    if who.standby:
        raise RefusedError("The store is a standby (read-only). Connect to the primary server.")
    missing = [right for moved in store.tables for right in _table_rights(connection, moved, who.quoted)]
    database = sql.scalar(connection, "SELECT quote_ident(current_database())")
    if who.owns_ledger is None and not who.may_create:
        grant = f"GRANT CREATE ON DATABASE {database} TO {who.quoted};"
        missing.append(MissingRight("CREATE", f"database {who.database} (for the ledger schema)", grant))
    if who.owns_ledger is False:
        owner = "SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace WHERE nspname = 'uuid_pipeline'"
        grant = f"GRANT {sql.scalar(connection, owner)} TO {who.quoted};"
        missing.append(MissingRight("ownership", "schema uuid_pipeline (the ledger)", grant))
    if not may_silence_triggers(connection):
        missing.append(_replication_role(store, who.quoted))
    return list(dict.fromkeys(missing))


def _table_rights(connection: Connection, moved: MovedTable, role: str) -> list[MissingRight]:
    table = moved.table
    quoted = sql.shown(sql.table(table.schema, table.name))
    schema = sql.shown(sql.name(table.schema))
    asked = sql.rows(
        connection,
        """SELECT has_schema_privilege(n.oid, 'USAGE') AS usage, has_table_privilege(c.oid, 'SELECT') AS "select",
                  (SELECT bool_and(has_column_privilege(c.oid, col, 'UPDATE'))
                   FROM unnest(%(columns)s::text[]) col) AS "update"
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %(oid)s""",
        {"oid": table.oid, "columns": [column for column, _ in moved.columns]},
    )[0]
    missing = []
    if not asked.usage:
        grant = f"GRANT USAGE ON SCHEMA {schema} TO {role};"
        missing.append(MissingRight("USAGE", f"schema {table.schema}", grant))
    missing += [
        MissingRight(right, f"table {table.schema}.{table.name}", f"GRANT {right} ON {quoted} TO {role};")
        for right, granted in (("SELECT", asked.select), ("UPDATE", asked.update))
        if not granted
    ]
    return missing


def _replication_role(store: Store, role: str) -> MissingRight:
    remedy = (
        f"GRANT SET ON PARAMETER session_replication_role TO {role};"
        if store.catalog.server_version >= 150000
        else "PostgreSQL 14 allows it to superusers only; connect as one"
    )
    return MissingRight("SET", "parameter session_replication_role (to keep updated_at as it is)", remedy)


def may_silence_triggers(connection: Connection) -> bool:
    """Whether the role may set session_replication_role: tried, as hosted services allow it by hooks."""
    savepoint = connection.begin_nested()
    try:
        sql.execute(connection, "SET LOCAL session_replication_role = replica")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        return False
    else:
        return True
    finally:
        savepoint.rollback()


def unsupported(connection: Connection, store: Store) -> list[str]:
    """Traps that this version refuses, one sentence each, from the catalogs alone."""
    return (
        [fault for moved in store.tables for fault in _table_faults(moved)]
        + _trigger_faults(store)
        + (_publication_faults(connection, store) + _outgoing_faults(store))
    )


def _table_faults(moved: MovedTable) -> list[str]:
    table, where = moved.table, f"{moved.table.schema}.{moved.table.name}"
    faults = [
        (
            table.kind == "p" or table.is_partition,
            f"{where} is partitioned: a moved id could change its partition",
        ),
        (
            table.inherits and table.kind == "r" and not table.is_partition,
            f"{where} takes part in table inheritance",
        ),
        (table.kind not in ("r", "p"), f"{where} is no plain table"),
        (table.has_rules, f"{where} has rewrite rules, which change what an UPDATE does"),
    ]
    types = [
        f"{where}.{column} is {table.columns[column].type}; a reference must be uuid or text"
        for column, _ in moved.columns
        if table.columns[column].type.split("(")[0] not in ("uuid", "text", "character varying")
    ]
    generated = [f"{where}.{column} is generated" for column, _ in moved.columns if table.columns[column].generated]
    return [fault for applies, fault in faults if applies] + types + generated


def _trigger_faults(store: Store) -> list[str]:
    oids = {(moved.table.schema, moved.table.name) for moved in store.tables}
    return (
        [
            f"trigger {trigger.name} on {trigger.table} fires even in replica role (ENABLE {kind}); "
            f"for the migration: ALTER TABLE {trigger.table_schema}.{trigger.table} ENABLE TRIGGER {trigger.name}"
            for trigger in store.catalog.triggers
            if (trigger.table_schema, trigger.table) in oids and trigger.enabled in "AR" and trigger.on_update
            for kind in ("ALWAYS" if trigger.enabled == "A" else "REPLICA",)
        ]
        + [
            f"the spec asks trigger {name} to fire, which silencing by session_replication_role cannot do for one alone"
            for name, wish in store.spec.triggers.items()
            if wish == "fire"
        ]
        + [
            f"the spec tells when a {entity.name} is busy, and this version cannot make documents wait; take `busy` out"
            for entity in store.entities
            if entity.spec.busy is not None
        ]
    )


# A published table without a replica identity makes every UPDATE an error.
_NO_IDENTITY = """
SELECT c.oid::regclass::text AS name FROM pg_class c WHERE c.oid = ANY(%(oids)s) AND EXISTS (
    SELECT FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname
    JOIN pg_publication b ON b.pubname = p.pubname
    WHERE n.oid = c.relnamespace AND p.tablename = c.relname AND b.pubupdate)
AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS (
    SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)))
"""


def _publication_faults(connection: Connection, store: Store) -> list[str]:
    oids = [moved.table.oid for moved in store.tables]
    return [
        f"{row.name} is published but has no replica identity, so every UPDATE of it fails"
        for row in sql.rows(connection, _NO_IDENTITY, {"oids": oids})
    ]


def _outgoing_faults(store: Store) -> list[str]:
    """Foreign keys from a moved column to one that does not move with it: silent orphans in replica role."""
    moved = {(m.table.schema, m.table.name, column): entity for m in store.tables for column, entity in m.columns}
    return [
        f"{key.table}.{column} moves as {entity}, but its foreign key {key.name} refers to "
        f"{key.target_schema}.{key.target}.{target}, which does not"
        for key in store.catalog.foreign_keys
        for column, target in zip(key.columns, key.target_columns, strict=True)
        for entity in [moved.get((key.table_schema, key.table, column))]
        if entity is not None and moved.get((key.target_schema, key.target, target)) != entity
    ]


def rows_visible(store: Store) -> GateResult:
    """Gate: no policy hides a row from us."""
    hidden = [f"{table.schema}.{table.name}" for table in hidden_tables(store)]
    return GateResult.of(
        "every_row_visible",
        not hidden,
        "no policy hides a row from this role" if not hidden else f"rows are hidden in {', '.join(hidden)}",
        "connect as the owner or as a role with BYPASSRLS",
    )


def nothing_unsupported(connection: Connection, store: Store) -> GateResult:
    """Gate: no trap that this version does not handle."""
    faults = unsupported(connection, store)
    return GateResult.of(
        "nothing_unsupported",
        not faults,
        "nothing that this version would have to refuse" if not faults else "; ".join(faults),
        "change what is named, or leave the table out of the spec",
        figures={"unsupported": len(faults)},
    )


def describe(connection: Connection, store: Store) -> dict[str, Any]:
    """The profile as plain data: server, tables, references, triggers silenced, tier."""
    moved = {(table.table.schema, table.table.name) for table in store.tables}
    return {
        "server_version": sql.scalar(connection, "SELECT current_setting('server_version')"),
        "role": sql.scalar(connection, "SELECT current_user"),
        "tier": "R",
        "tables": [
            {
                "table": f"{m.table.schema}.{m.table.name}",
                "entity": m.entity.name if m.entity else None,
                "ids": [column for column, _ in m.columns],
                "rows": m.table.estimated_rows,
                "bytes": m.table.bytes,
                "row_security": m.table.row_security,
                "unindexed": [c for c, _ in m.columns if c not in m.table.indexed_first],
            }
            for m in store.tables
        ],
        "references": [
            {"table": r.table.name, "column": r.column, "entity": r.entity, "foreign_key": r.foreign_key}
            for r in store.references
        ],
        "silenced_triggers": [
            {"trigger": t.name, "table": t.table, "function": t.function, "definition": t.definition}
            for t in store.catalog.triggers
            if (t.table_schema, t.table) in moved and t.on_update and t.enabled == "O"
        ],
        "skipped": list(store.skipped),
        "spec": store.spec.model_dump(mode="json", by_alias=True),
        "unsupported": unsupported(connection, store),
    }
