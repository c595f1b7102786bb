"""The report as a whole: every section in its order, rendered to one file, with the same figures as JSON beside it."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports.html import charts
from uuid_pipeline.reports.html import subject as subjects
from uuid_pipeline.reports.html.blocks import Section
from uuid_pipeline.reports.html.sections import SECTIONS
from uuid_pipeline.reports.html.subject import Subject


@dataclass(frozen=True)
class Bundle:
    """The evidence that was written with a report: its file, and the digest to note elsewhere."""

    path: str
    digest: str


@dataclass(frozen=True)
class Report:
    """A report before it is a file."""

    title: str
    meta: tuple[tuple[str, str | datetime | None], ...]
    subject: Subject
    sections: tuple[Section, ...]
    bundle: Bundle | None = None

    def as_json(self) -> dict[str, Any]:
        """All that the page says, for programs."""
        subject = self.subject
        return {
            "title": self.title,
            "made_at": subject.made_at,
            "plan_id": subject.plan.plan_id,
            "execution_id": subject.execution.execution_id if subject.execution else None,
            "status": subject.execution.status if subject.execution else None,
            "verdict": subject.readiness.verdict,
            "bundle": asdict(self.bundle) if self.bundle else None,
            "sections": {
                section.name: {
                    "title": section.title,
                    "lead": section.lead,
                    "verdict": section.badge.word if section.badge else None,
                    "figures": section.data,
                    "blocks": [{"kind": block.kind, **asdict(block)} for block in section.blocks],
                }
                for section in self.sections
            },
        }

    def as_html(self) -> str:
        """One page that needs nothing beside it."""
        template = charts.environment().get_template("report.html.j2")
        return template.render(
            title=self.title,
            meta=self.meta,
            sections=self.sections,
            made_at=self.subject.made_at,
            version=version("uuid-pipeline"),
        )


def build(connection: Connection, store: Store, bundle: Bundle | None = None) -> Report:
    """Read everything that the sections show. Wants an open transaction, best a REPEATABLE READ one.

    Raises RefusedError when nothing was planned yet.
    """
    subject = subjects.find(connection, store)
    found = [make(connection, store, subject) for make in SECTIONS]
    database, server = sql.rows(connection, "SELECT current_database(), current_setting('server_version')")[0]
    main = store.main.table
    execution = subject.execution
    meta: list[tuple[str, str | datetime | None]] = [
        ("Database", database),
        ("PostgreSQL", server.split(" ")[0]),
        ("Plan", subject.plan.plan_id),
        ("Execution", execution.execution_id if execution else "not approved"),
        ("Status", execution.status.replace("_", " ") if execution else "waits for approval"),
        ("Approved by", execution.approved_by if execution else None),
        ("Made", subject.made_at),
        ("Evidence bundle, digest", bundle.digest if bundle else None),
    ]
    return Report(
        f"Ids of {main.schema}.{main.name}",
        tuple(line for line in meta if line[1] is not None),
        subject,
        tuple(section for section in found if section is not None),
        bundle,
    )


def write(report: Report, path: Path) -> tuple[Path, Path]:
    """Write the page to ``path`` and its figures beside it, ``.json``; directories are made.

    Raises UsageError when they cannot be written.
    """
    figures = path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.as_html(), encoding="utf-8")
        figures.write_text(
            json.dumps(report.as_json(), default=str, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise UsageError(f"The report cannot be written to {path}: {error.strerror}. Say where with --out.") from error
    return path, figures


def default_path(home: Path, subject_name: str) -> Path:
    """Where a report goes that nobody said a place for."""
    return home / "reports" / subject_name / "report.html"
