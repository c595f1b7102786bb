"""The constraint analysis for people: a line an approach, and a line for each thing that it does not simply pass."""

from collections.abc import Mapping
from typing import Any

from uuid_pipeline.engine.trials.obstacles import UNIQUE
from uuid_pipeline.reports.tables import UNKNOWN


def collision(entry: Mapping[str, Any]) -> str:
    """Whose row stands in the way. Only a unique key has one: a foreign key misses a row, a trigger writes."""
    if entry["kind"] not in UNIQUE:
        return "no row"
    return str(entry["collides_with"] or UNKNOWN)


def approach_records(analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each approach and entity with the rows that it fails for, of those that would move."""
    return [
        {
            "approach": a["approach"],
            "entity": a["entity"],
            "fails for": f"{a['fails_for']} of {a['of']}" + ("" if a["exact"] else " looked at"),
            "finding": a["finding"],
        }
        for a in analysis["approaches"]
    ]


def entry_records(analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What refuses an approach, or what it does besides; what it passes is only counted."""
    shown = [e for e in analysis["constraint_analysis"] if e["outcome"] != "passes"]
    return [
        {
            "approach": e["approach"],
            "entity": e["entity"],
            "object": f"{e['kind']} {e['object']} on {e['table']}",
            "outcome": " ".join(part for part in (e["outcome"], e["sqlstate"]) if part),
            "rows": UNKNOWN if e["documents"] is None else e["documents"],
            "collides with": collision(e),
            "message": e["message"],
            "by": e["basis"],
        }
        for e in shown
    ]
