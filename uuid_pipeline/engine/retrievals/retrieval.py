"""Retrieval, measured as the users are: before the first wave, after each, and of the whole store; never inferred.

Of sampled documents it is asked whether their row and chunks are found by the target id (as workers look them up), and
whether their owner's own similarity query finds them, under the owner's policies.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches import deletions
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.retrievals import asking, judging, sights
from uuid_pipeline.engine.retrievals.comparison import Before, as_data, percentile
from uuid_pipeline.engine.retrievals.judging import Verdict
from uuid_pipeline.engine.retrievals.sights import Sampled, Seen, Sight
from uuid_pipeline.engine.store import Store

LISTED = 100
LEAST_SECONDS = 2.0


def take_baseline(connection: Connection, store: Store, execution: ledger.Execution) -> None:
    """Measure a sample before the first batch and keep it; an earlier baseline of this execution stays.

    After the fingerprints: what is deleted from then on is counted there.
    """
    if _figures(connection, execution.execution_id, "before") is not None:
        return
    size = store.spec.retrieval.sample if store.spec.retrieval else sights.SAMPLE
    sampled = sights.sample(connection, store, execution, size)
    with asking.snapshot(connection.engine) as view:
        seen = sights.look(view, store, sampled)
    # What is gone by now, the application deleted since the plan: no batch of ours has been there yet.
    seen = replace(seen, sights=tuple(sight for sight in seen.sights if sight.now is not None))
    _keep(connection, execution.execution_id, seen)
    said = (
        "every document" if len(sampled) < size else f"{size} documents: in turn one of each wave, by a hash of its id"
    )
    found = figures(seen) | {"sample": said, "epoch": deletions.epoch(connection)}
    _record(connection, execution.execution_id, None, "before", found)


def _keep(connection: Connection, execution_id: str, seen: Seen) -> None:
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.retrieval_baseline
           SELECT %(execution)s, s.* FROM jsonb_to_recordset(%(sights)s::jsonb)
               AS s(document text, target text, ordinal bigint, owner_rows bigint, chunks bigint, by_target boolean,
                    found boolean, query_digest text, neighbours jsonb)""",
        {"execution": execution_id, "sights": json.dumps([_kept(sight, seen) for sight in seen.sights])},
    )


def _kept(sight: Sight, seen: Seen) -> dict[str, Any]:
    asked = sight.asked
    return {
        "document": sight.sampled.document,
        "target": sight.sampled.target,
        "ordinal": sight.sampled.ordinal,
        "owner_rows": seen.owners.get(sight.owner, (None, 0))[0],
        "chunks": sight.chunks,
        "by_target": sight.by_target,
        "found": asked.found if asked else None,
        "query_digest": sight.digest,
        "neighbours": as_data(asked.neighbours, asked.cut) if asked and asked.found is not None else None,
    }


def documents_retrievable(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: of the wave's sampled documents none lost its row, chunks or place in its owner's own query."""
    if wave.kind == "sweep":
        size = store.spec.retrieval.sample if store.spec.retrieval else sights.SAMPLE
        sampled = dict.fromkeys(sights.arrivals(connection, store, wave, size))
        return _gate(connection, store, wave.execution_id, [wave], wave.wave, "documents_retrievable", sampled)
    return _gate(
        connection, store, wave.execution_id, [wave], wave.wave, "documents_retrievable",
        _baseline(connection, wave.execution_id, wave),
    )  # fmt: skip


def whole_documents_retrievable(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: the same of the whole sample, documents of every wave and those that stay."""
    waves = ledger.waves(connection, execution.execution_id)
    sampled = _baseline(connection, execution.execution_id, None)
    return _gate(
        connection, store, execution.execution_id, waves, None, "whole_documents_retrievable", sampled
    )  # fmt: skip


def epoch_before(connection: Connection, execution_id: str) -> str | None:
    """Since when the server counted deletes as the execution began; None where that was not noted."""
    before = _figures(connection, execution_id, "before")
    return None if before is None else before.get("epoch")


def _gate(
    connection: Connection,
    store: Store,
    execution_id: str,
    waves: Sequence[ledger.Wave],
    wave_name: str | None,
    gate: str,
    sampled: Mapping[Sampled, Before | None],
) -> GateResult:
    before = _figures(connection, execution_id, "before")
    if before is None:
        return GateResult.of(gate, True, "not measured: this execution began before retrieval was measured", "")
    seen, verdict = _measure(connection, store, execution_id, waves, sampled, before)
    after = figures(seen, verdict.excluded) | verdict.as_data()
    _record(connection, execution_id, wave_name, "after", after)
    said = _sentence(before if wave_name is None else None, after, verdict)
    return GateResult.of(
        gate,
        not verdict.faults,
        said if not verdict.faults else f"{len(verdict.faults)} documents: {'; '.join(verdict.faults[:5])}. {said}",
        "look at the policies, grants and rows named; if nobody else changed them, roll back "
        "(uuid-pipeline rollback --all)",
        figures={name: after[name] for name in ("measured", "found", "p50_ms", "p95_ms") if after[name] is not None}
        | {"faults": len(verdict.faults), "neighbours_compared": verdict.compared, "neighbours_same": verdict.same},
    )


def _measure(
    connection: Connection,
    store: Store,
    execution_id: str,
    waves: Sequence[ledger.Wave],
    sampled: Mapping[Sampled, Before | None],
    before: Mapping[str, Any],
) -> tuple[Seen, Verdict]:
    """What is seen now, and the judgement of it, which waits for the statistics of deletes if it must.

    Of the same rows all the while: who goes on deleting would else be ahead of the statistics for ever.
    """
    since = {"execution": execution_id, "snapshot": ledger.first_snapshot(connection, execution_id)}
    digests = [one.digest for one in sampled.values() if one is not None and one.digest is not None]
    with asking.snapshot(connection.engine) as view:
        seen = sights.look(view, store, list(sampled), since, digests, _share(store, before, len(sampled)))
        verdict = judging.judge(connection, view, store, execution_id, waves, seen, sampled, before)
    if not verdict.unexplained:
        return seen, verdict

    def again() -> Verdict:
        # A session behind a pooler reports the deletes of whoever had it before when a transaction of its ends.
        with asking.snapshot(connection.engine) as later:
            return judging.judge(connection, later, store, execution_id, waves, seen, sampled, before)

    return seen, deletions.patiently(connection, again, lambda found: not found.unexplained)


def _share(store: Store, before: Mapping[str, Any], size: int) -> float:
    """Seconds for so many of the sample, so that all waves together take about what one whole measurement does."""
    allowed = store.spec.retrieval.seconds if store.spec.retrieval else sights.SECONDS
    whole = max(int(before["measured"] + before["not_measured"]), 1)
    return max(allowed * min(size / whole, 1.0), min(LEAST_SECONDS, allowed))


def figures(seen: Seen, excluded: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Counts, rates and latency of what was seen; ``excluded`` documents (with the reason) are counted apart."""
    out = excluded or {}
    counted = [sight for sight in seen.sights if sight.sampled.document not in out]
    asks = not isinstance(seen.query, str)
    # A document without a vector cannot be found by one; one with a vector that was not asked was not measured.
    measured = [
        s for s in counted if not asks or s.vector is False or (s.asked is not None and s.asked.shown is not None)
    ]
    found = [s for s in measured if s.by_target and (not asks or (s.asked is not None and s.asked.shown))]
    times = [s.asked.milliseconds for s in counted if s.asked is not None and s.asked.milliseconds is not None]
    failures = Counter(s.asked.failure for s in counted if s.asked is not None and s.asked.failure is not None)
    return {
        "how": f"look-up by target id, and the owner's own query {seen.who.said}"
        if seen.who
        else f"look-up by target id only: {seen.query}",
        "measured": len(measured),
        "found": len(found),
        "rate": round(len(found) / len(measured), 4) if measured else None,
        "rows_by_target": sum(s.at_target for s in counted),
        "retrieved_by_target": sum(s.by_target for s in counted),
        "by_query": sum(bool(s.asked and s.asked.shown) for s in counted) if asks else None,
        "missed_by_index": sum(bool(s.asked and s.asked.found and not s.asked.shown) for s in counted),
        "p50_ms": percentile(times, 0.5),
        "p95_ms": percentile(times, 0.95),
        "not_measured": len(counted) - len(measured),
        "failures": dict(failures),
        "excluded": dict(Counter(out.values())),
        "not_retrievable": [_why(s, asks) for s in measured if s not in found][:LISTED],
    }


def _why(sight: Sight, asks: bool) -> dict[str, Any]:
    if not sight.at_target:
        reason = "no row under its target id"
    elif sight.target_chunks == 0:
        reason = "it has no chunks: no re-keying can make it retrievable"
    elif asks and not sight.vector:
        reason = "no chunk has a vector"
    elif sight.asked is not None and sight.asked.failure is not None:
        reason = sight.asked.failure
    else:
        reason = "its owner's own query does not find it"
    return {"document": sight.now or sight.sampled.document, "reason": reason}


def _sentence(before: Mapping[str, Any] | None, after: Mapping[str, Any], verdict: Verdict) -> str:
    parts = [f"{after['found']} of {after['measured']} retrievable ({after['how']})"]
    if before is not None:
        parts[0] = f"before {before['found']} of {before['measured']}, now " + parts[0]
        if before["p50_ms"] is not None and after["p50_ms"] is not None:
            parts.append(
                f"p50 {before['p50_ms']:.1f} ms before, {after['p50_ms']:.1f} ms now; "
                f"p95 {before['p95_ms']:.1f} and {after['p95_ms']:.1f} ms"
            )
    without = sum("no re-keying" in one["reason"] for one in after["not_retrievable"])
    if without:
        parts.append(f"{without} have no chunks, listed as not retrievable by any re-keying")
    if verdict.compared:
        parts.append(f"neighbours and scores the same for {verdict.same} of {verdict.compared}, by exact scans")
    if after["not_measured"]:
        parts.append(f"{after['not_measured']} NOT MEASURED within the time allowed")
    parts += [f"{n} queries failed: {text}" for text, n in after["failures"].items()]
    if after["missed_by_index"]:
        parts.append(f"{after['missed_by_index']} are missed by the approximate index alone")
    parts += [f"{n} left out: {reason}" for reason, n in after["excluded"].items()]
    return "; ".join([*parts, *verdict.notes])


def _baseline(connection: Connection, execution_id: str, wave: ledger.Wave | None) -> dict[Sampled, Before | None]:
    """The sample with what was seen of it, of one wave of the plan or of all."""
    rows = sql.rows(
        connection,
        """SELECT document, target, ordinal, owner_rows, chunks, found, query_digest, neighbours
           FROM uuid_pipeline.retrieval_baseline
           WHERE execution_id = %(id)s AND (NOT %(one)s OR ordinal BETWEEN %(first)s AND %(last)s)
           ORDER BY ordinal, document""",
        {
            "id": execution_id,
            "one": wave is not None,
            "first": wave.first_ordinal if wave else 0,
            "last": wave.last_ordinal if wave else 0,
        },
    )
    found: dict[Sampled, Before | None] = {}
    for row in rows:
        kept = row.neighbours
        neighbours = tuple((d, c, x) for d, c, x in kept["rows"]) if kept else None
        before = Before(row.found, row.chunks, row.owner_rows, row.query_digest, neighbours, bool(kept and kept["cut"]))
        found[Sampled(row.document, row.target, row.ordinal)] = before
    return found


def _record(connection: Connection, execution_id: str, wave: str | None, phase: str, found: Mapping[str, Any]) -> None:
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.retrieval_measurements (execution_id, wave, phase, figures)
           VALUES (%(id)s, %(wave)s, %(phase)s, %(figures)s::jsonb)""",
        {"id": execution_id, "wave": wave, "phase": phase, "figures": json.dumps(found)},
    )


def _figures(connection: Connection, execution_id: str, phase: str) -> dict[str, Any] | None:
    """The newest measurement of the whole sample."""
    found: dict[str, Any] | None = sql.scalar(
        connection,
        """SELECT figures FROM uuid_pipeline.retrieval_measurements
           WHERE execution_id = %(id)s AND phase = %(phase)s AND wave IS NULL ORDER BY measurement_no DESC LIMIT 1""",
        {"id": execution_id, "phase": phase},
    )
    return found


_REPORTED = ("measured", "found", "rate", "rows_by_target", "retrieved_by_target", "by_query", "missed_by_index",
             "p50_ms", "p95_ms", "not_measured", "failures", "excluded", "how")  # fmt: skip


def summary(connection: Connection, execution_id: str) -> dict[str, Any] | None:
    """What was measured of an execution, before and after; None when nothing was. ``after`` is None until validated."""
    before, after = (_figures(connection, execution_id, phase) for phase in ("before", "after"))
    if before is None:
        return None
    return {
        "sample": before["sample"],
        "before": {name: before[name] for name in _REPORTED},
        "after": {name: after[name] for name in _REPORTED} if after else None,
        "neighbours": after["neighbours"] if after else None,
        "not_retrievable": after["not_retrievable"] if after else before["not_retrievable"],
        "faults": after["faults"] if after else [],
    }
