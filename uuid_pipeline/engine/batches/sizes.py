"""How large a batch is: about as many rows as the spec's ``batch_rows``, be they of one document or of thousands.

Writers wait as long as a batch takes. Documents uploaded together lie side by side, and may all be larger than others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches.held import BACK, FORWARD, Direction, map_part
from uuid_pipeline.engine.batches.lanes import Ordinals
from uuid_pipeline.engine.batches.locks import SHORT_WAITS
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.store import Store

# Of a table that nobody has analyzed so many rows are counted; of more, each takes so many bytes, indexes included.
COUNTED_ROWS, ROW_BYTES = 100_000, 200
# How many batches of the average size are cut at once: one statement counts the rows of all their documents.
BATCHES_CUT_AT_ONCE = 64


@dataclass(frozen=True)
class Size:
    """By the average of the whole store: documents a batch; and by how much the rows of a batch that can be counted
    must be multiplied for those that cannot, in tables that hold ids in text, arrays or JSON alone."""

    documents: int
    uncounted: float


def read(connection: Connection, store: Store, wave: ledger.Wave) -> Size:
    """Of entities by the inventory's own count, of other tables by the server's statistics."""
    profile = sql.scalar(
        connection,
        "SELECT profile FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": wave.assessment_no},
    )
    counts = {name: count["counted"] for name, count in (profile or {}).get("counts", {}).items()}
    rows = {entity.table.oid: counts[entity.name] for entity in store.entities if entity.name in counts}
    for moved in store.tables:
        if moved.table.oid not in rows:
            rows[moved.table.oid] = moved.table.estimated_rows or _unanalyzed(connection, moved.table)
    total, roots = sum(rows.values()), sum(rows[root.table.oid] for root in store.roots)
    mapped = 0
    for entity in store.entities:
        counted = sql.compose("SELECT count(*) FROM {map} WHERE assessment_no = %(no)s", map=ledger.map_table(entity))
        mapped += int(sql.scalar(connection, counted, {"no": wave.assessment_no}))
    documents = int(
        sql.scalar(
            connection,
            "SELECT coalesce(sum(documents), 1) FROM uuid_pipeline.waves WHERE execution_id = %(id)s",
            {"id": wave.execution_id},
        )
    )
    connection.rollback()
    rows_a_document = max(total / max(roots, 1), mapped / max(documents, 1), 1.0)
    countable = {entity.table.oid for entity in store.entities}
    countable |= {reference.table.oid for reference in store.references if reference.form == "key"}
    known = sum(count for oid, count in rows.items() if oid in countable)
    return Size(max(1, int(store.spec.batch_rows / rows_a_document)), total / known if known else 1.0)


def _unanalyzed(connection: Connection, table: Table) -> int:
    counted = catalogs.rows_up_to(connection, table, COUNTED_ROWS)
    return counted if counted < COUNTED_ROWS else max(counted, table.bytes // ROW_BYTES)


def next_batches(
    connection: Connection, store: Store, wave: ledger.Wave, size: Size, spans: Sequence[Ordinals]
) -> tuple[list[Ordinals], list[Ordinals]]:
    """The next batches of these spans, in order, and the spans that are left after them."""
    (first, last), *rest = spans
    end = min(last, first + size.documents * BATCHES_CUT_AT_ONCE - 1)
    batches = _cut(connection, store, wave, size, (first, end), FORWARD)
    if end < last:
        # What is cut off at the end may be a small one; it is cut again, with what comes after it.
        if len(batches) > 1:
            end = batches.pop()[0] - 1
        rest = [(end + 1, last), *rest]
    return batches, rest


def last_batches(
    connection: Connection, store: Store, wave: ledger.Wave, size: Size, spans: Sequence[Ordinals]
) -> tuple[list[Ordinals], list[Ordinals]]:
    """The last batches of these spans, in order, and the spans that are left before them."""
    *rest, (first, last) = spans
    begin = max(first, last - size.documents * BATCHES_CUT_AT_ONCE + 1)
    batches = _cut(connection, store, wave, size, (begin, last), BACK)
    if begin > first:
        if len(batches) > 1:
            begin = batches.pop(0)[1] + 1
        rest = [*rest, (first, begin - 1)]
    return batches, rest


def mapped_rows(store: Store, assessment_no: int, which: LiteralString) -> list[sql.Composable]:
    """Selections of an ordinal for each row of the id map; ``which`` is a condition on the map's row ``m``."""
    return [
        sql.compose(
            "SELECT m.ordinal FROM {part} m WHERE {which}",
            part=map_part(entity.name, assessment_no),
            which=sql.Text(which),
        )
        for entity in store.entities
    ]


def referring_rows(
    store: Store, assessment_no: int, direction: Direction, which: LiteralString
) -> list[sql.Composable]:
    """The same for each row that names a mapped one, and whose column is written with it, as things are now.

    A row of an entity is in the map by itself, below its parent. Of a cluster all members have one target id: going
    back, what names that is the survivor's. What holds ids in text, arrays or JSON is not counted.
    """
    parents = {(entity.table.oid, entity.parent_column) for entity in store.entities}
    return [
        sql.compose(
            """SELECT m.ordinal FROM {part} m JOIN {table} t ON t.{column} = m.{source}
               WHERE {which} AND m.old_id <> m.new_id AND {counts}""",
            part=map_part(reference.entity, assessment_no),
            table=sql.table(reference.table.schema, reference.table.name),
            column=sql.name(reference.column),
            source=sql.name(direction.source),
            which=sql.Text(which),
            counts=sql.Text("m.role <> 'merge'" if direction is BACK else "true"),
        )
        for reference in store.references
        if reference.form == "key" and (reference.table.oid, reference.column) not in parents
    ]


# A batch ends with the document that fills it: it has no more rows than wanted but those of one document.
_FIRSTS = """
WITH counted AS (SELECT ordinal, count(*) AS n FROM ({rows}) r GROUP BY ordinal),
summed AS (SELECT ordinal, (sum(n) OVER (ORDER BY ordinal) - n) * %(more)s::float AS before FROM counted)
SELECT min(ordinal) AS first FROM summed GROUP BY floor(before / %(batch_rows)s) ORDER BY 1
"""


def _cut(
    connection: Connection, store: Store, wave: ledger.Wave, size: Size, span: Ordinals, direction: Direction
) -> list[Ordinals]:
    """The batches of one span, by the rows of each document; without those that refer to it where they are not to be
    read now, since somebody has their table whole: the batch itself waits for that, with patience and in words."""
    which: LiteralString = "m.ordinal BETWEEN %(first)s AND %(last)s"
    mapped = mapped_rows(store, wave.assessment_no, which)
    referring = referring_rows(store, wave.assessment_no, direction, which)
    values = {"first": span[0], "last": span[1], "more": size.uncounted, "batch_rows": store.spec.batch_rows}
    try:
        sql.execute(connection, f"SELECT {SHORT_WAITS}")
        found = sql.rows(connection, _firsts([*mapped, *referring]), values)
    except DBAPIError as error:
        if sql.sqlstate(error) != sql.LOCK_NOT_AVAILABLE:
            raise
        connection.rollback()
        found = sql.rows(connection, _firsts(mapped), values)
    connection.rollback()
    # Ordinals that no row has any more belong to the batch before them.
    firsts = [span[0], *(row.first for row in found[1:])]
    lasts = [*(first - 1 for first in firsts[1:]), span[1]]
    return list(zip(firsts, lasts, strict=True))


def _firsts(rows: Sequence[sql.Composable]) -> sql.Composable:
    return sql.Text(_FIRSTS).format(rows=sql.join(" UNION ALL ", rows))
