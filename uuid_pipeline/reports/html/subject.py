"""What a report is about: an execution, or a plan that was not approved yet, with all that sections look at."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.evidence import readiness, readiness_criteria
from uuid_pipeline.engine.evidence.readiness import Evidence, Readiness
from uuid_pipeline.engine.planning import Plan
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError


@dataclass(frozen=True)
class Subject:
    """``execution`` is None while the plan is not approved."""

    plan: Plan
    execution: ledger.Execution | None
    evidence: Evidence
    readiness: Readiness
    made_at: datetime

    @property
    def name(self) -> str:
        """The execution's id, or the plan's: the report's directory."""
        return self.execution.execution_id if self.execution else self.plan.plan_id

    @property
    def before(self) -> dict[str, Any]:
        """The summary of the plan's inventory; empty when its figures are gone."""
        summary: dict[str, Any] = (self.evidence.before or {}).get("summary", {})
        return summary


def executed(connection: Connection) -> ledger.Execution:
    """The execution that a report is about. Raises RefusedError when there is none to give evidence of."""
    found = readiness.subject(connection)
    if found is None:
        raise RefusedError("There is no evidence yet: nothing was planned. Run: uuid-pipeline plan")
    plan, execution = found
    if execution is None:
        raise RefusedError(
            f"There is no evidence yet: plan {plan.plan_id} was not approved, and nothing was executed. "
            f"Run: {plan.approve_command}"
        )
    return execution


def find(connection: Connection, store: Store) -> Subject:
    """The newest execution, or the plan made since. Wants an open transaction.

    Raises RefusedError when nothing was planned yet.
    """
    found = readiness.subject(connection)
    if found is None:
        raise RefusedError("There is nothing to report yet: no plan was made. Run: uuid-pipeline plan")
    plan, execution = found
    evidence = readiness.gather(connection, store, plan, execution)
    return Subject(plan, execution, evidence, readiness_criteria.evaluate(evidence), datetime.now(UTC))
