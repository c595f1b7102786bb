"""Which rows of the ledger are one user's: by the ids that each table is known to hold, of whichever entity.

A row of another user that names this one, an archived document that they have reviewed, say, is not theirs. A table
that is not known here, of a later day, is the user's where it has one of their ids that cannot be there by chance.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.catalog import ForeignKey, Table
from uuid_pipeline.engine.merges import archive as archives
from uuid_pipeline.engine.privacy import scrubbing
from uuid_pipeline.engine.privacy.erased_ids import USER, theirs
from uuid_pipeline.engine.privacy.scrubbing import SEARCHED_LENGTH
from uuid_pipeline.engine.store import Entity, Store

# Rows of these are what was done, not whom it was done to; they stay, without the id.
_STAYS = (
    "ledger", "assessments", "plans", "executions", "waves", "batches", "gates", "audit", "lease", "altered",
    "rewritten",
)  # fmt: skip
_EXACT = ("uuid", "text", "character varying", "character")
_LOOSE = ("text", "character varying", "json", "jsonb", "text[]")


@dataclass(frozen=True)
class LedgerTable:
    """A table of the ledger; ``columns`` are the types by name, and whether NULL is allowed."""

    name: str
    columns: Mapping[str, tuple[str, bool]]
    referenced: bool

    @property
    def relation(self) -> sql.Composable:
        return sql.table(ledger.SCHEMA, self.name)

    @property
    def stays(self) -> bool:
        return self.name in _STAYS or self.referenced

    @property
    def is_of_rows(self) -> bool:
        """Whether each of its rows is of one of the application's: what is another's there stays as it is."""
        return re.match(r"(id_map|inventory|archive|guarded)_|repointed$", self.name) is not None

    @property
    def loose(self) -> dict[str, tuple[str, bool]]:
        """Columns that may hold an id somewhere."""
        return {name: (kind, nullable) for name, (kind, nullable) in self.columns.items() if kind in _LOOSE}


_TABLES = """
SELECT c.relname AS name,
       EXISTS (SELECT FROM pg_constraint k WHERE k.confrelid = c.oid AND k.contype = 'f') AS referenced,
       json_agg(json_build_array(a.attname, format_type(a.atttypid, NULL), NOT a.attnotnull) ORDER BY a.attnum)
           AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r' AND a.attgenerated = ''
GROUP BY c.oid ORDER BY 1
"""


# An archive, with the application's table that its rows are of.
Archive = tuple[LedgerTable, Table]


def tables(connection: Connection) -> list[LedgerTable]:
    """Every table of the ledger, as the catalogs have it."""
    return [
        LedgerTable(row.name, {name: (kind, nullable) for name, kind, nullable in row.columns}, row.referenced)
        for row in sql.rows(connection, _TABLES)
    ]


def mark(connection: Connection, store: Store, found: Sequence[LedgerTable]) -> None:
    """Fill ``pg_temp.erased_rows`` with the places of the user's rows; wants what find_ids makes."""
    sql.execute(
        connection,
        "CREATE TEMPORARY TABLE erased_rows (name text NOT NULL, at tid NOT NULL, UNIQUE (name, at)) ON COMMIT DROP",
    )
    kept = _archived_tables(store, found)
    for table in found:
        condition = None if table.stays else _condition(store, table, kept.get(table.name))
        if condition is not None:
            _mark(connection, table, condition)
        elif table.name == "repointed":
            _mark_turned(connection, store, table)
    _mark_archived_along(connection, store, [(one, kept[one.name]) for one in found if one.name in kept])


def _mark(connection: Connection, table: LedgerTable, condition: sql.Composable) -> int:
    statement = sql.compose(
        """INSERT INTO pg_temp.erased_rows SELECT %(name)s, t.ctid FROM {table} t WHERE {condition}
           ON CONFLICT DO NOTHING""",
        table=table.relation,
        condition=condition,
    )
    return int(sql.execute(connection, statement, {"name": table.name}).rowcount)


def _archived_tables(store: Store, found: Sequence[LedgerTable]) -> dict[str, Table]:
    """By name of an archive the application's table that its rows are of."""
    prefixes = {archives.name_of(table): table for table in store.catalog.tables.values()}
    named = {one.name: re.sub(r"\d+$", "", one.name) for one in found if one.name.startswith("archive_")}
    return {name: prefixes[prefix] for name, prefix in named.items() if prefix in prefixes}


_OF_USER = sql.compose("SELECT e.id FROM pg_temp.erased_ids e WHERE e.of = {user}", user=sql.literal(USER))


def _condition(store: Store, table: LedgerTable, archived: Table | None) -> sql.Composable | None:
    """Whether a row ``t`` of this table is the user's; None where that is not asked of the row alone."""
    if table.name == "repointed":
        return None
    for entity in store.entities:
        if is_map_of(entity, table):
            return _any([theirs(entity, "t.old_id"), theirs(entity, "t.new_id")])
        if re.fullmatch(rf"inventory_{re.escape(entity.name)}_\d+", table.name):
            owned = [sql.compose("t.owner IN ({user})", user=_OF_USER)] if entity == store.main else []
            return _any([theirs(entity, "t.key"), *owned])
    if archived is not None:
        known = _of_archive(store, table, archived)
        return _any(known) if known else _not_by_chance(table)
    if table.name in _BY_COLUMN:
        return _any([_known_column(store, table.name, column) for column in _BY_COLUMN[table.name]])
    return _not_by_chance(table)


# Tables with ids as text, of the entity that the row names in ``entity``, or else of the main one.
_BY_COLUMN = {
    "unmoved": ("old_id",),
    "guard_samples": ("given_id", "target_id"),
    "regenerations": ("document_id", "target_id", "owner"),
    "retrieval_baseline": ("document", "target"),
}


def _known_column(store: Store, table: str, column: str) -> sql.Composable:
    if column == "owner":
        return sql.compose("t.owner IN ({user})", user=_OF_USER)
    of = sql.Text("t.entity") if table in ("unmoved", "guard_samples") else sql.literal(store.main.name)
    found = "({of}, t.{column}) IN (SELECT e.of, e.id FROM pg_temp.erased_ids e)"
    return sql.compose(found, of=of, column=sql.name(column))


def _of_archive(store: Store, table: LedgerTable, archived: Table) -> list[sql.Composable]:
    """What makes an archived row the user's: its key, owner or parent; of a row of no entity what it refers to."""
    entity = next((one for one in store.entities if one.table.oid == archived.oid), None)
    if entity is None:
        asked = [(r.column, store.entity(r.entity)) for r in store.references
                 if r.table.oid == archived.oid and r.form == "key"]  # fmt: skip
    else:
        asked = [(entity.key, entity)]
        asked += [(entity.parent_column, store.entity(entity.parent))] if entity.parent and entity.parent_column else []
    there = [(column, of) for column, of in asked if column in table.columns]
    known = [theirs(of, f"t.{sql.shown(sql.name(column))}") for column, of in there]
    owner = entity.spec.describe.owner if entity == store.main and entity else None
    if owner is not None and owner in table.columns:
        known.append(sql.compose("t.{owner}::text IN ({user})", owner=sql.name(owner), user=_OF_USER))
    return known


def _not_by_chance(table: LedgerTable) -> sql.Composable | None:
    long = sql.compose(
        "SELECT e.id FROM pg_temp.erased_ids e WHERE length(e.id) >= {length}", length=sql.literal(SEARCHED_LENGTH)
    )
    exact = [name for name, (kind, _) in table.columns.items() if kind in _EXACT]
    return _any([sql.compose("t.{c}::text IN ({long})", c=sql.name(name), long=long) for name in exact])


def _any(conditions: Sequence[sql.Composable]) -> sql.Composable | None:
    return sql.join(" OR ", conditions) if conditions else None


def _mark_turned(connection: Connection, store: Store, table: LedgerTable) -> None:
    """Rows of ``repointed``: whose own key, or what they referred to, is the user's, or whose JSON, text or array names
    it. Each is read once, however many ids there are."""
    ids: dict[str, set[str]] = defaultdict(set)
    for row in sql.rows(connection, "SELECT of, id FROM pg_temp.erased_ids"):
        ids[row.of].add(row.id)
    everything = frozenset().union(*ids.values())
    sought = scrubbing.wanted(everything)
    columns = _id_columns(store)

    def is_theirs(name: str, column: str, value: object) -> bool:
        text = value if isinstance(value, str) else json.dumps(value)
        entity = columns.get(name, {}).get(column)
        if entity is not None:
            return text in ids[entity]
        return (len(text) >= SEARCHED_LENGTH and text in everything) or scrubbing.mentions(text, sought)

    read = sql.compose(
        "SELECT t.ctid::text, t.table_name, t.row_key::text, t.before::text, t.after::text FROM {table} t",
        table=table.relation,
    )
    places = [
        at
        for rows in sql.stream(connection, read, {})
        for at, name, *texts in rows
        if any(is_theirs(name, *pair) for text in texts if text is not None for pair in json.loads(text).items())
    ]
    mark = """INSERT INTO pg_temp.erased_rows SELECT %(name)s, p::tid FROM unnest(%(places)s::text[]) p
              ON CONFLICT DO NOTHING"""
    sql.execute(connection, mark, {"name": table.name, "places": places})


def _id_columns(store: Store) -> dict[str, dict[str, str]]:
    """By "schema.table" and column the entity whose ids stand there as they are."""
    return {f"{moved.table.schema}.{moved.table.name}": dict(moved.columns) for moved in store.tables}


def _mark_archived_along(connection: Connection, store: Store, kept: Sequence[Archive]) -> None:
    """Archived rows of no entity that hang below an archived row of the user's by a key that may hold no id."""
    steps = list(_steps(store, kept))
    while sum([int(sql.execute(connection, statement, values).rowcount) for statement, values in steps]):
        continue


def _steps(store: Store, kept: Sequence[Archive]) -> Iterator[tuple[sql.Composable, dict[str, str]]]:
    entities = {entity.table.oid for entity in store.entities}
    for below, table in kept:
        if table.oid in entities:
            continue
        keys = [k for k in store.catalog.foreign_keys if (k.table_schema, k.table) == (table.schema, table.name)]
        for above, target in kept:
            for key in keys:
                of_it = (key.target_schema, key.target) == (target.schema, target.name)
                there = below.columns.keys() >= set(key.columns) and above.columns.keys() >= set(key.target_columns)
                if of_it and there and _assessment(below.name) == _assessment(above.name):
                    yield _hanging(key, below.name, above.name), {"name": below.name, "above": above.name}


def _assessment(archive: str) -> str:
    return archive.rpartition("_")[2]


def _hanging(key: ForeignKey, name: str, above: str) -> sql.Composable:
    pairs = zip(key.columns, key.target_columns, strict=True)
    return sql.compose(
        """INSERT INTO pg_temp.erased_rows
           SELECT DISTINCT %(name)s, t.ctid FROM {table} t JOIN {above} a ON {same}
           JOIN pg_temp.erased_rows e ON e.name = %(above)s AND e.at = a.ctid ON CONFLICT DO NOTHING""",
        table=sql.table(ledger.SCHEMA, name),
        above=sql.table(ledger.SCHEMA, above),
        same=sql.join(" AND ", [sql.compose("t.{a} = a.{b}", a=sql.name(a), b=sql.name(b)) for a, b in pairs]),
    )


def is_map_of(entity: Entity, table: LedgerTable) -> bool:
    """Whether this is an id map of the entity, an assessment's or the guard's."""
    name = re.escape(entity.name)
    return re.fullmatch(rf"(id_map_{name}_\d+)|(guarded_{name})", table.name) is not None
