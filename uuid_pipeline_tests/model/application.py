"""What the application does meanwhile: scripts of several statements, with ids that it read before all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from uuid_pipeline_tests.model import world as w
from uuid_pipeline_tests.model.batch import Moves
from uuid_pipeline_tests.model.world import NEW_BUFFER, NEW_CHUNK, Process, Row, World

CHUNK_1 = w.SLOTS.index("chunk 1")
NEW_ID = "w"
Step = Callable[[World, int, "Application"], Moves]

# Each script without the alias trigger; a foreign key is checked at the end of its statement.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "inserts a chunk": ("insert the chunk", "check the document", "commit"),
    "inserts a buffer row": ("insert the buffer", "check the chunk", "commit"),
    "inserts a chunk, then a buffer row for it": (
        "insert the chunk",
        "check the document",
        "commit",
        "turn to the new chunk",
        "insert the buffer",
        "check the chunk",
        "commit",
    ),
    "upserts a chunk": ("upsert the chunk", "check the document", "commit"),
    "deletes a document": ("delete the buffers", "delete the chunk", "delete the document", "commit"),
}

# What the trigger does before each row is written.
_BEFORE_ROW = {
    "insert the chunk": ("probe the document",),
    "insert the buffer": ("probe the chunk",),
    "upsert the chunk": ("probe the document", "probe the chunk"),
}


def with_alias_trigger(script: tuple[str, ...]) -> tuple[str, ...]:
    """The script as it runs while the trigger is on the tables."""
    return tuple(part for step in script for part in (*_BEFORE_ROW.get(step, ()), step))


def with_hasty_trigger(script: tuple[str, ...]) -> tuple[str, ...]:
    """The same with a trigger that translates an id once and does not look back."""
    return tuple(f"{step} once" if step.startswith("probe") else step for step in with_alias_trigger(script))


def with_trigger_on_references(script: tuple[str, ...]) -> tuple[str, ...]:
    """The same with a trigger that leaves the row's own id as it comes."""
    return tuple(step for step in with_alias_trigger(script) if step != "probe the chunk")


@dataclass(frozen=True)
class Application:
    name: str
    script: tuple[str, ...]

    def moves(self, world: World, who: int) -> Moves:
        if not world.processes[who].end:
            yield from STEPS[self.script[world.processes[who].step]](world, who, self)


def _next(world: World, who: int) -> World:
    process = world.processes[who]
    step = process.step + 1
    return w.with_process(world, who, process._replace(step=step, snapshot=None, todo=(), tries=0))


def _ended(world: World, who: int, why: str) -> World:
    return w.with_process(w.ended_transaction(world, who), who, Process(end=why))


def _writing(world: World, who: int, slot: int, row: Row | None) -> World:
    process = world.processes[who]
    return w.with_process(world, who, process._replace(writes=(*process.writes, (slot, row))))


def _look_up(
    table: str,
    missed: Callable[[str, World, int, "Application"], Moves],
    world: World,
    who: int,
    role: "Application",
) -> Moves:
    """SELECT … WHERE id = … FOR KEY SHARE: found in a snapshot, then locked, then looked at again."""
    process = world.processes[who]
    wanted = process.id_of(table)
    if process.snapshot is None:
        rows = w.seen(world, who)
        slots = w.found(rows, table, "id", {wanted})
        if not slots:
            yield from missed(table, world, who, role)
            return
        begun = w.with_process(world, who, process._replace(snapshot=rows, todo=slots))
        yield f"{role.name} finds {table} {wanted} in its snapshot", begun
        return
    slot = process.todo[0]
    if not w.free(world, who, slot, "share"):
        return  # waits
    now = w.seen(world, who)[slot]
    if now is not None and now.id == wanted:
        held = w.locked(world, who, slot, "share")
        yield f"{role.name} locks {w.SLOTS[slot]} FOR KEY SHARE", _next(held, who)
    else:
        yield from missed(table, world, who, role)


def _translate(times: int, table: str, world: World, who: int, role: "Application") -> Moves:
    """The trigger's probe found nothing: try the id's other name, by the map of now, so many times at most.

    From a new id down to the old one only once a rollback has begun.
    """
    process = world.processes[who]
    held = process.id_of(table)
    lines = [m for m in world.ledger.id_map if m.table == table]
    others = [m.new for m in lines if m.old == held]
    if world.ledger.status == "rolling back":
        others += [m.old for m in lines if m.new == held]
    if not others or process.tries == times:
        yield f"{role.name}'s trigger finds no {table} {held} and gives up", _next(world, who)
        return
    renamed = _calling(world, who, table, others[0])
    again = renamed.processes[who]._replace(snapshot=None, todo=(), tries=process.tries + 1)
    yield (
        f"{role.name}'s trigger finds no {table} {held} and translates it to {others[0]}",
        w.with_process(renamed, who, again),
    )


def _calling(world: World, who: int, table: str, name: str) -> World:
    process = world.processes[who]
    return w.with_process(world, who, process._replace(ids=tuple(sorted({**dict(process.ids), table: name}.items()))))


def _foreign_key_error(table: str, world: World, who: int, role: "Application") -> Moves:
    held = world.processes[who].id_of(table)
    yield (
        f"{role.name} gets an error: its foreign key finds no {table} {held}",
        _ended(world, who, "a foreign key error"),
    )


def _insert_chunk(world: World, who: int, role: "Application") -> Moves:
    row = Row("chunk", NEW_ID, world.processes[who].id_of("document"), "new")
    yield f"{role.name} inserts a chunk of document {row.parent}", _next(_writing(world, who, NEW_CHUNK, row), who)


def _insert_buffer(world: World, who: int, role: "Application") -> Moves:
    row = Row("buffer", "b", world.processes[who].id_of("chunk"), "new")
    yield f"{role.name} inserts a buffer row of chunk {row.parent}", _next(_writing(world, who, NEW_BUFFER, row), who)


def _turn(world: World, who: int, role: "Application") -> Moves:
    yield f"{role.name} goes on with the chunk that it made", _next(_calling(world, who, "chunk", NEW_ID), who)


def _upsert_chunk(world: World, who: int, role: "Application") -> Moves:
    """INSERT … ON CONFLICT (id) DO UPDATE SET text: the index shows others' uncommitted rows: no snapshot."""
    process = world.processes[who]
    own, document = process.id_of("chunk"), process.id_of("document")
    pending = [row for number, p in enumerate(world.processes) if number != who for _, row in p.writes]
    if any(row is not None and row.table == "chunk" and own == row.id for row in pending):
        return  # waits for the transaction that is writing this id
    for slot in w.found(world.rows, "chunk", "id", {own}):
        if w.free(world, who, slot, "row"):
            row = world.rows[slot]
            edited = _writing(world, who, slot, row._replace(text="edited") if row else None)
            after = _next(_next(w.locked(edited, who, slot, "row"), who), who)  # an UPDATE of the text checks no key
            yield f"{role.name} upserts chunk {own} and meets {w.SLOTS[slot]}", after
        return
    taken = world.rows[CHUNK_1]
    if taken is not None and taken.parent == document:
        if w.free(world, who, CHUNK_1, "row"):
            label = f"{role.name} gets an error: chunk 1 has this document and ordinal, under another id than {own}"
            yield label, _ended(world, who, "a unique key error")
        return
    row = Row("chunk", own, document, "edited")
    yield f"{role.name} upserts chunk {own} and meets none", _next(_writing(world, who, NEW_CHUNK, row), who)


def _delete(table: str, column: Literal["id", "parent"], world: World, who: int, role: "Application") -> Moves:
    process = world.processes[who]
    wanted = process.id_of("document" if table == "document" else "chunk")
    if process.snapshot is None:
        rows = w.seen(world, who)
        slots = w.found(rows, table, column, {wanted})
        label = f"{role.name} deletes {table}s where {column} is {wanted} and finds {len(slots)}"
        begun = w.with_process(world, who, process._replace(snapshot=rows, todo=slots))
        yield label, begun if slots else _next(world, who)
        return
    slot = process.todo[0]
    if not w.free(world, who, slot, "key"):
        return  # waits
    now = world.rows[slot]
    held = w.locked(world, who, slot, "key")
    if now is None or getattr(now, column) != wanted:
        yield f"{role.name} finds {w.SLOTS[slot]} changed and leaves it", _next(held, who)
        return
    gone = _writing(held, who, slot, None)
    if table != "buffer" and w.found(w.seen(gone, who), _child(table), "parent", {wanted}):
        label = f"{role.name} gets an error: rows still refer to {w.SLOTS[slot]}"
        yield label, _ended(world, who, "a foreign key error")
    else:
        yield f"{role.name} deletes {w.SLOTS[slot]}", _next(gone, who)


def _child(table: str) -> str:
    return {"document": "chunk", "chunk": "buffer"}[table]


def _commit(world: World, who: int, role: "Application") -> Moves:
    owed = dict(world.owed)
    for slot, row in world.processes[who].writes:
        owed.pop(slot, None)
        if row is not None:
            owed[slot] = row.text
    done = _next(w.committed(world, who)._replace(owed=tuple(sorted(owed.items()))), who)
    if done.processes[who].step == len(role.script):
        done = _ended(done, who, "done")
    yield f"{role.name} commits", done


STEPS: dict[str, Step] = {
    "probe the document": partial(_look_up, "document", partial(_translate, 2)),
    "probe the chunk": partial(_look_up, "chunk", partial(_translate, 2)),
    "probe the document once": partial(_look_up, "document", partial(_translate, 1)),
    "probe the chunk once": partial(_look_up, "chunk", partial(_translate, 1)),
    "check the document": partial(_look_up, "document", _foreign_key_error),
    "check the chunk": partial(_look_up, "chunk", _foreign_key_error),
    "turn to the new chunk": _turn,
    "insert the chunk": _insert_chunk,
    "insert the buffer": _insert_buffer,
    "upsert the chunk": _upsert_chunk,
    "delete the buffers": partial(_delete, "buffer", "parent"),
    "delete the chunk": partial(_delete, "chunk", "id"),
    "delete the document": partial(_delete, "document", "id"),
    "commit": _commit,
}
