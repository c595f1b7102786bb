"""The search: every order of every process's steps, breadth first, so that what it finds is a shortest story."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from uuid_pipeline_tests.model import world as w
from uuid_pipeline_tests.model.application import NEW_ID, Application
from uuid_pipeline_tests.model.batch import LAST_ORDINAL, Migration
from uuid_pipeline_tests.model.world import Ledger, Mapped, Process, Row, Rows, World

Role = Migration | Application
APPLICATION_ERRORS = ("a foreign key error", "a unique key error")


@dataclass(frozen=True)
class Story:
    """How something that must not be comes about: ``steps`` in order, and what is wrong then."""

    steps: tuple[str, ...]
    wrong: str

    def __str__(self) -> str:
        lines = [f"{number:3}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"     Then {self.wrong}."])


@dataclass(frozen=True)
class Searched:
    """``story`` is a shortest bad one, or None; ``errors`` are those that the application can get, each with a story.

    ``ends`` says how the processes ended, in every way that they can.
    """

    states: int
    story: Story | None
    errors: dict[str, Story]
    ends: frozenset[tuple[str, ...]]


def search(roles: Sequence[Role], start: World) -> Searched:
    """Search until something is wrong, or until there is nothing new."""
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    errors: dict[str, Story] = {}
    ends: set[tuple[str, ...]] = set()
    queue = deque([start])
    while queue:
        world = queue.popleft()
        following = [move for who, role in enumerate(roles) for move in role.moves(world, who)]
        wrong = fault(world)
        if not following:
            ends.add(tuple(process.end for process in world.processes))
            wrong = wrong or fault_at_the_end(world, roles)
        if wrong:
            return Searched(len(came_from), Story(_steps(came_from, world), wrong), errors, frozenset(ends))
        for process in world.processes:
            if process.end in APPLICATION_ERRORS and process.end not in errors:
                errors[process.end] = Story(_steps(came_from, world), f"the application has {process.end}")
        for label, after in following:
            if after not in came_from:
                came_from[after] = (world, label)
                queue.append(after)
    return Searched(len(came_from), None, errors, frozenset(ends))


def _steps(came_from: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    steps: list[str] = []
    step = came_from[world]
    while step is not None:
        world, label = step
        steps += reversed(label.split("\n"))
        step = came_from[world]
    return tuple(reversed(steps))


_OLD = (
    Row("document", "d1"),
    Row("document", "d2"),
    Row("chunk", "c1", "d1", "as it was"),
    Row("chunk", "c2", "d2", "as it was"),
    Row("buffer", "b1", "c1"),
)
_MAP = frozenset(
    Mapped(table, n, f"{table[0]}{n}", f"{table[0]}{n}'") for table in ("document", "chunk") for n in (1, 2)
)


def _world(rows: Sequence[Row], ledger: Ledger, ids: dict[str, str], roles: Sequence[Role], kills: int) -> World:
    process = Process(ids=tuple(sorted(ids.items())))
    owed = tuple((slot, row.text) for slot, row in enumerate(rows))
    return World((*rows, None, None), ledger, frozenset(), (process,) * len(roles), owed, kills)


def before_all(roles: Sequence[Role], kills: int) -> World:
    """Nothing has moved; the application holds the old ids of document 1 and chunk 1."""
    ledger = Ledger(0, "running", _MAP, (), frozenset())
    return _world(_OLD, ledger, {"document": "d1", "chunk": "c1"}, roles, kills)


def in_lanes(roles: Sequence[Role], kills: int) -> World:
    """As :func:`before_all`; the first two are lanes of a process that holds the lease, with batch 1 and batch 2."""
    world = before_all(roles, kills)
    world = world._replace(ledger=world.ledger._replace(epoch=1))
    for lane in (0, 1):
        world = w.with_process(world, lane, world.processes[lane]._replace(epoch=1, ordinal=lane + 1))
    return world


def all_moved(roles: Sequence[Role], kills: int) -> World:
    """Both batches went forward; the application holds the new ids."""
    ids = {line.old: line.new for line in _MAP}
    rows = [row._replace(id=ids.get(row.id, row.id), parent=ids.get(row.parent, row.parent)) for row in _OLD]
    ledger = Ledger(1, "running", _MAP, (("forward", 1), ("forward", 2)), frozenset())
    return _world(rows, ledger, {"document": "d1'", "chunk": "c1'"}, roles, kills)


def fault(world: World) -> str | None:
    """What is wrong in a moment, whatever comes next."""
    if any(process.end == "its proof failed" for process in world.processes):
        return "a batch's proof failed, though all that happened is allowed"
    return _committed_fault(world.rows, world.owed, world.ledger)


@cache
def _committed_fault(rows: Rows, owed: tuple[tuple[int, str], ...], ledger: Ledger) -> str | None:
    return _orphan(rows) or _lost(rows, dict(owed)) or _misjournaled(rows, ledger)


def _orphan(rows: Rows) -> str | None:
    there = [row for row in rows if row is not None]
    ids = {(row.table, row.id) for row in there}
    parents = {"chunk": "document", "buffer": "chunk"}
    for slot, row in enumerate(rows):
        if row is not None and row.table in parents and (parents[row.table], row.parent) not in ids:
            return f"{w.SLOTS[slot]} is an orphan: there is no {parents[row.table]} {row.parent}"
    return "two rows have one id" if len(ids) < len(there) else None


def _lost(rows: Rows, owed: dict[int, str]) -> str | None:
    """The rows are those that were there and the application's, with its text, and none that it deleted."""
    for slot, row in enumerate(rows):
        if (row.text if row else None) != owed.get(slot):
            return f"{w.SLOTS[slot]} is {row.text if row else 'lost'!r} and should be {owed.get(slot, 'gone')!r}"
    return None


def _misjournaled(rows: Rows, ledger: Ledger) -> str | None:
    last: dict[int, str] = {}
    for direction, ordinal in ledger.journal:
        if last.get(ordinal, "back") == direction:
            return f"the journal has batch {ordinal} twice {direction}"
        last[ordinal] = direction
    there = [ordinal for ordinal in sorted(ledger.gone) if rows[ordinal - 1] is not None]
    return f"document {there[0]} is journaled as deleted, and is there" if there else None


def fault_at_the_end(world: World, roles: Sequence[Role]) -> str | None:
    """What is wrong when nobody has anything left to do."""
    for process, role in zip(world.processes, roles, strict=True):
        if not process.end:
            return f"{role.name} waits for ever"
        if process.end == "done" and isinstance(role, Migration) and process.epoch == world.ledger.epoch:
            wrong = _unfinished(world, role)
            if wrong:
                return wrong
    last = {ordinal: direction for direction, ordinal in world.ledger.journal}
    return _wrong_id(world, last)


def _unfinished(world: World, role: Migration) -> str | None:
    """A process that says that it is done, the newest one, has every batch journaled its way, or none to take back."""
    last = {ordinal: direction for direction, ordinal in world.ledger.journal}
    expected = range(1, LAST_ORDINAL + 1) if role.direction == "forward" else last
    if all(last.get(ordinal) == role.direction for ordinal in expected):
        return None
    return f"{role.name} says that it is done, and the journal lacks a batch"


def _wrong_id(world: World, last: dict[int, str]) -> str | None:
    """Every mapped row has the id that the journal says, every other one its own."""
    lines = {(m.table, name): m for m in world.ledger.id_map for name in (m.old, m.new)}
    for slot, row in enumerate(world.rows):
        if row is None or row.table == "buffer":
            continue
        line = lines.get((row.table, row.id))
        if line is None and row.id not in (NEW_ID, "c1", "c1'"):
            return f"{w.SLOTS[slot]} has the id {row.id}, which nobody gave it"
        if line is not None and row.id != (line.new if last.get(line.ordinal) == "forward" else line.old):
            return f"{w.SLOTS[slot]} has the id {row.id}, and the journal says otherwise"
    return None
