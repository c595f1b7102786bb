"""Latency of the store's own look-ups: a document by its id, and what hangs on it, against a stored baseline."""

import statistics
import time

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.figure import Figure, nothing, unknown
from uuid_pipeline.engine.health.look import Look
from uuid_pipeline.engine.store import Entity

NAME, DEGRADATION = "lookup_milliseconds", "lookup_degradation"
# Of the baseline: how many of the children were looked up.
CHILDREN = "lookup_children"
LOOKUPS = 30
# Without an index a look-up reads the table: no more of them than fit into this.
SECONDS = 5.0
# The baseline is the median of so many ticks: one alone would keep the noise of one moment.
BASELINE_TICKS = 5

_EARLIER = """
SELECT value FROM uuid_pipeline.health_figures WHERE figure = 'lookup_milliseconds' AND value IS NOT NULL
ORDER BY tick_no DESC LIMIT %(ticks)s
"""


def measure(look: Look) -> list[Figure]:
    """The median of LOOKUPS look-ups as a client sees them, round trip included."""
    keys = [row.key for row in look.sample[:LOOKUPS]]
    if not keys:
        why = "the store has no documents"
        return [nothing(NAME, "milliseconds", why), nothing(DEGRADATION, "share", why)]
    children, unindexed = _children(look)
    statements = _lookups(look, children)
    taken: list[float] = []
    for key in keys:
        began = time.perf_counter()
        for statement in statements:
            sql.rows(look.connection, statement, {"key": key})
        taken.append(1000 * (time.perf_counter() - began))
        if sum(taken) > 1000 * SECONDS:
            break
    median = statistics.median(taken)
    said = f"{median:.2f} ms for {len(statements)} statements, median of {len(taken)}"
    if unindexed:
        said += f"; {', '.join(unindexed)} had an index when the baseline was taken"
    return [Figure(NAME, "milliseconds", median, said), _degradation(look, median, len(children))]


def _children(look: Look) -> tuple[list[Entity], list[str]]:
    """The children to look up, and which of these have lost the index that they had when the baseline was taken.

    Those that never had one are left out: each look-up would read their table.
    """
    found = list(look.store.children(look.store.main))
    indexed = [child for child in found if child.parent_column in child.table.indexed_first]
    then = _stored(look, CHILDREN)
    if then is None or len(indexed) >= then:
        return indexed, []
    return found, [f"{child.table.name}.{child.parent_column}" for child in found if child not in indexed]


def _lookups(look: Look, children: list[Entity]) -> list[sql.Composable]:
    main = look.store.main
    by_id = [(main.table, main.key), *[(child.table, child.parent_column) for child in children]]
    return [
        sql.compose(
            # Each row as one text: whole, and no value that only the driver cannot read (an interval, the year 20000).
            "SELECT t::text FROM {table} t WHERE t.{column} = %(key)s::{type} LIMIT 20",
            table=sql.table(table.schema, table.name),
            column=sql.name(column or ""),
            type=sql.Text(main.key_type),
        )
        for table, column in by_id
    ]


def _degradation(look: Look, median: float, children: int) -> Figure:
    baseline = _baseline(look, median, children)
    if baseline is None:
        why = f"the baseline is taken from the first {BASELINE_TICKS} ticks, and is not complete yet"
        return unknown(DEGRADATION, "share", why)
    floor = look.store.spec.health.latency_floor_milliseconds
    slower = median - baseline
    # Below the floor a difference is noise, however large its share of a fraction of a millisecond.
    value = slower / baseline if slower > floor else 0.0
    return Figure(DEGRADATION, "share", value, f"{median:.2f} ms now, {baseline:.2f} ms in the baseline")


def _baseline(look: Look, median: float, children: int) -> float | None:
    stored = _stored(look, NAME)
    if stored is not None:
        return stored
    earlier = [float(r.value) for r in sql.rows(look.connection, _EARLIER, {"ticks": BASELINE_TICKS - 1})]
    if len(earlier) < BASELINE_TICKS - 1:
        return None
    baseline = statistics.median([*earlier, median])
    sql.execute(
        look.connection,
        """INSERT INTO uuid_pipeline.health_baselines (figure, value)
           VALUES (%(name)s, %(median)s), (%(of)s, %(children)s)""",
        {"name": NAME, "median": baseline, "of": CHILDREN, "children": children},
    )
    return baseline


def _stored(look: Look, figure: str) -> float | None:
    statement = "SELECT value FROM uuid_pipeline.health_baselines WHERE figure = %(figure)s"
    value = sql.scalar(look.connection, statement, {"figure": figure})
    return None if value is None else float(value)
