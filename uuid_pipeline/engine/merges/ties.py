"""Ties: rows that hang on several documents, so that what one batch finds there depends on what others have done."""

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.merges import emptying
from uuid_pipeline.engine.store import MovedTable, Store


def has_ties(store: Store) -> bool:
    """Whether a row of some table may hold ids of several rows of an entity: of two references, of its own table, in
    text, arrays or json; or may hang on another document's rows by a key of their own."""
    return not all(_belongs_to_one_document(moved) for moved in store.tables) or emptying.hang_together(store)


def _belongs_to_one_document(moved: MovedTable) -> bool:
    """Whether a row of this table hangs on one row of one entity, so that no two batches write it."""
    entity = moved.entity
    own = {entity.key, entity.parent_column} if entity else set()
    others = [column for column, _ in moved.columns if column not in own]
    return not moved.embedded and len(others) <= (0 if entity else 1)


def merges(connection: Connection, store: Store, wave: ledger.Wave) -> bool:
    """Whether the wave merges anything, or turns early references: these may be in rows of other documents too."""
    clauses = [
        sql.compose(
            """EXISTS (SELECT FROM {map} WHERE assessment_no = %(no)s AND (role = 'merge' OR early)
                       AND ordinal BETWEEN %(first)s AND %(last)s)""",
            map=ledger.map_table(entity),
        )
        for entity in store.entities
    ]
    values = {"no": wave.assessment_no, "first": wave.first_ordinal, "last": wave.last_ordinal}
    return bool(sql.scalar(connection, sql.compose("SELECT {any}", any=sql.join(" OR ", clauses)), values))
