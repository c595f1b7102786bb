"""Latency of the store's own look-ups: a document by its id, and what hangs on it, against a stored baseline."""

import statistics
import time

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.figure import Figure, nothing, unknown
from uuid_pipeline.engine.health.look import Look

NAME, DEGRADATION = "lookup_milliseconds", "lookup_degradation"
LOOKUPS = 30
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
    statements = _lookups(look)
    taken = []
    for key in keys:
        began = time.perf_counter()
        for statement in statements:
            sql.rows(look.connection, statement, {"key": key})
        taken.append(1000 * (time.perf_counter() - began))
    median = statistics.median(taken)
    said = f"{median:.2f} ms for {len(statements)} statements, median of {len(keys)}"
    return [Figure(NAME, "milliseconds", median, said), _degradation(look, median)]


def _lookups(look: Look) -> list[sql.Composable]:
    main = look.store.main
    by_id = [(main.table, main.key)]
    by_id += [
        (child.table, child.parent_column)
        for child in look.store.children(main)
        if child.parent_column in child.table.indexed_first
    ]
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


def _degradation(look: Look, median: float) -> Figure:
    baseline = _baseline(look, median)
    if baseline is None:
        why = f"the baseline is taken from the first {BASELINE_TICKS} ticks, and is not complete yet"
        return unknown(DEGRADATION, "share", why)
    floor = look.store.spec.health.latency_floor_milliseconds
    slower = median - baseline
    # Below the floor a difference is noise, however large its share of a fraction of a millisecond.
    value = slower / baseline if slower > floor else 0.0
    return Figure(DEGRADATION, "share", value, f"{median:.2f} ms now, {baseline:.2f} ms in the baseline")


def _baseline(look: Look, median: float) -> float | None:
    stored = sql.scalar(
        look.connection,
        "SELECT value FROM uuid_pipeline.health_baselines WHERE figure = %(figure)s",
        {"figure": NAME},
    )
    if stored is not None:
        return float(stored)
    earlier = [float(r.value) for r in sql.rows(look.connection, _EARLIER, {"ticks": BASELINE_TICKS - 1})]
    if len(earlier) < BASELINE_TICKS - 1:
        return None
    baseline = statistics.median([*earlier, median])
    sql.execute(
        look.connection,
        "INSERT INTO uuid_pipeline.health_baselines (figure, value) VALUES (%(figure)s, %(value)s)",
        {"figure": NAME, "value": baseline},
    )
    return baseline
