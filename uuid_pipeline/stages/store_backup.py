"""Stage 5: the backup that the spec asks for, restored and compared."""

from typing import Any

import dagster as dg

from uuid_pipeline.engine import gates
from uuid_pipeline.engine.backups import backup_gate
from uuid_pipeline.engine.backups.backup import Backup
from uuid_pipeline.stages.checks import planning_check, require_stages
from uuid_pipeline.stages.id_mapping import id_mapping
from uuid_pipeline.stages.session import StoreResource, open_workshop
from uuid_pipeline.stages.shown import pairs, table


@dg.asset(
    deps=[id_mapping],
    group_name="id_migration",
    kinds={"postgres"},
    tags={"writes": "files"},
    description="A dump of what is touched, restored into a scratch database and compared; new where none is valid.",
)
def store_backup(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound), open_workshop() as workshop:
        assessment = require_stages(engine, gates.before("store_backup"), "store_backup", context.run.run_id)
        made = backup_gate.ensure(engine, bound, assessment, workshop)
    found = {} if made is None else described(made)
    return dg.MaterializeResult(metadata={"asked": bound.spec.backup, **found})


def described(made: Backup) -> dict[str, dg.MetadataValue[Any]]:
    """A dump as the UI shows it, its sizes and times as figures to plot."""
    lines = [
        ("File", f"{made.name} on {made.machine}"), ("SHA-256", str(made.sha256)), ("Made by", str(made.tool)),
        ("Taken", f"{made.taken_at:%Y-%m-%d %H:%M:%S} UTC"), ("Restored on", str(made.restored_on)),
        ("Restored copy", "equal" if made.equal else "NOT equal: " + "; ".join(made.differences)),
        ("Left out", "; ".join(made.left_out) or "nothing"),
    ]  # fmt: skip
    return {
        "backup": dg.MetadataValue.int(made.number),
        "bytes": dg.MetadataValue.int(made.bytes or 0),
        "dump_seconds": dg.MetadataValue.float(round(made.dump_seconds or 0, 2)),
        "restore_seconds": dg.MetadataValue.float(round(made.restore_seconds or 0, 2)),
        "rows": dg.MetadataValue.int(made.rows),
        "what": pairs(lines),
        "tables": table(made.tables),
    }


CHECKS = [
    planning_check(
        "store_backup", backup_gate.GATE, "As the spec asks: restored and equal, young enough, unchanged.",
        backup_gate.as_asked,
    ),
]  # fmt: skip
