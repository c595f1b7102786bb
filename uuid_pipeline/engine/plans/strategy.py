"""The strategy: what a plan means for people, as a pure function of plan, inventory and profile.

No clock, no look at the store, no order but a fixed one: the same plan gives the same strategy, whenever it is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import earlier_store, ledger, sql
from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.planning import Plan
from uuid_pipeline.engine.plans import approach, risk_findings, risks, rollback_triggers
from uuid_pipeline.engine.plans.approach import Approach
from uuid_pipeline.engine.plans.risks import Risk
from uuid_pipeline.engine.plans.rollback_triggers import ROLL_BACK_ALL, RollbackTrigger
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import RollbackTriggers, Spec

UNMEASURED = "assumed: a speed that was measured elsewhere; the time of the canary wave, scaled, is a better one"


@dataclass(frozen=True)
class StrategyWave:
    """``seconds`` is the wave's share of the estimate."""

    name: str
    kind: str
    documents: int
    share: float
    seconds: float


@dataclass(frozen=True)
class Batches:
    """``rows`` a batch at most, as the spec says; ``documents`` and ``batches`` follow from the plan's average."""

    rows: int
    rows_a_document: float
    documents: int
    batches: int


@dataclass(frozen=True)
class Estimate:
    """``basis`` says what the speed was measured on; ``measured`` whether that was here."""

    seconds: float
    basis: str
    measured: bool
    ledger_bytes: int


@dataclass(frozen=True)
class Step:
    """One step of the timeline. ``begins`` and ``seconds`` count from the first wave's start; None is not known."""

    name: str
    begins: float | None
    seconds: float | None
    note: str


@dataclass(frozen=True)
class Decision:
    """A point at which people decide, with the exact commands for either way."""

    when: str
    question: str
    look_at: tuple[str, ...]
    go: tuple[str, ...]
    back: tuple[str, ...]


@dataclass(frozen=True)
class Strategy:
    plan_id: str
    store: str
    approach: Approach
    summary: Summary
    moves: tuple[tuple[str, int], ...]
    merges: tuple[tuple[str, int], ...]
    left: tuple[tuple[str, int], ...]
    waves: tuple[StrategyWave, ...]
    sweep_passes: int
    batches: Batches
    estimate: Estimate
    risks: tuple[Risk, ...]
    triggers: tuple[RollbackTrigger, ...]
    settings: RollbackTriggers
    timeline: tuple[Step, ...]
    approve: str
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]

    @property
    def nothing_to_do(self) -> bool:
        return not self.waves


def make(plan: Plan, summary: Summary, profile: Mapping[str, Any]) -> Strategy:
    """The strategy of a plan; ``profile`` is its assessment's, with the spec of that time."""
    spec = earlier_store.spec_in(profile)
    content = plan.content
    estimate = _estimate(content["estimate"])
    waves = _waves(plan, estimate)
    return Strategy(
        plan_id=plan.plan_id,
        store=spec.schema_name,
        approach=approach.choose(summary, spec.strategy),
        summary=summary,
        moves=_counted(plan.moves),
        merges=_counted(plan.merges),
        left=_counted(content.get("left", {})),
        waves=waves,
        sweep_passes=content["sweep_passes"],
        batches=_batches(plan, waves),
        estimate=estimate,
        risks=tuple(risks.register(risk_findings.of(content, summary, profile))),
        triggers=rollback_triggers.of(spec.rollback_triggers),
        settings=spec.rollback_triggers,
        timeline=_timeline(waves, content["sweep_passes"], spec) if waves else (),
        approve=plan.approve_command,
        decisions=_decisions(plan.approve_command, waves, spec) if waves else (),
        warnings=tuple(profile["warnings"]),
    )


def of_plan(connection: Connection, plan: Plan) -> Strategy:
    """The strategy of a plan in the ledger, by the figures that were frozen with it.

    Raises RefusedError for a plan of a version that froze none.
    """
    figures = plan.content.get("figures")
    if figures is None:
        raise RefusedError(f"Plan {plan.plan_id} was made by an earlier version. Run: uuid-pipeline plan")
    profile = sql.scalar(
        connection,
        "SELECT profile FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": plan.assessment_no},
    )
    known = {field.name for field in fields(Summary)}
    return make(plan, Summary(**{name: value for name, value in figures.items() if name in known}), profile)


def of_newest_plan(connection: Connection) -> Strategy:
    """Raises RefusedError when nothing was planned yet."""
    found = ledger.newest_assessment(connection)
    plan = sql.rows(
        connection,
        "SELECT assessment_no, plan_id, content FROM uuid_pipeline.plans WHERE assessment_no = %(no)s",
        {"no": found.assessment_no},
    )
    if not plan:
        raise RefusedError("Nothing has been planned yet. Run: uuid-pipeline plan")
    return of_plan(connection, Plan(*plan[0]))


def _counted(found: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, count) for name, count in found.items() if count))


def _estimate(found: Mapping[str, Any]) -> Estimate:
    basis = str(found.get("basis") or UNMEASURED)
    return Estimate(found["seconds"], basis, risk_findings.measured(found), found["ledger_bytes"])


def _waves(plan: Plan, estimate: Estimate) -> tuple[StrategyWave, ...]:
    total = sum(wave.documents for wave in plan.waves)
    return tuple(
        StrategyWave(
            wave.name, wave.kind, wave.documents, wave.documents / total,
            round(estimate.seconds * wave.documents / total, 1),
        )
        for wave in plan.waves
    )  # fmt: skip


def _batches(plan: Plan, waves: Sequence[StrategyWave]) -> Batches:
    documents = sum(wave.documents for wave in waves)
    rows = sum(plan.moves.values()) + sum(plan.merges.values())
    a_document = max(1.0, rows / documents) if documents else 1.0
    size = max(1, int(plan.content["batch_rows"] / a_document))
    return Batches(
        plan.content["batch_rows"], round(a_document, 1), size, sum(-(-wave.documents // size) for wave in waves)
    )


_BACKUP_NOTES = {
    "dump": "a dump of what is touched, restored once and compared",
    "attested": "your provider's snapshot, named at approval",
    "none": "the spec asks for none",
}


def _timeline(waves: Sequence[StrategyWave], sweeps: int, spec: Spec) -> tuple[Step, ...]:
    """Preparation stands before zero; people's pauses between waves are theirs to add."""
    steps = [
        Step("backup", None, None, _BACKUP_NOTES[spec.backup]),
        Step("approval", None, None, f"valid for {spec.approval_hours} hours; waves begin when you say so"),
    ]
    at = 0.0
    for wave in waves:
        steps.append(
            Step(f"wave {wave.name}", round(at, 1), wave.seconds, f"{wave.documents} documents, then its gates")
        )
        at += wave.seconds
    if sweeps:
        steps.append(Step("sweep", round(at, 1), None, f"at most {sweeps} passes over what arrived meanwhile"))
    quiet = spec.aliases.quiet_hours
    return (
        *steps,
        Step("validation", None, None, "after the last wave: the whole store against the state before"),
        Step("quiet hours", None, quiet * 3600, f"{quiet:g} hours from the last use of an old id, where one was used"),
        Step("finalize", None, None, "after the quiet hours: the aliases go, and with them the way back"),
    )


def _decisions(approve: str, waves: Sequence[StrategyWave], spec: Spec) -> tuple[Decision, ...]:
    first = waves[0]
    found = [
        Decision(
            "before anything moves", "Is this plan what we want?",
            ("the risks, heaviest first", "clusters: which row stays", "triggers: which are silent, which fire"),
            (approve, f"uuid-pipeline migrate --wave {first.name}"),
            ("change the spec", "uuid-pipeline plan"),
        )
    ]  # fmt: skip
    if len(waves) > 1:
        found.append(
            Decision(
                f"after {first.name} ({first.documents} documents)", "Do the first documents work for their users?",
                ("uuid-pipeline status", "a document of this wave in the application, as its owner",
                 "the rollback triggers"),
                ("uuid-pipeline run",),
                (f"uuid-pipeline rollback --wave {first.name}",),
            )
        )  # fmt: skip
    return (
        *found,
        Decision(
            "after validation", "Does the whole store stand?",
            ("uuid-pipeline validate", "the rollback triggers", "uuid-pipeline notices --kind after"),
            ("leave the aliases in place and wait for the quiet hours",),
            (ROLL_BACK_ALL,),
        ),
        Decision(
            f"{spec.aliases.quiet_hours:g} hours after the last use of an old id",
            "Does nobody need the way back? This is the last moment for it.",
            ("uuid-pipeline status: alias uses", "uuid-pipeline export, for systems that kept old ids"),
            ("uuid-pipeline finalize",),
            (ROLL_BACK_ALL,),
        ),
    )  # fmt: skip
