"""Beside the migration: documents that no re-keying can make retrievable."""

import dagster as dg

from uuid_pipeline.engine import redaction, unretrievable
from uuid_pipeline.reports import unretrievable as shown
from uuid_pipeline.reports.tables import markdown
from uuid_pipeline.stages.session import StoreResource

SHOWN = 100


@dg.asset(
    group_name="id_migration",
    kinds={"postgres"},
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
            "reasons": dg.MetadataValue.md(markdown(shown.reasons(found))),
            f"first_{SHOWN}": dg.MetadataValue.md(markdown(redaction.records(bound.spec, shown.records(found)))),
            "unknown": dg.MetadataValue.md("\n".join(f"- {line}" for line in found.unknown) or "_nothing_"),
            "queue_with": f"job regenerate, config list_id: {found.list_id}; "
            f"or: uuid-pipeline regenerate --queue --approve {found.list_id}",
        }
    )
