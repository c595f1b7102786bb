"""The store's health as it was looked at last, and the guards that keep new random ids out."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    checks, guards = subject.evidence.kept.health, subject.evidence.kept.guards
    if not checks and not guards:
        return None
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (c["check"], Badge("good", "Passed") if c["passed"] else Badge("bad", "Failing"), c["severity"], c["finding"],
         c["failing_since"] or "")
        for c in checks
    )  # fmt: skip
    blocks: list[Block] = [
        Table("Health checks", ("Check", "Result", "Severity", "Finding", "Failing since"), rows,
              empty="the store's health was not looked at yet"),
        Table("Guards", ("Entity", "Mode", "Since"), tuple((g["entity"], g["mode"], g["installed_at"]) for g in guards),
              empty="none stands: nothing keeps a new random id out"),
    ]  # fmt: skip
    failing = sum(not c["passed"] for c in checks)
    lead = f"{len(checks) - failing} of {len(checks)} checks pass." if checks else "No look at the health was kept yet."
    badge = None if not checks else Badge("bad", f"{failing} failing") if failing else Badge("good", "All passed")
    return Section("monitoring", "Monitoring", lead, tuple(blocks), badge, {"checks": checks, "guards": guards})
