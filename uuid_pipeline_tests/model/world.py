"""The batch protocol as a model: everything that can be in one moment, and PostgreSQL's rules for it.

What is modelled, step by step and in every order: rows that only their writer sees until it commits; one snapshot a
statement (READ COMMITTED); a row found in a snapshot is locked later, one after the other, and looked at again when the
lock is there; FOR KEY SHARE, FOR NO KEY UPDATE and FOR UPDATE with their conflicts; foreign keys checked for the
application and not for the batch (replica role); lock timeouts and retries of the batch; a kill at every step; another
process that takes the first one for dead, rightly or not; two lanes under one lease, each with a batch of its own.

What is simpler than the truth:
- Two documents in batches of one, a chunk each, one buffer row: enough for every race that was ever measured here, and
  no proof for more. Two levels move; a third would be locked by the same loop.
- The application runs one script, or two at once, over document 1 and what hangs on it, with ids that it read before.
- A batch's looks at its rows (what is gone, what has arrived) are one step each; its rows are locked by then. Nobody
  changes what identity is made of, nor moves a chunk to another document.
- The fingerprints before and after are reduced to this: a row that changed between the move's snapshot and its lock
  stops the batch. The arithmetic of derived ids is a prime on the old id.
- A commit is one step: the client dies before it or after it. The batch's waits end by its timeout; two transactions of
  the application that wait for each other do so for ever, where the server would end one of them. No savepoints, no
  REPEATABLE READ, no wraparound, no lost disk.
- Tier R; no merging; a batch that gets no locks tries for ever, where the engine sets it aside and takes it up later.
- The alias trigger looks for a row under the id's other names as the one in engine/installed/resolving.py does; whether
  the SQL says so is for the tests of aliases and of live writers.
"""

from typing import Literal, NamedTuple

Mode = Literal["share", "row", "key"]  # FOR KEY SHARE, FOR NO KEY UPDATE, FOR UPDATE
_CONFLICTS = {"share": ("key",), "row": ("row", "key"), "key": ("share", "row", "key")}

SLOTS = ("document 1", "document 2", "chunk 1", "chunk 2", "buffer 1", "the new chunk", "the new buffer")
NEW_CHUNK, NEW_BUFFER = 5, 6
LEASE = -1


class Row(NamedTuple):
    """One row; ``parent`` is the id that it refers to: a chunk's document, a buffer's chunk."""

    table: str
    id: str
    parent: str = ""
    text: str = ""


Rows = tuple[Row | None, ...]


class Mapped(NamedTuple):
    """A line of the id map."""

    table: str
    ordinal: int
    old: str
    new: str


class Ledger(NamedTuple):
    epoch: int
    status: str
    id_map: frozenset[Mapped]
    journal: tuple[tuple[str, int], ...]
    gone: frozenset[int]


class Note(NamedTuple):
    """A change of the ledger that a commit makes: ``journal``, ``gone``, ``map`` or ``forget``."""

    kind: str
    what: tuple[str, int] | int | Mapped


class Lock(NamedTuple):
    slot: int
    mode: Mode
    owner: int


class Process(NamedTuple):
    """A process with its transaction; ``end`` says why it acts no more, ``left`` which batches are still its to do."""

    step: int = 0
    end: str = ""
    snapshot: Rows | None = None
    todo: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    writes: tuple[tuple[int, Row | None], ...] = ()
    notes: tuple[Note, ...] = ()
    ordinal: int = 0
    left: tuple[int, ...] = ()
    epoch: int = 0
    ids: tuple[tuple[str, str], ...] = ()
    tries: int = 0

    def id_of(self, table: str) -> str:
        """The id that the application holds for a row of this table."""
        return dict(self.ids)[table]


class World(NamedTuple):
    """One moment. ``owed`` is the model's own book-keeping: the rows that must be there, with their text."""

    rows: Rows
    ledger: Ledger
    locks: frozenset[Lock]
    processes: tuple[Process, ...]
    owed: tuple[tuple[int, str], ...]
    kills: int


def seen(world: World, who: int) -> Rows:
    """What a snapshot taken now shows to this process: what is committed, and its own writes."""
    rows = list(world.rows)
    for slot, row in world.processes[who].writes:
        rows[slot] = row
    return tuple(rows)


def found(rows: Rows, table: str, column: Literal["id", "parent"], values: set[str]) -> tuple[int, ...]:
    return tuple(
        slot
        for slot, row in enumerate(rows)
        if row is not None and row.table == table and (row.id if column == "id" else row.parent) in values
    )


def free(world: World, who: int, slot: int, mode: Mode) -> bool:
    """Whether nobody else holds a lock that this one conflicts with."""
    return not any(lock.slot == slot and lock.owner != who and lock.mode in _CONFLICTS[mode] for lock in world.locks)


def with_process(world: World, who: int, process: Process) -> World:
    processes = (*world.processes[:who], process, *world.processes[who + 1 :])
    return world._replace(processes=processes)


def locked(world: World, who: int, slot: int, mode: Mode) -> World:
    return world._replace(locks=world.locks | {Lock(slot, mode, who)})


def ended_transaction(world: World, who: int) -> World:
    """Its locks are free and its writes are nowhere, as after a rollback or a kill."""
    process = world.processes[who]._replace(snapshot=None, todo=(), held=(), writes=(), notes=(), tries=0)
    return with_process(
        world._replace(locks=frozenset(lock for lock in world.locks if lock.owner != who)), who, process
    )


def committed(world: World, who: int) -> World:
    """Rows and ledger lines become everybody's at once."""
    rows = seen(world, who)
    ledger = world.ledger
    for note in world.processes[who].notes:
        ledger = _noted(ledger, note)
    return ended_transaction(world._replace(rows=rows, ledger=ledger), who)


def _noted(ledger: Ledger, note: Note) -> Ledger:
    what = note.what
    if isinstance(what, Mapped):
        changed = ledger.id_map | {what} if note.kind == "map" else ledger.id_map - {what}
        return ledger._replace(id_map=changed)
    if isinstance(what, int):
        return ledger._replace(gone=ledger.gone | {what})
    return ledger._replace(journal=(*ledger.journal, what))


def id_map(world: World, who: int) -> frozenset[Mapped]:
    """The id map with this process's own changes."""
    ledger = world.ledger
    for note in world.processes[who].notes:
        ledger = _noted(ledger, note)
    return ledger.id_map
