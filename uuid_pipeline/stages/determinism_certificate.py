"""Beside the stages: the certificate that every id follows from its row, by two implementations."""

import dagster as dg

from uuid_pipeline.engine import export, validation
from uuid_pipeline.engine.evidence import certificate
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table
from uuid_pipeline.stages.validation_report import validation_report


@dg.asset(
    deps=[validation_report],
    group_name="reports",
    kinds={"postgres", "python"},
    tags={"writes": "ledger"},
    description="Every id of the store made again by two implementations that share no code, counted.",
)
def determinism_certificate(store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        with engine.begin() as connection:
            execution = validation.subject(connection)
        with export.reading(engine) as connection:
            made = certificate.make(connection, bound, execution)
        with engine.begin() as connection:
            certificate.record(connection, made)
    shown = [
        {"entity": name, **{outcome: count for outcome, count in one.items() if outcome != "examples"}}
        for name, one in made["entities"].items()
    ]
    examples = [{"entity": name, **found} for name, one in made["entities"].items() for found in one["examples"]]
    return dg.MaterializeResult(
        metadata={
            "execution": execution.execution_id,
            "digest": made["digest"],
            "entities": table(shown),
            "implementations": table(made["implementations"]),
            "not_agreeing": table(examples),
            "rows": sum(one["rows"] for one in made["entities"].values()),
            "agreeing": sum(one["agreeing"] for one in made["entities"].values()),
        }
    )


@dg.asset_check(
    asset="determinism_certificate", name="implementations_agree", blocking=True,
    description="No row for which the two implementations make different ids; no gate, nothing waits for it.",
)  # fmt: skip
def implementations_agree(store: StoreResource) -> dg.AssetCheckResult:
    with store.open() as (engine, _), engine.begin() as connection:
        execution = validation.subject(connection)
        made = certificate.newest(connection, execution.execution_id)
    if made is None:
        return dg.AssetCheckResult(passed=False, description="no certificate since the last batch: run the job certify")
    differ = sum(one[certificate.DIFFER] for one in made["entities"].values())
    return dg.AssetCheckResult(
        passed=made["implementations_agree"],
        description=f"{differ} rows differ" if differ else "both implementations make the same id of every row",
        metadata={"differing": differ},
    )


CHECKS = [implementations_agree]
