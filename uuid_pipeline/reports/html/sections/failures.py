"""Failure patterns of the application's pipeline."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    if subject.evidence.before is None:
        return None
    rows = list[tuple[Cell, ...]]()
    patterns = subject.evidence.before["patterns"]
    for pattern in patterns:
        count: Cell = pattern["documents"] if pattern["documents"] is not None else f"unknown: {pattern['unknown']}"
        examples = ", ".join(pattern["examples"]) or "none"
        rows.append((pattern["title"], count, pattern["meaning"], examples))
    lead = "Where documents stopped on their way through the application's pipeline, as the plan's inventory saw them."
    return Section(
        "failures", "Failure patterns", lead,
        (Table("Patterns", ("Pattern", "Documents", "What it is", "Examples"), tuple(rows)),),
        data={pattern["name"]: pattern["documents"] for pattern in patterns},
    )  # fmt: skip
