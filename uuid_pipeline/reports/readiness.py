"""Readiness and performance as tables, for the UI and the terminal."""

from typing import Any

from uuid_pipeline.engine.evidence.lookups import Lookups, Timing
from uuid_pipeline.engine.evidence.readiness import Readiness
from uuid_pipeline.reports.tables import UNKNOWN


def criteria(found: Readiness) -> list[dict[str, Any]]:
    """One row a criterion."""
    return [
        {"criterion": c.title, "verdict": c.verdict, "figure": c.figure, "measured": c.measured,
         "weight": "binds" if c.binds else "informs"}
        for c in found.criteria
    ]  # fmt: skip


def actions(found: Readiness) -> list[dict[str, Any]]:
    """One row for each thing that is still open."""
    return [
        {"about": c.title, "who": c.action.who, "what": c.action.what, "command": c.action.command}
        for c in found.criteria
        if c.action is not None
    ]


def performance(before: Lookups | None, now: Lookups) -> list[dict[str, Any]]:
    """Look-ups before and now: found by the target id, and times in milliseconds."""
    return [
        {"figure": "found by the target id", "before": _found(before), "now": _found(now)},
        {"figure": "document by its id, median ms", "before": _ms(before.by_key if before else None),
         "now": _ms(now.by_key)},
        {"figure": "chunks of a document, median ms", "before": _ms(before.children if before else None),
         "now": _ms(now.children)},
        {"figure": "round trip that reads nothing, median ms", "before": _ms(before.round_trip if before else None),
         "now": _ms(now.round_trip)},
    ]  # fmt: skip


def _found(found: Lookups | None) -> str:
    return UNKNOWN if found is None else f"{found.found_by_target} of {found.sampled}"


def _ms(timing: Timing | None) -> str:
    return UNKNOWN if timing is None else f"{timing.median:.2f}"
