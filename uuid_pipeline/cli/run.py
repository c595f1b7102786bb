"""``uuid-pipeline run``"""

import time
from typing import Annotated

import typer

from uuid_pipeline.cli import report, steps
from uuid_pipeline.cli.output import Answer, AttestedAtOption, AttestOption, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.engine import ledger, planning
from uuid_pipeline.errors import RefusedError

# Of two runs that carry out one execution at the same moment one may have validated before the other has recorded its
# last gate: the later one completes it.
OTHER_RUN_SECONDS = 10.0


def run(
    approve: Annotated[bool, typer.Option("--approve", help="Approve the plan that this run has just made.")] = False,
    attest: AttestOption = None,
    attested_at: AttestedAtOption = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Go through every stage that may run: finish what is unfinished, else carry out an approved plan, else plan."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            run_all(session, answer, approve, (attest, attested_at))
            answer.say(f"For the report: uuid-pipeline report (writes {report.place(session)})")

    answer_with(verb, as_json, spec)


def run_all(
    session: Session, answer: Answer, approve: bool, attested: tuple[str | None, str | None] = (None, None)
) -> None:
    """The whole way, from whatever state the store is in."""
    steps.finish_rollback(session, answer)
    execution, begun = resumable(session, answer), False
    if execution is None:
        steps.put_back(session, answer)
        plan = steps.make_plan(session, answer)
        if steps.nothing_to_do(session, answer, plan):
            end_what_is_open(session, answer)
            return
        if not approve:
            steps.wait_for_approval(session, answer, plan)
            return
        execution = steps.approve(session, answer, plan.plan_id, attested, plan.assessment_no)
        begun = True
    steps.migrate(session, answer, execution, begun=begun)
    steps.validate(session, answer)
    if settled(session, execution) == "running":
        steps.validate(session, answer)
    answer.data["status"] = status_of(session, execution)
    answer.data["message"] = f"Execution {execution.execution_id} is {answer.data['status']}."
    answer.say("", answer.data["message"], "To undo it all: uuid-pipeline rollback --all")
    if answer.data["status"] != "completed":
        raise RefusedError(
            f"{answer.data['message']} Every stage ran, yet not all is counted. See: uuid-pipeline status"
        )


def resumable(session: Session, answer: Answer) -> ledger.Execution | None:
    """The open execution if it can go on; a stale or expired one is said to be and left to a new plan."""
    with session.engine.begin() as connection:
        execution = ledger.unfinished(connection)
        if execution is None:
            return None
        plan = planning.of_assessment(connection, execution.assessment_no)
        reason = planning.stale_reason(connection, session.store, plan)
    if execution.expired:
        reason = "its approval expired"
    if reason is not None:
        answer.say(f"Execution {execution.execution_id} cannot go on: {reason}. Planning again.")
        answer.data["superseded"] = {"execution_id": execution.execution_id, "reason": reason}
        return None
    answer.say(f"Going on with execution {execution.execution_id} of plan {execution.plan_id} ({execution.status}).")
    return execution


def end_what_is_open(session: Session, answer: Answer) -> None:
    """Validate an execution that has moved all and cannot go on: no plan that moves nothing can take its place.

    Raises RefusedError when it is not complete then: waves of it have not run, or gates are red.
    """
    with session.engine.begin() as connection:
        execution = ledger.unfinished(connection)
    if execution is None or execution.status != "running":
        return
    steps.validate(session, answer)
    answer.data["execution_id"], answer.data["status"] = execution.execution_id, status_of(session, execution)
    if answer.data["status"] != "completed":
        raise RefusedError(f"Nothing is left to move, but {steps.how_to_end(execution)}")
    answer.say("", f"Execution {execution.execution_id} is completed.")


def settled(session: Session, execution: ledger.Execution) -> str:
    """The execution's status, once another run that is at it too has had time to end; at once when it is complete."""
    deadline = time.monotonic() + OTHER_RUN_SECONDS
    while (status := status_of(session, execution)) == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    return status


def status_of(session: Session, execution: ledger.Execution) -> str:
    with session.engine.begin() as connection:
        return ledger.execution(connection, execution.execution_id).status
