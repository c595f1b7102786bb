"""Generation success: of the documents created since the tick before, those whose id is their target id."""

from dataclasses import replace
from datetime import datetime, timedelta

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health import identified
from uuid_pipeline.engine.health.figure import Figure, share, unknown
from uuid_pipeline.engine.health.identified import Identified
from uuid_pipeline.engine.health.look import Look

NAME = "generation_new"
# The newest of them, when there are more.
MOST = 10_000
# A row bears the time at which its transaction began, and is seen when it has ended.
OVERLAP = timedelta(minutes=1)
# What the first tick takes for "since the tick before".
FIRST_LOOK_BACK = timedelta(days=1)
# Without an index: so many pages at the table's end (8 MB), where new rows land unless vacuum has freed room elsewhere.
LAST_PAGES = 1_000


def measure(look: Look) -> list[Figure]:
    """By describe.created_at, through an index that begins with it, or among all rows when whole tables may be read.

    Otherwise among the rows at the table's end.
    """
    main = look.store.main
    column = main.spec.describe.created_at
    if column is None:
        return [unknown(NAME, "share", f"the spec does not say which column of {main.table.name} is created_at")]
    at_the_end = column not in main.table.indexed_first and not look.whole
    where = f", in the last {LAST_PAGES} pages: no index begins with {column}" if at_the_end else ""
    found = _created_since(look, column, look.since, at_the_end)
    if not found:
        # Nobody uploaded anything: what those who did so last got stands, as it is now.
        last = _last_window(look)
        found = _created_since(look, column, last, at_the_end) if last is not None else []
        figure = _share(found, last or look.since, where)
        return [replace(figure, finding=f"{figure.finding} [from before]") if figure.value is not None else figure]
    return [_share(found, look.since, where)]


def _share(found: list[Identified], since: datetime, where: str) -> Figure:
    good = sum(row.key == row.target for row in found)
    return share(NAME, good, len(found), f"documents created since {since:%Y-%m-%d %H:%M} UTC{where}")


_LAST_WINDOW = """
SELECT coalesce((SELECT max(b.at) FROM uuid_pipeline.health_ticks b WHERE b.tick_no < t.tick_no),
                t.at - %(back)s) AS since
FROM uuid_pipeline.health_ticks t JOIN uuid_pipeline.health_figures f USING (tick_no)
WHERE f.figure = 'generation_new' AND f.value IS NOT NULL AND f.finding NOT LIKE '%%[from before]'
ORDER BY t.tick_no DESC LIMIT 1
"""


def _last_window(look: Look) -> datetime | None:
    """Where the window of the last tick began that saw new documents; None when none has."""
    found: datetime | None = sql.scalar(look.connection, _LAST_WINDOW, {"back": FIRST_LOOK_BACK})
    return found


def _created_since(look: Look, column: str, since: datetime, at_the_end: bool) -> list[Identified]:
    main = look.store.main
    newest = sql.compose(
        "WHERE {place} AND t.{column} > %(since)s::timestamptz::{type} ORDER BY t.{column} DESC LIMIT %(most)s",
        place=sql.Text("t.ctid >= %(first)s::tid" if at_the_end else "true"),
        column=sql.name(column),
        type=sql.as_written(main.table.columns[column].type),
    )
    values = {"since": since - OVERLAP, "most": MOST, "first": _first_of_the_last_pages(look) if at_the_end else None}
    return [
        row
        for rows in identified.stream(look.connection, look.store, main, newest, values)
        for row in rows
        if row.target is not None
    ]


_PAGES = "SELECT pg_relation_size(%(oid)s::oid) / current_setting('block_size')::int"


def _first_of_the_last_pages(look: Look) -> str:
    pages = int(sql.scalar(look.connection, _PAGES, {"oid": look.store.main.table.oid}))
    return f"({max(0, pages - LAST_PAGES)},0)"
