"""Clusters and look-alikes for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from uuid_pipeline.engine.evidence.look_alikes import LookAlikes
from uuid_pipeline.reports.tables import counts


def cluster_records(clusters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a cluster: what stays and by which rule, what is merged into it, what that archives and turns."""
    return [
        {
            "entity": c["entity"],
            "kind": c["kind"],
            "natural key": c["natural_key"],
            "survivor": c["survivor"],
            "by rule": c["survivor_rule"],
            "merged into it": ", ".join(c["ids"][1:]),
            "archives": counts(c.get("archives", {})),
            "turns": counts(c.get("turns", {})),
        }
        for c in clusters
    ]


def look_alike_records(found: Sequence[LookAlikes]) -> list[dict[str, Any]]:
    """A line a group, and a line for what was not looked for, with why."""
    records: list[dict[str, Any]] = []
    for kind in found:
        if kind.unknown or not kind.groups:
            records.append({"kind": kind.kind, "documents": None, "owners": None, "ids": kind.unknown or "none"})
        records += [
            {"kind": kind.kind, "documents": g["rows"], "owners": g["owners"], "ids": ", ".join(g["ids"])}
            for g in kind.shown
        ]
    return records
