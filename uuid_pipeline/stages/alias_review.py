"""Whether the aliases are still needed, and what the guard has caught: for people, once a week."""

import dagster as dg

from uuid_pipeline.engine import finalizing
from uuid_pipeline.engine.installed import aliases, guard
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports.health import guard_records
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table


@dg.asset(
    group_name="health",
    kinds={"postgres"},
    tags={"writes": "nothing"},
    description="Uses of old ids by entity, whether finalize would be refused and why, and what the guard has caught.",
)
def alias_review(store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound), engine.begin() as connection:
        used = aliases.uses(connection)
        tables = aliases.installed(connection)
        guarded = guard.report(connection, bound)
        try:
            finalizing.require_quiet(connection, bound)
            verdict = "Quiet. They can go: uuid-pipeline finalize" if tables else "No aliases are installed."
        except RefusedError as error:
            verdict = error.message
    return dg.MaterializeResult(
        metadata={
            "finalize": verdict,
            "aliases": table([{"entity": u.entity, "uses": u.uses, "last_used": u.last_used} for u in used]),
            "guard": table(guard_records(guarded)),
            "tables_with_aliases": len(tables),
            **{f"uses_{use.entity}": use.uses for use in used},
            **{f"caught_{one.entity}": one.caught for one in guarded},
        }
    )
