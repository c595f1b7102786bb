"""Generation success: of the documents created since the tick before, those whose id is their target id."""

from datetime import timedelta

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health import identified
from uuid_pipeline.engine.health.figure import Figure, share, unknown
from uuid_pipeline.engine.health.look import Look
from uuid_pipeline.engine.natural_keys import cast_type

NAME = "generation_new"
# The newest of them, when there are more.
MOST = 10_000
# A row bears the time at which its transaction began, and is seen when it has ended.
OVERLAP = timedelta(minutes=1)


def measure(look: Look) -> list[Figure]:
    """By describe.created_at, through an index that begins with it; without one only when whole tables may be read."""
    main = look.store.main
    column = main.spec.describe.created_at
    if column is None:
        return [unknown(NAME, "share", f"the spec does not say which column of {main.table.name} is created_at")]
    if column not in main.table.indexed_first and not look.whole:
        why = f"no index of {main.table.name} begins with {column}, so new rows are found by whole scans only"
        return [unknown(NAME, "share", why)]
    newest = sql.compose(
        "WHERE t.{column} > %(since)s::timestamptz::{type} ORDER BY t.{column} DESC LIMIT %(most)s",
        column=sql.name(column),
        type=cast_type(main.table.columns[column].type),
    )
    values = {"since": look.since - OVERLAP, "most": MOST}
    found = [
        row
        for rows in identified.stream(look.connection, look.store, main, newest, values)
        for row in rows
        if row.target is not None
    ]
    good = sum(row.key == row.target for row in found)
    return [share(NAME, good, len(found), f"documents created since {look.since:%Y-%m-%d %H:%M} UTC")]
