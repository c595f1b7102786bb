"""The store's health, looked at by a schedule or by hand; its checks alarm, and stop nothing."""

import dagster as dg

from uuid_pipeline.engine.health import history, tick
from uuid_pipeline.engine.health.checks import RULES, Check
from uuid_pipeline.engine.health.history import Tick
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports.health import check_records, figure_records
from uuid_pipeline.stages.session import StoreResource, failure
from uuid_pipeline.stages.shown import number, table


class HealthConfig(dg.Config):
    """``full``: read whole tables now. ``new_baseline``: compare latency with the last ticks' from now on."""

    full: bool = False
    new_baseline: bool = False


@dg.asset(
    group_name="health",
    kinds={"postgres"},
    tags={"writes": "ledger"},
    description="Generation, mismatch, consistency, retrieval, failures, latency: figures over time, with thresholds.",
    check_specs=[dg.AssetCheckSpec(rule.name, asset="uuid_health", description=rule.description) for rule in RULES],
)
def uuid_health(  # Dagster reads this annotation, and knows no parameter in it beside check_specs.
    context: dg.AssetExecutionContext, config: HealthConfig, store: StoreResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with store.open() as (engine, bound):
        taken = tick.take(engine, bound, context.run.run_id, full=config.full, new_baseline=config.new_baseline)
        with engine.begin() as connection:
            shown = taken or history.newest(connection)
    if shown is None:
        raise failure(RefusedError("The first tick is at this store just now; its figures come when it has ended."))
    if taken is None:
        context.log.info(f"Skipped: another tick is at this store. These are the figures of tick {shown.tick_no}")
    return dg.MaterializeResult(
        metadata=_metadata(shown), check_results=[_check_result(check) for check in shown.checks]
    )


def _metadata(shown: Tick) -> dict[str, dg.MetadataValue]:
    """Every known figure as a number, which the UI plots; what is unknown stands in the table with its reason."""
    known = {one.name: number(one.value) for one in shown.figures if one.value is not None}
    return {
        "figures": table(figure_records(shown)),
        "checks": table(check_records(shown)),
        "tick": dg.MetadataValue.int(shown.tick_no),
        "whole_tables_read": dg.MetadataValue.bool(shown.whole),
        "seconds": number(shown.seconds),
        **known,
    }


def _check_result(check: Check) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN if check.severity == "warning" else dg.AssetCheckSeverity.ERROR
    since = f" Since {check.failing_since:%Y-%m-%d %H:%M} UTC." if check.failing_since else ""
    remedy = "" if check.passed else f"\n\nWhat to do: {check.runbook}"
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=check.passed,
        severity=severity,
        description=f"{check.finding}.{since}{remedy}",
        metadata={
            "severity": check.severity,
            "runbook": check.runbook,
            **({} if check.value is None else {"figure": number(check.value)}),
            **({} if check.threshold is None else {"threshold": float(check.threshold)}),
            **({} if check.failing_since is None else {"failing_since": check.failing_since.isoformat()}),
        },
    )
