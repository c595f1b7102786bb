"""Tables that people look at, from the engine's figures: for the UI as markdown, for the terminal as text."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.planning import Plan

UNKNOWN = "unknown"


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table, or a sentence when there is nothing to show; numbers to the right."""
    if not records:
        return "_nothing to show_"
    import pandas as pd  # here, since it would be a fifth of every command's start

    # As objects: pandas would make 3.0 of a 3 beside a None.
    frame = pd.DataFrame([dict(record) for record in records], dtype=object)
    align = ["right" if frame[name].map(_is_number).all() else "left" for name in frame]
    shown = frame.map(cell).to_markdown(index=False, disable_numparse=True, colalign=align)
    return str(shown)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def cell(value: Any) -> str:
    """A value in one line of a table; nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Mapping):
        return cell([f"{name}: {cell(one)}" for name, one in value.items()])
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(cell(one) for one in value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


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


def retrieval_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Retrieval as it was measured, before and after: (label, value)."""
    lines = [("Retrieval measured", f"{found['sample']}; {found['before']['how']}")]
    for label, figures in (("before", found["before"]), ("after", found["after"])):
        if figures is None:
            continue
        latency = (
            f"; p50 {figures['p50_ms']:.1f} ms, p95 {figures['p95_ms']:.1f} ms" if figures["p50_ms"] is not None else ""
        )
        share = percent(figures["rate"])
        lines.append((f"Retrievable {label}", f"{figures['found']} of {figures['measured']} ({share}){latency}"))
    if found["neighbours"] and found["neighbours"]["compared"]:
        lines.append(("Same neighbours", f"{found['neighbours']['same']} of {found['neighbours']['compared']}"))
    if found["after"] is not None and found["not_retrievable"]:
        reasons = Counter(one["reason"] for one in found["not_retrievable"])
        lines.append(("Not retrievable", "; ".join(f"{count}: {reason}" for reason, count in reasons.items())))
    return lines


def counts(found: Mapping[str, int]) -> str:
    """Figures by name in one line; empty when there are none."""
    return ", ".join(f"{count} {name}" for name, count in found.items() if count)


def pace(documents_a_second: float) -> str:
    """A rate for people; of a slow one, a decimal."""
    return f"{documents_a_second:.{0 if documents_a_second >= 10 else 1}f} documents/s"


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """A plan in words: (label, value)."""
    content = plan.content
    waves = ", ".join(f"{wave.kind} {wave.documents}" for wave in plan.waves) or "none"
    passes = content["sweep_passes"]
    lines = [
        ("Plan", plan.plan_id),
        ("Approach", _approach(content)),
        ("Ids to change", counts(plan.moves) or "none"),
        ("Rows to merge", counts(plan.merges) or "none"),
        ("Waves", waves),
        (
            "Sweeps after them",
            f"at most {passes}, for what arrives meanwhile" if passes and not plan.nothing_to_do else "none",
        ),
        ("Tier", f"{content['tier']}: {content['tier_reason']}"),
        *_trigger_lines("Trigger kept silent", content["silenced_triggers"]),
        *_trigger_lines("Trigger that fires", content["fired_triggers"]),
        ("Witnesses", str(content["witnesses"]) if content["witnesses"] else "none: the rule is unproven"),
        ("Estimated time", f"{content['estimate']['seconds']} s ({content['estimate'].get('basis', 'assumed')})"),
        ("Backup", content.get("backup", "none")),
        ("Ledger size", megabytes(content["estimate"]["ledger_bytes"])),
    ]
    for label, part in (("Index rebuilt", "rebuilt_indexes"), ("Index kept", "kept_indexes")):
        found = content.get(part, [])  # a plan of an earlier version has neither
        lines += [(label, f"{i['index']} on {i['table']} ({', '.join(i['waves'])}): {i['reason']}") for i in found]
    lines += [("Not readable here", f"{name}: {why}") for name, why in content["unreadable_signals"].items()]
    return lines + [("Risk", said) for said in risk_lines(content)]


# Lines of one kind of risk: a schema of hundreds of tables may lack as many indexes.
_OF_A_KIND = 8


def risk_lines(content: Mapping[str, Any]) -> list[str]:
    """The plan's risks, the heaviest first; of a kind that has many, those that are left out are counted."""
    register = content.get("risk_register")
    if register is None:
        return list(content["risks"])
    said, met = [], Counter[str]()
    for risk in register:
        met[risk["rule"]] += 1
        if met[risk["rule"]] <= _OF_A_KIND:
            said.append(f"{risk['finding']} ({risk['probability']} / {risk['impact']})")
    return said + [f"{n - _OF_A_KIND} more like it ({rule}), in --json" for rule, n in met.items() if n > _OF_A_KIND]


def _approach(content: Mapping[str, Any]) -> str:
    left = counts(content.get("left", {}))
    covers = content.get("covers", "everything due")
    return f"{content['approach']}; the plan covers {covers}" + (f", {left} are left to a later plan" if left else "")


def _trigger_lines(label: str, triggers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One line for the same trigger on several tables, with what it seems to do."""
    tables: dict[tuple[str, str], list[str]] = {}
    for trigger in triggers:
        tables.setdefault((trigger["trigger"], trigger["does"]), []).append(trigger["table"])
    lines = [(label, f"{name} on {', '.join(on)}: {does}") for (name, does), on in tables.items()]
    return lines or [(f"{label}".replace("Trigger ", "Triggers ").replace("that fires", "that fire"), "none")]


def pairs_markdown(lines: Sequence[tuple[str, str]]) -> str:
    return markdown([{"": label, "value": value} for label, value in lines])
