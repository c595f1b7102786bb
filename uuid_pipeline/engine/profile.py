"""What this store allows and what it would trip over: rights, visibility, tier, traps. Writes nothing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql, traps
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.altered.triggers import MissingRight, UserTrigger
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.merges import emptying
from uuid_pipeline.engine.store import MovedTable, Store
from uuid_pipeline.errors import RefusedError, UsageError


def require_access(connection: Connection, store: Store) -> None:
    """Raise RefusedError when rows are hidden from this role, or its rights do not suffice; nothing is written."""
    hidden = hidden_tables(store)
    if hidden:
        raise RefusedError(_instead(connection) + _hidden_message(connection, hidden))
    missing = missing_rights(connection, store)
    if missing:
        lines = [f"  {right.right} on {right.object}: {right.remedy}" for right in missing]
        role = sql.scalar(connection, "SELECT current_user")
        head = f"{_instead(connection)}The role {role} lacks rights that a migration needs:"
        raise RefusedError("\n".join([head, *lines]))


def _instead(connection: Connection) -> str:
    """Whom to connect as, where a ledger stands that is another role's: rather that than to grant this one as much."""
    owner = sql.scalar(
        connection,
        """SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace
           WHERE nspname = 'uuid_pipeline' AND NOT pg_has_role(nspowner, 'USAGE')""",
    )
    if owner is None:
        return ""
    return (
        f"The ledger of this store belongs to {owner}: connect as that role (UUID_PIPELINE_DATABASE_URL), or as the "
        "one that may roll back; docs/roles.md says which role may do what.\n"
    )


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
       has_database_privilege(current_database(), 'TEMPORARY') AS may_hold,
       (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'uuid_pipeline') AS owns_ledger,
       coalesce(has_schema_privilege(to_regnamespace('uuid_pipeline'), 'USAGE')
                AND has_table_privilege(to_regclass('uuid_pipeline.repointed'), 'DELETE'), false) AS rolls_back,
       pg_is_in_recovery() AS standby,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser
"""


def missing_rights(connection: Connection, store: Store) -> list[MissingRight]:
    """Each right that is missing, with the statement that grants it. Raises UsageError for a standby."""
    who = sql.rows(connection, _RIGHTS)[0]
    if who.standby:
        raise UsageError(
            "The store is a standby (read-only). Connect to the primary server (UUID_PIPELINE_DATABASE_URL)."
        )
    missing = [right for moved in store.tables for right in _table_rights(connection, moved, who.quoted)]
    # A role that owns no ledger and was granted what a rollback writes does nothing else; the aliases stand by then.
    only_back = who.owns_ledger is False and who.rolls_back
    if only_back:
        missing = [right for right in missing if right.right != "TRIGGER"]
    database = sql.scalar(connection, "SELECT quote_ident(current_database())")
    if who.owns_ledger is None and not who.may_create:
        grant = f"GRANT CREATE ON DATABASE {database} TO {who.quoted};"
        missing.append(MissingRight("CREATE", f"database {who.database} (for the ledger schema)", grant))
    if not who.may_hold:
        grant = f"GRANT TEMPORARY ON DATABASE {database} TO {who.quoted};"
        missing.append(MissingRight("TEMPORARY", f"database {who.database} (for the rows that a batch holds)", grant))
    if who.owns_ledger is False and not only_back:
        missing.append(_ledger_ownership(connection, who.quoted))
    return list(dict.fromkeys([*missing, *triggers.choose(connection, store).missing]))


def _ledger_ownership(connection: Connection, role: str) -> MissingRight:
    owner = sql.rows(
        connection,
        """SELECT quote_ident(rolname) AS name, rolsuper FROM pg_roles JOIN pg_namespace ON nspowner = pg_roles.oid
           WHERE nspname = 'uuid_pipeline'""",
    )[0]
    # Nobody becomes a superuser for the sake of a ledger.
    remedy = f"connect as {owner.name}, who made it" if owner.rolsuper else f"GRANT {owner.name} TO {role};"
    return MissingRight("ownership", "schema uuid_pipeline (the ledger)", remedy)


def _table_rights(connection: Connection, moved: MovedTable, role: str) -> list[MissingRight]:
    table = moved.table
    quoted = sql.shown(sql.table(table.schema, table.name))
    schema = sql.shown(sql.name(table.schema))
    asked = sql.rows(
        connection,
        """SELECT has_schema_privilege(n.oid, 'USAGE') AS usage, has_table_privilege(c.oid, 'SELECT') AS "select",
                  has_table_privilege(c.oid, 'TRIGGER') AS "trigger",
                  (SELECT bool_and(has_column_privilege(c.oid, col, 'UPDATE'))
                   FROM unnest(%(columns)s::text[]) col) AS "update"
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %(oid)s""",
        {
            "oid": table.oid,
            "columns": [column for column, _ in moved.columns] + [held.column for held in moved.embedded],
        },
    )[0]
    missing = []
    if not asked.usage:
        grant = f"GRANT USAGE ON SCHEMA {schema} TO {role};"
        missing.append(MissingRight("USAGE", f"schema {table.schema}", grant))
    missing += [
        MissingRight(right, f"table {table.schema}.{table.name}", f"GRANT {right} ON {quoted} TO {role};")
        for right, granted in (("SELECT", asked.select), ("UPDATE", asked.update), ("TRIGGER", asked.trigger))
        if not granted
    ]
    return missing


def missing_merge_rights(connection: Connection, store: Store) -> list[MissingRight]:
    """Rights that merging and its rollback need besides: demanded only where a cluster must merge.

    Rows are displaced where a key of an entity, or a unique key that contains an id, would be held twice.
    """
    displaced, emptied = emptying.touched_by_merging(store)
    return [
        *[right for table in displaced for right in _not_granted(connection, table, ("DELETE", "INSERT"), ())],
        *[right for table, columns in emptied for right in _not_granted(connection, table, ("UPDATE",), columns)],
    ]


def _not_granted(
    connection: Connection, table: Table, rights: Sequence[str], columns: Sequence[str]
) -> list[MissingRight]:
    """Those of the rights on a table, or on some of its columns, that this role lacks."""
    role = sql.scalar(connection, "SELECT quote_ident(current_user)")
    on_table = "SELECT has_table_privilege(%(oid)s::oid, %(right)s)"
    on_columns = "SELECT bool_and(has_column_privilege(%(oid)s::oid, c, %(right)s)) FROM unnest(%(columns)s::text[]) c"
    quoted = sql.shown(sql.table(table.schema, table.name))
    where = f"table {table.schema}.{table.name} (to merge duplicates, and back)"
    asked = on_columns if columns else on_table
    return [
        MissingRight(right, where, f"GRANT {right} ON {quoted} TO {role};")
        for right in rights
        if not sql.scalar(connection, asked, {"oid": table.oid, "right": right, "columns": list(columns)})
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
    faults = traps.unsupported(connection, store)
    return GateResult.of(
        "nothing_unsupported",
        not faults,
        "nothing that this version would have to refuse" if not faults else "; ".join(faults),
        "change what is named; or take out of the spec what only it names: an entity, or a soft reference, which goes "
        "under ignore_references then",
        figures={"unsupported": len(faults)},
    )


# A policy depends on each column that its expressions name. One for SELECT judges no write.
_POLICIES_BY_ID = """
SELECT p.polname AS policy, n.nspname || '.' || c.relname AS table
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relrowsecurity AND p.polcmd <> 'r' AND p.polrelid = ANY(%(oids)s) AND EXISTS (
    SELECT FROM pg_depend d JOIN unnest(%(tables)s::oid[], %(columns)s::text[]) i(oid, name) ON i.oid = d.refobjid
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attname = i.name
    WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_class'::regclass
      AND d.refobjid <> p.polrelid)
ORDER BY 2, 1
"""


def _policies_by_id(connection: Connection, store: Store) -> list[dict[str, str]]:
    """Policies of tables that move which judge writes by another such table's ids."""
    ids = [(moved.table.oid, column) for moved in store.tables for column, _ in moved.columns]
    values = {
        "oids": [moved.table.oid for moved in store.tables],
        "tables": [oid for oid, _ in ids],
        "columns": [column for _, column in ids],
    }
    return [dict(row._mapping) for row in sql.rows(connection, _POLICIES_BY_ID, values)]


def _looked_up(moved: MovedTable) -> list[str]:
    """The columns by whose value a batch looks for rows; what is inside arrays and JSON is found in other ways."""
    return [column for column, _ in moved.columns] + [r.column for r in moved.embedded if r.form == "text"]


def describe(connection: Connection, store: Store) -> dict[str, Any]:
    """The profile as plain data: server, tables, references, tier, triggers silenced and fired, traps."""
    tier = triggers.choose(connection, store)
    return {
        "server_version": sql.scalar(connection, "SELECT current_setting('server_version')"),
        "role": sql.scalar(connection, "SELECT current_user"),
        "tier": tier.name,
        "tier_reason": tier.reason,
        "tables": [
            {
                "table": f"{m.table.schema}.{m.table.name}",
                "entity": m.entity.name if m.entity else None,
                "ids": [column for column, _ in m.columns],
                "rows": m.table.estimated_rows,
                "bytes": m.table.bytes,
                "row_security": m.table.row_security,
                "unindexed": [c for c in _looked_up(m) if c not in m.table.indexed_first],
            }
            for m in store.tables
        ],
        "references": [
            {
                "schema": r.table.schema,
                "table": r.table.name,
                "column": r.column,
                "entity": r.entity,
                "foreign_key": r.foreign_key,
            }
            for r in store.references
        ],
        "policies_by_id": _policies_by_id(connection, store),
        "silenced_triggers": [_described(trigger, store) for trigger in tier.silenced],
        "fired_triggers": [_described(trigger, store) for trigger in tier.fired],
        "skipped": list(store.skipped),
        "spec": store.spec.model_dump(mode="json", by_alias=True),
        # The first root is the main one, and jsonb keeps no order of keys.
        "entity_order": list(store.spec.entities),
        "unsupported": traps.unsupported(connection, store),
        "warnings": traps.warnings(connection, store),
    }


def _described(trigger: UserTrigger, store: Store) -> dict[str, Any]:
    """A trigger with what it does. We propose silence for all: nothing but ids changes, and no user acted."""
    return {
        "trigger": trigger.name,
        "schema": trigger.schema,
        "table": trigger.table,
        "events": trigger.events,
        "function": trigger.function,
        "does": "; ".join(triggers.deeds(trigger.language, trigger.source)),
        "proposal": "silence",
        "spec": store.spec.triggers.get(trigger.name),
        "only_merging": all((trigger.schema, trigger.table) != (m.table.schema, m.table.name) for m in store.tables),
        "definition": trigger.definition,
    }
