"""Beside the migration: documents that no re-keying can make retrievable."""

import dagster as dg

from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.retrievals import unretrievable
from uuid_pipeline.reports import unretrievable as shown
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import bullets, launchpad, table

SHOWN = 100


@dg.asset(
    group_name="reports",
    kinds={"postgres"},
    tags={"writes": "nothing"},
    description="Documents that no re-keying can make retrievable (no chunks, no vectors, failed), each with why.",
)
def unretrievable_documents(store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        snapshot = engine.connect().execution_options(isolation_level="REPEATABLE READ")
        with snapshot as connection, connection.begin():
            found = unretrievable.listed(connection, bound, SHOWN)
    return dg.MaterializeResult(
        metadata={
            "list_id": found.list_id,
            "waiting": found.waiting,
            "queued": found.queued,
            "reasons": table(shown.reasons(found)),
            f"first_{SHOWN}": table(redaction.records(bound.spec, shown.records(found))),
            "unknown": bullets(found.unknown),
            "queue_with": launchpad(
                "regenerate",
                "queue_documents",
                {"list_id": found.list_id},
                f"uuid-pipeline regenerate --queue --approve {found.list_id}",
            ),
        }
    )
