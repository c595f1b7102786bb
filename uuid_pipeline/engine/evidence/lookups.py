"""The store's own look-ups, timed on a sample: a document by its id, and the list of its chunks.

Times include the way to the server and back, so that only those of one place are compared.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Store

SAMPLE = 100
DEGRADED = 0.5  # the report's limit: more than half as slow again
NOISE_MS = 1.0  # what a look-up's time may differ by for reasons outside the store


@dataclass(frozen=True)
class Timing:
    """Of many look-ups, in milliseconds."""

    median: float
    p95: float


@dataclass(frozen=True)
class Lookups:
    """What a sample of documents gave: found by the target id, with chunks under it, and how long look-ups took.

    Times are of look-ups by the id that the document has, so that before and after compare the same work.
    ``round_trip``: a question that reads nothing, asked between these; None in records of an earlier version.
    """

    sampled: int
    found_by_target: int
    with_children_by_target: int | None
    by_key: Timing | None
    children: Timing | None
    round_trip: Timing | None = None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def measure_inventory(connection: Connection, store: Store, assessment: int) -> Lookups:
    """The same documents at any time: chosen by a hash of the natural key, from an assessment's inventory."""
    statement = sql.compose(
        """SELECT min(i.key::text) AS key, i.target_id::text AS target FROM {inventory} i
           WHERE i.assessment_no = %(no)s AND i.target_id IS NOT NULL
           GROUP BY i.target_id ORDER BY md5(i.target_id::text) LIMIT %(n)s""",
        inventory=ledger.inventory_table(store.main),
    )
    found = sql.rows(connection, statement, {"no": assessment, "n": SAMPLE})
    return _measure(connection, store, [(row.key, row.target) for row in found])


def measure_mapped(connection: Connection, store: Store, assessment: int, moved: bool) -> Lookups:
    """The same, from an assessment's id map: under the target ids where ``moved``, else under the old ones."""
    statement = sql.compose(
        """SELECT s.key, s.target FROM (
               SELECT min(m.old_id::text) AS key, m.new_id::text AS target FROM {map} m WHERE m.assessment_no = %(no)s
               GROUP BY m.new_id ORDER BY md5(m.new_id::text) LIMIT 3 * %(n)s) s
           WHERE EXISTS (SELECT FROM {table} t WHERE t.{key} IN (s.key::{type}, s.target::{type}))
           ORDER BY md5(s.target) LIMIT %(n)s""",
        map=ledger.map_table(store.main),
        table=sql.table(store.main.table.schema, store.main.table.name),
        key=sql.name(store.main.key),
        type=sql.Text("uuid" if store.main.key_type == "uuid" else "text"),
    )
    # A document that the application deleted since is no failed look-up.
    found = sql.rows(connection, statement, {"no": assessment, "n": SAMPLE})
    return _measure(connection, store, [(row.target if moved else row.key, row.target) for row in found])


def degraded(
    before: Timing | None, after: Timing | None, trips: tuple[Timing | None, Timing | None] = (None, None)
) -> bool | None:
    """Whether look-ups became slower than the limit allows; None when one of the two was not measured.

    ``trips``: the round trips of then and now. What slows these as well is the machine or the way there, not the
    tables: look-ups are slower only where they are so compared with them.
    """
    if before is None or after is None:
        return None
    slower = after.median > before.median * (1 + DEGRADED) and after.median - before.median > NOISE_MS
    then, now = trips
    if not slower or then is None or now is None:
        return slower
    return after.median * then.median > before.median * now.median * (1 + DEGRADED)


def from_record(record: dict[str, Any]) -> Lookups:
    names = ("by_key", "children", "round_trip")
    timings = {name: Timing(**record[name]) if record.get(name) else None for name in names}
    return Lookups(**{**record, **timings})


def _measure(connection: Connection, store: Store, documents: list[tuple[str, str]]) -> Lookups:
    by_key, of_children = _by_key(store), _children(store)
    for key, _ in documents:  # the first look at a page is the disk's time, not the look-up's
        _timed(connection, by_key, key)
    trips, times = [], []
    for key, _ in documents:
        trips.append(_timed(connection, sql.Text("SELECT length(%(id)s)"), key)[1])
        times.append(_timed(connection, by_key, key)[1])
    listed = [_timed(connection, of_children, key)[1] for key, _ in documents] if of_children is not None else []
    found = sum(_timed(connection, by_key, target)[0] > 0 for _, target in documents)
    with_children = None
    if of_children is not None:
        with_children = sum(_timed(connection, of_children, target)[0] > 0 for _, target in documents)
    return Lookups(len(documents), found, with_children, _timing(times), _timing(listed), _timing(trips))


def _by_key(store: Store) -> sql.Composable:
    main = store.main
    return sql.compose(
        "SELECT count(*) FROM (SELECT t.* FROM {table} t WHERE t.{key} = %(id)s::{type}) found",
        table=sql.table(main.table.schema, main.table.name),
        key=sql.name(main.key),
        type=sql.Text("uuid" if main.key_type == "uuid" else "text"),
    )


def _children(store: Store) -> sql.Composable | None:
    parts = [
        sql.compose(
            "SELECT c.{key}::text FROM {table} c WHERE c.{parent} = %(id)s::{type}",
            key=sql.name(child.key),
            table=sql.table(child.table.schema, child.table.name),
            parent=sql.name(child.parent_column or ""),
            type=sql.Text("uuid" if store.main.key_type == "uuid" else "text"),
        )
        for child in store.children(store.main)
    ]
    if not parts:
        return None
    return sql.compose("SELECT count(*) FROM ({parts}) found", parts=sql.join(" UNION ALL ", parts))


def _timed(connection: Connection, statement: sql.Composable, key: str) -> tuple[int, float]:
    """(rows found, milliseconds)"""
    began = time.perf_counter()
    count = int(sql.scalar(connection, statement, {"id": key}))
    return count, (time.perf_counter() - began) * 1000


def _timing(times: list[float]) -> Timing | None:
    if not times:
        return None
    ordered = sorted(times)
    return Timing(round(statistics.median(ordered), 3), round(ordered[int(0.95 * (len(ordered) - 1))], 3))
