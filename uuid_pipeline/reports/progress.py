"""How far the wave at work is, read from the journal: the same from any machine, whoever runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import lease, ledger, sql
from uuid_pipeline.reports import state, tables

# The rate is that of the last minute, so that a wait or a slower share of the wave shows.
RATE_SECONDS = 60


@dataclass(frozen=True)
class WaveProgress:
    """``rate`` in documents a second over the last minute, ``seconds_left`` by it; None where there is none yet.

    ``waits``: what it waits for now, and why. ``writing``: whether a living process holds the lease.
    """

    execution: str
    wave: str
    back: bool
    documents: int
    total: int
    aside: dict[str, int]
    rows: int
    batches: int
    rate: float | None
    seconds_left: float | None
    waits: tuple[str, ...]
    writing: bool

    @property
    def line(self) -> str:
        """One line for people."""
        share = f" ({100 * self.documents / self.total:.1f} %)" if self.total else ""
        pace = "no rate yet" if self.rate is None else tables.pace(self.rate)
        left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        aside = tables.counts(self.aside)
        return (
            f"{self.wave}{' (rolling back)' if self.back else ''}: {self.documents} of {self.total} documents{share}, "
            f"{self.rows} rows in {self.batches} batches, {pace}{left}{f'; set aside: {aside}' if aside else ''}"
        )


_JOURNAL = """
WITH b AS (
    SELECT b.*, (SELECT coalesce(sum((b.moved->'entities'->>r.root)::bigint), 0)
                 FROM unnest(%(roots)s::text[]) r (root)) AS documents
    FROM uuid_pipeline.batches b WHERE b.wave = %(wave)s AND b.direction = %(direction)s),
late AS (SELECT * FROM b WHERE committed_at > clock_timestamp() - make_interval(secs => %(seconds)s))
SELECT count(*) AS batches,
       coalesce(sum((SELECT sum(value::bigint) FROM jsonb_each_text(b.moved->'tables'))), 0)::bigint AS rows,
       (SELECT sum(documents) / nullif(extract(epoch FROM clock_timestamp()
                   - min(committed_at - make_interval(secs => milliseconds / 1000))), 0) FROM late)::float AS rate
FROM b
"""


def at_work(connection: Connection) -> WaveProgress | None:
    """The wave that moves or goes back, or is next to; None when no execution is open or rolling back."""
    back = ledger.rolling_back(connection)
    execution = back[0] if back else ledger.unfinished(connection)
    if execution is None:
        return None
    waves = state.waves(connection, [execution.execution_id])
    wave = _current(waves, "rolling_back" if back else "planned")
    if wave is None:
        return None
    holder = lease.holder(connection)
    spec = sql.scalar(
        connection,
        "SELECT profile->'spec'->'entities' FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": execution.assessment_no},
    )
    values = {
        "wave": wave["wave"],
        "direction": "back" if back else "forward",
        "roots": [name for name, entity in (spec or {}).items() if entity.get("parent") is None],
        "seconds": RATE_SECONDS,
    }
    journal = sql.rows(connection, _JOURNAL, values)[0]
    under_new = int(wave["moved"]) + int(wave["merged"])
    done = int(wave["documents"]) - under_new if back else under_new
    left = int(wave["documents"]) - done - sum(wave["aside"].values())
    rate = float(journal.rate) if journal.rate else None
    return WaveProgress(
        execution.execution_id, wave["wave"], bool(back), done, int(wave["documents"]), wave["aside"],
        int(journal.rows), int(journal.batches), rate, max(0, left) / rate if rate else None,
        tuple(_wait(one) for one in state.waits(connection)), holder is not None and holder.alive,
    )  # fmt: skip


def _current(waves: Sequence[dict[str, Any]], status: str) -> dict[str, Any] | None:
    """The first wave of this status; while the last one is being checked there is none left, and it is the last."""
    begun = [wave for wave in waves if wave["status"] == status]
    return begun[0] if begun else (waves[-1] if waves else None)


def _wait(one: dict[str, Any]) -> str:
    return f"waits since {one['began_at']:%H:%M:%S} UTC ({one['cause']}): {one['reason']}"


def waited(connection: Connection, wave: str) -> list[dict[str, Any]]:
    """Every wait of a wave: cause, reason, and seconds, until now where it has not ended."""
    found = sql.rows(
        connection,
        """SELECT cause, reason, began_at,
                  round(extract(epoch FROM coalesce(ended_at, clock_timestamp()) - began_at), 1)::float AS seconds
           FROM uuid_pipeline.waits WHERE wave = %(wave)s ORDER BY wait_no""",
        {"wave": wave},
    )
    return [dict(row._mapping) for row in found]
