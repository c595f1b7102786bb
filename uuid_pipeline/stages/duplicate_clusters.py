"""Stage 3: rows that share a natural key."""

from collections import Counter

import dagster as dg

from uuid_pipeline.engine import duplicates, gates
from uuid_pipeline.engine.evidence import look_alikes
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.reports.clusters import cluster_records, look_alike_records
from uuid_pipeline.stages.checks import planning_check, require_stages
from uuid_pipeline.stages.document_inventory import document_inventory
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table

SHOWN = 50


@dg.asset(
    deps=[document_inventory],
    group_name="id_migration",
    kinds={"postgres"},
    tags={"writes": "ledger"},
    description="Clusters: rows of one entity with one normalised natural key, the likely survivor first.",
)
def duplicate_clusters(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        assessment = require_stages(engine, gates.PLANNING_STAGES[:2], "duplicate_clusters", context.run.run_id)
        with engine.begin() as connection:
            number = assessment.assessment_no
            clusters = duplicates.clusters(connection, bound, number)
            found = duplicates.with_consequences(connection, bound, number, clusters)
            count = sum(duplicates.counted(connection, bound, number).values())
            visible = redaction.records(bound.spec, found[:SHOWN])
            alike = look_alikes.find(connection, bound)
    kinds = Counter((cluster["entity"], cluster["kind"]) for cluster in found)
    rules = [
        {"entity": entity.name, "on_duplicate": entity.spec.on_duplicate,
         "survivor": ", ".join(entity.spec.survivor) if entity.parent is None else "decided when documents are merged",
         "merge_as_set": ", ".join(entity.spec.merge_as_set)}
        for entity in bound.entities
    ]  # fmt: skip
    return dg.MaterializeResult(
        metadata={
            "clusters": count,
            "kinds": table([{"entity": entity, "kind": kind, "clusters": n} for (entity, kind), n in kinds.items()]),
            "rules": table(rules),
            f"first_{SHOWN}": table(cluster_records(visible)),
            "look_alikes": table(look_alike_records(alike)),
        }
    )


CHECKS = [
    planning_check(
        "duplicate_clusters", "each_cluster_decided", "Each cluster of documents may merge into its survivor.",
        lambda connection, store, found: duplicates.each_cluster_decided(connection, store, found.assessment_no),
    ),
    planning_check(
        "duplicate_clusters", "never_across_users", "No cluster joins rows of different owners.",
        lambda connection, store, found: duplicates.never_across_users(connection, store, found.assessment_no),
    ),
    planning_check(
        "duplicate_clusters", "conflicts_resolvable", "What a merge displaces can be archived and brought back.",
        lambda connection, store, found: duplicates.conflicts_resolvable(connection, store, found.assessment_no),
    ),
]  # fmt: skip
