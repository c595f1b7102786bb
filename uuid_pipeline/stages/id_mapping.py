"""Stage 4: old id -> target id, for every row that must move."""

import dagster as dg

from uuid_pipeline.engine import gates, lease, mapping
from uuid_pipeline.engine.plans import approach
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.proofs import id_map
from uuid_pipeline.stages.checks import planning_check, require_stages
from uuid_pipeline.stages.duplicate_clusters import duplicate_clusters
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table

SHOWN = 50


@dg.asset(
    deps=[duplicate_clusters],
    group_name="id_migration",
    kinds={"postgres", "python"},
    tags={"writes": "ledger"},
    description="The id map of every entity: old id, target id, ordinal, wave, role.",
)
def id_mapping(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        number = require_stages(engine, gates.PLANNING_STAGES[:3], "id_mapping", context.run.run_id).assessment_no
        with engine.begin() as connection:
            lease.require_none(connection)
            mapping.build(connection, bound, number, kinds=approach.wave_kinds(bound.spec.strategy))
            moves = mapping.moves(connection, bound, number)
            merges = mapping.merges(connection, bound, number)
            shown = redaction.records(bound.spec, mapping.preview(connection, bound, number, SHOWN))
    return dg.MaterializeResult(
        metadata={
            **{f"{name}_ids_to_change": count for name, count in moves.items()},
            **{f"{name}_rows_to_merge": count for name, count in merges.items()},
            f"first_{SHOWN}": table(shown),
        }
    )


CHECKS = [
    planning_check(
        "id_mapping", "witnesses_agree", "The rule gives the ids that the application itself printed.",
        lambda connection, store, _assessment: id_map.witnesses_agree(connection, store),
    ),
    planning_check(
        "id_mapping", "one_target_per_natural_key", "No two natural keys have one target id.",
        lambda connection, store, found: id_map.one_target_per_natural_key(connection, store, found.assessment_no),
    ),
    planning_check(
        "id_mapping", "no_collision", "No target id is held by a row of another natural key.",
        lambda connection, store, found: id_map.no_collision(connection, store, found.assessment_no),
    ),
    planning_check(
        "id_mapping", "recomputed_independently", "Every id again, from raw values, by a second implementation.",
        lambda connection, store, found: id_map.recomputed_independently(connection, store, found.assessment_no),
    ),
]  # fmt: skip
