"""Stage 2: every document with its id class, priority, status and size."""

import dagster as dg

from uuid_pipeline.engine import gates, inventory
from uuid_pipeline.engine.evidence import figures, inventory_figures, lookups
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.proofs import inventoried
from uuid_pipeline.reports import inventory_tables as tables
from uuid_pipeline.reports.html.charts import markdown_image
from uuid_pipeline.reports.html.inventory_plots import plots
from uuid_pipeline.reports.tables import inventory_lines
from uuid_pipeline.stages.checks import planning_check, require_stages
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import pairs, table
from uuid_pipeline.stages.store_profile import store_profile

SHOWN = 50


@dg.asset(
    deps=[store_profile],
    group_name="id_migration",
    kinds={"postgres", "pandas"},
    tags={"writes": "ledger"},
    description="Every document: id class by recomputation, priority, status, chunks, size; users; orphans.",
)
def document_inventory(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        number = require_stages(
            engine, gates.PLANNING_STAGES[:1], "document_inventory", context.run.run_id
        ).assessment_no
        # One snapshot for counts, parents and children.
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
            inventory.take(connection, bound, number)
        with engine.begin() as connection:
            assessment = require_stages(engine, (), "document_inventory", context.run.run_id)
            summary = inventory.summarize(connection, bound, assessment)
            documents = inventory.documents(connection, bound, number, SHOWN)
            classes = inventory.id_classes(connection, bound, number)
            aside = inventory.quarantined(connection, bound, number)
            found = inventory_figures.take(connection, bound, assessment)
            figures.record(connection, "inventory", found, assessment=number)
            timed = lookups.measure_inventory(connection, bound, number)
            figures.record(connection, "lookups", timed.as_record(), assessment=number)
    visible = redaction.records(bound.spec, documents)
    shown = [{k: v for k, v in row.items() if k not in ("owner", "target_id")} for row in visible]
    return dg.MaterializeResult(
        metadata={
            "summary": pairs(inventory_lines(summary)),
            f"first_{SHOWN}_by_priority": table(shown),
            "id_classes": table([{"entity": e, **c} for e, c in classes.items()]),
            "quarantined": table(aside),
            "plots": dg.MetadataValue.md("\n\n".join(markdown_image(chart) for chart in plots(found))),
            "failure_patterns": table(tables.patterns(found)),
            "users_by_impact": table(redaction.records(bound.spec, tables.users(found))),
            "priority_parts": table(tables.priorities(found)),
            "orphans_by_reference": table(tables.orphans(found)),
            "found_by_target_id": timed.found_by_target,
            "documents": summary.documents,
            "random": summary.random,
            "deterministic": summary.deterministic,
            "stray": summary.stray,
            "orphans": summary.orphans,
            **({} if summary.consistency is None else {"consistency": summary.consistency}),
        }
    )


CHECKS = [
    planning_check(
        "document_inventory", "natural_keys_valid_or_quarantined", "Every row has a target id, or a reason why not.",
        lambda connection, store, found: inventoried.natural_keys_valid_or_quarantined(
            connection, store, found.assessment_no
        ),
    ),
    planning_check(
        "document_inventory", "no_orphans", "Every reference points at a row that exists.",
        lambda connection, store, found: inventoried.no_orphans(connection, store, found.assessment_no),
    ),
    planning_check(
        "document_inventory", "counts_agree", "As many rows were derived as each table counts, in one snapshot.",
        lambda _connection, _store, found: inventoried.counts_agree(found),
    ),
]  # fmt: skip
