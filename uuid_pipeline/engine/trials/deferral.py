"""Children first with every constraint deferred that can be, so that foreign keys are looked at when all is moved."""

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials import children_first
from uuid_pipeline.engine.trials.approaches import Approach, Step


def steps(store: Store, entity: Entity) -> tuple[Step, ...]:
    """Defer, then as children first."""
    return (Step("SET CONSTRAINTS ALL DEFERRED", sql.Text("SET CONSTRAINTS ALL DEFERRED")),
            *children_first.steps(store, entity))  # fmt: skip


DEFERRAL = Approach(
    "deferrable constraints",
    "SET CONSTRAINTS ALL DEFERRED, UPDATE the references, then the key",
    steps,
    moves_references=True,
    references_first=True,
    defers=True,
)
