"""Insert a copy under the new id, turn the references to it, delete the old row."""

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.approaches import Approach, Step, new_id, old_id, relation, turn_reference
from uuid_pipeline.engine.trials.obstacles import references_to


def steps(store: Store, entity: Entity) -> tuple[Step, ...]:
    """Copy, references, delete."""
    others = [c.name for c in entity.table.columns.values() if c.name != entity.key and not c.generated]
    listed = sql.join(", ", [sql.name(column) for column in (entity.key, *others)])
    values = sql.join(", ", [new_id(entity), *[sql.name(column) for column in others]])
    key = sql.name(entity.key)
    copy = sql.compose(
        """INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE
           SELECT {values} FROM {table} WHERE {key} = {old}""",
        table=relation(entity),
        listed=listed,
        values=values,
        key=key,
        old=old_id(entity),
    )
    delete = sql.compose("DELETE FROM {table} WHERE {key} = {old}", table=relation(entity), key=key, old=old_id(entity))
    return (
        Step(f"insert a copy into {entity.table.name}", copy),
        *[turn_reference(r, entity) for r in references_to(store, entity)],
        Step(f"delete the old row of {entity.table.name}", delete),
    )


COPY_THEN_DELETE = Approach(
    "insert copy, then delete",
    "INSERT a copy under the new id, UPDATE the references, DELETE the old row",
    steps,
    inserts=True,
    moves_references=True,
)
