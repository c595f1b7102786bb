"""Documents that no change of ids makes retrievable, and what was queued for the application's workers."""

from sqlalchemy import Connection

from uuid_pipeline.engine import redaction, sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Section, Table, Text
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import moment, plural

SHOWN = 50


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    now = subject.evidence.now
    if now.with_children is None:
        return None
    without = now.documents - now.with_children
    rows = _without(connection, store) if without else ()
    more = f"the first {SHOWN} of {without:,}" if without > SHOWN else ""
    blocks: list[Block] = [
        Table("Documents without chunks, now", ("Document", "Title", "Status"), rows, more, "every document has chunks")
    ]
    requests = subject.evidence.kept.requests
    if requests:
        said = f"{plural(requests['queued'], 'document')} queued for the application's workers since "
        blocks.append(Text(f"{said}{moment(requests['since'])}, first by {requests['by']}."))
    lead = "They have nothing to be found by: they must be processed again, or deleted." if without else (
        "There is none: every document has chunks."
    )  # fmt: skip
    badge = Badge("open", plural(without, "document")) if without else None
    return Section("regeneration", "To be processed again", lead, tuple(blocks), badge,
                   {"without_chunks": without, "queued": requests["queued"] if requests else 0})  # fmt: skip


def _without(connection: Connection, store: Store) -> tuple[tuple[Cell, ...], ...]:
    main, known = store.main, store.main.spec.describe
    empty = [
        sql.compose(
            "NOT EXISTS (SELECT FROM {table} c WHERE c.{parent} = t.{key})",
            table=sql.table(child.table.schema, child.table.name),
            parent=sql.name(child.parent_column or ""),
            key=sql.name(main.key),
        )
        for child in store.children(main)
    ]
    statement = sql.compose(
        """SELECT t.{key}::text, left({title}, 120), left({status}, 120) FROM {table} t WHERE {empty}
           ORDER BY t.{key} LIMIT %(limit)s""",
        key=sql.name(main.key),
        title=_described(known.title),
        status=_described(known.status),
        table=sql.table(main.table.schema, main.table.name),
        empty=sql.join(" AND ", empty),
    )
    found = sql.rows(connection, statement, {"limit": SHOWN})
    no_status = "no status" if known.status else None
    return tuple(
        (key, redaction.shown(store.spec, "title", title), status or no_status) for key, title, status in found
    )


def _described(column: str | None) -> sql.Composable:
    return sql.compose("t.{c}::text", c=sql.name(column)) if column else sql.Text("NULL::text")
