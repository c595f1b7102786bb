"""Dagster's front door: assembles the definitions, nothing else."""

import dagster as dg

from uuid_pipeline.operations import schedules
from uuid_pipeline.operations.alerts.sensors import ALERTS, SENSORS, alerts_delivered
from uuid_pipeline.operations.jobs import JOBS
from uuid_pipeline.operations.owners import owned
from uuid_pipeline.stages import (
    alias_review,
    completion_report,
    determinism_certificate,
    document_inventory,
    duplicate_clusters,
    id_mapping,
    migrated_documents,
    migration_plan,
    store_backup,
    store_profile,
    unretrievable_documents,
    uuid_health,
    validation_report,
)
from uuid_pipeline.stages.session import StoreResource

defs = dg.Definitions(
    assets=owned(
        [
            store_profile.store_profile,
            document_inventory.document_inventory,
            duplicate_clusters.duplicate_clusters,
            id_mapping.id_mapping,
            store_backup.store_backup,
            migration_plan.migration_plan,
            migrated_documents.migrated_documents,
            validation_report.validation_report,
            unretrievable_documents.unretrievable_documents,
            determinism_certificate.determinism_certificate,
            completion_report.completion_report,
            uuid_health.uuid_health,
            alias_review.alias_review,
            ALERTS,
        ]
    ),
    asset_checks=[
        *store_profile.CHECKS,
        *document_inventory.CHECKS,
        *duplicate_clusters.CHECKS,
        *id_mapping.CHECKS,
        *store_backup.CHECKS,
        *migration_plan.CHECKS,
        *migrated_documents.CHECKS,
        *validation_report.CHECKS,
        *determinism_certificate.CHECKS,
        alerts_delivered,
    ],
    jobs=JOBS,
    schedules=schedules.configured(),
    sensors=SENSORS,
    resources={"store": StoreResource()},
    # What is launched from an asset's page too: else each of a wave's checks would start a process of its own.
    executor=dg.in_process_executor,
)
