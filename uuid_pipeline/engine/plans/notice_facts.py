"""What a notice is about: a plan before anything moved, or an execution as it stands; and who is concerned."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import earlier_store, ledger, planning
from uuid_pipeline.engine.plans import rollback_triggers, strategy
from uuid_pipeline.engine.plans.rollback_triggers import Reading, RollbackTrigger
from uuid_pipeline.engine.plans.strategy import Strategy
from uuid_pipeline.engine.privacy import affected_users
from uuid_pipeline.engine.privacy.affected_users import User
from uuid_pipeline.errors import RefusedError

Kind = Literal["before", "during", "after", "rollback"]
KINDS: tuple[Kind, ...] = ("before", "during", "after", "rollback")

# In which state of an execution a notice is true; before is also true while there is none.
TRUE_IN: dict[Kind, frozenset[str]] = {
    "before": frozenset({"approved"}),
    "during": frozenset({"approved", "running"}),
    "after": frozenset({"completed"}),
    "rollback": frozenset({"rolling_back", "partly_rolled_back", "rolled_back"}),
}


@dataclass(frozen=True)
class Facts:
    """``execution`` is None while nothing was approved; ``timely`` says whether the kind fits the state."""

    kind: Kind
    plan_id: str
    execution: ledger.Execution | None
    strategy: Strategy
    assessments: tuple[int, ...]
    waves: tuple[dict[str, Any], ...]
    readings: tuple[tuple[RollbackTrigger, Reading], ...]
    timely: bool

    @property
    def subject(self) -> str:
        """The id under which the notices stand: the execution's, else the plan's."""
        return self.execution.execution_id if self.execution and self.kind != "before" else self.plan_id

    @property
    def status(self) -> str:
        return self.execution.status if self.execution else "not approved"


def kind_now(connection: Connection) -> Kind:
    """The kind that fits the state of the newest execution, or of the plan made after it."""
    found = ledger.executions(connection)
    newest = planning.newest(connection)
    if not found or (newest is not None and newest.assessment_no > found[0].assessment_no and _ended(found[0])):
        return "before"
    status = _standing(connection, found[0])
    return next((kind for kind in ("during", "after", "rollback") if status in TRUE_IN[kind]), "before")


def _standing(connection: Connection, execution: ledger.Execution) -> str:
    return ledger.standing(execution.status, ledger.waves(connection, execution.execution_id))


def _ended(execution: ledger.Execution) -> bool:
    return execution.status in ("finalized", "rolled_back", "superseded", "cancelled")


def gather(connection: Connection, kind: Kind) -> Facts:
    """The facts of the newest plan (before) or the newest execution (else). Raises RefusedError when there is none."""
    if kind == "before":
        open_one = ledger.unfinished(connection)
        plan = planning.of_assessment(connection, open_one.assessment_no) if open_one else planning.newest(connection)
        if plan is None:
            raise RefusedError("There is no plan to give notice of. Run: uuid-pipeline plan")
        begun = [e for e in ledger.executions(connection) if e.assessment_no == plan.assessment_no]
        timely = not plan.nothing_to_do and all(_standing(connection, one) in TRUE_IN[kind] for one in begun)
        known = strategy.of_plan(connection, plan)
        return Facts(kind, plan.plan_id, open_one, known, (plan.assessment_no,), (), (), timely)
    found = ledger.executions(connection)
    if not found:
        raise RefusedError(f"Nothing was approved, so there is no notice {kind} it. Try: --kind before")
    execution = found[0]
    known = strategy.of_plan(connection, planning.of_assessment(connection, execution.assessment_no))
    waves = [wave for wave in ledger.waves(connection, execution.execution_id) if wave.status != "unneeded"]
    standing = ledger.standing(execution.status, waves)
    # The plan's first: what it set aside stands in its inventory.
    numbers = dict.fromkeys([execution.assessment_no, *(wave.assessment_no for wave in waves if wave.assessment_no)])
    settings = earlier_store.spec_of(connection, execution.assessment_no).rollback_triggers
    readings = rollback_triggers.readings(connection, execution, settings)
    return Facts(
        kind, execution.plan_id, execution, known, tuple(numbers),
        tuple({"wave": wave.wave, "documents": wave.documents, "status": wave.status} for wave in waves),
        tuple(zip(rollback_triggers.of(settings), readings, strict=True)),
        standing in TRUE_IN[kind],
    )  # fmt: skip


def users(connection: Connection, facts: Facts) -> Iterator[tuple[str | None, User]]:
    """Everybody concerned, by owner; the store's rows are those of now."""
    bound = earlier_store.store_of(connection, facts.assessments[0])
    return affected_users.stream(connection, bound, facts.assessments)
