"""The plan that was, or is to be, approved, and the strategy that follows: time, decisions, rollback triggers."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine.plans import rollback_triggers
from uuid_pipeline.engine.plans import strategy as strategies
from uuid_pipeline.engine.plans.strategy import Decision, Strategy
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Code, Section, Table, Text
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.tables import UNKNOWN, plan_lines
from uuid_pipeline.reports.templating import seconds


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    content = subject.plan.content
    rows = tuple(line for line in plan_lines(subject.plan) if line[0] != "Risk")
    blocks: list[Block] = [Table("What the plan says", ("Part", "Decision"), rows)]
    data: dict[str, Any] = {
        "plan_id": subject.plan.plan_id, "approach": content["approach"], "moves": content["moves"],
        "merges": content["merges"], "estimate": content.get("estimate"),
    }  # fmt: skip
    lead = f"Approach: {content['approach']}."
    # A plan of an earlier version kept no figures to make a strategy of.
    if "figures" in content:
        strategy = strategies.of_plan(connection, subject.plan)
        lead = f"Approach: {strategy.approach.shown}; the plan covers {strategy.approach.covers}."
        readings = _readings(connection, strategy, subject)
        blocks += _blocks(strategy, readings)
        data |= {"reasons": list(strategy.approach.reasons), "rollback_triggers": _as_data(readings)}
    return Section("plan", "Plan and strategy", lead, tuple(blocks), data=data)


Readings = tuple[tuple[rollback_triggers.RollbackTrigger, rollback_triggers.Reading | None], ...]


def _readings(connection: Connection, strategy: Strategy, subject: Subject) -> Readings:
    """Each trigger with how it stands in the execution, where there is one."""
    if subject.execution is None:
        return tuple((trigger, None) for trigger in strategy.triggers)
    settings = strategy.settings
    found = rollback_triggers.readings(connection, subject.execution, settings)
    return tuple(zip(rollback_triggers.of(settings), found, strict=True))


def _blocks(strategy: Strategy, readings: Readings) -> list[Block]:
    estimate = strategy.estimate
    time = tuple(
        (step.name, "" if step.begins is None else f"+{seconds(step.begins)}" if step.begins else "+0 s",
         seconds(step.seconds), step.note)
        for step in strategy.timeline
    )  # fmt: skip
    return [
        Text(f"Why this approach: {'; '.join(strategy.approach.reasons)}."),
        Text(f"The waves take {seconds(estimate.seconds)} by the estimate, without their gates ({estimate.basis})."),
        Table("Timeline, counted from the first wave", ("Step", "Begins", "Takes", "Note"), time,
              empty="the plan moves nothing"),
        Table("Rollback triggers", ("Undo it when", "Now", "Measured by", "Command"),
              tuple(_trigger(*pair) for pair in readings), empty="the spec sets none"),
        Table("Decision points", ("Decision", "Look at", "Yes", "No"),
              tuple(_decision(decision) for decision in strategy.decisions), empty="nothing is to be decided"),
    ]  # fmt: skip


def _trigger(trigger: rollback_triggers.RollbackTrigger, reading: rollback_triggers.Reading | None) -> tuple[Cell, ...]:
    return trigger.when, _now(trigger, reading), _source(trigger, reading), Code(trigger.command)


def _now(trigger: rollback_triggers.RollbackTrigger, reading: rollback_triggers.Reading | None) -> Cell:
    if reading is None or reading.figure is None:
        return UNKNOWN
    figure = rollback_triggers.shown(round(reading.figure, 4 if trigger.unit == "share" else 2), trigger.unit)
    return Badge("bad" if reading.pulled else "good", f"{figure}, {'pulled' if reading.pulled else 'not pulled'}")


def _source(trigger: rollback_triggers.RollbackTrigger, reading: rollback_triggers.Reading | None) -> str:
    return trigger.measured_by if reading is None else reading.reason


def _decision(decision: Decision) -> tuple[Cell, ...]:
    said = ["; ".join(decision.look_at), ", then ".join(decision.go), ", then ".join(decision.back)]
    return f"{decision.when}: {decision.question}", *said


def _as_data(readings: Readings) -> list[dict[str, Any]]:
    return [
        {"name": trigger.name, "limit": trigger.limit, "unit": trigger.unit,
         "figure": reading.figure if reading else None, "pulled": reading.pulled if reading else None}
        for trigger, reading in readings
    ]  # fmt: skip
