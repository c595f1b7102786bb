"""Stage 6: the plan to approve."""

from typing import Any

import dagster as dg

from uuid_pipeline.engine import gates, inventory, planning
from uuid_pipeline.engine.plans import strategy as strategies
from uuid_pipeline.engine.rehearsals import rehearsal
from uuid_pipeline.reports import strategy
from uuid_pipeline.reports.tables import plan_lines
from uuid_pipeline.settings import read_settings
from uuid_pipeline.stages.checks import planning_check, require_stages
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import bullets, launchpad, pairs, table
from uuid_pipeline.stages.store_backup import store_backup


@dg.asset(
    deps=[store_backup],
    group_name="id_migration",
    kinds={"postgres"},
    tags={"writes": "ledger"},
    description="Id map, waves and decisions, frozen under the plan id that a person approves.",
)
def migration_plan(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        assessment = require_stages(engine, gates.before("migration_plan"), "migration_plan", context.run.run_id)
        with engine.begin() as connection:
            summary = inventory.summarize(connection, bound, assessment)
            plan = planning.make(connection, bound, assessment, summary)
            advised = strategies.of_plan(connection, planning.of_assessment(connection, plan.assessment_no))
    files = strategy.write(read_settings().home, advised)
    return dg.MaterializeResult(
        metadata={
            "plan_id": plan.plan_id,
            "plan": pairs(plan_lines(plan)),
            "strategy": dg.MetadataValue.md(strategy.render_markdown(advised)),
            "strategy_page": dg.MetadataValue.path(files.html),
            "risks": table(plan.content["risk_register"]),
            "waves": table(plan.content["waves"]),
            "silenced_triggers": table(_triggers(plan.content["silenced_triggers"])),
            "fired_triggers": table(_triggers(plan.content["fired_triggers"])),
            "warnings": bullets(assessment.profile["warnings"]),
            "approve_with": launchpad("approve", "approve_plan", {"plan_id": plan.plan_id}, advised.approve),
        }
    )


def _triggers(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = ("trigger", "table", "events", "does", "proposal", "spec")
    return [{column: trigger[column] for column in columns} for trigger in described]


CHECKS = [
    planning_check(
        "migration_plan", "waves_cover_each_document_once", "Every document that must move is in exactly one wave.",
        lambda connection, store, found: planning.waves_cover_each_document_once(
            connection, store, planning.of_assessment(connection, found.assessment_no)
        ),
    ),
    planning_check(
        "migration_plan", rehearsal.GATE, "Where the spec requires a rehearsal, it was of this spec and passed.",
        lambda connection, store, found: rehearsal.passed(
            connection, store, planning.of_assessment(connection, found.assessment_no)
        ),
    ),
]  # fmt: skip
