"""Tables that people look at, from the engine's figures: for the UI as markdown, for the terminal as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.planning import Plan

UNKNOWN = "unknown"


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table, or a sentence when there is nothing to show."""
    if not records:
        return "_nothing to show_"
    return str(pd.DataFrame.from_records([dict(record) for record in records]).to_markdown(index=False))


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def megabytes(size: int | None) -> str:
    """Bytes as MB (10^6 bytes)."""
    return UNKNOWN if size is None else f"{size / 1e6:.2f} MB"


def known(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def inventory_lines(summary: Summary) -> list[tuple[str, str]]:
    """The report's figures, in the report's order: (label, value)."""
    total = summary.documents or 1
    return [
        ("Documents", str(summary.documents)),
        ("Random ids", f"{summary.random} ({percent(summary.random / total)})"),
        ("Deterministic ids", f"{summary.deterministic} ({percent(summary.deterministic / total)})"),
        ("Stray ids", f"{summary.stray} ({percent(summary.stray / total)})"),
        ("Quarantined", str(summary.quarantined)),
        ("Affected users", known(summary.affected_users)),
        ("High-impact users", known(summary.high_impact_users)),
        ("Storage", megabytes(summary.bytes)),
        ("Recent documents", known(summary.recent)),
        ("Failed pipeline documents", known(summary.failed)),
        ("Orphaned rows", str(summary.orphans)),
        ("Pipeline consistency", percent(summary.consistency)),
    ]


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """A plan in words: (label, value)."""
    content = plan.content
    waves = ", ".join(f"{wave.kind} {wave.documents}" for wave in plan.waves) or "none"
    silenced, fired = (
        ", ".join(f"{t['trigger']} on {t['table']}" for t in content[kind]) or "none"
        for kind in ("silenced_triggers", "fired_triggers")
    )
    lines = [
        ("Plan", plan.plan_id),
        ("Approach", content["approach"]),
        ("Ids to change", ", ".join(f"{count} {name}" for name, count in plan.moves.items())),
        ("Rows to merge", ", ".join(f"{count} {name}" for name, count in plan.merges.items() if count) or "none"),
        ("Waves", waves),
        ("Sweeps after them", f"at most {content['sweep_passes']}"),
        ("Tier", f"{content['tier']}: {content['tier_reason']}"),
        ("Triggers kept silent", silenced),
        ("Triggers that fire", fired),
        ("Witnesses", str(content["witnesses"]) if content["witnesses"] else "none: the rule is unproven"),
        ("Estimated time", f"{content['estimate']['seconds']} s (by a speed measured elsewhere)"),
        ("Ledger size", megabytes(content["estimate"]["ledger_bytes"])),
    ]
    for label, part in (("Index rebuilt", "rebuilt_indexes"), ("Index kept", "kept_indexes")):
        found = content.get(part, [])  # a plan of an earlier version has neither
        lines += [(label, f"{i['index']} on {i['table']} ({', '.join(i['waves'])}): {i['reason']}") for i in found]
    lines += [("Not readable here", f"{name}: {why}") for name, why in content["unreadable_signals"].items()]
    return lines + [("Risk", risk) for risk in content["risks"]]


def pairs_markdown(lines: Sequence[tuple[str, str]]) -> str:
    return markdown([{"": label, "value": value} for label, value in lines])
