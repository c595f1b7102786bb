"""What is kept and for how long: the retention job, and what an erasure removes outside the ledger."""

import html
import json
from pathlib import Path

import dagster as dg

from uuid_pipeline.engine.gates import GATES
from uuid_pipeline.engine.privacy import retention, scrubbing
from uuid_pipeline.reports.tables import markdown, megabytes
from uuid_pipeline.settings import read_settings
from uuid_pipeline.stages.session import StoreResource

# The run that Dagster gives to events of none.
OF_NO_RUN = ""
# Results of one check that are looked through.
KEPT_RESULTS = 100_000


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


def _as_written(ids: frozenset[str]) -> frozenset[str]:
    """The ids, and what HTML and JSON make of those with quotes, ampersands or letters beyond ASCII."""
    return ids.union(*[{html.escape(one), html.escape(one, quote=False), json.dumps(one)[1:-1]} for one in ids])


def runs_that_mention(instance: dg.DagsterInstance, ids: frozenset[str]) -> list[str]:
    """Runs whose events hold one of these ids: tables of documents for people, messages of gates.

    What the alerts have shown is of no run, and is named as OF_NO_RUN.
    """
    sought = scrubbing.wanted(_as_written(ids))
    return [
        run_id
        for run_id in [*[run.run_id for run in instance.get_runs()], OF_NO_RUN]
        if any(scrubbing.mentions(dg.serialize_value(entry), sought) for entry in instance.all_logs(run_id))
    ]


def forget_runs(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    """Delete runs with their events, and what Dagster shows of assets when it is of one of them: the newest
    materialization, the results of checks."""
    for key in instance.all_asset_keys():
        newest = instance.get_latest_materialization_event(key)
        shown = {newest.run_id} if newest is not None else set[str]()
        if not shown.union(_checked_by(instance, key)).isdisjoint(run_ids):
            instance.event_log_storage.wipe_asset(key)
    for run_id in run_ids:
        if run_id == OF_NO_RUN:
            instance.event_log_storage.delete_events(run_id)
        else:
            instance.delete_run(run_id)


def _checked_by(instance: dg.DagsterInstance, asset: dg.AssetKey) -> set[str]:
    """The runs of which Dagster keeps results of this asset's gates."""
    keys = [dg.AssetCheckKey(asset, gate) for gate in GATES.get(asset.to_user_string(), ())]
    storage = instance.event_log_storage
    return {
        record.run_id
        for key in keys
        for record in storage.get_asset_check_execution_history(key, limit=KEPT_RESULTS)
        if record.run_id
    }


def dumps(home: Path) -> list[Path]:
    """Every dump of this home: nothing can be taken out of one."""
    return sorted(path for path in (home / "backups").rglob("*") if path.is_file())


def reports_that_mention(home: Path, ids: frozenset[str]) -> list[Path]:
    """Each report that names one of these ids."""
    reports = [path for path in sorted((home / "reports").rglob("*")) if path.is_file()]
    sought = scrubbing.wanted(_as_written(ids))
    return [path for path in reports if scrubbing.mentions(path.read_text(encoding="utf-8", errors="replace"), sought)]
