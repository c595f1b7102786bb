"""Stage 3: rows that share a natural key."""

import dagster as dg

from uuid_pipeline.engine import duplicates, gates
from uuid_pipeline.reports.tables import markdown
from uuid_pipeline.stages.checks import planning_check, require_stages
from uuid_pipeline.stages.document_inventory import document_inventory
from uuid_pipeline.stages.session import StoreResource


@dg.asset(
    deps=[document_inventory],
    group_name="id_migration",
    kinds={"postgres"},
    description="Clusters: rows of one entity with one normalised natural key, the likely survivor first.",
)
def duplicate_clusters(store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        assessment = require_stages(engine, gates.PLANNING_STAGES[:2], "duplicate_clusters")
        with engine.begin() as connection:
            found = duplicates.clusters(connection, bound, assessment.assessment_no, limit=50)
    shown = [{**cluster, "ids": ", ".join(cluster["ids"])} for cluster in found]
    return dg.MaterializeResult(
        metadata={"clusters_shown": len(found), "clusters": dg.MetadataValue.md(markdown(shown))}
    )


CHECKS = [
    planning_check(
        "duplicate_clusters", "each_cluster_decided", "No document shares its natural key with another.",
        lambda connection, store, found: duplicates.each_cluster_decided(connection, store, found.assessment_no),
    ),
    planning_check(
        "duplicate_clusters", "never_across_users", "No cluster joins rows of different owners.",
        lambda connection, store, found: duplicates.never_across_users(connection, store, found.assessment_no),
    ),
    planning_check(
        "duplicate_clusters", "conflicts_resolvable", "No two children of one parent claim one id.",
        lambda connection, store, found: duplicates.conflicts_resolvable(connection, store, found.assessment_no),
    ),
]  # fmt: skip
