"""What is kept and for how long: the retention job, and what an erasure removes outside the ledger."""

from pathlib import Path

import dagster as dg

from uuid_pipeline.engine.privacy import erasing, retention
from uuid_pipeline.reports.tables import markdown, megabytes
from uuid_pipeline.settings import read_settings
from uuid_pipeline.stages.session import StoreResource


class RetentionConfig(dg.Config):
    """``apply``: remove what is due; without it, only say what that is."""

    apply: bool = False


@dg.op(description="Remove what the spec keeps no longer; never what an execution may need for its rollback.")
def keep_for_so_long(context: dg.OpExecutionContext, config: RetentionConfig, store: StoreResource) -> None:
    home = read_settings().home
    with store.open() as (engine, bound):
        kept = bound.spec.retention
        if config.apply:
            found = retention.apply(engine, kept, home, context.run.run_id)
        else:
            with engine.begin() as connection:
                found = retention.due(connection, kept, home)
    table = markdown([{"kind": one.kind, "name": one.name, "since": f"{one.since:%Y-%m-%d}", "rows": one.rows,
                       "size": megabytes(one.bytes)} for one in found])  # fmt: skip
    context.log.info(f"{'Removed' if config.apply else 'Due, and not removed'}: {len(found)}\n{table}")


@dg.job(
    name="retention",
    executor_def=dg.in_process_executor,
    description="Remove maps, archives, history, dumps and reports that the spec keeps no longer. Dry run by default.",
)
def retention_job() -> None:
    keep_for_so_long()


def runs_that_mention(instance: dg.DagsterInstance, ids: frozenset[str]) -> list[str]:
    """Runs whose events hold one of these ids: tables of documents for people, messages of gates."""
    sought = erasing.wanted(ids)
    return [
        run.run_id
        for run in instance.get_runs()
        if any(erasing.mentions(dg.serialize_value(entry), sought) for entry in instance.all_logs(run.run_id))
    ]


def forget_runs(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    """Delete runs with their events, and of each asset the newest materialization when it is of one of them."""
    for key in instance.all_asset_keys():
        newest = instance.get_latest_materialization_event(key)
        if newest is not None and newest.run_id in run_ids:
            instance.event_log_storage.wipe_asset(key)
    for run_id in run_ids:
        instance.delete_run(run_id)


def files_that_mention(home: Path, ids: frozenset[str]) -> list[Path]:
    """Every dump, since nothing can be taken out of one, and each report that names one of these ids."""
    dumps = sorted(path for path in (home / "backups").rglob("*") if path.is_file())
    reports = [path for path in sorted((home / "reports").rglob("*")) if path.is_file()]
    sought = erasing.wanted(ids)
    named = [path for path in reports if erasing.mentions(path.read_text(encoding="utf-8", errors="replace"), sought)]
    return [*dumps, *named]
