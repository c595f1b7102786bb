"""Stage 1: the store as it is: tables, references, triggers, rights, traps."""

import dagster as dg

from uuid_pipeline.engine import catalog, ledger, ledger_rights, profile
from uuid_pipeline.engine.proofs import id_map
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.trials import analysis
from uuid_pipeline.reports.constraints import approach_records, entry_records
from uuid_pipeline.stages.checks import planning_check
from uuid_pipeline.stages.session import StoreResource, open_workshop
from uuid_pipeline.stages.shown import bullets, table


class ProfileConfig(dg.Config):
    """``try_on_store``: try the usual migrations on the store's own rows, rolled back, instead of on a copy."""

    try_on_store: bool = False


@dg.asset(
    group_name="id_migration",
    kinds={"postgres"},
    tags={"writes": "ledger"},
    description="What the store is made of, read from its catalogs: tables, references, triggers, rights, traps.",
)
def store_profile(
    context: dg.AssetExecutionContext, config: ProfileConfig, store: StoreResource
) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        with engine.begin() as connection:
            ledger_rights.require_unpublished(connection, bound)
            earlier = ledger.earlier_of(connection, "constraint_analysis")
        run = context.run.run_id if config.try_on_store else None
        with open_workshop() as workshop:
            tried = analysis.analyse(engine, bound, workshop, earlier, run)
        with engine.begin() as connection:
            searched = references.as_data(references.search(connection, bound))
            found = profile.describe(connection, bound) | {"search": searched, "constraint_analysis": tried}
            digest = catalog.digest(catalog.snapshot(connection, bound.catalog))
            number = ledger.begin_assessment(connection, context.run.run_id, bound.spec.digest, digest, found)
    return dg.MaterializeResult(
        metadata={
            "assessment": number,
            "server_version": found["server_version"],
            "role": found["role"],
            "tier": f"{found['tier']}: {found['tier_reason']}",
            "tables": table(found["tables"]),
            "constraint_verdict": tried["verdict"],
            "usual_approaches": table(approach_records(tried)),
            "constraint_analysis": table(entry_records(tried)),
            "constraint_analysis_tried_on": f"{tried['where'] or 'nothing'}; {tried['note']}; {tried['seconds']} s",
            "references": table(found["references"]),
            "found_references": table(searched["found"]),
            "derived_values": table(searched["derived"]),
            "searched": f"{searched['columns']} columns, {searched['rows']} rows, {searched['bytes']} bytes, "
            f"{searched['seconds']} s",
            "sampled_only": bullets(searched["sampled_only"]),
            "not_searched": bullets(searched["not_searched"]),
            "silenced_triggers": table(found["silenced_triggers"]),
            "fired_triggers": table(found["fired_triggers"]),
            "warnings": bullets(found["warnings"]),
            "skipped": bullets(found["skipped"]),
        }
    )


CHECKS = [
    # Here as well as with the map: what a wrong rule makes of clusters and references would mislead.
    planning_check(
        "store_profile", "witnesses_agree", "The rule gives the ids that the application itself printed.",
        lambda connection, store, _assessment: id_map.witnesses_agree(connection, store),
    ),
    planning_check(
        "store_profile", "every_row_visible", "No row-level security policy hides a row from the pipeline's role.",
        lambda _connection, store, _assessment: profile.rows_visible(store),
    ),
    planning_check(
        "store_profile", "references_known", "Every column found to hold known ids is declared or ignored.",
        # Of the assessment's own search: a second one would cost as much again, and could find another store.
        lambda connection, store, assessment: references.known_or_nothing_due(
            connection, store, references.from_data(assessment.profile["search"])
        ),
    ),
    planning_check(
        "store_profile", "nothing_unsupported", "No trap in the catalogs that this version does not handle.",
        lambda connection, store, _assessment: profile.nothing_unsupported(connection, store),
    ),
]  # fmt: skip
