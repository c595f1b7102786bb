"""Traps of a store, recognised before anything is touched: what is refused, and what is handled but worth saying.

Each stands with its reason in docs/traps.md. What the catalogs cannot answer is tried: as a statement that is planned
and not run, or as an expression over a sample of rows.
"""

import re
from collections.abc import Iterator, Mapping

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.altered.silencing import DEPARSED
from uuid_pipeline.engine.altered.triggers import ROW_DEED, Tier, choose, deeds
from uuid_pipeline.engine.batches.aside import in_reach
from uuid_pipeline.engine.installed import alias_scope
from uuid_pipeline.engine.merges import checks
from uuid_pipeline.engine.store import MovedTable, Store

SAMPLED_ROWS = 10_000
OLD_TRANSACTION_SECONDS = 60


def unsupported(connection: Connection, store: Store) -> list[str]:
    """Traps that this version refuses, one sentence each."""
    catalogs.pin_names(connection)
    tried = [
        fault
        for moved in store.tables
        if moved.table.kind in ("r", "p")
        for fault in (*_update_faults(connection, moved), *_check_faults(connection, moved))
    ]
    found = of_tables(store) + list(choose(connection, store).refusals) + tried + _identity_faults(connection, store)
    found += _busy_faults(connection, store) + _ddl_faults(connection)
    return found + alias_scope.left_out(connection, store)


def of_tables(store: Store) -> list[str]:
    """Those that the catalog tells of the tables that move and of their foreign keys: no batch may write there."""
    tables = [fault for moved in store.tables for fault in _table_faults(moved)]
    return tables + _outgoing_faults(store) + _generated_key_faults(store)


def _where(moved: MovedTable) -> str:
    return f"{moved.table.schema}.{moved.table.name}"


def _table_faults(moved: MovedTable) -> list[str]:
    table, where = moved.table, _where(moved)
    plain = catalogs.why_not_plain(table)
    types = [
        f"{where}.{column} is {table.columns[column].type}; a reference must be uuid or text"
        for column, _ in moved.columns
        if table.columns[column].type.split("(")[0] not in ("uuid", "text", "character varying")
    ]
    generated = [f"{where}.{column} is generated" for column, _ in moved.columns if table.columns[column].generated]
    folding = [
        f"{where}.{column} has a collation that takes different texts for equal: which an id is could not be told"
        for column in dict.fromkeys([*dict(moved.columns), *[reference.column for reference in moved.embedded]])
        if table.columns[column].folds
    ]
    return ([f"{where} {plain}"] if plain else []) + types + generated + folding + _too_short(moved)


_LIMITED = re.compile(r"character varying\((\d+)\)(\[\])?")


def _too_short(moved: MovedTable) -> list[str]:
    """Columns that hold ids and have no room for a target id, whose text takes 36 characters."""
    columns = [column for column, _ in moved.columns] + [reference.column for reference in moved.embedded]
    limits = {column: _LIMITED.fullmatch(moved.table.columns[column].type) for column in columns}
    return [
        f"{_where(moved)}.{column} is {limit[0]}: a target id takes 36 characters; give it room: ALTER TABLE "
        f"{sql.shown(sql.table(moved.table.schema, moved.table.name))} ALTER {sql.shown(sql.name(column))} "
        f"TYPE varchar(36){limit[2] or ''};"
        for column, limit in limits.items()
        if limit and int(limit[1]) < 36
    ]


def _update_faults(connection: Connection, moved: MovedTable) -> list[str]:
    """What the server says to an UPDATE that is planned and not run: replica identity, filters of publications."""
    columns = [column for column, _ in moved.columns] + [reference.column for reference in moved.embedded]
    written = [column for column in dict.fromkeys(columns) if not moved.table.columns[column].generated]
    if not written:
        return []
    assignments = [sql.compose("{c} = {c}", c=sql.name(column)) for column in written]
    statement = sql.compose(
        "EXPLAIN UPDATE {table} SET {assignments}",
        table=sql.table(moved.table.schema, moved.table.name),
        assignments=sql.join(", ", assignments),
    )
    refused = _refused(connection, statement)
    return [f"every UPDATE of {_where(moved)} fails: {refused}"] if refused else []


def _refused(connection: Connection, statement: sql.Composable) -> str | None:
    """The server's own words when it refuses a statement; a missing right is `missing_rights`' matter."""
    savepoint = connection.begin_nested()
    try:
        sql.execute(connection, statement)
    except DBAPIError as error:
        if sql.sqlstate(error) == sql.INSUFFICIENT_PRIVILEGE:
            return None
        return " ".join(str(error.orig).split())
    else:
        return None
    finally:
        savepoint.rollback()


def _check_faults(connection: Connection, moved: MovedTable) -> Iterator[str]:
    ids = {column: _stand_in(moved, column) for column, _ in moved.columns}
    for check in checks.read(connection, moved.table):
        name = f"CHECK {check.name} on {_where(moved)}"
        if not check.validated and _violated(connection, moved, check, {}):
            yield f"{name} is NOT VALID and rows violate it, so every UPDATE of these fails: mend the rows, or drop it"
        elif ids.keys() & check.columns and _violated(connection, moved, check, ids):
            yield f"{name} does not hold when ids are UUIDs of version 5: ({check.expression})"


def _violated(
    connection: Connection, moved: MovedTable, check: checks.Check, stand_ins: Mapping[str, sql.Composable]
) -> bool:
    """Whether a row violates the CHECK: any row as it is, or one of a sample with other ids."""
    statement = sql.compose(
        "SELECT EXISTS (SELECT FROM (SELECT * FROM {table} {limit}) t WHERE {fails})",
        table=sql.table(moved.table.schema, moved.table.name),
        limit=sql.compose("LIMIT {rows}", rows=sql.literal(SAMPLED_ROWS)) if stand_ins else sql.Text(""),
        fails=checks.fails(moved.table, check, stand_ins),
    )
    return bool(sql.scalar(connection, statement))


def _stand_in(moved: MovedTable, column: str) -> sql.Composable:
    """For a target id, which is not known yet: one for one, version 5, and random to look at."""
    kind = moved.table.columns[column].type
    if kind.split("(")[0] not in ("uuid", "text", "character varying"):
        return sql.compose("t.{c}", c=sql.name(column))
    return sql.compose(
        "overlay(overlay(md5(t.{c}::text) PLACING '5' FROM 13) PLACING 'a' FROM 17)::uuid{as_text}",
        c=sql.name(column),
        as_text=sql.Text("::text" if kind != "uuid" else ""),
    )


def _outgoing_faults(store: Store) -> list[str]:
    """Foreign keys from a moved column to one that does not move with it: silent orphans in replica role."""
    moved = {(m.table.schema, m.table.name, column): entity for m in store.tables for column, entity in m.columns}
    return [
        f"{key.table}.{column} moves as {entity}, but its foreign key {key.name} refers to "
        f"{key.target_schema}.{key.target}.{target}, which does not move with it"
        for key in store.catalog.foreign_keys
        for column, target in zip(key.columns, key.target_columns, strict=True)
        for entity in [moved.get((key.table_schema, key.table, column))]
        if entity is not None and moved.get((key.target_schema, key.target, target)) != entity
    ]


def _generated_key_faults(store: Store) -> list[str]:
    """Foreign keys from or to a generated column of a moved table: it may be computed anew, its other end not."""
    generated = {
        (moved.table.schema, moved.table.name, column.name)
        for moved in store.tables
        for column in moved.table.columns.values()
        if column.generated and column.name not in dict(moved.columns)
    }
    return [
        f"the foreign key {key.name} of {key.table_schema}.{key.table} takes part in the generated column "
        f"{schema}.{table}.{column}, which may change with the ids of its row"
        for key in store.catalog.foreign_keys
        for schema, table, columns in (
            (key.table_schema, key.table, key.columns),
            (key.target_schema, key.target, key.target_columns),
        )
        for column in columns
        if (schema, table, column) in generated
    ]


# Until 14 the column itself depends on what its expression reads, since 15 the expression does.
_COMPUTED_FROM = """
SELECT g.attname AS column, s.attname AS source
FROM pg_attrdef e JOIN pg_attribute g ON (g.attrelid, g.attnum) = (e.adrelid, e.adnum) AND g.attgenerated <> ''
JOIN pg_depend d ON (d.classid, d.objid) = ('pg_attrdef'::regclass, e.oid)
                 OR (d.classid, d.objid, d.objsubid) = ('pg_class'::regclass, e.adrelid, e.adnum)
JOIN pg_attribute s ON (s.attrelid, s.attnum) = (d.refobjid, d.refobjsubid) AND s.attnum <> g.attnum
WHERE e.adrelid = %(oid)s AND d.refclassid = 'pg_class'::regclass ORDER BY 1, 2
"""


def _identity_faults(connection: Connection, store: Store) -> list[str]:
    """Identities that use a generated column which is computed from an id: they change with what they determine."""
    ids = {moved.table.oid: {column for column, _ in moved.columns} for moved in store.tables}
    return [
        f"the identity of {entity.name} uses {entity.table.name}.{row.column}, which the server computes from "
        f"{row.source}: it changes with the id that it is to determine; use the columns that it is made of"
        for entity in store.entities
        for row in sql.rows(connection, _COMPUTED_FROM, {"oid": entity.table.oid})
        if row.column in entity.spec.template.fields and row.source in ids[entity.table.oid]
    ]


def _busy_faults(connection: Connection, store: Store) -> list[str]:
    """The spec's predicate is tried on no row, with the names in reach that a batch gives it."""
    faults = []
    for entity in store.entities:
        if entity.spec.busy is None:
            continue
        if entity.parent is not None:
            faults.append(f"the spec tells when a {entity.name} is busy; only a document can wait, so say it there")
            continue
        statement = sql.compose(
            "SELECT FROM {table} WHERE ({busy}) LIMIT 0",
            table=sql.name(entity.table.name),
            busy=sql.as_written(entity.spec.busy),
        )
        with in_reach(connection, entity.table.schema):
            refused = _refused(connection, statement)
        if refused:
            faults.append(
                f"the spec's busy predicate of {entity.name} is no condition on {entity.table.name}: {refused}"
            )
    return faults


_ACTIVE_EVENT_TRIGGERS = """
SELECT string_agg(quote_ident(evtname), ', ' ORDER BY evtname) FROM pg_event_trigger
WHERE evtenabled <> 'D' AND evtevent <> 'login'
"""

# What a wave needs besides the ledger: scratch tables, made and dropped, and triggers.
_DDL = """
DO $$ BEGIN
    CREATE TEMPORARY TABLE uuid_pipeline_tried (id uuid);
    CREATE TRIGGER tried BEFORE UPDATE ON pg_temp.uuid_pipeline_tried
        FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
    DROP TABLE pg_temp.uuid_pipeline_tried;
END $$
"""


def _ddl_faults(connection: Connection) -> list[str]:
    """Event triggers may refuse what a wave does to tables of its own and to the application's."""
    names = sql.scalar(connection, _ACTIVE_EVENT_TRIGGERS)
    refused = _refused(connection, sql.Text(_DDL)) if names else None
    return [
        f"an event trigger ({names}) refuses what waves need, CREATE TRIGGER and temporary tables: {refused}; disable "
        "it for as long as it takes, until finalize, or let it pass this role"
    ] if refused else []  # fmt: skip


def warnings(connection: Connection, store: Store) -> list[str]:
    """What is handled, or is none of our business, and still worth saying before it happens."""
    catalogs.pin_names(connection)
    values = {"oids": [moved.table.oid for moved in store.tables], "seconds": OLD_TRANSACTION_SECONDS}
    listed = [
        row.sentence
        for statement in (
            _VIEWS,
            _INDEXES,
            _PUBLICATIONS,
            _EVENT_TRIGGERS,
            _PREPARED,
            _OLD_TRANSACTIONS,
            _NO_ENCODING,
            NO_STANDBY,
        )
        for row in sql.rows(connection, statement, values)
    ]
    tier = choose(connection, store)
    return listed + _trigger_warnings(tier) + _not_valid_keys(store, tier)


_VIEWS = """
WITH RECURSIVE over AS (
    SELECT unnest(%(oids)s::oid[]) AS oid
    UNION SELECT r.ev_class FROM over o JOIN pg_depend d ON d.refobjid = o.oid AND d.refclassid = 'pg_class'::regclass
          AND d.classid = 'pg_rewrite'::regclass JOIN pg_rewrite r ON r.oid = d.objid)
SELECT format('materialized view %%1$s shows the old ids until: REFRESH MATERIALIZED VIEW %%1$s;', c.oid::regclass)
       AS sentence
FROM pg_class c WHERE c.relkind = 'm' AND c.oid IN (SELECT oid FROM over) ORDER BY 1
"""

_INDEXES = """
SELECT format(CASE WHEN i.indisvalid THEN 'unique index %%1$s of %%2$s is over an expression: where that shortens or '
                   'folds ids, two new ones may collide in it'
              WHEN i.indisunique THEN 'unique index %%1$s of %%2$s is invalid: it does not prove its rows unique, yet '
                   'may refuse new ones; REINDEX INDEX CONCURRENTLY %%1$s;'
              ELSE 'index %%1$s of %%2$s is invalid: it serves no query and costs every batch; drop or rebuild it' END,
              i.indexrelid::regclass, i.indrelid::regclass) AS sentence
FROM pg_index i
WHERE i.indrelid = ANY(%(oids)s) AND (NOT i.indisvalid OR (i.indisunique AND i.indexprs IS NOT NULL)) ORDER BY 1
"""

# rowfilter came with 15.
_PUBLICATIONS = """
SELECT format('%%s is published by %%I: its subscribers get each moved row as an UPDATE', c.oid::regclass, p.pubname)
       || coalesce(', or as INSERT or DELETE where the filter (' || (to_jsonb(p) ->> 'rowfilter')
                   || ') reads the new row otherwise than the old', '') AS sentence
FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
WHERE c.oid = ANY(%(oids)s) ORDER BY 1
"""

_EVENT_TRIGGERS = """
SELECT format('event trigger %%I runs %%s at the statements that make our schema and triggers (%%s)', evtname,
              evtfoid::regproc, evtevent) AS sentence
FROM pg_event_trigger WHERE evtenabled <> 'D' AND evtevent <> 'login' ORDER BY 1
"""

_PREPARED = """
SELECT format('prepared transaction %%L of %%s (since %%s) keeps its locks until: COMMIT PREPARED or ROLLBACK PREPARED',
              gid, owner, to_char(prepared, 'YYYY-MM-DD HH24:MI')) AS sentence
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1
"""

# sync_state is NULL for a role that may not look.
NO_STANDBY = """
SELECT 'every commit waits for a synchronous standby, and none is connected (synchronous_standby_names is '
       || quote_literal(current_setting('synchronous_standby_names'))
       || '): until one is, or the setting is empty, nothing goes on' AS sentence
WHERE current_setting('synchronous_standby_names') <> ''
  AND current_setting('synchronous_commit') NOT IN ('off', 'local')
  AND NOT EXISTS (SELECT FROM pg_stat_replication r WHERE coalesce(r.sync_state IN ('sync', 'quorum'), true))
"""

_OLD_TRANSACTIONS = """
SELECT format('pid %%s (%%s) has had a transaction open for %%s s: batches wait for rows that it locked', pid, usename,
              round(extract(epoch FROM clock_timestamp() - xact_start))) AS sentence
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - %(seconds)s * interval '1 s' ORDER BY 1
"""


_NO_ENCODING = """
SELECT 'the database is in SQL_ASCII, so that nobody knows what a byte beyond ASCII is: the first such one in a text '
       'that is read ends the stage that reads it' AS sentence
WHERE getdatabaseencoding() = 'SQL_ASCII'
"""


def _trigger_warnings(tier: Tier) -> list[str]:
    writing = [
        f"trigger {trigger.place} fires and {deed}: a batch whose rows change in more than their ids is rolled back"
        for trigger in tier.fired
        for deed in deeds(trigger.language, trigger.source)
        if deed.startswith(ROW_DEED)
    ]
    left = [
        f"trigger {trigger.place} holds our condition ({DEPARSED}) and the ledger knows nothing of it: replace it"
        for trigger in (*tier.silenced, *tier.fired)
        if DEPARSED in trigger.definition
    ]
    return writing + left


def _not_valid_keys(store: Store, tier: Tier) -> list[str]:
    moved = {(m.table.schema, m.table.name, column) for m in store.tables for column, _ in m.columns}
    return [
        f"foreign key {key.name} of {key.table} is NOT VALID: in tier O a moved row that violates it stops its batch"
        for key in store.catalog.foreign_keys
        if tier.name == "O"
        and not key.validated
        and any((key.table_schema, key.table, column) in moved for column in key.columns)
    ]
