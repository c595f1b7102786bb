"""The waves: planned, moved, merged, set aside; how long they took, and what they waited for."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Progress, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural

_JOURNAL = """
SELECT b.wave, b.direction, count(*) AS batches, sum(b.milliseconds) / 1000 AS seconds,
       min(b.committed_at) AS first, max(b.committed_at) AS last,
       sum((SELECT coalesce(sum(t.value::bigint), 0) FROM jsonb_each_text(b.moved->'entities') t))::bigint AS rows
FROM uuid_pipeline.batches b WHERE b.execution_id = %(execution)s GROUP BY 1, 2 ORDER BY 5
"""
_WAITS = """
SELECT w.wave, w.cause, min(w.reason) AS reason, count(*) AS times,
       sum(extract(epoch FROM coalesce(w.ended_at, clock_timestamp()) - w.began_at))::float AS seconds
FROM uuid_pipeline.waits w JOIN uuid_pipeline.waves v USING (wave) WHERE v.execution_id = %(execution)s
GROUP BY 1, 2 ORDER BY 5 DESC LIMIT 10
"""
_DEEDS = """
SELECT at, actor, action FROM uuid_pipeline.audit WHERE detail->>'execution' = %(execution)s ORDER BY audit_no LIMIT 40
"""
SHOWN_WAVES = 40
_ASIDE = ("busy", "locked", "changed", "taken", "gone")
_BADGES = {"moved": Badge("good", "Moved"), "planned": Badge("open", "Planned"),
           "unneeded": Badge("plain", "Not needed"), "rolling_back": Badge("open", "Rolling back"),
           "rolled_back": Badge("open", "Rolled back")}  # fmt: skip


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    execution = subject.execution
    if execution is None:
        return _planned(subject)
    values = {"execution": execution.execution_id}
    journal = [dict(row._mapping) for row in sql.rows(connection, _JOURNAL, values)]
    waves = subject.evidence.waves
    rows = sum(row["rows"] for row in journal if row["direction"] == "forward")
    seconds = float(sum(row["seconds"] for row in journal if row["direction"] == "forward"))
    batches = sum(row["batches"] for row in journal if row["direction"] == "forward")
    lead = f"{plural(rows, 'row')} got a new id in {plural(batches, 'transaction')} that took {seconds:.1f} s in all."
    if not batches:
        lead = "No batch was committed yet."
    blocks: list[Block] = [_progress(execution, waves), _table(execution, waves, journal)]
    waits = sql.rows(connection, _WAITS, values)
    if waits:
        columns = ("Wave", "Cause", "Reason", "Times", "Seconds")
        blocks.append(Table("What waves waited for", columns, tuple(tuple(row) for row in waits)))
    deeds = tuple(tuple(row) for row in sql.rows(connection, _DEEDS, values))
    blocks.append(Table("Who did what", ("When", "Who", "What"), deeds))
    data = {
        "rows": rows, "batches": batches, "seconds": round(seconds, 3),
        "waves": [{"wave": wave.wave, "status": wave.status, **found} for wave, found in waves],
    }  # fmt: skip
    return Section("migration", "Migration, wave by wave", lead, tuple(blocks), data=data)


def _planned(subject: Subject) -> Section:
    waves = subject.plan.waves
    steps = tuple((wave.name, 0, wave.documents, f"ordinals {wave.first_ordinal} to {wave.last_ordinal}")
                  for wave in waves[:SHOWN_WAVES])  # fmt: skip
    lead = f"{plural(len(waves), 'wave')} are planned; none has begun." if waves else "The plan has no waves."
    return Section("migration", "Migration, wave by wave", lead, (Progress("Planned waves", steps),) if steps else (),
                   data={"waves": [{"wave": wave.name, "planned": wave.documents} for wave in waves]})  # fmt: skip


def _short(execution: ledger.Execution, wave: ledger.Wave) -> str:
    return wave.wave.removeprefix(f"{execution.execution_id}-")


def _progress(execution: ledger.Execution, waves: tuple[tuple[ledger.Wave, dict[str, int]], ...]) -> Progress:
    steps = []
    for wave, found in waves[:SHOWN_WAVES]:
        undone = wave.status in ("rolled_back", "rolling_back")
        done = 0 if undone else sum(count for name, count in found.items() if name in ("moved", "merged"))
        aside = ", ".join(f"{found[name]} {name}" for name in _ASIDE if found.get(name))
        note = "rolled back" if wave.status == "rolled_back" else aside
        if wave.status in ("moved", "unneeded") and not wave.documents:
            note = "nothing had arrived"
        steps.append((_short(execution, wave), done, wave.documents, note))
    return Progress("Waves", tuple(steps))


def _table(
    execution: ledger.Execution, waves: tuple[tuple[ledger.Wave, dict[str, int]], ...], journal: list[dict[str, Any]]
) -> Table:
    forward = {row["wave"]: row for row in journal if row["direction"] == "forward"}
    rows = list[tuple[Cell, ...]]()
    for wave, found in waves[:SHOWN_WAVES]:
        of_wave = forward.get(wave.wave)
        rows.append((
            _short(execution, wave), _BADGES[wave.status], found["planned"], found["moved"], found.get("merged", 0),
            sum(found.get(name, 0) for name in _ASIDE), of_wave["rows"] if of_wave else 0,
            of_wave["batches"] if of_wave else 0, round(float(of_wave["seconds"]), 2) if of_wave else 0.0,
        ))  # fmt: skip
    more = f"the first {SHOWN_WAVES} of {len(waves)} waves" if len(waves) > SHOWN_WAVES else ""
    columns = ("Wave", "State", "Planned", "Moved", "Merged", "Set aside", "Rows", "Batches", "Seconds")
    return Table("Waves, from the batch journal", columns, tuple(rows), more)
