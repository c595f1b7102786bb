"""Retrieval as it was measured, before and after: as the documents' owners ask."""

from sqlalchemy import Connection

from uuid_pipeline.engine.evidence.kept_evidence import Record
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Comparison, Section, Table, Tiles
from uuid_pipeline.reports.html.subject import Subject


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    found = subject.evidence.kept.retrieval
    if not found:
        return None
    before, after = found.get("before"), found.get("after")
    shown = after or before or {}
    blocks: list[Block] = [Tiles(_tiles(before, after))]
    times = tuple(
        (label, _ms(before, name), _ms(after, name))
        for label, name in (("Median", "p50_ms"), ("95 of 100 within", "p95_ms"))
    )
    blocks.append(Table("The owners' own query", ("Time of a query", "Before", "Now"), times))
    missed: tuple[tuple[Cell, ...], ...] = tuple((one["document"], one["reason"]) for one in shown["not_retrievable"])
    blocks.append(Table("Not retrievable, and why", ("Document", "Reason"), missed, empty="every one was found"))
    gate = subject.evidence.gate("validation_report", "whole_documents_retrievable")
    badge = None if gate is None else Badge("good", "Passed") if gate.passed else Badge("bad", "Not passed")
    lead = f"Measured, not inferred: {shown['how']}."
    return Section("retrieval", "Retrieval, measured", lead, tuple(blocks), badge, dict(found))


def _tiles(before: Record | None, after: Record | None) -> tuple[Comparison, ...]:
    def pair(name: str) -> tuple[float | None, float | None]:
        return (before[name] if before else None), (after[name] if after else None)

    return (
        Comparison("retrieval_measured", "Documents asked for", *pair("measured")),
        Comparison("retrieval_found", "Found", *pair("found")),
        Comparison("retrieval_rate", "Share found", *pair("rate"), "share"),
        Comparison("retrieval_rows", "Rows under the target id", *pair("rows_by_target")),
    )


def _ms(found: Record | None, name: str) -> str:
    return "unknown" if found is None or found[name] is None else f"{found[name]:.1f} ms"
