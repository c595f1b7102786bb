"""Children first: the references are turned to the new id, then the row itself; what most scripts begin with."""

from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.approaches import Approach, Step, change_key, turn_reference
from uuid_pipeline.engine.trials.obstacles import references_to


def steps(store: Store, entity: Entity) -> tuple[Step, ...]:
    """References, then the key."""
    return (*[turn_reference(r, entity) for r in references_to(store, entity)], change_key(entity))


CHILDREN_FIRST = Approach(
    "children first",
    "UPDATE the references, then the key",
    steps,
    moves_references=True,
    references_first=True,
)
