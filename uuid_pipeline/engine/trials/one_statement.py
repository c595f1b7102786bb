"""Key and references in one statement: how this pipeline moves a row. Tried beside the others, for comparison.

Its triggers are a matter of the plan, which keeps them silent or lets them fire; here only constraints are looked at.
"""

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.approaches import Approach, Step, change_key, turn_reference
from uuid_pipeline.engine.trials.obstacles import references_to


def steps(store: Store, entity: Entity) -> tuple[Step, ...]:
    """One statement with a data-modifying CTE a reference: foreign keys are looked at when all of it is done."""
    turned = [turn_reference(r, entity).statement for r in references_to(store, entity)]
    key = change_key(entity)
    if not turned:
        return (key,)
    parts = [sql.compose("{n} AS ({s})", n=sql.name(f"r{i}"), s=s) for i, s in enumerate(turned)]
    whole = sql.compose("WITH {parts} {key}", parts=sql.join(", ", parts), key=key.statement)
    return (Step(f"UPDATE {entity.table.name} and what refers to it at once", whole),)


ONE_STATEMENT = Approach(
    "one statement",
    "UPDATE the key and all references to it in one statement, as this pipeline does",
    steps,
    at_once=True,
)
