"""Ticks in the ledger: written whole or not at all, read back, forgotten after the spec's days."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.checks import RULES, Check
from uuid_pipeline.engine.health.figure import Figure, Unit


@dataclass(frozen=True)
class Tick:
    """One look at the store. ``at``: when it began, UTC. ``whole``: whether it read, or tried to read, whole tables."""

    tick_no: int
    at: datetime
    whole: bool
    seconds: float
    sampled_to: str | None
    figures: tuple[Figure, ...]
    checks: tuple[Check, ...]

    @property
    def alarming(self) -> list[Check]:
        return [check for check in self.checks if check.alarming]


def newest(connection: Connection) -> Tick | None:
    """The last tick; None before the first."""
    found = sql.rows(
        connection,
        "SELECT tick_no, at, whole, seconds, sampled_to FROM uuid_pipeline.health_ticks ORDER BY tick_no DESC LIMIT 1",
    )
    if not found:
        return None
    row = found[0]
    asked = {"tick": row.tick_no}
    figures = sql.rows(
        connection,
        """SELECT figure, value, finding, part, whole, as_of FROM uuid_pipeline.health_figures
           WHERE tick_no = %(tick)s ORDER BY figure""",
        asked,
    )
    checks = {
        check.check_name: check
        for check in sql.rows(connection, "SELECT * FROM uuid_pipeline.health_checks WHERE tick_no = %(tick)s", asked)
    }
    return Tick(
        int(row.tick_no), row.at, row.whole, row.seconds, row.sampled_to,
        tuple(Figure(f.figure, unit_of(f.figure), f.value, f.finding, f.part, f.whole, f.as_of) for f in figures),
        tuple(
            Check(rule.name, rule.figure, rule.severity, c.passed, c.value, c.threshold, c.finding, c.failing_since)
            for rule in RULES
            if (c := checks.get(rule.name)) is not None
        ),
    )  # fmt: skip


def unit_of(figure: str) -> Unit:
    """The unit that a figure of this name is in."""
    units: dict[str, Unit] = {
        "quarantined": "rows", "orphans": "rows", "alias_uses": "uses", "lookup_milliseconds": "milliseconds",
    }  # fmt: skip
    return units.get(figure, "share")


_LAST_KNOWN = """
SELECT figure, value, finding, part, whole, as_of FROM uuid_pipeline.health_figures
WHERE figure = %(figure)s AND value IS NOT NULL ORDER BY tick_no DESC LIMIT 1
"""


def carried(connection: Connection, figure: Figure) -> Figure:
    """The last known value of a figure that this tick could not have, with its time; itself when there is none."""
    found = sql.rows(connection, _LAST_KNOWN, {"figure": figure.name})
    if figure.value is not None or figure.whole == 0 or not found:
        return figure
    row = found[0]
    said = row.finding.split(" [as of ", 1)[0]
    finding = f"{said} [as of {row.as_of:%Y-%m-%d %H:%M} UTC; now {figure.finding}]"
    return replace(figure, value=row.value, finding=finding, part=row.part, whole=row.whole, as_of=row.as_of)


def scanned_whole_at(connection: Connection) -> datetime | None:
    """When whole tables were last read, or tried to be."""
    at: datetime | None = sql.scalar(connection, "SELECT max(at) FROM uuid_pipeline.health_ticks WHERE whole")
    return at


def write(
    connection: Connection,
    run_id: str,
    begun: Tick,
    figures: Sequence[Figure],
    checks: Sequence[Check],
) -> Tick:
    """Keep a tick; ``begun`` gives all but its number, figures and checks."""
    number = int(
        sql.scalar(
            connection,
            """INSERT INTO uuid_pipeline.health_ticks (at, run_id, whole, seconds, sampled_to)
               VALUES (%(at)s, %(run)s, %(whole)s, %(seconds)s, %(to)s) RETURNING tick_no""",
            {"at": begun.at, "run": run_id, "whole": begun.whole, "seconds": begun.seconds, "to": begun.sampled_to},
        )
    )
    dated = [figure if figure.as_of else replace(figure, as_of=begun.at) for figure in figures]
    dated.sort(key=lambda figure: figure.name)
    for figure in dated:
        sql.execute(connection, _FIGURE, {**vars(figure), "tick": number})
    for check in checks:
        sql.execute(connection, _CHECK, {**vars(check), "tick": number})
    return replace(begun, tick_no=number, figures=tuple(dated), checks=tuple(checks))


_FIGURE = """
INSERT INTO uuid_pipeline.health_figures (tick_no, figure, value, part, whole, as_of, finding)
VALUES (%(tick)s, %(name)s, %(value)s, %(part)s, %(whole)s, %(as_of)s, %(finding)s)
"""
_CHECK = """
INSERT INTO uuid_pipeline.health_checks
    (tick_no, check_name, severity, passed, value, threshold, failing_since, finding)
VALUES (%(tick)s, %(name)s, %(severity)s, %(passed)s, %(value)s, %(threshold)s, %(failing_since)s, %(finding)s)
"""


def forget(connection: Connection, days: float) -> None:
    """Drop the ticks that are older, with their figures and checks; the newest stays in any case."""
    sql.execute(
        connection,
        """DELETE FROM uuid_pipeline.health_ticks
           WHERE at < now() - %(age)s AND tick_no < (SELECT max(tick_no) FROM uuid_pipeline.health_ticks)""",
        {"age": timedelta(days=days)},
    )
