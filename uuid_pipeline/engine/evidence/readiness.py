"""Production readiness: criteria, each with how it was measured, its figure, a verdict, and who must act."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import gates, ledger, planning, sql, validation
from uuid_pipeline.engine.evidence import figures, inventory_figures, kept_evidence, lookups, present
from uuid_pipeline.engine.evidence.kept_evidence import Kept
from uuid_pipeline.engine.evidence.lookups import Lookups
from uuid_pipeline.engine.evidence.present import Present
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.engine.installed.aliases import AliasUse
from uuid_pipeline.engine.planning import Plan
from uuid_pipeline.engine.store import Store

Verdict = Literal["ready", "not ready", "not measured"]


@dataclass(frozen=True)
class Action:
    """What is still open: who must do it, and the command where there is one."""

    who: str
    what: str
    command: str = ""


@dataclass(frozen=True)
class Criterion:
    """One line of the page. A criterion that does not bind is open work, and no reason against production."""

    name: str
    title: str
    measured: str
    figure: str
    verdict: Verdict
    action: Action | None = None
    binds: bool = True


@dataclass(frozen=True)
class Evidence:
    """All that criteria look at, read once. ``lookups_after`` is of the ids that documents have now."""

    connection: Connection
    store: Store
    plan: Plan
    execution: ledger.Execution | None
    waves: tuple[tuple[ledger.Wave, dict[str, int]], ...]
    whole: dict[tuple[str, str], GateResult]
    open_gates: tuple[str, ...]
    before: dict[str, Any] | None
    now: Present
    lookups_before: Lookups | None
    lookups_after: Lookups
    alias_tables: tuple[str, ...]
    alias_uses: tuple[AliasUse, ...]
    altered: tuple[str, ...]
    kept: Kept

    def gate(self, stage: str, gate: str) -> GateResult | None:
        """The newest result of a gate of the whole execution, or of the plan while there is none."""
        return self.whole.get((stage, gate))

    @property
    def standing(self) -> str | None:
        """How the execution stands: :func:`ledger.standing`; None before there is one."""
        return ledger.standing(self.execution.status, [wave for wave, _ in self.waves]) if self.execution else None

    @property
    def completed(self) -> bool:
        return self.standing == "completed"


@dataclass(frozen=True)
class Readiness:
    """Every criterion, and the verdict over those that bind."""

    criteria: tuple[Criterion, ...]

    @property
    def verdict(self) -> Verdict:
        """Not ready when one that binds is not; not measured when one of them was not."""
        binding = {criterion.verdict for criterion in self.criteria if criterion.binds}
        if "not ready" in binding:
            return "not ready"
        return "not measured" if "not measured" in binding else "ready"

    @property
    def open(self) -> list[Criterion]:
        """Criteria that somebody must still do something about."""
        return [criterion for criterion in self.criteria if criterion.action is not None]

    def count(self, verdict: Verdict) -> int:
        return sum(criterion.verdict == verdict for criterion in self.criteria)


Judge = Callable[[Evidence], Criterion]


def gather(connection: Connection, store: Store, plan: Plan, execution: ledger.Execution | None) -> Evidence:
    """Read what the criteria need: from the ledger, and anew from the store. Wants an open transaction."""
    assessment = _assessment(connection, plan.assessment_no)
    waves = ledger.waves(connection, execution.execution_id) if execution else []
    scope = Scope(execution=execution.execution_id) if execution else Scope(assessment=plan.assessment_no)
    stages = (*gates.PLANNING_STAGES, gates.VALIDATION_STAGE) if execution else gates.PLANNING_STAGES
    missing = gates.open_gates(connection, scope, stages)
    if execution:
        needed = [wave.wave for wave in waves if wave.status != "unneeded"]
        missing += gates.open_gates_of_waves(connection, execution.execution_id, needed)
    before = figures.latest(connection, "lookups", assessment=plan.assessment_no)
    moved = execution is not None and ledger.standing(execution.status, waves) == "completed"
    altered = sql.rows(connection, "SELECT kind, object FROM uuid_pipeline.altered ORDER BY 1, 2")
    return Evidence(
        connection, store, plan, execution,
        tuple((wave, _accounted(connection, store, wave)) for wave in waves),
        gates.latest(connection, scope), tuple(missing),
        inventory_figures.of(connection, store, assessment),
        present.count(connection, store, execution.approved_at if execution else None),
        lookups.from_record(before.figures) if before else None,
        lookups.measure_mapped(connection, store, plan.assessment_no, moved),
        tuple(aliases.installed(connection)), tuple(aliases.uses(connection)),
        tuple(f"{row.kind} {row.object}" for row in altered),
        kept_evidence.gather(connection, plan, execution.execution_id if execution else None),
    )  # fmt: skip


def _accounted(connection: Connection, store: Store, wave: ledger.Wave) -> dict[str, int]:
    """As :func:`validation.accounted`; what has gone back counts as moved no more."""
    found = validation.accounted(connection, store, wave)
    if wave.status not in ("rolled_back", "rolling_back"):
        return found
    return {name: 0 if name == "moved" else count for name, count in found.items() if name != "merged"}


def _assessment(connection: Connection, number: int) -> ledger.Assessment:
    [row] = sql.rows(
        connection,
        """SELECT assessment_no, spec_digest, catalog_digest, profile FROM uuid_pipeline.assessments
           WHERE assessment_no = %(no)s""",
        {"no": number},
    )
    return ledger.Assessment(*row)


def subject(connection: Connection) -> tuple[Plan, ledger.Execution | None] | None:
    """What a report is about: the newest execution, or the plan made since where it has something to move still.

    None when nothing was planned yet.
    """
    newest = planning.newest(connection)
    if newest is None:
        return None
    executions = ledger.executions(connection)
    if not executions:
        return newest, None
    last = executions[0]
    newer = newest.assessment_no > last.assessment_no and not newest.nothing_to_do
    if newer and not planning.is_overtaken(connection, newest):
        return newest, None
    return planning.of_assessment(connection, last.assessment_no), last
