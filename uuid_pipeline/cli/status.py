"""``uuid-pipeline status``"""

from sqlalchemy import Connection

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import open_configured_store
from uuid_pipeline.engine import lease, ledger, planning
from uuid_pipeline.settings import read_settings


def status(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Show plans, executions, waves and who is writing. Reads only."""

    def verb(answer: Answer) -> None:
        engine = open_configured_store(read_settings())
        try:
            with engine.begin() as connection:
                if not ledger.exists(connection):
                    answer.data["ledger"] = False
                    answer.say("This store has no ledger: nothing was ever assessed. Run: uuid-pipeline plan")
                    return
                describe(connection, answer)
        finally:
            engine.dispose()

    answer_with(verb, as_json, spec)


def describe(connection: Connection, answer: Answer) -> None:
    """The ledger's state in data and lines."""
    plan = planning.newest(connection)
    executions = ledger.executions(connection)
    holder = lease.holder(connection)
    waves = [wave for e in executions[:3] for wave in ledger.waves(connection, e.execution_id)]
    answer.data["ledger"] = True
    answer.data["plan_id"] = plan.plan_id if plan else None
    answer.data["executions"] = [
        {"execution_id": e.execution_id, "plan_id": e.plan_id, "status": e.status, "approved_by": e.approved_by,
         "approved_at": e.approved_at, "expires_at": e.expires_at}
        for e in executions
    ]  # fmt: skip
    answer.data["waves"] = [{"wave": w.wave, "documents": w.documents, "status": w.status} for w in waves]
    answer.data["writer"] = (
        {"holder": holder.holder, "run_id": holder.run_id, "alive": holder.alive} if holder else None
    )
    answer.say(f"Newest plan: {plan.plan_id if plan else 'none'}")
    if answer.data["executions"]:
        answer.say(*show_table("Executions", answer.data["executions"]))
        answer.say(*show_table("Waves", answer.data["waves"]))
    answer.say(_writer(holder), _next(connection, executions, plan))


def _writer(holder: lease.Holder | None) -> str:
    if holder is None:
        return "No run is writing to this store."
    state = "is writing" if holder.alive else "died while writing; the next run goes on where it ended"
    return f"{holder.holder} (run {holder.run_id}) {state}."


def _next(connection: Connection, executions: list[ledger.Execution], plan: planning.Plan | None) -> str:
    if ledger.rolling_back(connection):
        return "A rollback was interrupted. To finish it: uuid-pipeline run, or uuid-pipeline rollback --all"
    open_one = next((e for e in executions if e.status in ("approved", "running")), None)
    if open_one is not None:
        return f"Execution {open_one.execution_id} is {open_one.status}. To go on: uuid-pipeline run"
    used = plan is None or any(e.assessment_no == plan.assessment_no for e in executions) or plan.nothing_to_do
    return "Next: uuid-pipeline plan" if used or plan is None else f"Next: uuid-pipeline approve {plan.plan_id}"
