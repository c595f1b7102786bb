"""What PostgreSQL's catalogs say of a schema: read-only, rights-independent, one statement a fact."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    not_null: bool
    generated: bool
    send_function: str | None
    folds: bool = False  # its collation takes different texts for equal
    checked: bool = False  # a CHECK constraint looks at it


@dataclass(frozen=True)
class ForeignKey:
    name: str
    table_schema: str
    table: str
    columns: tuple[str, ...]
    target_schema: str
    target: str
    target_columns: tuple[str, ...]
    on_update: str
    on_delete: str
    deferrable: bool
    validated: bool
    match_full: bool  # all its columns may be NULL together, and none alone
    period: bool  # the last column is a range, which those of the rows referred to cover together


@dataclass(frozen=True)
class Trigger:
    name: str
    table_schema: str
    table: str
    enabled: str  # O origin, D disabled, R replica, A always
    definition: str
    function: str
    on_update: bool


@dataclass(frozen=True)
class Table:
    """A relation; ``kind`` is pg_class.relkind (r table, p partitioned, v view, m materialized view, f foreign)."""

    schema: str
    name: str
    oid: int
    kind: str
    owner: str
    row_security: bool
    hides_rows: bool
    is_partition: bool
    inherits: bool
    has_rules: bool
    estimated_rows: int
    bytes: int
    columns: dict[str, Column]
    primary_key: tuple[str, ...]
    unique_keys: tuple[tuple[str, ...], ...]
    null_equal_keys: frozenset[tuple[str, ...]]  # of the unique keys those that take NULL for a value like any other
    indexed_first: frozenset[str]
    found_by: frozenset[str]  # columns by whose value an index finds rows, whatever else these hold
    found_by_element: frozenset[str]  # the same by one of the values in them: an array's


def why_not_plain(table: Table) -> str | None:
    """Why a table's rows cannot be moved, as what it is: partitioned, inheriting, with rules, no table at all."""
    faults = [
        (
            table.kind == "p" or table.is_partition,
            "is partitioned: a batch finds rows by their place (ctid), which is unique in one partition only, and a "
            "moved id could change its partition",
        ),
        (
            table.inherits and table.kind == "r" and not table.is_partition,
            "takes part in table inheritance: its key is not unique over the tables that inherit",
        ),
        (table.kind not in ("r", "p"), "is no plain table"),
        (table.has_rules, "has rewrite rules, which change what an UPDATE does"),
    ]
    return "; it ".join(fault for applies, fault in faults if applies) or None


@dataclass(frozen=True)
class Catalog:
    schema: str
    tables: dict[tuple[str, str], Table]
    foreign_keys: tuple[ForeignKey, ...]
    triggers: tuple[Trigger, ...]
    server_version: int
    elsewhere: tuple[str, ...] = ()  # where the schema has no table: the schemas that have

    def table(self, name: str) -> Table | None:
        return self.tables.get((self.schema, name))

    def names(self) -> list[str]:
        """The names of the schema's own relations."""
        return sorted(name for schema, name in self.tables if schema == self.schema)


# Tables of the schema, and those elsewhere that refer to them, directly or through others.
_TABLES = """
WITH RECURSIVE locked AS MATERIALIZED (
    -- Measuring a table takes its lock: one that somebody has whole, or waits for, would hold up whoever only looks.
    SELECT coalesce(i.indrelid, l.relation) AS oid FROM pg_locks l LEFT JOIN pg_index i ON i.indexrelid = l.relation
    WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()),
reach AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %(schema)s
    UNION SELECT f.conrelid FROM pg_constraint f JOIN reach r ON f.confrelid = r.oid WHERE f.contype = 'f')
SELECT n.nspname, c.relname, c.oid, c.relkind::text, pg_get_userbyid(c.relowner) AS owner,
       c.relrowsecurity, c.relrowsecurity AND row_security_active(c.oid) AS hides_rows,
       c.relispartition, EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) AS inherits,
       c.relkind IN ('r', 'p') AND c.relhasrules AND EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid)
           AS has_rules,
       greatest(c.reltuples, 0)::bigint AS estimated,
       CASE WHEN c.relkind NOT IN ('r', 'm', 'p') THEN 0
            WHEN c.oid IN (SELECT oid FROM locked) THEN c.relpages * current_setting('block_size')::bigint
            ELSE pg_total_relation_size(c.oid) END AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.oid IN (SELECT oid FROM reach)
ORDER BY 1, 2
"""

# A type's send function may live in any schema, so its name is taken qualified. A domain's may not take the domain, an
# array's fails where its element has none: both are read as text.
_COLUMNS = """
SELECT a.attrelid AS oid, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.attgenerated <> '',
       CASE WHEN t.typsend <> 0 AND t.typtype <> 'd'
             AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typsend = 0)
       THEN (SELECT quote_ident(n.nspname) || '.' || quote_ident(p.proname)
           FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = t.typsend) END AS send,
       coalesce((SELECT NOT c.collisdeterministic FROM pg_collation c WHERE c.oid = a.attcollation), false) AS folds,
       EXISTS (SELECT FROM pg_constraint k
               WHERE k.conrelid = a.attrelid AND k.contype = 'c' AND a.attnum = ANY(k.conkey)) AS checked
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

# NULLS NOT DISTINCT came with 15.
_KEYS = """
SELECT i.indrelid AS oid, i.indisprimary, i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AS is_key,
       array(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.position <= i.indnkeyatts ORDER BY k.position) AS columns,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_equal,
       i.indpred IS NULL AND i.indisready AND EXISTS (
           SELECT FROM pg_class x JOIN pg_am m ON m.oid = x.relam AND m.amname IN ('btree', 'hash')
           JOIN pg_opclass o ON o.oid = i.indclass[0] AND o.opcdefault
           JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                              AND a.attcollation = i.indcollation[0]
           WHERE x.oid = i.indexrelid) AS finds,
       i.indpred IS NULL AND EXISTS (SELECT FROM pg_class x JOIN pg_am m ON m.oid = x.relam AND m.amname = 'gin'
                                     WHERE x.oid = i.indexrelid) AS finds_elements
FROM pg_index i WHERE i.indrelid = ANY(%(oids)s) AND i.indisvalid ORDER BY i.indexrelid
"""

# PERIOD came with 18.
_FOREIGN_KEYS = """
SELECT f.conname, sn.nspname, s.relname,
       array(SELECT a.attname::text FROM unnest(f.conkey) WITH ORDINALITY k(n, p)
             JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.n ORDER BY k.p) AS columns,
       tn.nspname AS target_schema, t.relname AS target,
       array(SELECT a.attname::text FROM unnest(f.confkey) WITH ORDINALITY k(n, p)
             JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.n ORDER BY k.p) AS target_columns,
       f.confupdtype::text, f.confdeltype::text, f.condeferrable, f.convalidated, f.confmatchtype = 'f',
       coalesce((to_jsonb(f) ->> 'conperiod')::boolean, false) AS period
FROM pg_constraint f JOIN pg_class s ON s.oid = f.conrelid JOIN pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_class t ON t.oid = f.confrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
WHERE f.contype = 'f' AND (f.confrelid = ANY(%(oids)s) OR f.conrelid = ANY(%(oids)s))
ORDER BY sn.nspname, s.relname, f.conname
"""

# Our own triggers on the application's tables (their functions live in the ledger) are no part of what it is.
_TRIGGERS = """
SELECT g.tgname, n.nspname, c.relname, g.tgenabled::text, pg_get_triggerdef(g.oid), p.proname,
       (g.tgtype & 16) <> 0 AS on_update
FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_proc p ON p.oid = g.tgfoid AND p.pronamespace IS DISTINCT FROM to_regnamespace('uuid_pipeline')
WHERE g.tgrelid = ANY(%(oids)s) AND NOT g.tgisinternal ORDER BY n.nspname, c.relname, g.tgname
"""


def read_catalog(connection: Connection, schema: str) -> Catalog:
    """The catalog of one schema and of every table elsewhere that refers into it. Names are pinned from then on."""
    pin_names(connection)
    found = sql.rows(connection, _TABLES, {"schema": schema})
    oids = {"oids": [row.oid for row in found]}
    columns: dict[int, dict[str, Column]] = {oid: {} for oid in oids["oids"]}
    for oid, *column in sql.rows(connection, _COLUMNS, oids):
        columns[oid][column[0]] = Column(*column)
    keys: dict[int, list[Any]] = {oid: [] for oid in oids["oids"]}
    for key in sql.rows(connection, _KEYS, oids):
        keys[key.oid].append(key)
    return Catalog(
        schema=schema,
        tables={(row.nspname, row.relname): _table(row, columns[row.oid], keys[row.oid]) for row in found},
        foreign_keys=tuple(_foreign_key(row) for row in sql.rows(connection, _FOREIGN_KEYS, oids)),
        triggers=tuple(Trigger(*row) for row in sql.rows(connection, _TRIGGERS, oids)),
        server_version=int(sql.scalar(connection, "SELECT current_setting('server_version_num')")),
        elsewhere=() if found else tuple(tables_by_schema(connection)),
    )


# Tables of extensions hold nothing of the application's.
_BY_SCHEMA = """
SELECT n.nspname AS schema, count(*) AS tables FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND NOT starts_with(n.nspname, 'pg_')
  AND n.nspname NOT IN ('information_schema', 'uuid_pipeline') AND c.oid <> ALL(%(known)s::oid[])
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
GROUP BY 1 ORDER BY 1
"""


def tables_by_schema(connection: Connection, known: Sequence[int] = ()) -> dict[str, int]:
    """How many tables of the application's each schema holds, but the ``known`` (oids); schemas in order of name."""
    return {row.schema: row.tables for row in sql.rows(connection, _BY_SCHEMA, {"known": list(known)})}


def _foreign_key(row: Any) -> ForeignKey:
    parts: list[Any] = [tuple(part) if isinstance(part, list) else part for part in row]
    return ForeignKey(*parts)


def _table(row: Any, columns: dict[str, Column], keys: list[Any]) -> Table:
    own = [key for key in keys if key.columns]
    return Table(
        schema=row.nspname, name=row.relname, oid=row.oid, kind=row.relkind, owner=row.owner,
        row_security=row.relrowsecurity, hides_rows=row.hides_rows, is_partition=row.relispartition,
        inherits=row.inherits, has_rules=row.has_rules, estimated_rows=row.estimated, bytes=row.bytes,
        columns=columns,
        primary_key=next((tuple(key.columns) for key in own if key.indisprimary), ()),
        unique_keys=tuple(tuple(key.columns) for key in own if key.is_key),
        null_equal_keys=frozenset(tuple(key.columns) for key in own if key.is_key and key.nulls_equal),
        indexed_first=frozenset(key.columns[0] for key in own),
        found_by=frozenset(key.columns[0] for key in own if key.finds),
        found_by_element=frozenset(column for key in own if key.finds_elements for column in key.columns),
    )  # fmt: skip


# Everything of the schema that is not a row: what must be the same after a migration as before. Rights as they are by
# default are none that were granted: a newer server has more of them. By which index a table was clustered last is the
# business of whoever tends it.
_SNAPSHOT = """
WITH rel AS (SELECT c.*, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = ANY(%(oids)s))
SELECT 'table ' || nspname || '.' || relname AS object,
       concat_ws(' ', relkind, pg_get_userbyid(relowner), relpersistence, relrowsecurity, relforcerowsecurity,
                 relreplident, reloptions::text, nullif(relacl, acldefault('r', relowner))::text,
                 obj_description(oid, 'pg_class')) AS definition FROM rel
UNION ALL
SELECT 'column ' || nspname || '.' || relname || '.' || attname,
       concat_ws(' ', attnum, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attstorage,
                 attacl::text, pg_get_expr(adbin, adrelid))
FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = rel.oid AND d.adnum = attnum
UNION ALL
SELECT 'constraint ' || nspname || '.' || relname || '.' || conname, pg_get_constraintdef(c.oid)
FROM rel JOIN pg_constraint c ON c.conrelid = rel.oid
UNION ALL
SELECT 'index ' || rel.nspname || '.' || rel.relname || '.' || x.relname, concat_ws(' ',
       pg_get_indexdef(x.oid), i.indisvalid, i.indisready, i.indisreplident)
FROM rel JOIN pg_index i ON i.indrelid = rel.oid JOIN pg_class x ON x.oid = i.indexrelid
UNION ALL
SELECT 'trigger ' || nspname || '.' || relname || '.' || tgname, concat_ws(' ', tgenabled, pg_get_triggerdef(t.oid),
       md5(pg_get_functiondef(tgfoid)))
FROM rel JOIN pg_trigger t ON t.tgrelid = rel.oid AND NOT tgisinternal
JOIN pg_proc f ON f.oid = tgfoid AND f.pronamespace IS DISTINCT FROM to_regnamespace('uuid_pipeline')
UNION ALL
SELECT 'policy ' || nspname || '.' || relname || '.' || polname, concat_ws(' ', polcmd, polpermissive,
       array(SELECT pg_get_userbyid(r) FROM unnest(polroles) r)::text, pg_get_expr(polqual, polrelid),
       pg_get_expr(polwithcheck, polrelid))
FROM rel JOIN pg_policy p ON p.polrelid = rel.oid
UNION ALL
SELECT 'view ' || nspname || '.' || relname, md5(pg_get_viewdef(oid)) FROM rel WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'publication ' || pubname || ' of ' || nspname || '.' || relname, 'published'
FROM rel JOIN pg_publication_rel r ON r.prrelid = rel.oid JOIN pg_publication ON pg_publication.oid = r.prpubid
ORDER BY 1
"""


def snapshot(connection: Connection, catalog: Catalog) -> dict[str, str]:
    """Every object of the catalog's tables with its definition; triggers and indexes as they were before we altered
    them."""
    pin_names(connection)
    oids = [table.oid for table in catalog.tables.values()]
    found = {row.object: row.definition for row in sql.rows(connection, _SNAPSHOT, {"oids": oids})}
    for place, made in triggers_as_made(connection).items():
        name = f"trigger {'.'.join(place)}"
        enabled, _, rest = found.get(name, "").partition(" ")
        for now, before in made.items():
            if rest.startswith(now + " "):
                found[name] = f"{enabled} {before}{rest[len(now) :]}"
                break
    for index in altered_indexes(connection):
        name = f"index {index['schema']}.{index['table']}.{index['name']}"
        missing = name not in found or found[name].endswith((" f t f", " f f f"))
        if missing and (index["schema"], index["table"]) in catalog.tables:
            found[name] = f"{index['definition']} t t f"  # valid, ready; never a replica identity
    return found


def table_oid(connection: Connection, schema: str, table: str) -> int | None:
    """The table's oid as things are now; None when there is none of that name."""
    oid: int | None = sql.scalar(
        connection,
        """SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind = 'r'""",
        {"schema": schema, "table": table},
    )
    return oid


def rows_up_to(connection: Connection, table: Table, most: int) -> int:
    """How many rows a table has; of more than ``most`` no more are counted."""
    counted = sql.compose(
        "SELECT count(*) FROM (SELECT FROM {table} LIMIT %(most)s) t", table=sql.table(table.schema, table.name)
    )
    return int(sql.scalar(connection, counted, {"most": most}))


def pin_names(connection: Connection) -> None:
    """With only pg_catalog on the path, PostgreSQL writes every name qualified: the same text for every role.

    For the rest of the transaction.
    """
    sql.execute(
        connection,
        """SELECT set_config('search_path', 'pg_catalog', true), set_config('quote_all_identifiers', 'off', true),
                  set_config('standard_conforming_strings', 'on', true)""",
    )


# Asked of the catalogs, which answer whether or not the ledger is there, and is readable for this role.
_READABLE = """
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'uuid_pipeline' AND c.relname = %(table)s
                 AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
"""


def altered_triggers(connection: Connection) -> dict[tuple[str, str, str], dict[str, str]]:
    """What the ledger keeps of triggers that hold our condition now, by (schema, table, trigger)."""
    if not sql.scalar(connection, _READABLE, {"table": "altered"}):
        return {}
    rows = sql.rows(connection, "SELECT definition FROM uuid_pipeline.altered WHERE kind = 'trigger' ORDER BY object")
    records = [json.loads(row.definition) for row in rows]
    return {(record["schema"], record["table"], record["trigger"]): record for record in records}


def altered_indexes(connection: Connection) -> list[dict[str, Any]]:
    """What the ledger keeps of vector indexes that are dropped now."""
    if not sql.scalar(connection, _READABLE, {"table": "altered"}):
        return []
    rows = sql.rows(connection, "SELECT definition FROM uuid_pipeline.altered WHERE kind = 'index' ORDER BY object")
    return [json.loads(row.definition) for row in rows]


def triggers_as_made(connection: Connection) -> dict[tuple[str, str, str], dict[str, str]]:
    """By (schema, table, trigger) how definitions that we left read as the application made them.

    With our condition, or after it was taken out, in words that the server has chosen anew.
    """
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    if sql.scalar(connection, _READABLE, {"table": "rewritten"}):
        for row in sql.rows(connection, "SELECT * FROM uuid_pipeline.rewritten"):
            found[row.schema, row.table, row.trigger] = {row.rewritten: row.definition}
    for place, record in altered_triggers(connection).items():
        of_trigger = found.setdefault(place, {})
        of_trigger[record["guarded"]] = of_trigger.get(record["definition"], record["definition"])
    return found


def digest(objects: dict[str, str]) -> str:
    """SHA-256 of a snapshot."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Objects that came, went or changed, one sentence each."""
    gone = [f"{name} is gone" for name in before.keys() - after.keys()]
    new = [f"{name} is new" for name in after.keys() - before.keys()]
    changed = [
        f"{name} changed from [{before[name]}] to [{after[name]}]"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
    return sorted(gone + new + changed)
