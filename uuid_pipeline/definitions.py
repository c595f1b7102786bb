"""Dagster's front door: assembles the definitions, nothing else."""

import dagster as dg

from uuid_pipeline.operations.alerts.sensors import ALERTS, SENSORS, alerts_delivered
from uuid_pipeline.operations.jobs import JOBS
from uuid_pipeline.stages import (
    document_inventory,
    duplicate_clusters,
    id_mapping,
    migrated_documents,
    migration_plan,
    store_profile,
    validation_report,
)
from uuid_pipeline.stages.session import StoreResource

defs = dg.Definitions(
    assets=[
        store_profile.store_profile,
        document_inventory.document_inventory,
        duplicate_clusters.duplicate_clusters,
        id_mapping.id_mapping,
        migration_plan.migration_plan,
        migrated_documents.migrated_documents,
        validation_report.validation_report,
        ALERTS,
    ],
    asset_checks=[
        *store_profile.CHECKS,
        *document_inventory.CHECKS,
        *duplicate_clusters.CHECKS,
        *id_mapping.CHECKS,
        *migration_plan.CHECKS,
        *migrated_documents.CHECKS,
        *validation_report.CHECKS,
        alerts_delivered,
    ],
    jobs=JOBS,
    sensors=SENSORS,
    resources={"store": StoreResource()},
)
