"""UPDATE of the key alone, relying on ON UPDATE CASCADE for whatever refers to it."""

from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.approaches import Approach, Step, change_key


def steps(_store: Store, entity: Entity) -> tuple[Step, ...]:
    """The key, and nothing else."""
    return (change_key(entity),)


CASCADE = Approach("update with cascade", "UPDATE the key and leave the references to ON UPDATE CASCADE", steps)
