"""Stage 8: the whole store against its state before."""

import dagster as dg

from uuid_pipeline.engine import ledger, validation
from uuid_pipeline.engine.evaluators import EvaluateWhole
from uuid_pipeline.engine.evidence import figures, lookups
from uuid_pipeline.engine.proofs import comparison, dangling, exactness
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.reports.readiness import performance
from uuid_pipeline.stages.checks import whole_check
from uuid_pipeline.stages.migrated_documents import migrated_documents
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table


@dg.asset(
    deps=[dg.AssetDep(migrated_documents, partition_mapping=dg.AllPartitionMapping())],
    group_name="id_migration",
    kinds={"postgres"},
    tags={"writes": "ledger"},
    description="The whole store against the state before: rows, ids, references, dates, schema.",
)
def validation_report(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open_to_validate() as (engine, bound), engine.begin() as connection:
        execution = validation.subject(connection)
        compared = comparison.of_run(connection, bound, execution, context.run.run_id)
        before = figures.latest(connection, "lookups", assessment=execution.assessment_no)
        now = lookups.measure_mapped(connection, bound, execution.assessment_no, moved=True)
        figures.record(connection, "lookups", now.as_record(), execution=execution.execution_id)
        waves = [
            {"wave": wave.wave, "status": wave.status, **validation.accounted(connection, bound, wave)}
            for wave in ledger.waves(connection, execution.execution_id)
        ]
    return dg.MaterializeResult(
        metadata={
            "execution": execution.execution_id,
            "plan_id": execution.plan_id,
            "waves": table(waves),
            "tables": table(compared),
            "performance": table(performance(lookups.from_record(before.figures) if before else None, now)),
            "found_by_target_id": now.found_by_target,
        }
    )


def _check(gate: str, description: str, evaluate: EvaluateWhole) -> dg.AssetChecksDefinition:
    return whole_check(gate, description, evaluate, validation.subject, validation.settle)


CHECKS = [
    _check(
        "whole_conservation", "Read back by the id map, every row is as before.",
        lambda connection, store, execution, run_id: comparison.whole_conservation(
            comparison.of_run(connection, store, execution, run_id)
        ),
    ),
    _check(
        "whole_no_dangling_reference", "Every reference points at a row that exists.",
        lambda connection, store, execution, _run_id: dangling.whole_no_dangling_reference(
            connection, store, execution
        ),
    ),
    _check(
        "whole_ids_exact", "Every moved row has the id that its own columns give.",
        lambda connection, store, execution, _run_id: exactness.whole_ids_exact(connection, store, execution),
    ),
    _check(
        "whole_schema_unchanged", "Columns, constraints, indexes, triggers, policies and grants are as before.",
        lambda connection, store, execution, _run_id: validation.schema_unchanged(
            connection, store, execution, "whole_schema_unchanged"
        ),
    ),
    _check(
        "timestamps_untouched", "No date or time column changed.",
        lambda connection, store, execution, run_id: comparison.timestamps_untouched(
            comparison.of_run(connection, store, execution, run_id)
        ),
    ),
    _check(
        "whole_documents_retrievable", "As many documents are found, and as their owners find them, as before.",
        lambda connection, store, execution, _run_id: retrieval.whole_documents_retrievable(
            connection, store, execution
        ),
    ),
    _check(
        "next_step_safe", "The next wave, or the end, may come.",
        lambda connection, store, execution, _run_id: validation.next_step_safe(connection, store, execution),
    ),
]  # fmt: skip
