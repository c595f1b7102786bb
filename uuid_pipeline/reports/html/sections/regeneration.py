"""Documents that no change of ids makes retrievable, each with why, and what was queued for workers."""

from sqlalchemy import Connection

from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.retrievals import unretrievable
from uuid_pipeline.engine.retrievals.unretrievable import WORDS, Listed
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Code, Section, Table, Text
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import moment, plural

SHOWN = 50
COMMAND = "uuid-pipeline regenerate"


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    found = unretrievable.listed(connection, store, SHOWN)
    count = found.waiting + found.queued
    if found.unknown and not count:
        return None
    blocks: list[Block] = [_documents(store, found, count)]
    if found.by_reason:
        rows = tuple((WORDS[name], documents) for name, documents in found.by_reason.items())
        blocks.append(Table("Why; a document may have several reasons", ("Reason", "Documents"), rows))
    if found.unknown:
        blocks.append(Text(f"Unknown: {'; '.join(found.unknown)}."))
    requests = subject.evidence.kept.requests
    if requests:
        said = f"{plural(requests['queued'], 'document')} queued for the application's workers since "
        blocks.append(Text(f"{said}{moment(requests['since'])}, first by {requests['by']}."))
    elif found.waiting:
        blocks.append(Table("To queue them for the application's workers", ("Step", "Command"), _steps(store, found)))
    lead = "There is none: every document has what it is found by."
    if count:
        lead = "They have nothing, or too little, to be found by: they must be processed again, or deleted."
    badge = Badge("open", plural(count, "document")) if count else None
    return Section(
        "regeneration", "To be processed again", lead, tuple(blocks), badge,
        {"documents": count, "waiting": found.waiting, "queued": found.queued, "by_reason": found.by_reason,
         "unknown": list(found.unknown), "list_id": found.list_id},
    )  # fmt: skip


def _steps(store: Store, found: Listed) -> tuple[tuple[Cell, ...], ...]:
    """What to type, as far as the spec allows it; the id holds as long as no document comes or goes."""
    see = ("See the list of now, and its id", Code(COMMAND))
    if store.spec.regeneration.statement is None:
        return (see, ("Queue it", "the spec has no statement for that: regeneration.statement"))
    return (
        see,
        ("Approve the list of this report, and queue it", Code(f"{COMMAND} --queue --approve {found.list_id}")),
        ("Take back what nobody has begun", Code(f"{COMMAND} --undo")),
    )


def _documents(store: Store, found: Listed, count: int) -> Table:
    no_status = "no status" if store.main.spec.describe.status else None
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (d.id, redaction.shown(store.spec, "title", _cut(d.title)), _cut(d.status) or no_status,
         "; ".join(WORDS[reason] for reason in d.reasons), d.queued_at or "no")
        for d in found.documents
    )  # fmt: skip
    more = f"the first {SHOWN} of {count:,}" if count > SHOWN else ""
    return Table(
        "Documents that no id makes retrievable, now", ("Document", "Title", "Status", "Why", "Queued"), rows, more,
        "every document can be found",
    )  # fmt: skip


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= 120 else f"{text[:120]} …"
