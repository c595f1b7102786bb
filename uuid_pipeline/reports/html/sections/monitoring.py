"""The store's health as it was looked at last, and the guards that keep new random ids out."""

from sqlalchemy import Connection

from uuid_pipeline.engine.evidence.kept_evidence import Record
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    checks, guards = subject.evidence.kept.health, subject.evidence.kept.guards
    if not checks and not guards:
        return None
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (c["check"], _result(c), c["severity"], c["finding"],
         c["failing_since"] or "")
        for c in checks
    )  # fmt: skip
    blocks: list[Block] = [
        Table("Health checks", ("Check", "Result", "Severity", "Finding", "Failing since"), rows,
              empty="the store's health was not looked at yet"),
        Table("Guards", ("Entity", "Mode", "Since"), tuple((g["entity"], g["mode"], g["installed_at"]) for g in guards),
              empty="none stands: nothing keeps a new random id out"),
    ]  # fmt: skip
    failing = sum(not c["passed"] and c["severity"] != "warning" for c in checks)
    warned = sum(not c["passed"] for c in checks) - failing
    passing = len(checks) - failing - warned
    lead = f"{passing} of {len(checks)} checks pass." if checks else "No look at the health was kept yet."
    badge = Badge("bad", f"{failing} failing") if failing else Badge("open", plural(warned, "warning"))
    if not failing + warned:
        badge = Badge("good", "All passed")
    return Section("monitoring", "Monitoring", lead, tuple(blocks), badge if checks else None,
                   {"checks": checks, "guards": guards})  # fmt: skip


def _result(check: Record) -> Badge:
    if check["passed"]:
        return Badge("good", "Passed")
    return Badge("open", "Warning") if check["severity"] == "warning" else Badge("bad", "Failing")
