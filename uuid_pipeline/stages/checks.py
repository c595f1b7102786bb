"""Gates as Dagster checks: evaluated by the engine, recorded in the ledger, blocking in the UI."""

from collections.abc import Callable, Iterable

import dagster as dg
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import gates, ledger
from uuid_pipeline.engine.evaluators import Evaluate, EvaluateWave, EvaluateWhole, Evaluators
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import number

# Every check made below, so that a rehearsal evaluates the same gates.
EVALUATORS = Evaluators()


# Where the rows stand that a gate's finding counts: asset and entry of its metadata.
ROWS = {
    "references_known": ("store_profile", "found_references"),
    "nothing_unsupported": ("store_profile", "tables"),
    "natural_keys_valid_or_quarantined": ("document_inventory", "quarantined"),
    "no_orphans": ("document_inventory", "orphans_by_reference"),
    "counts_agree": ("document_inventory", "id_classes"),
    "each_cluster_decided": ("duplicate_clusters", "first_50"),
    "never_across_users": ("duplicate_clusters", "first_50"),
    "conflicts_resolvable": ("duplicate_clusters", "first_50"),
    "one_target_per_natural_key": ("id_mapping", "first_50"),
    "no_collision": ("id_mapping", "first_50"),
    "backup_as_asked": ("store_backup", "tables"),
    "waves_cover_each_document_once": ("migration_plan", "waves"),
    "conservation": ("migrated_documents", "rows_by_table"),
    "documents_retrievable": ("unretrievable_documents", "first_100"),
    "whole_conservation": ("validation_report", "tables"),
    "timestamps_untouched": ("validation_report", "tables"),
    "whole_documents_retrievable": ("unretrievable_documents", "first_100"),
    "next_step_safe": ("validation_report", "waves"),
}


def check_result(result: GateResult) -> dg.AssetCheckResult:
    """What the UI shows of a gate."""
    text = result.finding if result.passed else f"{result.finding}\n\nRemedy: {result.remedy}"
    figures = {name: number(float(value)) for name, value in result.figures.items()}
    asset, entry = ROWS.get(result.gate, (None, None))
    rows = {} if asset is None else {f"rows: {entry}": dg.MetadataValue.asset(dg.AssetKey(asset))}
    return dg.AssetCheckResult(passed=result.passed, description=text, metadata={**figures, **rows})


def planning_check(stage: str, gate: str, description: str, evaluate: Evaluate) -> dg.AssetChecksDefinition:
    """A blocking check of a stage before approval, recorded for the run's assessment."""
    EVALUATORS.planning[stage, gate] = evaluate

    @dg.asset_check(asset=stage, name=gate, description=description, blocking=True)
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        with store.open() as (engine, bound), engine.begin() as connection:
            assessment = ledger.assessment_of_run(connection, context.run.run_id)
            result = evaluate(connection, bound, assessment)
            gates.record(connection, Scope(assessment=assessment.assessment_no), stage, result, context.run.run_id)
        return check_result(result)

    return check


def wave_check(
    gate: str, description: str, partitions: dg.PartitionsDefinition[str], evaluate: EvaluateWave
) -> dg.AssetChecksDefinition:
    """A blocking check of one wave, recorded for that wave of its execution."""
    EVALUATORS.wave[gate] = evaluate

    @dg.asset_check(
        asset=gates.WAVE_STAGE, name=gate, description=description, blocking=True, partitions_def=partitions
    )
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        with store.open() as (engine, bound), engine.begin() as connection:
            wave = ledger.wave(connection, context.partition_key)
            result = evaluate(connection, bound, wave)
            scope = Scope(execution=wave.execution_id, wave=wave.wave)
            gates.record(connection, scope, gates.WAVE_STAGE, result, context.run.run_id)
        return check_result(result)

    return check


def whole_check(
    gate: str, description: str, evaluate: EvaluateWhole, subject: Callable[[Connection], ledger.Execution],
    settle: Callable[[Connection, ledger.Execution], bool],
) -> dg.AssetChecksDefinition:  # fmt: skip
    """A blocking check of the whole store, told which run it is of; the last green one completes the execution."""
    EVALUATORS.whole[gate] = evaluate

    @dg.asset_check(asset=gates.VALIDATION_STAGE, name=gate, description=description, blocking=True)
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        with store.open_to_validate() as (engine, bound), engine.begin() as connection:
            execution = subject(connection)
            result = evaluate(connection, bound, execution, context.run.run_id)
            scope = Scope(execution=execution.execution_id)
            gates.record(connection, scope, gates.VALIDATION_STAGE, result, context.run.run_id)
            settle(connection, execution)
        return check_result(result)

    return check


def require_stages(engine: Engine, stages: Iterable[str], before: str, run_id: str) -> ledger.Assessment:
    """The run's assessment, once every gate of ``stages`` passed in it: blocking checks bind inside one run only."""
    with engine.begin() as connection:
        assessment = ledger.assessment_of_run(connection, run_id)
        gates.require(connection, Scope(assessment=assessment.assessment_no), stages, before)
    return assessment
