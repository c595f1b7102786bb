"""A tick and the guard in tables, for the UI and the terminal."""

from collections.abc import Sequence
from typing import Any

from uuid_pipeline.engine.health.figure import Figure
from uuid_pipeline.engine.health.history import Tick
from uuid_pipeline.engine.installed.guard import Guarded
from uuid_pipeline.reports.tables import UNKNOWN, percent

Records = list[dict[str, Any]]


def shown_value(figure: Figure) -> str:
    """A figure with its unit; ``unknown`` where it is."""
    if figure.value is None:
        return UNKNOWN
    if figure.unit == "share":
        return percent(figure.value)
    return f"{figure.value:.2f} ms" if figure.unit == "milliseconds" else f"{figure.value:.0f}"


def figure_records(tick: Tick) -> Records:
    """One row a figure: value, and what it is of."""
    return [{"figure": one.name, "value": shown_value(one), "of": one.finding} for one in tick.figures]


def check_records(tick: Tick) -> Records:
    """One row a check: whether it passes, and what it found."""
    return [
        {
            "check": check.name,
            "state": "pass" if check.passed else check.severity.upper(),
            "since": f"{check.failing_since:%Y-%m-%d %H:%M} UTC" if check.failing_since else "",
            "finding": check.finding,
        }
        for check in tick.checks
    ]


def guard_records(guarded: Sequence[Guarded]) -> Records:
    """One row a guard, standing or removed."""
    return [
        {
            "entity": one.entity,
            "mode": "removed" if one.removed_at else one.mode,
            "SHA-1 by": one.hashing,
            "as the spec says": "" if one.removed_at else ("yes" if one.current else "no: install it again"),
            "caught": one.caught,
            "last caught": f"{one.last_caught:%Y-%m-%d %H:%M:%S} UTC" if one.last_caught else "",
            "without target id": one.unjudged,
        }
        for one in guarded
    ]
