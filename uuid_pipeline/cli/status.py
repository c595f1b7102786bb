"""``uuid-pipeline status``"""

from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from uuid_pipeline.cli import steps, watching
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import open_configured_store
from uuid_pipeline.engine import finalizing, lease, ledger, planning, sql, traps
from uuid_pipeline.engine.batches import aside
from uuid_pipeline.engine.catalog import read_catalog
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.engine.plans.approach import SHOWN
from uuid_pipeline.engine.store import bind
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports import progress, state
from uuid_pipeline.reports.tables import counts
from uuid_pipeline.settings import read_settings
from uuid_pipeline.spec import Spec, load_spec

SHOWN_EXECUTIONS = 3


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Follow the wave at work until nothing runs.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 2.0,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Show plans, executions, waves, what waits or was merged, aliases, and who is writing. Reads only."""

    def verb(answer: Answer) -> None:
        if watch and as_json:
            raise UsageError("--watch is for people; for a program: uuid-pipeline status --json, again and again.")
        settings = read_settings()
        wanted = load_spec(settings.spec)
        engine = open_configured_store(settings)
        try:
            with engine.begin() as connection:
                if not ledger.exists(connection):
                    answer.data["ledger"] = False
                    answer.data["next"] = "uuid-pipeline plan"
                    answer.say("This store has no ledger: nothing was ever assessed. Run: uuid-pipeline plan")
                    return
                ledger.require_version(connection)
                if not watch:
                    describe(connection, answer, wanted)
            if watch:
                with suppress(KeyboardInterrupt):
                    answer.say(watching.watch(engine, interval))
        finally:
            engine.dispose()

    answer_with(verb, as_json, spec)


def describe(connection: Connection, answer: Answer, spec: Spec) -> None:
    """The ledger's state in data and lines."""
    plan = planning.newest(connection)
    executions = ledger.executions(connection)
    wanted = state.desired(connection)
    holder = lease.holder(connection)
    answer.data |= {
        "ledger": True,
        "plan_id": plan.plan_id if plan else None,
        "executions": [
            {"execution_id": e.execution_id, "plan_id": e.plan_id, "status": e.status,
             "desired": wanted[e.execution_id], "approved_by": e.approved_by, "approved_at": e.approved_at,
             "expires_at": e.expires_at}
            for e in executions
        ],
        "waves": state.waves(connection, [e.execution_id for e in executions[:SHOWN_EXECUTIONS]]),
        "writer": {"holder": holder.holder, "run_id": holder.run_id, "alive": holder.alive} if holder else None,
        "merged": state.merged(connection),
        "archives": state.archives(connection),
        "alias_tables": aliases.installed(connection),
        "alias_uses": state.alias_uses(connection),
        "altered": state.altered(connection),
        "waits": state.waits(connection),
        "progress": _progress(connection),
        "next": next_step(connection, spec, executions, wanted, plan, holder is not None and holder.alive),
    }  # fmt: skip
    show(answer, holder)
    answer.say(*[f"Commits: {row.sentence}" for row in sql.rows(connection, traps.NO_STANDBY)])


def _progress(connection: Connection) -> dict[str, Any] | None:
    found = progress.at_work(connection)
    return asdict(found) if found else None


def show(answer: Answer, holder: lease.Holder | None) -> None:
    """The state for people."""
    data = answer.data
    answer.say(f"Newest plan: {data['plan_id'] or 'none'}")
    if data["executions"]:
        answer.say(*show_table("Executions", [_execution(one) for one in data["executions"]]))
        waves = [
            {**{name: value for name, value in wave.items() if name != "aside"}, "set aside": counts(wave["aside"])}
            for wave in data["waves"]
        ]
        answer.say(*show_table("Waves", waves))
    for label, lines in (
        ("Merged", _merged(data["merged"])),
        ("Archives", [_archive(one) for one in data["archives"]]),
        ("Aliases", _aliases(data["alias_tables"], data["alias_uses"])),
        ("Altered, not yet put back", [f"{one['kind']} {one['object']}" for one in data["altered"]]),
        ("Waiting", [_wait(one, holder) for one in data["waits"]]),
    ):
        if lines:
            answer.say(f"{label}:", *[f"  {line}" for line in lines])
    unfinished = any(one["status"] in ("approved", "running", "rolling_back") for one in data["executions"])
    answer.say(_writer(holder, unfinished), f"Next: {data['next']}")


def _execution(one: dict[str, Any]) -> dict[str, Any]:
    """Times without fractions; what is wanted only of an execution that may still go on."""
    shown = {name: f"{value:%Y-%m-%d %H:%M} UTC" if name.endswith("_at") else value for name, value in one.items()}
    return shown | {"desired": one["desired"] if one["status"] in ("approved", "running") else ""}


def _merged(merged: dict[str, dict[str, int]]) -> list[str]:
    kinds = (
        ("archived", "archived"),
        ("repointed", "turned to the survivor"),
        ("emptied", "emptied of a reference to what is archived"),
    )
    return [f"{rows} rows of {table} {said}" for kind, said in kinds for table, rows in merged[kind].items()]


def _archive(one: dict[str, Any]) -> str:
    return f"uuid_pipeline.{one['archive']}: {one['rows']} rows (execution {one['execution_id']})"


def _aliases(tables: list[str], uses: list[dict[str, Any]]) -> list[str]:
    if not tables:
        return []
    return [f"on {', '.join(tables)}"] + [
        f"{one['entity']}: {one['uses']} uses, the last at {one['last_used']:%Y-%m-%d %H:%M:%S} UTC"
        if one["last_used"]
        else f"{one['entity']}: no old id was used yet"
        for one in uses
    ]


def _wait(one: dict[str, Any], holder: lease.Holder | None) -> str:
    since = f"{one['wave']} since {one['began_at']:%Y-%m-%d %H:%M:%S} UTC ({one['cause']}): {one['reason']}"
    if holder is not None and holder.alive:
        return since
    if one["cause"] == "pause":
        # Between two waves a run waits without the lease.
        return f"{since} (a run that waits between two waves goes on when resumed; inside a wave its process is gone)"
    return f"{since} (the process that waited is gone)"


def _writer(holder: lease.Holder | None, unfinished: bool) -> str:
    if holder is None:
        return "No run is writing to this store."
    died = "died while writing" + ("; the next run goes on where it ended" if unfinished else "")
    return f"{holder.holder} (run {holder.run_id}) {'is writing' if holder.alive else died}."


def next_step(
    connection: Connection,
    spec: Spec,
    executions: list[ledger.Execution],
    wanted: dict[str, str],
    plan: planning.Plan | None,
    live: bool,
) -> str:
    """The command to give next, and why."""
    open_one = next((e for e in executions if e.status in ("approved", "running")), None)
    if open_one is not None and wanted[open_one.execution_id] == "pause":
        return f"uuid-pipeline resume: execution {open_one.execution_id} is paused"
    if live:
        return "wait for the run that is at work"
    if ledger.rolling_back(connection):
        return "uuid-pipeline run, or uuid-pipeline rollback --all: a rollback is not finished"
    red = finalizing.red_gates(connection)
    if red:
        again = "run" if open_one is not None else "validate"
        return f"uuid-pipeline rollback --all; or mend what is wrong, then: uuid-pipeline {again}. {'; '.join(red)}"
    if open_one is None:
        return _begin(connection, spec, executions, plan)
    return _continue(connection, spec, open_one, plan)


def _stale(connection: Connection, spec: Spec, plan: planning.Plan) -> str | None:
    """Why a plan cannot be carried out under the spec and in the store of now."""
    try:
        store = bind(spec, read_catalog(connection, spec.schema_name))
    except UsageError as error:
        return " ".join(error.message.split())
    return planning.stale_reason(connection, store, plan)


def _continue(connection: Connection, spec: Spec, open_one: ledger.Execution, plan: planning.Plan | None) -> str:
    newer = plan if plan is not None and plan.assessment_no > open_one.assessment_no else None
    if open_one.status == "approved" and newer is not None and not newer.nothing_to_do:
        return f"{newer.approve_command}: the newest plan, in the place of execution {open_one.execution_id}"
    reason = _stale(connection, spec, planning.of_assessment(connection, open_one.assessment_no))
    if reason is not None and newer is not None and newer.nothing_to_do and open_one.status == "running":
        if all(wave.status in ("moved", "unneeded") for wave in ledger.waves(connection, open_one.execution_id)):
            return f"uuid-pipeline run: it validates execution {open_one.execution_id}, which has moved all"
        return f"uuid-pipeline cancel: nothing is left to move, but {steps.how_to_end(open_one)}. {reason.capitalize()}"
    if reason is not None:
        return (
            f"uuid-pipeline plan, and approve what it makes: execution {open_one.execution_id} is {open_one.status}, "
            f"and {reason}"
        )
    instead = f"; if it cannot go on: {newer.approve_command}" if newer is not None and not newer.nothing_to_do else ""
    return _go_on(connection, open_one) + instead


def _begin(connection: Connection, spec: Spec, executions: list[ledger.Execution], plan: planning.Plan | None) -> str:
    installed = aliases.installed(connection)
    if installed and finalizing.is_half_done(connection, executions):
        return f"uuid-pipeline finalize: it was interrupted, and alias triggers still stand on {', '.join(installed)}"
    # A plan made before rows moved, or went back, is about another state of the store.
    if plan is not None and not plan.nothing_to_do and not state.moved_since(connection, plan.assessment_no):
        reason = _stale(connection, spec, plan)
        return plan.approve_command if reason is None else f"uuid-pipeline plan: of plan {plan.plan_id}, {reason}"
    if plan is not None and plan.nothing_to_do and sum(plan.content["left"].values()):
        return _none_by_the_spec(plan)
    if installed:
        what = "to migrate again" if executions and executions[0].status == "rolled_back" else "for what is new"
        return f"uuid-pipeline plan, {what}; once no id of before is used any more: uuid-pipeline finalize"
    if executions and all(e.status == "finalized" for e in executions):
        return "uuid-pipeline plan, for what is new; to remove the ledger: uuid-pipeline drop-ledger"
    return "uuid-pipeline plan"


def _none_by_the_spec(plan: planning.Plan) -> str:
    """What to do where the plan moves nothing because the spec wants it so."""
    otherwise = "to move the documents that are due all the same: strategy.approach out of the spec, uuid-pipeline plan"
    if plan.content["approach"] == SHOWN["regenerate"]:
        return f"uuid-pipeline regenerate: the spec leaves ids as they are; {otherwise}"
    return f"nothing: the spec leaves ids as they are; {otherwise}"


def _go_on(connection: Connection, execution: ledger.Execution) -> str:
    left = len(aside.waiting(connection, ledger.waves(connection, execution.execution_id)))
    said = f"uuid-pipeline run: execution {execution.execution_id} is {execution.status}"
    return f"{said}, and {left} documents were busy or locked" if left else said
