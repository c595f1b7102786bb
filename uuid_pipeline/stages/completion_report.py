"""Stage 8: production readiness as a page, and the report as a file."""

from pathlib import Path

import dagster as dg

from uuid_pipeline.reports import readiness
from uuid_pipeline.reports.html import report as reports
from uuid_pipeline.settings import read_settings
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table
from uuid_pipeline.stages.validation_report import validation_report


class ReportConfig(dg.Config):
    """``out``: where the page goes; empty: below the home, in a directory named after the execution or plan."""

    out: str = ""


@dg.asset(
    deps=[validation_report],
    group_name="reports",
    kinds={"html"},
    tags={"writes": "files"},
    description="The HTML report with production readiness: each criterion, how it was measured, figure, verdict.",
)
def completion_report(config: ReportConfig, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        # One snapshot: a figure of the summary and the table below it are of one moment.
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
            report = reports.build(connection, bound)
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
        }
    )
