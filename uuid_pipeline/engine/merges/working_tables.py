"""The temporary tables that a batch merges with, emptied at its end.

``merged_…`` of each entity: which row goes, and what stands in its place. ``displaced``: rows that go to the archive,
by place. ``merging``: the ordinals at which the plan merges. What is turned has tables of its own (folding, emptying).
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import temporary
from uuid_pipeline.engine.merges import emptying
from uuid_pipeline.engine.merges.folding import folds
from uuid_pipeline.engine.store import Store


def make_room(connection: Connection, store: Store) -> None:
    """Make the tables that this session has not made yet."""
    for entity in store.entities:
        key = sql.as_written(entity.table.columns[entity.key].type)
        statement = sql.compose(
            """CREATE TEMPORARY TABLE IF NOT EXISTS {merged} (loser {key} PRIMARY KEY, survivor {key}, ordinal bigint)
               ON COMMIT DELETE ROWS""",
            merged=merged(store, entity.name),
            key=key,
        )
        sql.execute(connection, statement)
    sql.execute(
        connection,
        """CREATE TEMPORARY TABLE IF NOT EXISTS displaced
               (relation oid, at tid, ordinal bigint, survivor text, PRIMARY KEY (relation, at))
           ON COMMIT DELETE ROWS""",
    )
    sql.execute(connection, "CREATE TEMPORARY TABLE IF NOT EXISTS merging (ordinal bigint) ON COMMIT DELETE ROWS")
    emptying.make_room(connection)
    for fold in folds(store):
        fold.make_room(connection)


def merged(store: Store, entity: str) -> sql.Composable:
    """The temporary table (loser, survivor, ordinal); no survivor means that nothing stands in the row's place."""
    return temporary(store, f"merged_{entity}")
