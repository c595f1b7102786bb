"""What a process of the migration does, as the engine's batch, locks, aside, migration, rollback and lease do it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from uuid_pipeline_tests.model import world as w
from uuid_pipeline_tests.model.world import LEASE, Mapped, Note, Process, World

LAST_ORDINAL = 2
Moves = Iterator[tuple[str, World]]
Step = Callable[[World, int, "Migration"], Moves]

FORWARD_PROTOCOL = (
    "take the lease",
    "read the journal",
    "lock the lease",
    "check the epoch",
    "check the status",
    "lock the documents",
    "set aside",
    "lock the chunks",
    "derive",
    "lock the buffers",
    "move",
    "journal",
    "commit",
)
# Under the lease's lock, under the rows' locks, or of the transaction's own.
QUIET = ("check the epoch", "check the status", "set aside", "derive", "journal")
BACK_PROTOCOL = ("take the lease", "turn round", *FORWARD_PROTOCOL[1:])
# Of one lane: the process has the lease already, and has said which batch is whose.
LANE_PROTOCOL = ("share the lease", *FORWARD_PROTOCOL[3:])


@dataclass(frozen=True)
class Migration:
    """A process that runs a protocol; ``direction`` is forward or back."""

    name: str
    direction: str
    protocol: tuple[str, ...]

    @property
    def first_step(self) -> int:
        """Where every batch begins."""
        return self.protocol.index("read the journal") + 1 if "read the journal" in self.protocol else 0

    def moves(self, world: World, who: int) -> Moves:
        process = world.processes[who]
        if process.end:
            return
        for label, after in STEPS[self.protocol[process.step]](world, who, self):
            yield self._on(label, after, who)
        if world.kills and process.step:
            yield f"{self.name} is killed", _ended(world._replace(kills=world.kills - 1), who, "killed")

    def _on(self, label: str, world: World, who: int) -> tuple[str, World]:
        """Steps that nobody else can see or disturb are taken with the one before: fewer orders, the same outcomes."""
        process = world.processes[who]
        if process.end or process.snapshot is not None or self.protocol[process.step] not in QUIET:
            return label, world
        [(quiet, after)] = STEPS[self.protocol[process.step]](world, who, self)
        return self._on(f"{label}\n{quiet}", after, who)


def _ended(world: World, who: int, why: str) -> World:
    return w.with_process(w.ended_transaction(world, who), who, Process(end=why, epoch=world.processes[who].epoch))


def _at(world: World, who: int, step: int) -> World:
    return w.with_process(world, who, world.processes[who]._replace(step=step, snapshot=None, todo=()))


def _next(world: World, who: int) -> World:
    return _at(world, who, world.processes[who].step + 1)


def _take_lease(world: World, who: int, role: Migration) -> Moves:
    if w.free(world, who, LEASE, "key"):
        epoch = world.ledger.epoch + 1
        taken = world._replace(ledger=world.ledger._replace(epoch=epoch))
        taken = w.with_process(taken, who, taken.processes[who]._replace(epoch=epoch))
        yield f"{role.name} takes the lease, epoch {epoch}", _next(taken, who)


def _turn_round(world: World, who: int, role: Migration) -> Moves:
    if not w.free(world, who, LEASE, "key"):
        return
    if world.ledger.epoch != world.processes[who].epoch:
        yield f"{role.name} sees that it lost the lease", _ended(world, who, "fenced off")
        return
    turned = world._replace(ledger=world.ledger._replace(status="rolling back"))
    yield f"{role.name} marks the execution as rolling back", _next(turned, who)


def _read_journal(world: World, who: int, role: Migration) -> Moves:
    forward = {ordinal for direction, ordinal in world.ledger.journal if direction == "forward"}
    back = {ordinal for direction, ordinal in world.ledger.journal if direction == "back"}
    # Of batches written at once the later one may be there and the earlier one not.
    left = sorted({*range(1, LAST_ORDINAL + 1)} - forward) if role.direction == "forward" else sorted(back ^ forward)
    if not left:
        yield f"{role.name} reads the journal and finds nothing left", _ended(world, who, "done")
        return
    read = _with_next_batch(world, who, role, tuple(left))
    label = f"{role.name} reads the journal and goes on with batch {read.processes[who].ordinal}"
    yield label, _next(read, who)


def _with_next_batch(world: World, who: int, role: Migration, left: tuple[int, ...]) -> World:
    """Forward the first of those that are left, back the last."""
    ordinal, left = (left[0], left[1:]) if role.direction == "forward" else (left[-1], left[:-1])
    return w.with_process(world, who, world.processes[who]._replace(ordinal=ordinal, left=left))


def _share_lease(world: World, who: int, role: Migration) -> Moves:
    if w.free(world, who, LEASE, "share"):
        yield (
            f"{role.name} begins a batch and locks the lease, as others may",
            _next(w.locked(world, who, LEASE, "share"), who),
        )


def _lock_lease(world: World, who: int, role: Migration) -> Moves:
    if w.free(world, who, LEASE, "key"):
        yield f"{role.name} begins a batch and locks the lease", _next(w.locked(world, who, LEASE, "key"), who)


def _check_epoch(world: World, who: int, role: Migration) -> Moves:
    if world.ledger.epoch == world.processes[who].epoch:
        yield f"{role.name} sees that the lease is still its own", _next(world, who)
    else:
        yield f"{role.name} sees that it lost the lease", _ended(world, who, "fenced off")


def _check_status(world: World, who: int, role: Migration) -> Moves:
    if (world.ledger.status == "running") == (role.direction == "forward"):
        yield f"{role.name} sees that the execution is {world.ledger.status}", _next(world, who)
    else:
        yield f"{role.name} stops, for the execution is {world.ledger.status}", _ended(world, who, "stopped")


def _batch(world: World, who: int, role: Migration, table: str) -> dict[str, str]:
    """Source -> goal of the batch's ids of one table."""
    process = world.processes[who]
    gone = {note.what for note in process.notes if note.kind == "gone"} | world.ledger.gone
    lines = [m for m in w.id_map(world, who) if (m.table, m.ordinal) == (table, process.ordinal)]
    if process.ordinal in gone:
        return {}
    return {m.old: m.new for m in lines} if role.direction == "forward" else {m.new: m.old for m in lines}


def _affected(world: World, who: int, role: Migration, table: str) -> tuple[int, ...]:
    """The slots that a statement which begins now finds: documents by their id, all others by what they refer to."""
    rows = w.seen(world, who)
    if table == "document":
        return w.found(rows, table, "id", set(_batch(world, who, role, table)))
    parent = {"chunk": "document", "buffer": "chunk"}[table]
    return w.found(rows, table, "parent", set(_batch(world, who, role, parent)))


def _lock(table: str, world: World, who: int, role: Migration) -> Moves:
    process = world.processes[who]
    if process.snapshot is None:
        slots = _affected(world, who, role, table)
        label = f"{role.name} takes a snapshot to lock {_named(slots) or f'no {table}'}"
        if slots:
            begun = process._replace(snapshot=w.seen(world, who), todo=slots)
            yield label, w.with_process(world, who, begun)
        else:
            yield label, _next(world, who)
        return
    slot = process.todo[0]
    for label, after in _next_lock(world, who, role):
        if after.processes[who].snapshot is None:
            yield label, after
            continue
        # The row as it is by now must still be one that the statement looks for.
        if slot in _affected(after, who, role, table):
            holding = after.processes[who]
            after = w.with_process(after, who, holding._replace(held=(*holding.held, slot)))  # noqa: PLW2901
        yield label, after if after.processes[who].todo else _next(after, who)


def _next_lock(world: World, who: int, role: Migration) -> Moves:
    """The first of the rows found: locked, or given up after lock_timeout, the batch begun anew."""
    process = world.processes[who]
    slot = process.todo[0]
    if w.free(world, who, slot, "key"):
        waiting = process._replace(todo=process.todo[1:])
        granted = w.with_process(w.locked(world, who, slot, "key"), who, waiting)
        yield f"{role.name} locks {w.SLOTS[slot]} FOR UPDATE", granted
    else:
        again = _at(w.ended_transaction(world, who), who, role.first_step)
        yield f"{role.name} waits for {w.SLOTS[slot]} too long and rolls its batch back", again


def _named(slots: tuple[int, ...]) -> str:
    return ", ".join(w.SLOTS[slot] for slot in slots)


def _noting(world: World, who: int, notes: tuple[Note, ...]) -> World:
    process = world.processes[who]
    return w.with_process(world, who, process._replace(notes=(*process.notes, *notes)))


def _set_aside(world: World, who: int, role: Migration) -> Moves:
    ordinal = world.processes[who].ordinal
    if role.direction == "back" or _affected(world, who, role, "document"):
        yield f"{role.name} reads document {ordinal} again", _next(world, who)
    else:
        noted = _noting(world, who, (Note("gone", ordinal),))
        yield f"{role.name} does not find document {ordinal} and takes it for deleted", _next(noted, who)


def _derive(world: World, who: int, role: Migration) -> Moves:
    """Chunks that went, or whose goal another row holds, are forgotten; those that came get a line in the map."""
    process = world.processes[who]
    rows = w.seen(world, who)
    here = {row.id for slot in _affected(world, who, role, "chunk") if (row := rows[slot])}
    held = {row.id for row in rows if row is not None and row.table == "chunk"}
    known = _batch(world, who, role, "chunk")
    lines = w.id_map(world, who)
    gone = known.keys() - here | {old for old, goal in known.items() if goal != old and goal in held}
    forward = role.direction == "forward"
    departed = [m for m in lines if m.table == "chunk" and (m.old if forward else m.new) in gone]
    came = sorted(here - known.keys()) if forward else []
    notes = [Note("forget", m) for m in sorted(departed)]
    notes += [Note("map", Mapped("chunk", process.ordinal, chunk, chunk + "'")) for chunk in came]
    noted = _next(_noting(world, who, tuple(notes)), who)
    yield f"{role.name} compares the chunks with the map: {len(came)} came, {len(departed)} went", noted


def _move(world: World, who: int, role: Migration) -> Moves:
    """One statement: the rows that are held, and of a table that the protocol does not lock, those of its snapshot."""
    process = world.processes[who]
    if process.snapshot is None:
        missed = [table for table in ("document", "chunk", "buffer") if f"lock the {table}s" not in role.protocol]
        todo = tuple(slot for table in missed for slot in _affected(world, who, role, table))
        begun = process._replace(snapshot=w.seen(world, who), todo=todo, held=(*process.held, *todo))
        begun_world = w.with_process(world, who, begun)
        label = f"{role.name} takes a snapshot to move {_named(tuple(sorted(begun.held))) or 'nothing'}"
        yield (label, begun_world) if todo else _write(label, begun_world, who, role)
        return
    slot = process.todo[0]
    for label, granted in _next_lock(world, who, role):
        if granted.processes[who].snapshot is None:
            yield label, granted
        elif world.rows[slot] != process.snapshot[slot]:
            why = f"{role.name} finds {w.SLOTS[slot]} changed since its snapshot: its proof fails"
            yield why, _ended(world, who, "its proof failed")
        else:
            yield (label, granted) if granted.processes[who].todo else _write(label, granted, who, role)


def _write(label: str, world: World, who: int, role: Migration) -> tuple[str, World]:
    """The unique indexes see rows that are not committed: one that holds a goal is waited for."""
    goals = {("chunk", goal) for goal in _batch(world, who, role, "chunk").values()}
    pending = {row[:2] for n, p in enumerate(world.processes) if n != who for _, row in p.writes if row is not None}
    if goals & pending:
        again = _at(w.ended_transaction(world, who), who, role.first_step)
        return f"{label}\n{role.name} waits for a row under one of these ids too long and rolls its batch back", again
    return label, _moved(world, who, role)


def _moved(world: World, who: int, role: Migration) -> World:
    process = world.processes[who]
    documents, chunks = (_batch(world, who, role, table) for table in ("document", "chunk"))
    ids = {"document": documents, "chunk": chunks, "buffer": dict[str, str]()}
    parents = {"document": dict[str, str](), "chunk": documents, "buffer": chunks}
    writes = []
    for slot in process.held:
        row = process.snapshot[slot] if process.snapshot else None
        if row is not None:
            new_id, new_parent = ids[row.table].get(row.id, row.id), parents[row.table].get(row.parent, row.parent)
            writes.append((slot, row._replace(id=new_id, parent=new_parent)))
    return _next(w.with_process(world, who, process._replace(writes=tuple(writes))), who)


def _journal(world: World, who: int, role: Migration) -> Moves:
    ordinal = world.processes[who].ordinal
    noted = _noting(world, who, (Note("journal", (role.direction, ordinal)),))
    yield f"{role.name} writes batch {ordinal} to the journal", _next(noted, who)


def _commit_part(world: World, who: int, role: Migration) -> Moves:
    yield f"{role.name} commits so far", _next(w.committed(world, who), who)


def _commit(world: World, who: int, role: Migration) -> Moves:
    """The loop goes on from memory, as the engine's does; only a new process reads the journal."""
    done = w.committed(world, who)
    label = f"{role.name} commits batch {world.processes[who].ordinal}"
    left = done.processes[who].left
    if left:
        yield label, _at(_with_next_batch(done, who, role, left), who, role.first_step)
    else:
        yield label, _ended(done, who, "done")


STEPS: dict[str, Step] = {
    "take the lease": _take_lease,
    "turn round": _turn_round,
    "read the journal": _read_journal,
    "share the lease": _share_lease,
    "lock the lease": _lock_lease,
    "check the epoch": _check_epoch,
    "check the status": _check_status,
    "lock the documents": partial(_lock, "document"),
    "lock the chunks": partial(_lock, "chunk"),
    "lock the buffers": partial(_lock, "buffer"),
    "set aside": _set_aside,
    "derive": _derive,
    "move": _move,
    "journal": _journal,
    "commit so far": _commit_part,
    "commit": _commit,
}
