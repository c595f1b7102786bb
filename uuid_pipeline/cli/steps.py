"""The steps that verbs are made of: each runs jobs and adds to the answer what came of them."""

import logging
from dataclasses import asdict

from uuid_pipeline.cli.output import WAITS_FOR_APPROVAL, Answer
from uuid_pipeline.cli.session import PROGRESS, Session
from uuid_pipeline.cli.shown import show_clusters, show_constraints, show_inventory, show_look_alikes, show_plan
from uuid_pipeline.engine import approval, control, duplicates, lease, ledger, mapping, planning, rollback
from uuid_pipeline.engine.backups import backup, backup_gate
from uuid_pipeline.engine.batches import writing
from uuid_pipeline.engine.evidence import look_alikes
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.rehearsals import rehearsal
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.operations.runs import CheckOutcome, Outcome
from uuid_pipeline.reports import strategy
from uuid_pipeline.reports.tables import retrieval_lines, risk_lines

SHOWN_FINDING = 200


def gates_of(answer: Answer, outcome: Outcome) -> None:
    """Add a run's gates to the answer, and raise what ended it."""
    shown = answer.data.setdefault("gates", [])
    for check in outcome.checks:
        shown.append({"stage": check.asset, "gate": check.gate, "passed": check.passed, "finding": check.description})
        mark = "pass" if check.passed else "FAIL"
        answer.say(f"  [{mark}] {check.asset}.{check.gate}: {_brief(check)}")
    if outcome.error is not None:
        raise outcome.error


def _brief(check: CheckOutcome) -> str:
    """A finding's first line; of a green gate both ends of it, since JSON and UI have the whole."""
    line = check.description.splitlines()[0] if check.description else ""
    if not check.passed or len(line) <= 2 * SHOWN_FINDING:
        return line
    return f"{line[:SHOWN_FINDING].rstrip()} … {line[-SHOWN_FINDING:].lstrip()}"


def make_plan(session: Session, answer: Answer) -> planning.Plan:
    """Plan from scratch and show what came of it."""
    outcome = session.run("plan")
    if any(check.asset == "document_inventory" for check in outcome.checks):
        show_inventory(session, answer, outcome)
    answer.section("Gates of the plan")
    if any(check.asset == "migration_plan" for check in outcome.checks):
        with session.engine.begin() as connection:
            number = ledger.assessment_of_run(connection, outcome.run_id).assessment_no
            # A plan with a red gate, as before its rehearsal, has its id already.
            answer.data["plan_id"] = planning.of_assessment(connection, number).plan_id
    gates_of(answer, outcome)
    with session.engine.begin() as connection:
        assessment = ledger.assessment_of_run(connection, outcome.run_id)
        number = assessment.assessment_no
        plan = planning.of_assessment(connection, number)
        preview = mapping.preview(connection, session.store, number, 5)
        clusters = duplicates.with_consequences(
            connection, session.store, number, duplicates.clusters(connection, session.store, number)
        )
        of_clusters = duplicates.counted(connection, session.store, number)
        alike = look_alikes.find(connection, session.store)
    spec = session.store.spec
    answer.data["map_preview"] = redaction.records(spec, preview)
    clusters = redaction.records(spec, clusters)
    show_constraints(answer, assessment.profile["constraint_analysis"])
    show_plan(answer, plan)
    files = strategy.paths(session.settings.home, plan.plan_id)
    answer.data["strategy"] = {
        "approach": plan.content["approach"], "covers": plan.content["covers"],
        "markdown": str(files.markdown), "html": str(files.html),
    }  # fmt: skip
    answer.pairs([("Strategy", str(files.html))])
    show_clusters(session, answer, clusters, of_clusters)
    show_look_alikes(answer, alike)
    answer.data["plan"]["warnings"] = assessment.profile["warnings"]
    answer.say(*[f"  Warning: {line}" for line in assessment.profile["warnings"]])
    return plan


def how_to_end(execution: ledger.Execution) -> str:
    """What becomes of an open execution that cannot go on, where no plan can take its place."""
    return (
        f"execution {execution.execution_id} has begun, and not all of its waves have run. It cannot go on as things "
        "are: to finish it, give back the spec and the schema that it was approved with (while the approval holds), "
        "then: uuid-pipeline run; to end it as it is: uuid-pipeline cancel"
    )


NOT_RETRIEVABLE = "What the application is to make anew is listed, and queued on approval, by: uuid-pipeline regenerate"


def nothing_to_do(session: Session, answer: Answer, plan: planning.Plan) -> bool:
    """Whether the plan moves nothing; says why."""
    if not plan.nothing_to_do:
        return False
    empty = said_empty(session, answer)
    if empty is not None:
        message = f"{empty} Nothing to do."
    else:
        quarantined = answer.data["inventory"]["quarantined"]
        message = _why_nothing(session, answer, plan, quarantined)
        if answer.data["quarantined"] and not quarantined:
            message += " Other rows are quarantined: they are named with the inventory."
    answer.data["nothing_to_do"] = True
    answer.data["message"] = message
    answer.say("", message)
    return True


def said_empty(session: Session, answer: Answer) -> str | None:
    """That no root of the spec has a row, where it is so."""
    roots = session.store.roots
    if any(answer.data["id_classes"][root.name] for root in roots):
        return None
    tables = ", ".join(f"{root.table.schema}.{root.table.name}" for root in roots)
    return f"The store is empty: {tables} {'has' if len(roots) == 1 else 'have'} no rows."


def _why_nothing(session: Session, answer: Answer, plan: planning.Plan, quarantined: int) -> str:
    approach = session.store.spec.strategy.approach
    left = sum(plan.content["left"].values())
    if left:
        return (
            f"Nothing to do: the spec sets approach {approach}, by which {left} documents that are due keep their ids."
            + (f" {NOT_RETRIEVABLE}" if approach == "regenerate" else "")
        )
    aside = f", {quarantined} rows are quarantined." if quarantined else "."
    classes = [answer.data["id_classes"][root.name] for root in session.store.roots]
    right = sum(counts.get("deterministic", 0) for counts in classes)
    return f"Nothing to do: {right} of {sum(sum(c.values()) for c in classes)} ids are deterministic{aside}"


def wait_for_approval(session: Session, answer: Answer, plan: planning.Plan) -> None:
    """End at the plan, with the command that approves it, or with what must be finished before."""
    with session.engine.begin() as connection:
        hindered = approval.hindrance(connection, session.store, plan.plan_id)
    command = plan.approve_command
    answer.data["approve_with"] = command
    answer.data["hindered"] = hindered
    answer.exit_code = WAITS_FOR_APPROVAL
    if hindered is not None:
        answer.say("", f"Planning has moved nothing, and this plan cannot be approved yet. {hindered}")
        return
    answer.say("", f"Planning has moved nothing. To approve this plan: {command}", "and then: uuid-pipeline run")


def approve(
    session: Session, answer: Answer, plan_id: str, attested: tuple[str | None, str | None] = (None, None),
    assessment: int = 0,
) -> ledger.Execution:  # fmt: skip
    """Approve a plan; its waves become partitions. ``attested``: a provider's snapshot and when it was taken.

    ``assessment``: the one whose plan is meant, where several have that id; 0 for the newest. What was risked by
    approving is said again.
    """
    name, at = (given or "" for given in attested)
    backup_gate.attestation(name, at)
    outcome = session.run(
        "approve", approve_plan={"plan_id": plan_id, "assessment": assessment, "attest": name, "attested_at": at}
    )
    if outcome.error is not None:
        raise outcome.error
    with session.engine.begin() as connection:
        execution = ledger.unfinished(connection)
        if execution is None:
            raise RefusedError(f"Plan {plan_id} was approved, but its execution has ended. See: uuid-pipeline status")
        names = [wave.wave for wave in ledger.waves(connection, execution.execution_id)]
        content = planning.of_assessment(connection, execution.assessment_no).content
        held = backup_gate.of_execution(connection, execution.execution_id)
    answer.data["risks"] = content["risks"]
    answer.data["backup"] = None if held is None else {"mode": held.mode, "name": held.name, "taken_at": held.taken_at}
    answer.data["plan_id"] = plan_id
    answer.data["execution_id"] = execution.execution_id
    answer.say("", f"Approved: plan {plan_id}, execution {execution.execution_id}, waves {', '.join(names)}")
    if held is not None and held.mode == "attested":
        answer.say(f"  Backup: the attested snapshot {held.name} of {held.taken_at:%Y-%m-%d %H:%M} UTC")
    answer.say(*[f"  Approved with the risk: {said}" for said in risk_lines(content)])
    return execution


def open_execution(session: Session, answer: Answer) -> ledger.Execution | None:
    """The open execution; None, and why, where the newest plan leaves nothing to carry out.

    Raises RefusedError when no plan is approved that moves anything.
    """
    with session.engine.begin() as connection:
        execution = ledger.unfinished(connection)
        if execution is not None:
            return execution
        newest = planning.newest(connection)
        of_newest = [e for e in ledger.executions(connection) if newest and e.assessment_no == newest.assessment_no]
        back = ledger.rolling_back(connection)
        stale = newest is not None and planning.stale_reason(connection, session.store, newest) is not None
    if back:
        raise RefusedError(
            f"Refused: execution {back[0].execution_id} is being rolled back. Run: uuid-pipeline rollback --all"
        )
    if newest is not None and newest.nothing_to_do:
        answer.data["message"] = f"Nothing to migrate: plan {newest.plan_id} moves nothing."
    elif of_newest and of_newest[0].status in ("completed", "finalized"):
        done = f"execution {of_newest[0].execution_id} of the newest plan is {of_newest[0].status}"
        answer.data["message"] = f"Nothing to migrate: {done}."
    elif newest is None or of_newest or stale:
        raise RefusedError("Refused: no plan is approved. Run: uuid-pipeline plan")
    else:
        raise RefusedError(f"Refused: no plan is approved. Run: {newest.approve_command}")
    answer.say(answer.data["message"])
    return None


def migrate(
    session: Session, answer: Answer, execution: ledger.Execution, only: str | None = None, begun: bool = False
) -> None:
    """Carry out the execution's waves in order, or one of them; each ends with its gates.

    A paused execution is refused, unless this run has ``begun`` it before it was paused: then it is waited for.
    """
    answer.data["execution_id"] = execution.execution_id
    answer.data["plan_id"] = execution.plan_id
    shown = answer.data.setdefault("waves", [])
    with session.engine.begin() as connection:
        writer = lease.holder(connection)
        if not begun and (writer is None or not writer.alive):  # else the lease itself refuses, and says whose it is
            control.require_not_paused(connection, execution.execution_id)
        waves = ledger.waves(connection, execution.execution_id)
    chosen = [wave for wave in waves if only is None or wave.is_called(only)]
    if not chosen:
        raise RefusedError(f"Execution {execution.execution_id} has no wave {only}. It has: {_names(waves)}.")
    # A home that lost its Dagster database still knows its waves from the ledger.
    session.instance.add_dynamic_partitions("waves", [wave.wave for wave in waves])
    for wave in chosen:
        if _unneeded(session, wave):
            continue
        size = "what arrived meanwhile" if wave.kind == "sweep" else f"{wave.documents} documents"
        answer.section(f"Wave {wave.wave}: {size}")
        record = {"wave": wave.wave, "kind": wave.kind, "documents": wave.documents, "status": "failed"}
        shown.append(record)
        outcome = _carry_out(session, wave, begun)
        if not outcome.checks:
            record["status"] = _without_checks(session, wave)
        gates_of(answer, outcome)
        begun = True
        # A sweep knows what it takes only when it has looked.
        record |= {"status": "moved", "documents": _now(session, wave).documents}


def _without_checks(session: Session, wave: ledger.Wave) -> str:
    """What became of a wave whose run ended before its gates: refused, it may be another run's, which goes on."""
    with session.engine.begin() as connection:
        writer = lease.holder(connection)
        now = ledger.wave(connection, wave.wave).status
    return now if now == "moved" or (writer is not None and writer.alive) else "failed"


def _carry_out(session: Session, wave: ledger.Wave, begun: bool) -> Outcome:
    """Run a wave; where this run has begun the execution, a pause that comes before it is waited out, and whoever took
    the lease in between is waited for."""
    say = logging.getLogger(PROGRESS).info
    while True:
        if begun:
            control.await_resumption(session.engine, wave, say)
            lease.await_release(session.engine)
        outcome = session.run("migrate", partition=wave.wave)
        # The pause may have come while the run of the wave began.
        if not begun or outcome.error is None or outcome.error.message != control.paused(wave.execution_id):
            return outcome


def _unneeded(session: Session, wave: ledger.Wave) -> bool:
    """Whether an earlier sweep found nothing, so that this one has nothing to look for."""
    return _now(session, wave).status == "unneeded"


def _now(session: Session, wave: ledger.Wave) -> ledger.Wave:
    with session.engine.begin() as connection:
        return ledger.wave(connection, wave.wave)


def _names(waves: list[ledger.Wave]) -> str:
    return ", ".join(wave.wave for wave in waves)


def wish(session: Session, answer: Answer, job: str) -> None:
    """Pause, resume or cancel the open execution, and say what that means now."""
    _finish(session.run(job))
    with session.engine.begin() as connection:
        execution = ledger.executions(connection)[0]
        writer = lease.holder(connection)
        moved = any(wave.execution_id == execution.execution_id for wave in rollback.moved_waves(connection))
    live = writer is not None and writer.alive
    cancelled = "is cancelled; to undo it: uuid-pipeline rollback --all" if moved else "is cancelled; it moved nothing"
    answer.data |= {"execution_id": execution.execution_id, "status": execution.status, "writer_alive": live}
    now = {
        "pause": "waits after its current batch" if live else "moves nothing before it is resumed",
        "resume": "goes on" if live else "may go on; where no run waits for that: uuid-pipeline run",
        "cancel": "ends after its current batch" if live else cancelled,
    }
    answer.data["message"] = f"Execution {execution.execution_id} {now[job]}."
    answer.say(answer.data["message"])


def take_backup(session: Session, answer: Answer) -> None:
    """Take and prove a backup, whatever the spec asks for."""
    outcome = session.run("backup")
    with session.engine.begin() as connection:
        made = backup.newest(connection, "dump")
    if made is not None and (outcome.error is None or not made.equal):
        answer.data |= {
            "backup": made.number, "path": made.name, "bytes": made.bytes, "sha256": made.sha256,
            "snapshot": made.snapshot, "taken_at": made.taken_at, "tool": made.tool, "restored_on": made.restored_on,
            "dump_seconds": made.dump_seconds, "restore_seconds": made.restore_seconds, "tables": made.tables,
            "equal": made.equal, "differences": made.differences, "left_out": made.left_out,
        }  # fmt: skip
        answer.say(f"{backup_gate.described(made)}", f"  {made.name}", f"  SHA-256 {made.sha256}")
    _finish(outcome)


def rehearse(session: Session, answer: Answer, users: int | None) -> None:
    """Rehearse, and say how fast it went and what differed."""
    with session.engine.begin() as connection:
        before = rehearsal.newest(connection)
    outcome = session.run("rehearse", rehearse_migration={"users": users or 0})
    with session.engine.begin() as connection:
        made = rehearsal.newest(connection)
    if made is not None and (before is None or before.number != made.number):
        answer.data["rehearsal"] = asdict(made) | {"rows_a_second": made.rows_a_second}
        answer.say(rehearsal.described(made), *[f"  Left out of the copy: {line}" for line in made.left_out])
    _finish(outcome)


def validate(session: Session, answer: Answer) -> None:
    """The whole store against the state before."""
    answer.section("Validation")
    outcome = session.run("validate")
    show_retrieval(session, answer)
    gates_of(answer, outcome)


def show_retrieval(session: Session, answer: Answer) -> None:
    """What was measured of retrieval before and after the newest execution that stands, if anything was."""
    with session.engine.begin() as connection:
        executions = [one for one in ledger.executions(connection) if one.status != "rolled_back"]
        found = retrieval.summary(connection, executions[0].execution_id) if executions else None
    answer.data["retrieval"] = found
    answer.pairs(retrieval_lines(found) if found else [])


def roll_back(session: Session, answer: Answer, wave: str | None) -> None:
    """Undo one wave, or all of them."""
    with session.engine.begin() as connection:
        waves = rollback.choose(connection, wave)
        open_one = ledger.unfinished(connection)
    answer.data["rolled_back"] = []
    if not waves and (open_one is None or wave is not None):
        if "finished_rollback" not in answer.data:
            _refuse_finalized(session)
        of_what = f"wave {wave}" if wave else "an execution in this ledger"
        nothing = f"Nothing to roll back: no row is under a new id of {of_what}."
        done = "The rollback is finished: old ids again."
        answer.data["message"] = done if "finished_rollback" in answer.data else nothing
        answer.say(answer.data["message"])
        return
    outcome = session.run("rollback", roll_back_waves={"wave": wave or ""})
    with session.engine.begin() as connection:
        answer.data["rolled_back"] = [
            chosen.wave for chosen in waves if ledger.wave(connection, chosen.wave).status == "rolled_back"
        ]
        documents = rollback.documents_back(connection, session.store, [chosen.wave for chosen in waves])
        left = rollback.left_in_archive(connection, session.store, answer.data["rolled_back"])
    _finish(outcome)
    answer.data["message"] = f"Rolled back {len(waves)} waves, {documents} documents: old ids again."
    if not waves and open_one is not None:
        answer.data["message"] = (
            f"Nothing had moved; execution {open_one.execution_id} is ended, and its approval with it."
        )
    answer.data["left_in_archive"] = left
    answer.say(answer.data["message"])
    for table, rows in left.items():
        answer.say(f"  {rows} rows of {table} stay archived: they have no place any more (docs/merging.md)")


def _refuse_finalized(session: Session) -> None:
    with session.engine.begin() as connection:
        final = [e.execution_id for e in ledger.executions(connection) if e.status == "finalized"]
    if final:
        raise RefusedError(f"Execution {final[0]} was finalized: its aliases are gone, and with them the way back.")


def put_back(session: Session, answer: Answer) -> None:
    """Put back what a run that died had altered in the application's schema, and aliases that somebody dropped."""
    altered = writing.put_back(session.engine, session.store, "put back")
    if altered:
        answer.data["put_back"] = altered
        answer.say(f"Put back what was altered meanwhile: {', '.join(altered)}")


def finish_rollback(session: Session, answer: Answer) -> None:
    """Finish what an interrupted rollback began."""
    with session.engine.begin() as connection:
        left = rollback.interrupted(connection)
        begun = ledger.rolling_back(connection)
    if left or begun:
        answer.say(f"Finishing an interrupted rollback: {_names(left) or 'no wave left'}")
        _finish(session.run("rollback", roll_back_waves={"interrupted": True}))
        answer.data["finished_rollback"] = [wave.wave for wave in left]


def _finish(outcome: Outcome) -> None:
    if outcome.error is not None:
        raise outcome.error
