"""The steps that verbs are made of: each runs jobs and adds to the answer what came of them."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from uuid_pipeline.cli.output import WAITS_FOR_APPROVAL, Answer, show_table
from uuid_pipeline.cli.session import Session
from uuid_pipeline.engine import (
    control,
    duplicates,
    inventory,
    lease,
    ledger,
    mapping,
    migration,
    planning,
    redaction,
    rollback,
)
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.operations.runs import CheckOutcome, Outcome
from uuid_pipeline.reports.tables import inventory_lines, plan_lines

SHOWN_FINDING = 200
SHOWN_CLUSTERS = 20


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


def show_inventory(session: Session, answer: Answer) -> None:
    """The inventory's figures of the newest assessment."""
    with session.engine.begin() as connection:
        assessment = ledger.newest_assessment(connection)
        summary = inventory.summarize(connection, session.store, assessment)
        aside = inventory.quarantined(connection, session.store, assessment.assessment_no)
        classes = inventory.id_classes(connection, session.store, assessment.assessment_no)
    answer.data["inventory"] = {**asdict(summary), "consistency": summary.consistency}
    answer.data["id_classes"] = classes
    answer.data["quarantined"] = aside
    answer.section("Inventory")
    answer.pairs(inventory_lines(summary))
    for entity, counts in classes.items():
        if entity != session.store.main.name:
            answer.pairs([(f"{entity} ids", ", ".join(f"{n} {name}" for name, n in counts.items()) or "none")])
    for row in aside:
        answer.say(f"  quarantined {row['entity']} {row['id']}: {row['reason']}")


def assess(session: Session, answer: Answer, job: str) -> None:
    """Run profile, inventory or assess, and show the gates."""
    outcome = session.run(job)
    answer.section("Gates")
    gates_of(answer, outcome)


def make_plan(session: Session, answer: Answer) -> planning.Plan:
    """Plan from scratch and show what came of it."""
    outcome = session.run("plan")
    if any(check.asset == "document_inventory" for check in outcome.checks):
        show_inventory(session, answer)
    answer.section("Gates of the plan")
    gates_of(answer, outcome)
    with session.engine.begin() as connection:
        assessment = ledger.newest_assessment(connection)
        number = assessment.assessment_no
        plan = planning.of_assessment(connection, number)
        preview = mapping.preview(connection, session.store, number, 5)
        clusters = redaction.records(session.store.spec, duplicates.clusters(connection, session.store, number))
    answer.data["map_preview"] = redaction.records(session.store.spec, preview)
    show_plan(answer, plan)
    show_clusters(session, answer, clusters)
    answer.data["plan"]["warnings"] = assessment.profile["warnings"]
    answer.say(*[f"  Warning: {line}" for line in assessment.profile["warnings"]])
    return plan


def show_plan(answer: Answer, plan: planning.Plan) -> None:
    """A plan for people and programs."""
    shown = (
        "tier", "tier_reason", "approach", "risks", "silenced_triggers", "fired_triggers", "sweep_passes",
        "unreadable_signals", "witnesses", "batch_rows", "estimate",
    )  # fmt: skip
    answer.data["plan_id"] = plan.plan_id
    answer.data["plan"] = {"moves": plan.moves, "merges": plan.merges} | {name: plan.content[name] for name in shown}
    answer.data["plan"]["waves"] = [asdict(wave) for wave in plan.waves]
    answer.section("Plan")
    answer.pairs(plan_lines(plan))


def show_clusters(session: Session, answer: Answer, clusters: list[dict[str, Any]]) -> None:
    """Which rows share a natural key, and which of them stays; of rows below documents only how many."""
    answer.data["plan"]["clusters"] = clusters
    roots = {root.name for root in session.store.roots}
    decided = [cluster for cluster in clusters if cluster["entity"] in roots]
    if decided:
        shown = [
            {
                "entity": c["entity"],
                "kind": c["kind"],
                "survivor": c["survivor"],
                "merged into it": "\n".join(c["ids"][1:]),
            }
            for c in decided[:SHOWN_CLUSTERS]
        ]
        more = f", the first {SHOWN_CLUSTERS} of {len(decided)}" if len(decided) > SHOWN_CLUSTERS else ""
        answer.say("", *show_table(f"Clusters{more}", shown))
    below = Counter(cluster["entity"] for cluster in clusters if cluster["entity"] not in roots)
    for entity, count in below.items():
        answer.say(f"  {count} clusters of {entity}: which row stays is decided when their documents are merged")


def nothing_to_do(session: Session, answer: Answer, plan: planning.Plan) -> bool:
    """Whether the plan moves nothing; says why."""
    if not plan.nothing_to_do:
        return False
    figures = answer.data["inventory"]
    table = f"{session.store.main.table.schema}.{session.store.main.table.name}"
    if figures["documents"] == 0:
        message = f"The store is empty: {table} has no rows. Nothing to do."
    else:
        message = f"Nothing to do: {figures['deterministic']} of {figures['documents']} ids are deterministic" + (
            f", {figures['quarantined']} rows are quarantined." if figures["quarantined"] else "."
        )
    answer.data["nothing_to_do"] = True
    answer.data["message"] = message
    answer.say("", message)
    return True


def wait_for_approval(answer: Answer, plan: planning.Plan) -> None:
    """End at the plan, with the command that approves it."""
    command = f"uuid-pipeline approve {plan.plan_id}"
    answer.data["approve_with"] = command
    answer.exit_code = WAITS_FOR_APPROVAL
    answer.say("", f"Nothing has moved. To approve this plan: {command}", "and then: uuid-pipeline run")


def approve(session: Session, answer: Answer, plan_id: str) -> ledger.Execution:
    """Approve a plan; its waves become partitions."""
    outcome = session.run("approve", approve_plan={"plan_id": plan_id})
    if outcome.error is not None:
        raise outcome.error
    with session.engine.begin() as connection:
        execution = ledger.unfinished(connection)
        if execution is None:
            raise RefusedError(f"Plan {plan_id} was approved, but its execution has ended. See: uuid-pipeline status")
        names = [wave.wave for wave in ledger.waves(connection, execution.execution_id)]
    answer.data["plan_id"] = plan_id
    answer.data["execution_id"] = execution.execution_id
    answer.say("", f"Approved: plan {plan_id}, execution {execution.execution_id}, waves {', '.join(names)}")
    return execution


def require_open(session: Session) -> ledger.Execution:
    """The open execution. Raises RefusedError when no plan is approved."""
    with session.engine.begin() as connection:
        execution = ledger.unfinished(connection)
        newest = planning.newest(connection) if execution is None else None
    if execution is None:
        remedy = f"uuid-pipeline approve {newest.plan_id}" if newest else "uuid-pipeline plan"
        raise RefusedError(f"Refused: no plan is approved. Run: {remedy}")
    return execution


def migrate(session: Session, answer: Answer, execution: ledger.Execution, only: str | None = None) -> None:
    """Carry out the execution's waves in order, or one of them; each ends with its gates."""
    answer.data["execution_id"] = execution.execution_id
    answer.data["plan_id"] = execution.plan_id
    shown = answer.data.setdefault("waves", [])
    with session.engine.begin() as connection:
        writer = lease.holder(connection)
        if writer is None or not writer.alive:  # else the lease itself refuses, and says whose it is
            control.require_not_paused(connection, execution.execution_id)
        waves = ledger.waves(connection, execution.execution_id)
    chosen = [wave for wave in waves if only in (None, wave.wave, wave.kind, _short(wave))]
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
        gates_of(answer, session.run("migrate", partition=wave.wave))
        # A sweep knows what it takes only when it has looked.
        record |= {"status": "moved", "documents": _now(session, wave).documents}


def _unneeded(session: Session, wave: ledger.Wave) -> bool:
    """Whether an earlier sweep found nothing, so that this one has nothing to look for."""
    return _now(session, wave).status == "unneeded"


def _now(session: Session, wave: ledger.Wave) -> ledger.Wave:
    with session.engine.begin() as connection:
        return ledger.wave(connection, wave.wave)


def _short(wave: ledger.Wave) -> str:
    return wave.wave.removeprefix(f"{wave.execution_id}-")


def _names(waves: list[ledger.Wave]) -> str:
    return ", ".join(wave.wave for wave in waves)


def wish(session: Session, answer: Answer, job: str) -> None:
    """Pause, resume or cancel the open execution, and say what that means now."""
    _finish(session.run(job))
    with session.engine.begin() as connection:
        execution = ledger.executions(connection)[0]
        writer = lease.holder(connection)
    live = writer is not None and writer.alive
    answer.data |= {"execution_id": execution.execution_id, "status": execution.status, "writer_alive": live}
    now = {
        "pause": "waits after its current batch" if live else "moves nothing before it is resumed",
        "resume": "goes on" if live else "may go on: uuid-pipeline run",
        "cancel": "ends after its current batch" if live else "is cancelled; to undo it: uuid-pipeline rollback --all",
    }
    answer.data["message"] = f"Execution {execution.execution_id} {now[job]}."
    answer.say(answer.data["message"])


def validate(session: Session, answer: Answer) -> None:
    """The whole store against the state before."""
    answer.section("Validation")
    gates_of(answer, session.run("validate"))


def roll_back(session: Session, answer: Answer, wave: str | None) -> None:
    """Undo one wave, or all of them."""
    with session.engine.begin() as connection:
        waves = rollback.choose(connection, wave)
        open_one = ledger.unfinished(connection)
    answer.data["rolled_back"] = [chosen.wave for chosen in waves]
    if not waves and open_one is None:
        if "finished_rollback" not in answer.data:
            _refuse_finalized(session)
        nothing = "Nothing to roll back: no row is under a new id of an execution in this ledger."
        done = "The rollback is finished: old ids again."
        answer.data["message"] = done if "finished_rollback" in answer.data else nothing
        answer.say(answer.data["message"])
        return
    _finish(session.run("rollback", roll_back_waves={"wave": wave or ""}))
    documents = sum(chosen.documents for chosen in waves)
    answer.data["message"] = f"Rolled back {len(waves)} waves, {documents} documents: old ids again."
    answer.say(answer.data["message"])


def _refuse_finalized(session: Session) -> None:
    with session.engine.begin() as connection:
        final = [e.execution_id for e in ledger.executions(connection) if e.status == "finalized"]
    if final:
        raise RefusedError(f"Execution {final[0]} was finalized: its aliases are gone, and with them the way back.")


def put_back(session: Session, answer: Answer) -> None:
    """Put back what a run that died had altered in the application's schema, whatever comes next."""
    altered = migration.put_back(session.engine, session.store, "put back")
    if altered:
        answer.data["put_back"] = altered
        answer.say(f"Put back what a run that died had altered: {', '.join(altered)}")


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
