"""An inventory's figures as rows of tables, for the UI."""

from typing import Any

from uuid_pipeline.reports.tables import UNKNOWN, megabytes

Records = list[dict[str, Any]]


def patterns(found: dict[str, Any]) -> Records:
    return [
        {"pattern": p["title"], "documents": UNKNOWN if p["documents"] is None else p["documents"],
         "what it is": p["meaning"], "examples": p["unknown"] or ", ".join(p["examples"])}
        for p in found["patterns"]
    ]  # fmt: skip


def users(found: dict[str, Any]) -> Records:
    """The users with the most documents to move."""
    if found["users"] is None:
        return []
    return [
        {"user": u["owner"], "documents": u["documents"], "to move": u["due"],
         "without chunks": _known(u["without_children"]), "chunks": _known(u["children"]),
         "storage": megabytes(u["bytes"])}
        for u in found["users"]["top"]
    ]  # fmt: skip


def priorities(found: dict[str, Any]) -> Records:
    """The documents of the highest priority, with the parts of their score."""
    return [
        {"document": d["id"], "recency": d["recency"], "status": d["by_status"], "chunks": d["by_children"],
         "score": round(d["priority"], 2)}
        for d in found["priorities"]["top"]
    ]  # fmt: skip


def orphans(found: dict[str, Any]) -> Records:
    return [{"reference": name, "orphans": count} for name, count in found["orphans"].items()]


def _known(value: int | None) -> int | str:
    return UNKNOWN if value is None else value
