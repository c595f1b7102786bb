"""Notices: rendered for review, a file an audience, and for users one line each of a file that a mailer takes.

Each is written once, in Markdown; its page and its plain text follow from that, unless the team gives its own.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from sqlalchemy import Connection

from uuid_pipeline.engine.plans import notice_facts
from uuid_pipeline.engine.plans.notice_facts import Facts, Kind
from uuid_pipeline.engine.privacy.affected_users import NOBODY, Impact, User, added
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports import files, templating
from uuid_pipeline.reports import strategy as strategies
from uuid_pipeline.reports.templating import NOTICES, Format
from uuid_pipeline.spec import Audience, Notices

FORMATS: tuple[Format, ...] = ("md", "html", "txt")
AUDIENCES: tuple[Audience, ...] = ("support", "stakeholders")
USER_FILES = 20
MANIFEST = "notices.json"
PER_USER = "users.jsonl"


@dataclass(frozen=True)
class Notice:
    """One notice in its three forms; ``subject`` is one line of plain text."""

    subject: str
    md: str
    html: str
    txt: str


@dataclass(frozen=True)
class Rendered:
    """What was written: where, of what, for how many users; ``own_templates`` are those of the team that were used."""

    directory: Path
    kind: Kind
    plan_id: str
    execution_id: str | None
    status: str
    timely: bool
    users: int | None
    documents_without_owner: int
    totals: Impact
    files: dict[str, list[str]]
    own_templates: tuple[str, ...]
    notices: dict[str, Notice] = field(repr=False)

    def as_data(self) -> dict[str, Any]:
        """As the manifest and --json have it."""
        data = asdict(self)
        del data["notices"]
        return data | {"directory": str(self.directory), "subjects": {a: n.subject for a, n in self.notices.items()}}


def template_directory(settings: Notices, spec_file: Path | None) -> Path | None:
    """The team's own templates; a relative path starts at the spec's file.

    Raises UsageError when it is no directory.
    """
    if settings.templates is None:
        return None
    base = spec_file.parent if spec_file else Path.cwd()
    found = (base / Path(settings.templates).expanduser()).resolve()
    if not found.is_dir():
        raise UsageError(f"The spec's notices.templates is no directory: {found}")
    return found


def place(home: Path, facts: Facts) -> Path:
    """The directory of the notices of one kind, of one plan or execution."""
    return files.directory(home, facts.subject, NOTICES, facts.kind)


def write(connection: Connection, store: Store, kind: Kind, home: Path, templates: Path | None) -> Rendered:
    """Gather the facts of a kind, render every audience's notice, and write all of it below the home.

    Memory is bounded: users pass by one after the other. Raises RefusedError when there is nothing to give notice of,
    UsageError when a team's own template is at fault.
    """
    facts = notice_facts.gather(connection, kind)
    directory = place(home, facts)
    common = _common(store, facts, home, directory)
    concerned = _write_users(connection, store, facts, directory, common, templates)
    known = concerned.users if _users_known(store) else None
    values = common | {"all": concerned.totals, "users": known, "without_owner": concerned.without_owner}
    notices: dict[str, Notice] = {audience: render(f"{kind}/{audience}", templates, values) for audience in AUDIENCES}
    paths = {audience: _write(directory, audience, notice) for audience, notice in notices.items()}
    if known is not None:
        paths["users"] = concerned.files
    made = Rendered(
        directory, kind, facts.plan_id, facts.execution.execution_id if facts.execution else None, facts.status,
        facts.timely, known, concerned.without_owner, concerned.totals, paths, tuple(_own_templates(templates)),
        notices,
    )  # fmt: skip
    files.write(directory / MANIFEST, json.dumps(made.as_data(), indent=2, ensure_ascii=False) + "\n")
    return made


@dataclass(frozen=True)
class _Concerned:
    users: int
    without_owner: int
    totals: Impact
    files: list[str]


def _write_users(
    connection: Connection, store: Store, facts: Facts, directory: Path, common: dict[str, Any], templates: Path | None
) -> _Concerned:
    """A line for everybody, and files of the first few to look at."""
    name = f"{facts.kind}/users"
    shown = files.emptied(directory / "users")
    totals, users, nobody, written = NOBODY, 0, 0, [str(directory / PER_USER)]
    with files.writing(directory / PER_USER) as lines:
        for owner, user in notice_facts.users(connection, facts):
            totals = added(totals, user.impact)
            if owner is None:
                nobody += user.impact.changing + (user.impact.quarantined or 0)
                continue
            if not user.impact.changing and facts.kind in ("during", "rollback"):
                continue
            users += 1
            values = common | {"me": user.impact, "lists": user}
            lines.write(json.dumps(_line(facts.kind, user, values, templates), ensure_ascii=False) + "\n")
            if users <= USER_FILES:
                written += _write(shown, f"{users:04d}", render(name, templates, values))
    if not _users_known(store):
        (directory / PER_USER).unlink()
    return _Concerned(users, nobody, totals, written)


def _users_known(store: Store) -> bool:
    return store.main.spec.describe.owner is not None


def _common(store: Store, facts: Facts, home: Path, place: Path) -> dict[str, Any]:
    """What every template may use."""
    said = store.spec.notices
    return {
        "product": said.product or "Our application",
        "contact": said.contact,
        "window": said.window,
        "kind": facts.kind,
        "plan_id": facts.plan_id,
        "execution_id": facts.execution.execution_id if facts.execution else None,
        "status": facts.status,
        "strategy": facts.strategy,
        "strategy_file": str(strategies.paths(home, facts.plan_id).html),
        "approve": facts.strategy.approve,
        "resolve": f"SELECT uuid_pipeline.resolve_{store.main.name}('ID')",
        "per_user": str(place / PER_USER) if _users_known(store) else "no file: the spec names no owner",
        "waves": facts.waves,
        "readings": facts.readings,
        "risks": [risk for risk in facts.strategy.risks if risk.rule in _REACHING_USERS],
        "quiet_hours": f"{store.spec.aliases.quiet_hours:g}",
    }


_REACHING_USERS = (
    "remembered_id", "without_chunks", "quarantined_row", "index_rebuilt", "archived_without_counterpart",
    "merged_rows",
)  # fmt: skip


def render(name: str, templates: Path | None, values: dict[str, Any]) -> Notice:
    """A notice by the name of its template without form and ending."""
    markdown = _render("md", name, templates, values)
    text = _text(name, templates, values)
    subject = _subject(text)
    if templating.exists("html", f"{NOTICES}/{name}.html", templates):
        html = _render("html", name, templates, values)
    else:
        # Raw HTML is off: what looks like it is shown as it is written.
        body = Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))
        html = templating.render("html", f"{NOTICES}/page.html", templates, subject=subject, body=body)
    return Notice(subject, markdown, html, text)


def _render(form: Format, name: str, templates: Path | None, values: dict[str, Any]) -> str:
    return templating.render(form, f"{NOTICES}/{name}.{form}", templates, **values)


def _text(name: str, templates: Path | None, values: dict[str, Any]) -> str:
    if templating.exists("txt", f"{NOTICES}/{name}.txt", templates):
        return _render("txt", name, templates, values)
    # The values go in as they are, and what is Markdown in the template becomes plain.
    return _plain(templating.render("txt", f"{NOTICES}/{name}.md", templates, **values))


def _plain(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if heading := re.fullmatch(r"#+ (.*)", line):
            lines += [heading[1], "=" * min(len(heading[1]), 72)]
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?|", cell) for cell in cells):
                lines.append(": ".join([cells[0], " | ".join(cell for cell in cells[1:] if cell)]))
        else:
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def _subject(text: str) -> str:
    return next((templating.one_line(line) for line in text.splitlines() if line.strip()), "Notice")


def _line(kind: Kind, user: User, values: dict[str, Any], templates: Path | None) -> dict[str, Any]:
    """What a mailer needs for one user; it knows the address, we do not."""
    body = _text(f"{kind}/users", templates, values)
    return {"user": user.owner, "kind": kind, "subject": _subject(body), "body": body} | asdict(user.impact)


def _write(place: Path, name: str, notice: Notice) -> list[str]:
    return [str(files.write(place / f"{name}.{form}", getattr(notice, form))) for form in FORMATS]


def _own_templates(templates: Path | None) -> Iterator[str]:
    if templates is not None:
        yield from sorted(str(path.relative_to(templates)) for path in templates.rglob(f"*{templating.ENDING}"))
