"""Production readiness: each criterion, how it was measured, figure, verdict; and performance before and now."""

from dataclasses import asdict

from sqlalchemy import Connection

from uuid_pipeline.engine.evidence.lookups import Lookups, Timing
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import READY


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    readiness = subject.readiness
    rows = tuple(
        (criterion.title, READY[criterion.verdict], criterion.figure, criterion.measured,
         "binds" if criterion.binds else "informs")
        for criterion in readiness.criteria
    )  # fmt: skip
    counted = f"{readiness.count('ready')} of {len(readiness.criteria)} criteria are ready"
    lead = f"{counted}. One that binds and is not ready stands in the way; one that informs does not."
    return Section(
        "readiness", "Validation and readiness", lead,
        (Table("Criteria", ("Criterion", "Verdict", "Figure", "How it was measured", "Weight"), rows),
         performance(subject)),
        READY[readiness.verdict],
        {"verdict": readiness.verdict, "criteria": [asdict(criterion) for criterion in readiness.criteria],
         "lookups": {"before": _record(subject.evidence.lookups_before),
                     "now": _record(subject.evidence.lookups_after)}},
    )  # fmt: skip


def _record(found: Lookups | None) -> object:
    return found.as_record() if found else None


def performance(subject: Subject) -> Table:
    """Look-ups before and now, in milliseconds."""
    before, now = subject.evidence.lookups_before, subject.evidence.lookups_after
    rows = [
        *_timed("Document by its id", before.by_key if before else None, now.by_key),
        *_timed("Chunks of a document", before.children if before else None, now.children),
        *_timed("Round trip that reads nothing", before.round_trip if before else None, now.round_trip),
    ]
    return Table(
        f"Performance: {now.sampled} documents looked up from here, one by one",
        ("Look-up", "Figure", "Before", "Now"), tuple(rows),
    )  # fmt: skip


def _timed(label: str, before: Timing | None, now: Timing | None) -> list[tuple[Cell, ...]]:
    if before is None and now is None:
        return []
    return [
        (label, "median", _ms(before.median if before else None), _ms(now.median if now else None)),
        (label, "95 of 100 within", _ms(before.p95 if before else None), _ms(now.p95 if now else None)),
    ]


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} ms"
