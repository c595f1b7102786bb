"""Rollback triggers: the figures from which a migration is undone, as numbers of the spec, and how they stand now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.spec import RollbackTriggers

ROLL_BACK_ALL = "uuid-pipeline rollback --all"
ROLL_BACK_WAVE = "uuid-pipeline rollback --wave NAME"


@dataclass(frozen=True)
class RollbackTrigger:
    """``limit`` is a share (0 to 1), a factor or a count: pulled when the figure is greater. ``unit`` says which."""

    name: str
    when: str
    limit: float
    unit: str
    measured_by: str
    command: str


@dataclass(frozen=True)
class Reading:
    """``pulled`` is None where nothing here measures the figure."""

    name: str
    figure: float | None
    pulled: bool | None
    reason: str


def of(settings: RollbackTriggers) -> tuple[RollbackTrigger, ...]:
    """The triggers that the spec leaves in force, in a fixed order."""
    possible = (
        (
            "wave_gate_red", 0.0 if settings.wave_gate_red else None, "gates",
            "a gate of a wave is red and its remedy does not mend it",
            "the gates of each wave; a red one stops the run by itself", ROLL_BACK_WAVE,
        ),
        (
            "failed_share", settings.failed_share, "share",
            "of a wave's documents more than {limit} could not be moved: changed since the plan, or their id taken",
            "uuid-pipeline status, column 'set aside'", ROLL_BACK_WAVE,
        ),
        (
            "locked_share", settings.locked_share, "share",
            "of a wave's documents more than {limit} were skipped, since their locks were not to be had",
            "uuid-pipeline status, column 'set aside'", "uuid-pipeline pause",
        ),
        (
            "query_times", settings.query_times, "times",
            "the 99th percentile of the application's own query is more than {limit} of that before",
            "your application's monitoring; here the 95th percentile of the owners' own query, before and after; "
            "throttle.query in the spec waits before it comes to that", ROLL_BACK_ALL,
        ),
        (
            "retrieval_drop", settings.retrieval_drop, "share",
            "retrieval success is below that before, by more than {limit} of the documents asked for",
            "the owners' own query for a sample of documents, before the first wave and at validation", ROLL_BACK_ALL,
        ),
        (
            "application_errors", settings.application_errors, "share",
            "more than {limit} of the application's requests fail that did not fail before",
            "your application's monitoring", ROLL_BACK_ALL,
        ),
    )  # fmt: skip
    return tuple(
        RollbackTrigger(name, when.format(limit=shown(limit, unit)), limit, unit, measured_by, command)
        for name, limit, unit, when, measured_by, command in possible
        if limit is not None
    )


def shown(limit: float, unit: str) -> str:
    """A limit as people read it."""
    if unit == "share":
        return f"{100 * limit:g} %"
    return f"{limit:g} times" if unit == "times" else f"{limit:g} {unit}"


_RED = """
SELECT count(*) FROM (SELECT DISTINCT ON (wave, stage, gate) passed FROM uuid_pipeline.gates
                      WHERE execution_id = %(id)s AND wave IS NOT NULL ORDER BY wave, stage, gate, gate_no DESC) newest
WHERE NOT passed
"""

# The worst wave of those that began: a small wave that fails is not to drown in a large one that does not.
_WORST = """
SELECT w.wave, w.documents, u.failed, u.locked FROM uuid_pipeline.waves w CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE reason IN ('changed', 'taken')) AS failed,
           count(*) FILTER (WHERE reason = 'locked') AS locked
    FROM uuid_pipeline.unmoved WHERE wave = w.wave) u
WHERE w.execution_id = %(id)s AND w.documents > 0
  AND (w.status <> 'planned' OR EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.wave = w.wave))
ORDER BY w.position
"""


def readings(connection: Connection, execution: ledger.Execution, settings: RollbackTriggers) -> list[Reading]:
    """Each trigger in force with its figure in this execution, as far as the ledger has it."""
    values = {"id": execution.execution_id}
    waves = sql.rows(connection, _WORST, values)
    measured = {
        "wave_gate_red": (float(sql.scalar(connection, _RED, values)), "gates of waves that are red now"),
        "failed_share": _worst(waves, "failed"),
        "locked_share": _worst(waves, "locked"),
        **_retrieval(connection, execution),
    }
    found = []
    for trigger in of(settings):
        figure, reason = measured.get(trigger.name, (None, f"not measured here: {trigger.measured_by}"))
        found.append(Reading(trigger.name, figure, None if figure is None else figure > trigger.limit, reason))
    return found


def _retrieval(connection: Connection, execution: ledger.Execution) -> dict[str, tuple[float | None, str]]:
    """Retrieval as it was measured of the whole sample; nothing where it was not, before and after."""
    found = retrieval.summary(connection, execution.execution_id)
    if found is None or found["after"] is None:
        return {}
    before, after = found["before"], found["after"]
    known: dict[str, tuple[float | None, str]] = {}
    if None not in (before["rate"], after["rate"]):
        said = f"{before['found']} of {before['measured']} retrievable before, {after['found']} of {after['measured']}"
        known["retrieval_drop"] = (max(0.0, before["rate"] - after["rate"]), f"{said} at validation")
    if before["p95_ms"] and after["p95_ms"] is not None:
        said = f"95 of 100 of the owners' own queries within {before['p95_ms']:.1f} ms before, {after['p95_ms']:.1f} ms"
        known["query_times"] = (after["p95_ms"] / before["p95_ms"], f"{said} at validation, asked from here")
    return known


def _worst(waves: Sequence[Any], column: str) -> tuple[float | None, str]:
    shares = [(getattr(row, column) / row.documents, row.wave) for row in waves]
    if not shares:
        return None, "no wave has begun"
    share, wave = max(shares)
    return share, f"of the documents of wave {wave}, the worst of {len(shares)}"
