"""Which ids are one user's: of documents and of all below them, old and new, in store, maps and archives."""

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.merges import archive as archives
from uuid_pipeline.engine.store import Entity, Store


def find_ids(connection: Connection, store: Store, user: str) -> int:
    """Fill ``pg_temp.erased_ids`` with the user's own id and with those of everything that is theirs.

    Returns how many documents these are (ids old and new of one document count once, as far as a map joins them).
    """
    sql.execute(connection, "CREATE TEMPORARY TABLE erased_ids (id text PRIMARY KEY) ON COMMIT DROP")
    main = store.main
    owner = sql.name(main.spec.describe.owner or "")
    where = sql.compose("t.{owner}::text = %(user)s", owner=owner)
    _add(connection, _key_of(main, sql.table(main.table.schema, main.table.name), where), user)
    for archive in _archives(connection, main):
        _add(connection, _key_of(main, archive, where), user)
    inventory = ledger.inventory_table(main)
    for column in ("key", "target_id"):
        statement = sql.compose(
            "SELECT {c}::text FROM {inventory} WHERE owner = %(user)s", c=sql.name(column), inventory=inventory
        )
        _add(connection, statement, user)
    _follow_map(connection, main)
    documents = _documents(connection, main)
    for entity in store.entities:
        if entity.parent is not None:
            _add_children(connection, entity)
            _follow_map(connection, entity)
    _add(connection, sql.compose("SELECT %(user)s::text"), user)
    # Findings name clusters by their natural key. One that does not hold the owner may be another user's, too.
    if main.spec.describe.owner in main.spec.template.fields:
        named = "SELECT natural_key FROM {inventory} WHERE owner = %(user)s"
        _add(connection, sql.compose(named, inventory=inventory), user)
        mapped = "SELECT natural_key FROM {map} WHERE old_id::text IN (SELECT id FROM pg_temp.erased_ids)"
        _add(connection, sql.compose(mapped, map=ledger.map_table(main)))
    return documents


def _add(connection: Connection, select: sql.Composable, user: str = "") -> int:
    statement = sql.compose(
        "INSERT INTO pg_temp.erased_ids SELECT id FROM ({select}) found (id) WHERE id IS NOT NULL "
        "ON CONFLICT DO NOTHING",
        select=select,
    )
    return int(sql.execute(connection, statement, {"user": user}).rowcount)


def _key_of(entity: Entity, relation: sql.Composable, where: sql.Composable) -> sql.Composable:
    return sql.compose(
        "SELECT t.{key}::text FROM {relation} t WHERE {where}", key=sql.name(entity.key), relation=relation, where=where
    )


# An archive is typed as its table is: it has the table's key.
_ARCHIVES = r"""
SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r'
  AND c.relname LIKE 'archive\_%%' AND starts_with(c.relname, %(prefix)s)
  AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = %(key)s)
"""


def _archives(connection: Connection, entity: Entity) -> list[sql.Composable]:
    found = sql.rows(connection, _ARCHIVES, {"prefix": archives.name_of(entity.table), "key": entity.key})
    return [sql.table(ledger.SCHEMA, row.relname) for row in found]


def _add_children(connection: Connection, entity: Entity) -> None:
    """Rows below what is there already: in the store, in the archives, in the inventories."""
    theirs = sql.compose(
        "t.{parent}::text IN (SELECT id FROM pg_temp.erased_ids)", parent=sql.name(entity.parent_column or "")
    )
    for relation in [sql.table(entity.table.schema, entity.table.name), *_archives(connection, entity)]:
        _add(connection, _key_of(entity, relation, theirs))
    for column in ("key", "target_id"):
        statement = sql.compose(
            """SELECT {c}::text FROM {inventory} WHERE parent_key::text IN (SELECT id FROM pg_temp.erased_ids)""",
            c=sql.name(column),
            inventory=ledger.inventory_table(entity),
        )
        _add(connection, statement)


def _follow_map(connection: Connection, entity: Entity) -> None:
    """Old ids of new ones and new ids of old ones, until there are no more: a plan after a rollback adds a hop."""
    steps = [
        sql.compose(
            "SELECT m.{other}::text FROM {map} m WHERE m.{one}::text IN (SELECT id FROM pg_temp.erased_ids)",
            one=sql.name(one),
            other=sql.name(other),
            map=ledger.map_table(entity),
        )
        for one, other in (("old_id", "new_id"), ("new_id", "old_id"))
    ]
    while sum([_add(connection, step) for step in steps]):
        continue


def _documents(connection: Connection, main: Entity) -> int:
    """Ids that are no other one's old id."""
    statement = sql.compose(
        """SELECT count(*) FROM pg_temp.erased_ids e
           WHERE NOT EXISTS (SELECT FROM {map} m WHERE m.old_id::text = e.id AND m.old_id <> m.new_id)""",
        map=ledger.map_table(main),
    )
    return int(sql.scalar(connection, statement))
