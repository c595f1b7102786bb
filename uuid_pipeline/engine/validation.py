"""Gates of a wave and of the whole store: what was moved, recounted and recomputed from the store itself."""

from collections.abc import Sequence
from itertools import zip_longest

from sqlalchemy import Connection

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import gates, ledger, sql, sweep
from uuid_pipeline.engine.batches import aside
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.proofs import comparison
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

LISTED = 40

_JOURNAL = """
SELECT coalesce(sum((b.moved->'entities'->>%(entity)s)::bigint), 0) AS moved FROM uuid_pipeline.batches b
WHERE b.wave = %(wave)s AND b.direction = 'forward'
"""
_UNMOVED = """
SELECT reason, count(*) AS n FROM uuid_pipeline.unmoved WHERE wave = %(wave)s GROUP BY reason ORDER BY reason
"""


def subject(connection: Connection) -> ledger.Execution:
    """The execution that validation is about: the running one, else the one completed last that was not rolled back.

    Raises RefusedError when nothing that is migrated stands, or some of the newest that does was rolled back.
    """
    given_up: ledger.Execution | None = None
    standing = [one for one in ledger.executions(connection) if one.status != "rolled_back"]
    for execution in standing:
        if execution.status in ("running", "completed"):
            _require_not_erased(connection, execution)
            return execution
        if execution.status == "partly_rolled_back":
            raise RefusedError(_rolled_back_in_part(connection, execution, standing))
        if execution.status == "finalized":
            raise RefusedError(
                f"Execution {execution.execution_id} was finalized, and its state before is kept no longer to compare "
                "with. What is new since: uuid-pipeline plan"
            )
        if execution.status == "rolling_back":
            raise RefusedError(
                f"Execution {execution.execution_id} is being rolled back. To finish that: uuid-pipeline rollback --all"
            )
        if given_up is None and execution.status in ("cancelled", "superseded") and _moved(connection, execution):
            given_up = execution
    if given_up is not None:
        raise RefusedError(
            f"Execution {given_up.execution_id} was {given_up.status} when it had moved a part, and the whole is "
            "validated only once it is complete. To move the rest: uuid-pipeline run; to take this back: "
            "uuid-pipeline rollback --all"
        )
    raise RefusedError("Nothing is migrated that could be validated. Run: uuid-pipeline run")


def _rolled_back_in_part(
    connection: Connection, execution: ledger.Execution, standing: Sequence[ledger.Execution]
) -> str:
    """Why neither this execution nor one below it can be validated, and what to do.

    The one below does not prove what is still under this one's ids: its gates would pass over these rows.
    """
    said = (
        f"Execution {execution.execution_id} was rolled back in part, and its state before is no measure for the rest "
        "any more."
    )
    move = "To move what went back: uuid-pipeline run"
    older = standing[standing.index(execution) + 1 :]
    below = next((one for one in older if one.status == "completed"), None)
    if below is None:
        return f"{said} {move}; to take back the rest: uuid-pipeline rollback --all"
    waves = reversed(ledger.waves(connection, execution.execution_id))
    left = [f"uuid-pipeline rollback --wave {wave.wave}" for wave in waves if wave.status == "moved" and wave.documents]
    return (
        f"{said} Nor does execution {below.execution_id}, which is completed below it, prove the rows that are still "
        f"under the ids of this one. {move}; to take back the rest, and validate execution {below.execution_id}: "
        f"{', then '.join(left)}. (rollback --all would take back both.)"
    )


def _moved(connection: Connection, execution: ledger.Execution) -> bool:
    moved = "SELECT EXISTS (SELECT FROM uuid_pipeline.batches WHERE execution_id = %(id)s)"
    return bool(sql.scalar(connection, moved, {"id": execution.execution_id}))


def _require_not_erased(connection: Connection, execution: ledger.Execution) -> None:
    since = ledger.erased_since(connection, execution.approved_at, "^(id_map|archive)_")
    if since is not None:
        raise RefusedError(
            f"A user was erased on {since}, and with their rows the state before execution {execution.execution_id} is "
            "no measure any more: its validation cannot be repeated. Its gates stand as they were recorded."
        )


def accounted(connection: Connection, store: Store, wave: ledger.Wave) -> dict[str, int]:
    """Of one wave: documents planned, moved (from the journal), and set aside by reason."""
    moved = sum(int(sql.scalar(connection, _JOURNAL, {"wave": wave.wave, "entity": root.name})) for root in store.roots)
    aside = {row.reason: int(row.n) for row in sql.rows(connection, _UNMOVED, {"wave": wave.wave})}
    merged = 0
    for root in store.roots:
        values = {"table": f"{root.table.schema}.{root.table.name}", "wave": wave.wave}
        merged += int(sql.rows(connection, comparison.MERGED + " AND b.wave = %(wave)s", values)[0].archived)
    return {"planned": wave.documents, "moved": moved, **({"merged": merged} if merged else {}), **aside}


def conservation(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: every planned document of the wave is counted as moved, merged, or set aside by reason; none twice."""
    found = accounted(connection, store, wave)
    missing = found["planned"] - sum(count for name, count in found.items() if name != "planned")
    said = ", ".join(f"{count} {name}" for name, count in found.items())
    return GateResult.of(
        "conservation",
        missing == 0 and wave.status in ("moved", "unneeded"),
        said if missing == 0 else f"{said}: {missing} unaccounted for",
        "run the wave again (uuid-pipeline run); if it stays, roll it back",
        figures=found,
    )


def schema_unchanged(connection: Connection, store: Store, execution: ledger.Execution, gate: str) -> GateResult:
    """Gate: tables, columns, constraints, indexes, triggers, policies, grants are as before the first batch."""
    before = sql.scalar(
        connection,
        "SELECT catalog_before FROM uuid_pipeline.executions WHERE execution_id = %(id)s",
        {"id": execution.execution_id},
    )
    after = catalogs.snapshot(connection, store.catalog)
    changes = catalogs.differences(before or {}, after)
    return GateResult.of(
        gate,
        not changes,
        f"{len(after)} objects as before" if not changes else f"{len(changes)} differ: {_listed(changes)}",
        "put these back. If the change was yours: where rows are still to move, plan again and approve the new plan; "
        "where all have moved, nothing is wrong with them, and this stays so until: uuid-pipeline finalize",
        figures={"objects": len(after), "changed": len(changes)},
    )


def _listed(changes: Sequence[str]) -> str:
    """Changes of each kind of object in turn, so that a long list of columns hides no policy; the rest is counted."""
    kinds: dict[str, list[str]] = {}
    for change in changes:
        kinds.setdefault(change.split(" ", 1)[0], []).append(change)
    in_turn = [change for turn in zip_longest(*kinds.values()) for change in turn if change is not None]
    more = f"; and {len(in_turn) - LISTED} more" if len(in_turn) > LISTED else ""
    return "; ".join(in_turn[:LISTED]) + more


def next_step_safe(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: every wave that began has ended with all its gates green, so the next one, or the end, may come."""
    unaccounted, done, waiting = 0, [], []
    left = 0
    for wave in ledger.waves(connection, execution.execution_id):
        if wave.status == "unneeded":
            continue
        begun = wave.status == "moved" or sql.scalar(
            connection,
            "SELECT EXISTS (SELECT FROM uuid_pipeline.batches WHERE wave = %(w)s)",
            {"w": wave.wave},
        )
        if not begun:
            waiting.append(wave.wave)
            continue
        done.append(wave.wave)
        found = accounted(connection, store, wave)
        unaccounted += found["planned"] - sum(n for name, n in found.items() if name != "planned")
        left += sum(found.get(reason, 0) for reason in aside.WAITING)
    open_gates = gates.open_gates_of_waves(connection, execution.execution_id, done)
    safe = not open_gates and unaccounted == 0 and (left == 0 or bool(waiting))
    unsafe = f"{unaccounted} documents unaccounted for" if unaccounted else f"{left} documents are busy or locked"
    late = 0
    if execution.status == "running" and not waiting:
        late = sum(sweep.later_arrivals(connection, store, execution.execution_id).values())
    after = f"next: {waiting[0]}" if waiting else "the execution may end"
    after += f"; {late} rows came later and are due for the next plan" if late else ""
    return GateResult.of(
        "next_step_safe",
        safe,
        f"{len(done)} waves done, every document accounted for; {after}" if safe else "; ".join(open_gates)
        or unsafe,
        "run again (uuid-pipeline run), which takes up what is left; or roll back",
        figures={"waves_done": len(done), "waves_waiting": len(waiting), "later_arrivals": late},
    )  # fmt: skip


# The newest results of the whole store's gates must be of one run, and of one that began after the last batch.
_AT_ONCE = """
SELECT count(DISTINCT run_id) = 1 AND min(evaluated_at) > coalesce(
           (SELECT max(committed_at) FROM uuid_pipeline.batches WHERE execution_id = %(execution)s), '-infinity')
FROM (SELECT DISTINCT ON (gate) gate, run_id, evaluated_at FROM uuid_pipeline.gates
      WHERE execution_id = %(execution)s AND wave IS NULL AND stage = %(stage)s ORDER BY gate, gate_no DESC) newest
"""


def _validated_at_once(connection: Connection, execution: ledger.Execution) -> bool:
    values = {"execution": execution.execution_id, "stage": gates.VALIDATION_STAGE}
    return bool(sql.scalar(connection, _AT_ONCE, values))


def settle(connection: Connection, execution: ledger.Execution) -> bool:
    """Complete a running execution when every wave is moved and every gate green; returns whether it is complete."""
    # The last two gates may be recorded at once, on two workers: the later one looks when the earlier has committed.
    sql.execute(connection, "SELECT FROM uuid_pipeline.lease FOR UPDATE")
    now = ledger.execution(connection, execution.execution_id)
    if now.status != "running":
        return now.status == "completed"
    waves = [wave for wave in ledger.waves(connection, now.execution_id) if wave.status != "unneeded"]
    if any(wave.status != "moved" for wave in waves):
        return False
    stages = (*gates.PLANNING_STAGES, gates.VALIDATION_STAGE)
    if gates.open_gates(connection, Scope(execution=now.execution_id), stages):
        return False
    if gates.open_gates_of_waves(connection, now.execution_id, [wave.wave for wave in waves]):
        return False
    if not _validated_at_once(connection, now):
        return False
    ledger.change_status(connection, now.execution_id, "completed")
    return True
