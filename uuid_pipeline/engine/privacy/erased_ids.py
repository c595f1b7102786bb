"""Which ids are one user's: of documents and of all below them, old and new, in store, maps and archives.

An id is one of an entity: where keys are short, a document's and a chunk's may be alike, and a number in some column
of another user's row as well.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.merges import archive as archives
from uuid_pipeline.engine.store import Entity, Store

# What an id in pg_temp.erased_ids is of, beside the names of entities; none of these is one.
USER, NATURAL_KEY = "", "natural key"


def find_ids(connection: Connection, store: Store, user: str) -> int:
    """Fill ``pg_temp.erased_ids`` with the user's own id and with those of everything that is theirs.

    What has another owner by now, or is below what has, is not among them. Returns how many documents these are (ids
    old and new of one document count once, as far as a map joins them).
    """
    sql.execute(
        connection,
        "CREATE TEMPORARY TABLE erased_ids (of text NOT NULL, id text NOT NULL, PRIMARY KEY (of, id)) ON COMMIT DROP",
    )
    main = store.main
    _add(connection, USER, sql.compose("SELECT %(user)s::text"), user)
    _add_documents(connection, main, user)
    _follow_map(connection, main)
    _leave(connection, main, sql.compose("coalesce(t.{owner}::text <> %(user)s, false)", owner=_owner(main)), user)
    for entity in store.entities:
        if entity.parent is not None:
            _add_children(connection, store, entity)
            _follow_map(connection, entity)
            elsewhere = sql.compose(
                "NOT EXISTS (SELECT FROM pg_temp.erased_ids p WHERE p.of = {of} AND p.id = t.{parent}::text)",
                of=sql.literal(entity.parent),
                parent=sql.name(entity.parent_column or ""),
            )
            _leave(connection, entity, elsewhere, user)
    # Findings name clusters by their natural key. One that does not hold the owner may be another user's, too.
    if main.spec.describe.owner in main.spec.template.fields:
        named = "SELECT natural_key FROM {inventory} WHERE owner = %(user)s"
        _add(connection, NATURAL_KEY, sql.compose(named, inventory=ledger.inventory_table(main)), user)
        mapped = sql.compose(
            "SELECT natural_key FROM {map} m WHERE {theirs}",
            map=ledger.map_table(main),
            theirs=theirs(main, "m.old_id"),
        )
        _add(connection, NATURAL_KEY, mapped)
    return _documents(connection, main)


def theirs(entity: Entity, column: str) -> sql.Composable:
    """Whether a column of the entity's key type holds an id of the user's."""
    return sql.compose(
        "{column} IN (SELECT e.id::{type} FROM pg_temp.erased_ids e WHERE e.of = {of})",
        column=sql.as_written(column),
        type=sql.Text(entity.key_type),
        of=sql.literal(entity.name),
    )


def _owner(main: Entity) -> sql.Composable:
    return sql.name(main.spec.describe.owner or "")


def _add(connection: Connection, of: str, select: sql.Composable, user: str = "") -> int:
    statement = sql.compose(
        "INSERT INTO pg_temp.erased_ids SELECT %(of)s, id FROM ({select}) found (id) WHERE id IS NOT NULL "
        "ON CONFLICT DO NOTHING",
        select=select,
    )
    return int(sql.execute(connection, statement, {"of": of, "user": user}).rowcount)


def _key_of(entity: Entity, relation: sql.Composable, where: sql.Composable) -> sql.Composable:
    return sql.compose(
        "SELECT t.{key}::text FROM {relation} t WHERE {where}", key=sql.name(entity.key), relation=relation, where=where
    )


def _add_documents(connection: Connection, main: Entity, user: str) -> None:
    """Those with this owner: in the store, in the archives, in the inventories."""
    where = sql.compose("t.{owner}::text = %(user)s", owner=_owner(main))
    for relation in [_table(main), *_archives(connection, main, main.spec.describe.owner or "")]:
        _add(connection, main.name, _key_of(main, relation, where), user)
    for column in ("key", "target_id"):
        statement = sql.compose(
            "SELECT {c}::text FROM {inventory} WHERE owner = %(user)s",
            c=sql.name(column),
            inventory=ledger.inventory_table(main),
        )
        _add(connection, main.name, statement, user)


def _table(entity: Entity) -> sql.Composable:
    return sql.table(entity.table.schema, entity.table.name)


# An archive is typed as its table is: it has the table's columns, by the names that they had then.
_ARCHIVES = r"""
SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r'
  AND c.relname LIKE 'archive\_%%' AND starts_with(c.relname, %(prefix)s)
  AND 2 = (SELECT count(*) FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attname IN (%(key)s, %(other)s) AND NOT a.attisdropped)
"""


def _archives(connection: Connection, entity: Entity, other: str) -> list[sql.Composable]:
    """The entity's archives that have its key and this other column."""
    asked = {"prefix": archives.name_of(entity.table), "key": entity.key, "other": other}
    return [sql.table(ledger.SCHEMA, row.relname) for row in sql.rows(connection, _ARCHIVES, asked)]


def _add_children(connection: Connection, store: Store, entity: Entity) -> None:
    """Rows below what is there already: in the store, in the archives, in the inventories."""
    parent, column = store.entity(entity.parent or ""), entity.parent_column or ""
    below = theirs(parent, f"t.{sql.shown(sql.name(column))}")
    for relation in [_table(entity), *_archives(connection, entity, column)]:
        _add(connection, entity.name, _key_of(entity, relation, below))
    for found in ("key", "target_id"):
        statement = sql.compose(
            "SELECT i.{c}::text FROM {inventory} i WHERE {below}",
            c=sql.name(found),
            inventory=ledger.inventory_table(entity),
            below=theirs(parent, "i.parent_key"),
        )
        _add(connection, entity.name, statement)


def _follow_map(connection: Connection, entity: Entity) -> None:
    """Old ids of new ones and new ids of old ones, until there are no more: a plan after a rollback adds a hop."""
    steps = [
        sql.compose(
            "SELECT m.{other}::text FROM {map} m WHERE {theirs}",
            other=sql.name(other),
            map=ledger.map_table(entity),
            theirs=theirs(entity, f"m.{one}"),
        )
        for one, other in (("old_id", "new_id"), ("new_id", "old_id"))
    ]
    while sum([_add(connection, entity.name, step) for step in steps]):
        continue


def _leave(connection: Connection, entity: Entity, anothers: sql.Composable, user: str) -> None:
    """Take out the ids of rows that are another's: given away since, or of somebody who had an id before or after.

    Such a row may be under the id itself, or under the other one of a map; what a row of the user's own is under stays.
    """
    column = entity.parent_column if entity.parent else entity.spec.describe.owner
    for source in [_table(entity), *_archives(connection, entity, column or "")]:
        statement = sql.compose(
            """WITH found AS MATERIALIZED (
                   SELECT t.{key} AS key, {anothers} AS anothers FROM {source} t WHERE {reached}),
               led AS (SELECT m.old_id AS key FROM {map} m JOIN found f ON f.key = m.new_id AND f.anothers
                       UNION SELECT m.new_id FROM {map} m JOIN found f ON f.key = m.old_id AND f.anothers)
               DELETE FROM pg_temp.erased_ids e WHERE e.of = %(of)s AND e.id IN (
                   SELECT f.key::text FROM found f WHERE f.anothers
                   UNION ALL
                   (SELECT l.key::text FROM led l EXCEPT SELECT f.key::text FROM found f WHERE NOT f.anothers))""",
            key=sql.name(entity.key),
            source=source,
            reached=theirs(entity, f"t.{sql.shown(sql.name(entity.key))}"),
            anothers=anothers,
            map=ledger.map_table(entity),
        )
        sql.execute(connection, statement, {"of": entity.name, "user": user})


def _documents(connection: Connection, main: Entity) -> int:
    """Ids that are no other one's old id."""
    statement = sql.compose(
        """SELECT count(*) FROM pg_temp.erased_ids e WHERE e.of = %(of)s
           AND NOT EXISTS (SELECT FROM {map} m WHERE m.old_id::text = e.id AND m.old_id <> m.new_id)""",
        map=ledger.map_table(main),
    )
    return int(sql.scalar(connection, statement, {"of": main.name}))
