"""Rollback: batches with the map inverted, last wave first.

A merge remembers rows as they were when it came: with ids of other documents, which earlier batches had moved by then
and later ones had not. Where a row may hold several documents' ids, such batches are undone one by one, the last first,
as they were done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import declared_since, earlier_store, ledger, orphans, profile, sql
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.altered import rebuilding, vector_indexes
from uuid_pipeline.engine.altered.vector_indexes import Span
from uuid_pipeline.engine.batches import batch, sizes
from uuid_pipeline.engine.batches.lanes import Ordinals
from uuid_pipeline.engine.batches.tries import run_batch, undivided
from uuid_pipeline.engine.batches.writing import Report, Run, Tally, Writer, silenced, writer
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.engine.ledger_rights import is_owner
from uuid_pipeline.engine.merges import actions, archive, coming_back, emptying, restoring, ties, turning_back
from uuid_pipeline.engine.proofs import as_before, half_way
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import BatchError, RefusedError

# What the status of a wave and of an execution is that has gone back.
_BACK = "rolled_back"


def moved_waves(connection: Connection) -> list[ledger.Wave]:
    """Every wave with rows under new ids, newest execution and last wave first."""
    found = sql.rows(
        connection,
        ledger.WAVE
        + """WHERE (w.status IN ('moved', 'rolling_back')
                  OR (w.status = 'planned' AND EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.wave = w.wave)))
           AND w.documents > 0 AND e.status <> 'finalized'
           ORDER BY e.approved_at DESC, e.execution_id DESC, w.position DESC""",
    )
    return [ledger.Wave(*row) for row in found]


def newest_to_undo(connection: Connection) -> int | None:
    """The assessment of the newest execution with rows under new ids, or whose rollback has only to be closed.

    None when there is none, or no ledger.
    """
    if not ledger.exists(connection):
        return None
    waves = moved_waves(connection)
    if waves:
        return ledger.execution(connection, waves[0].execution_id).assessment_no
    closing = ledger.rolling_back(connection)
    return closing[0].assessment_no if closing else None


def interrupted(connection: Connection) -> list[ledger.Wave]:
    """Waves whose rollback began and did not end."""
    return [wave for wave in moved_waves(connection) if wave.status == "rolling_back"]


def choose(connection: Connection, name: str | None) -> list[ledger.Wave]:
    """The waves to roll back: all moved ones for None, else that of the name, or of its end or kind in the newest
    execution.

    What an interrupted rollback left is always among them. A wave that moved nothing, or is back already, leaves
    nothing to choose.

    Raises RefusedError when no wave has that name.
    """
    moved = moved_waves(connection)
    if name is None:
        return moved
    newest = moved[0].execution_id if moved else None
    # Less than the whole name means the newest execution's.
    chosen = [wave for wave in moved if wave.wave == name] or [
        wave for wave in moved if wave.is_called(name) and wave.execution_id == newest
    ]
    if not chosen and not _has_nothing_to_undo(connection, name):
        known = ", ".join(wave.wave for wave in moved) or "none"
        raise RefusedError(f"No moved wave is called {name}. Waves that can be rolled back: {known}.")
    if chosen and newest not in {wave.execution_id for wave in chosen}:
        raise RefusedError(
            f"Execution {newest} moved rows after {chosen[0].wave}; roll that one back first: "
            "uuid-pipeline rollback --all goes newest first."
        )
    return [wave for wave in moved if wave in chosen or wave.status == "rolling_back"]


def _has_nothing_to_undo(connection: Connection, name: str) -> bool:
    """Whether a wave of an execution that is not finalized has this name, or one of the newest this kind."""
    executions = [e.execution_id for e in ledger.executions(connection) if e.status != "finalized"]
    return any(
        wave.wave == name or (wave.is_called(name) and execution == executions[0])
        for execution in executions
        for wave in ledger.waves(connection, execution)
    )


def documents_back(connection: Connection, store: Store, waves: Sequence[str]) -> int:
    """How many documents have been given their old ids again in these waves, by the journal."""
    roots = [root.name for root in store.roots]
    return int(
        sql.scalar(
            connection,
            """SELECT coalesce(sum(e.n::bigint), 0)
               FROM uuid_pipeline.batches b CROSS JOIN jsonb_each_text(b.moved->'entities') e(entity, n)
               WHERE b.direction = 'back' AND b.wave = ANY(%(waves)s) AND e.entity = ANY(%(roots)s)""",
            {"waves": list(waves), "roots": roots},
        )
    )


def left_in_archive(connection: Connection, store: Store, waves: Sequence[str]) -> dict[str, int]:
    """Rows by table that merges of these waves archived and that are in the archive still: not back, and not erased."""
    found: dict[str, int] = {}
    for number in sorted({ledger.wave(connection, wave).assessment_no for wave in waves}):
        for one in archive.shelves(connection, store, number):
            counted = sql.compose(
                "SELECT count(*) FROM {archive} WHERE uuid_pipeline_wave = ANY(%(waves)s)", archive=one.relation
            )
            rows = int(sql.scalar(connection, counted, {"waves": list(waves)}))
            if rows:
                found[f"{one.table.schema}.{one.table.name}"] = rows
    return found


def roll_back(engine: Engine, store: Store, waves: Sequence[ledger.Wave], run_id: str, report: Report) -> list[Run]:
    """Give the rows of these waves their old ids again; finishes what an interrupted rollback began.

    Rows that the application wrote since stay, under the old id; rows that it deleted stay deleted. What the store's
    spec declares goes back too where the waves' own did not know of it, and so does what executions since declare.

    Raises RefusedError when others must go back before, or where this role lacks rights; and when a foreign key
    dangles in the end, or a soft reference declared since holds ids that are no row's any more.
    """
    with writer(engine, store, run_id) as writing:
        _require_order(writing.connection, store, waves)
        stores = _stores(writing.connection, store, waves)
        with writing.connection.begin():
            assessments = ledger.assessments_in_force(writing.connection)
            for one in stores.values():
                profile.require_access(writing.connection, one)
            may_install = is_owner(writing.connection)
            if waves and not may_install:
                _require_aliases(writing.connection, waves, assessments)
        _prepare_ways_back(writing, stores, waves)
        if waves and may_install:
            aliases.install(engine, writing.lease, store, assessments)
        _open(writing.connection, waves, writing.lease)
        reach("turned")
        _drop_indexes(writing, stores, waves, report)
        with silenced(writing):
            stack = _to_unwind(writing.connection, stores, waves)
            if stack is None:
                runs = [_roll_back_wave(writing, stores[wave.execution_id], wave, report) for wave in waves]
            else:
                runs = _unwind(writing, stores, waves, stack, report)
        for wave in waves[-1:]:
            rebuilding.put_back(engine, writing.connection, writing.lease, Tally(wave, report).say)
        _require_all_back(writing.connection, waves)
        _close(writing.connection, writing.lease)
        _require_nothing_left(writing.connection, store, stores)
    return runs


def _require_aliases(connection: Connection, waves: Sequence[ledger.Wave], assessments: Sequence[int]) -> None:
    """Raise RefusedError where our triggers are missing, which a role that only rolls back cannot make.

    Where the newest plan moved rows: what was declared since, batches write, and no writer knew it by an id of before.
    """
    newest = ledger.execution(connection, waves[0].execution_id)
    planned = earlier_store.store_of(connection, newest.assessment_no)
    missing = aliases.missing(connection, planned, assessments)
    if missing:
        raise RefusedError(
            f"Refused: {', '.join(missing)} lacks our trigger that takes an id of before for the one of now, and the "
            f"role {sql.scalar(connection, 'SELECT current_user')} can make none. Connect as the role that owns the "
            "ledger, which may roll back as well (docs/roles.md)."
        )


def _prepare_ways_back(writing: Writer, stores: dict[str, Store], waves: Sequence[ledger.Wave]) -> None:
    """Before anything goes back: archives and emptied keys are there, and archives have the column names of now."""
    with writing.connection.begin():
        leases.hold(writing.connection, writing.lease)
        for execution_id, store in stores.items():
            number = ledger.execution(writing.connection, execution_id).assessment_no
            archive.require_found(writing.connection, store, number)
            actions.require_way_back(store, writing.tier, archive.archived_tables(writing.connection, number))
            emptying.require_keys(writing.connection, store, number)
            turning_back.require_found(writing.connection, store, number)
            archive.follow_renames(writing.connection, store, number)
            restoring.require_defaults(
                writing.connection,
                archive.shelves(writing.connection, store, number),
                restoring.OF_WAVES,
                {"waves": [wave.wave for wave in waves]},
            )


@dataclass(frozen=True)
class _Done:
    """A batch that went forward and is not undone yet; batches are numbered as they committed."""

    number: int
    wave: str
    span: Ordinals
    wrote: bool


def _stack(connection: Connection, waves: Sequence[ledger.Wave]) -> list[_Done] | None:
    """The batches of these waves that are still to be undone, the last first; None where some were not undone whole."""
    rows = sql.rows(
        connection,
        """SELECT batch_no, wave, direction, first_ordinal, last_ordinal,
                  jsonb_path_exists(moved, '$.** ? (@.type() == "number" && @ != 0)') AS wrote
           FROM uuid_pipeline.batches WHERE wave = ANY(%(waves)s) ORDER BY batch_no""",
        {"waves": [wave.wave for wave in waves]},
    )
    left: dict[str, list[_Done]] = {wave.wave: [] for wave in waves}
    for row in rows:
        span = (row.first_ordinal, row.last_ordinal)
        if row.direction == batch.FORWARD.name:
            left[row.wave].append(_Done(row.batch_no, row.wave, span, row.wrote))
        elif not left[row.wave] or left[row.wave].pop().span != span:
            return None
    return sorted((done for stack in left.values() for done in stack), key=lambda done: done.number, reverse=True)


def _to_unwind(connection: Connection, stores: dict[str, Store], waves: Sequence[ledger.Wave]) -> list[_Done] | None:
    """The batches to undo exactly as they were done, where anything merged that may hang on several documents."""
    with connection.begin():
        needed = any(_merges_across(connection, stores[wave.execution_id], wave) for wave in waves)
        return _stack(connection, waves) if needed else None


def _merges_across(connection: Connection, store: Store, wave: ledger.Wave) -> bool:
    return ties.has_ties(store) and ties.merges(connection, store, wave)


def _require_order(connection: Connection, store: Store, waves: Sequence[ledger.Wave]) -> None:
    """Raise RefusedError when a wave that stays was written after one that is to go back, and they hang together."""
    chosen = [wave for wave in waves if wave.status != "rolling_back"]
    with connection.begin():
        stay = [wave for wave in moved_waves(connection) if wave not in waves]
        own = _batch_spans(_stack(connection, chosen) or [])
        spans = _batch_spans(_stack(connection, stay) or [])
        first = min((begun for begun, _ in own.values()), default=None)
        later = [wave for wave in stay if first is not None and wave.wave in spans and spans[wave.wave][1] > first]
    stores = _stores(connection, store, [*chosen, *later])
    with connection.begin():
        if not later or not any(_merges_across(connection, stores[w.execution_id], w) for w in [*chosen, *later]):
            return
    order = sorted((wave.wave for wave in later), key=lambda name: spans[name][1], reverse=True)
    remedy = (
        f"Roll back before it, in this order: {', '.join(order)}; or everything: uuid-pipeline rollback --all"
        if _can_go_one_by_one(order, spans | own)
        else "Batches of those waves lie between each other's, as where one took up later what had been locked: they "
        "go back together only: uuid-pipeline rollback --all"
    )
    raise RefusedError(
        f"Refused: {', '.join(wave.wave for wave in chosen)} cannot go back while waves that were written later stay. "
        "Rows were merged, and rows of this store hang on several documents: what was merged can only be undone last "
        f"first. {remedy}"
    )


def _batch_spans(stack: Sequence[_Done]) -> dict[str, tuple[int, int]]:
    """By wave its first and last batch of these; one that met a busy document, and wrote nothing, hangs on none."""
    numbers: dict[str, list[int]] = {}
    for done in stack:
        if done.wrote:
            numbers.setdefault(done.wave, []).append(done.number)
    return {wave: (min(found), max(found)) for wave, found in numbers.items()}


def _can_go_one_by_one(order: Sequence[str], spans: Mapping[str, tuple[int, int]]) -> bool:
    """Whether each wave, when its turn comes, was written after all that are left, those not in the order included."""
    return all(
        spans[other][1] < spans[name][0]
        for at, name in enumerate(order)
        for other in spans
        if other not in order[: at + 1]
    )


def _unwind(
    writing: Writer, stores: dict[str, Store], waves: Sequence[ledger.Wave], stack: Sequence[_Done], report: Report
) -> list[Run]:
    """Undo these batches in this order, each whole; a wave is rolled back with the first that it had."""
    of_name = {wave.wave: wave for wave in waves}
    tallies = {wave.wave: Tally(wave, report) for wave in waves}
    left = {wave.wave: sum(done.wave == wave.wave for done in stack) for wave in waves}
    for name in [name for name, count in left.items() if not count]:
        _end(writing, of_name[name], tallies[name])
    for done in stack:
        wave, (first, last) = of_name[done.wave], done.span
        _, result = run_batch(writing, stores[wave.execution_id], wave, done.span, batch.BACK, undivided)
        reach("committed")
        tallies[wave.wave].add(last - first + 1, result)
        left[wave.wave] -= 1
        if not left[wave.wave]:
            _end(writing, wave, tallies[wave.wave])
    return [tallies[wave.wave].run(writing.lease.dead_run) for wave in waves]


def _require_all_back(connection: Connection, waves: Sequence[ledger.Wave]) -> None:
    """Raise BatchError when a batch of these waves has not been undone after all."""
    left = {wave.wave: remaining(connection, wave) for wave in waves}
    with connection.begin():
        open_still = [name for name, spans in left.items() if spans or ledger.wave(connection, name).status != _BACK]
    if open_still:
        raise BatchError(
            f"The rollback has ended, but batches of {', '.join(open_still)} are not undone. Give the same command "
            "again; if it ends so once more, report this with the spec."
        )


def _require_nothing_left(connection: Connection, store: Store, stores: dict[str, Store]) -> None:
    """Raise RefusedError when a row refers to what is not there: by foreign key, since the replica role checks none, or
    without one by a new id of a row that is back; and when rows are not as they were that nobody else wrote to.
    """
    with connection.begin():
        executions = [ledger.execution(connection, execution_id) for execution_id in stores]
        back = [one for one in executions if one.status == _BACK]
        differ = [said for one in back for said in as_before.differing(connection, stores[one.execution_id], one)]
        left = {said for one in executions for said in half_way.named(connection, one, store.spec)}
        dangling = {said for one in executions for said in _dangling(connection, stores[one.execution_id], one)}
    faults = []
    if dangling:
        faults.append(
            "The rollback has ended, but rows refer by foreign key to others that are not there: "
            f"{', '.join(sorted(dangling))}. Where somebody wrote these ids past the keys' checks, put them right; "
            "else compare these rows with your backup, and report this with the spec."
        )
    if left:
        faults.append(
            "The rollback has ended, but columns that the plan did not know hold new ids of rows that have their old "
            "ones again: they were declared when those rows were back already, or are in tables that no batch can "
            "write. Put them right while the aliases stand (until uuid-pipeline finalize):\n" + "\n".join(sorted(left))
        )
    if differ:
        faults.append(
            "The rollback has ended, but nobody else wrote to the store, and these tables are not as they were before: "
            f"{', '.join(differ)}. Compare them with your backup, and report this with the spec."
        )
    if faults:
        raise RefusedError("\n".join(faults))


def _dangling(connection: Connection, store: Store, execution: ledger.Execution) -> list[str]:
    """Foreign keys of the store with rows that refer to what is not there, each with their number."""
    found = orphans.dangling(connection, store)
    checked = coming_back.checked_keys(connection, store, execution.assessment_no)
    found |= orphans.dangling_by(connection, checked)
    return [orphans.named(connection, store, {name: count}) for name, count in found.items()]


def _drop_indexes(writing: Writer, stores: dict[str, Store], waves: Sequence[ledger.Wave], report: Report) -> None:
    """Drop the vector indexes of which these waves together write most rows, once for all of them."""
    connection = writing.connection
    for execution_id, store in stores.items():
        own = [wave for wave in waves if wave.execution_id == execution_id]
        spans = [Span(wave.assessment_no, *span) for wave in own for span in remaining(connection, wave)]
        with connection.begin():
            due = vector_indexes.due(connection, store, spans)
        rebuilding.drop(connection, writing.lease, due, Tally(own[0], report).say)


def _stores(connection: Connection, store: Store, waves: Sequence[ledger.Wave]) -> dict[str, Store]:
    """The store as each execution's own spec binds it, and what was declared since: another would leave rows behind."""
    with connection.begin():
        executions = [ledger.execution(connection, execution_id) for execution_id in {w.execution_id for w in waves}]
        bound = {
            e.execution_id: declared_since.store_to_undo(connection, e.assessment_no, store.spec) for e in executions
        }
    # What was composed for the store that was given serves again.
    return {name: store if one.spec.digest == store.spec.digest else one for name, one in bound.items()}


def _open(connection: Connection, waves: Sequence[ledger.Wave], lease: leases.Lease) -> None:
    """Mark what will go back first, so that a run after a crash finishes it and no wave goes on meanwhile."""
    with connection.begin():
        leases.hold(connection, lease)
        open_one = ledger.unfinished(connection)
        # An open execution ends here too, even with no row moved: its plan was made for another state of the store.
        closing = {wave.execution_id for wave in waves} | ({open_one.execution_id} if open_one else set())
        for execution_id in sorted(closing):
            if ledger.execution(connection, execution_id).status != "rolling_back":
                ledger.change_status(connection, execution_id, "rolling_back")
        for wave in waves:
            ledger.set_wave_status(connection, wave.wave, "rolling_back")


def _roll_back_wave(writing: Writer, store: Store, wave: ledger.Wave, report: Report) -> Run:
    connection, tally = writing.connection, Tally(wave, report)
    size = sizes.read(connection, store, wave)
    left = remaining(connection, wave)
    ready: list[Ordinals] = []
    while ready or left:
        if not ready:
            ready, left = sizes.last_batches(connection, store, wave, size, left)
        first, last = ready.pop()
        begun, result = run_batch(writing, store, wave, (first, last), batch.BACK)
        reach("committed")
        tally.add(last - begun + 1, result)
        ready += [(first, begun - 1)] if begun > first else []
    _end(writing, wave, tally)
    return tally.run(writing.lease.dead_run)


def _end(writing: Writer, wave: ledger.Wave, tally: Tally) -> None:
    with writing.connection.begin():
        leases.hold(writing.connection, writing.lease)
        ledger.set_wave_status(writing.connection, wave.wave, _BACK)
        ledger.audit(writing.connection, "rolled back", {"wave": wave.wave, "documents": tally.documents})
    reach("rolled back")


def remaining(connection: Connection, wave: ledger.Wave) -> list[Ordinals]:
    """The ordinals that went forward and not yet back, in order; what never went forward must not go back."""
    spans = sql.rows(
        connection,
        """SELECT lower(span) AS first, upper(span) - 1 AS last
           FROM (SELECT coalesce(range_agg(int8range(first_ordinal, last_ordinal, '[]'))
                                 FILTER (WHERE direction = 'forward'), '{}')
                        - coalesce(range_agg(int8range(first_ordinal, last_ordinal, '[]'))
                                   FILTER (WHERE direction = 'back'), '{}') AS left
                 FROM uuid_pipeline.batches WHERE wave = %(wave)s) done, unnest(done.left) AS span ORDER BY 1""",
        {"wave": wave.wave},
    )
    connection.rollback()
    return [(row.first, row.last) for row in spans]


def _close(connection: Connection, lease: leases.Lease) -> None:
    with connection.begin():
        leases.hold(connection, lease)
        for execution in ledger.rolling_back(connection):
            _settle(connection, execution.execution_id)


def _settle(connection: Connection, execution_id: str) -> None:
    """Final status from what the waves say: rolled back when none has rows under new ids."""
    left = any(wave.execution_id == execution_id for wave in moved_waves(connection))
    ledger.change_status(connection, execution_id, "partly_rolled_back" if left else "rolled_back")
