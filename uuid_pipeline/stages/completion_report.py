"""Stage 8: production readiness as a page, and the report as a file."""

from pathlib import Path

import dagster as dg
from sqlalchemy import Engine

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports import evidence, readiness
from uuid_pipeline.reports.html import report as reports
from uuid_pipeline.reports.html import subject as subjects
from uuid_pipeline.reports.html.report import Bundle
from uuid_pipeline.settings import read_settings
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table
from uuid_pipeline.stages.validation_report import validation_report


class ReportConfig(dg.Config):
    """``out``: where the page goes; empty: below the home, in a directory named after the execution or plan.

    ``bundle``: where the evidence goes, a directory or a name ending in .zip; empty: none is written.
    """

    out: str = ""
    bundle: str = ""


@dg.asset(
    deps=[validation_report],
    group_name="reports",
    kinds={"html"},
    tags={"writes": "files"},
    description="The HTML report with production readiness: each criterion, how it was measured, figure, verdict.",
)
def completion_report(config: ReportConfig, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        written = _evidence(engine, bound, Path(config.bundle)) if config.bundle else None
        # One snapshot: a figure of the summary and the table below it are of one moment.
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
            report = reports.build(connection, bound, written)
        name = report.subject.name
        page, figures = reports.write(report, Path(config.out or reports.default_path(read_settings().home, name)))
    found = report.subject.readiness
    return dg.MaterializeResult(
        metadata={
            "verdict": found.verdict,
            "readiness": table(readiness.criteria(found)),
            "still_open": table(readiness.actions(found)),
            "report": dg.MetadataValue.path(str(page)),
            "figures": dg.MetadataValue.path(str(figures)),
            "criteria_ready": found.count("ready"),
            "criteria_not_ready": found.count("not ready"),
            "criteria_not_measured": found.count("not measured"),
            **({"bundle": dg.MetadataValue.path(written.path), "bundle_digest": written.digest} if written else {}),
        }
    )


def _evidence(engine: Engine, store: Store, place: Path) -> Bundle:
    """Before the report, which then shows the certificate that the bundle asks for."""
    with engine.begin() as connection:
        execution = subjects.executed(connection)
        path = evidence.write_bundle(connection, store, execution, place.absolute())
    return Bundle(str(path), evidence.digest_of(path))
