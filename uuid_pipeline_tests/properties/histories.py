"""The life of a few rows over several executions: which ids each had, and what the ledger says of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

MAPS = 8
KEYS, RULES = ("k", "l", "m"), ("one", "two")


@dataclass
class Mapped:
    """A line of the id map."""

    ordinal: int
    role: str
    old: str
    new: str


@dataclass
class Wave:
    """A span of ordinals of one map; ``batches`` are (number, direction), each over the whole span.

    ``unmoved``: by ordinal, the ids of the rows that a batch left.
    """

    number: int
    first: int
    last: int
    status: str = "planned"
    batches: list[tuple[int, str]] = field(default_factory=list)
    unmoved: dict[int, set[str]] = field(default_factory=dict)


@dataclass
class History:
    """What happened, as the engine does it: ``ids`` and ``keys`` are of the rows that are there, by row.

    ``had``: the rows that an id was ever of. ``merged``: the row that each archived one went up in, or None where a
    rollback could not bring it back. ``again``: rows that the application put where this one, which is gone, had been:
    to the application it may be the same. ``unsure``: rows that a rollback had to leave where they were, or took
    to the place of one that was there before a guard let them in.
    """

    ids: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    had: dict[str, set[int]] = field(default_factory=dict)
    merged: dict[int, int | None] = field(default_factory=dict)
    again: dict[int, set[int]] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)
    maps: dict[int, list[Mapped]] = field(default_factory=dict)
    guarded: dict[str, tuple[int, str]] = field(default_factory=dict)
    executions: list[list[Wave]] = field(default_factory=list)
    rows: int = 0
    batches: int = 0

    def stands_for(self, row: int) -> int | None:
        """The row that this one is by now: itself, what it was merged into, or None."""
        while row in self.merged:
            survivor = self.merged[row]
            if survivor is None:
                return None
            row = survivor
        return row if row in self.ids else None

    def owners(self, id: str) -> set[int | None]:
        """Whom this id may lead to: the row that it was of; where it was more than one's, either or nobody."""
        rows = self.had[id]
        found = {self.stands_for(row) for row in rows}
        later = {self.stands_for(row) for row in self._after(rows)}
        return found | later | {None} if len(found) > 1 or later or rows & self.unsure or found & self.unsure else found

    def _after(self, rows: set[int]) -> set[int]:
        """Rows that the application may take for these, or for what they were merged into."""
        survivors = {new for new in (self.merged.get(row) for row in rows) if new is not None}
        found = {new for row in rows for new in self.again.get(row, ())}
        return found | self._after(found | survivors) if found | survivors else found

    def holder(self, id: str) -> int | None:
        return next((row for row, held in self.ids.items() if held == id), None)

    def give(self, row: int, id: str) -> None:
        assert self.holder(id) in (None, row)
        self.ids[row] = id
        self.had.setdefault(id, set()).add(row)

    def upload(self, key: str, id: str | None = None) -> None:
        """A new row, under an id that the application makes up; one that still stands for a row would hit that one."""
        self.rows += 1
        made = id or f"random {self.rows}"
        if any(self.stands_for(row) is not None for row in self.had.get(made, ())):
            return
        self._put(key, made)

    def _put(self, key: str, id: str) -> None:
        for row in self.had.get(id, ()):
            if self.stands_for(row) is None:
                self.again.setdefault(row, set()).add(self.rows)
        self.keys[self.rows] = key
        self.give(self.rows, id)

    def guard(self, key: str, rule: str) -> None:
        """An upload that a guard stores under its target id, where no row has that."""
        target, given = f"{rule} {key}", f"random {self.rows + 1}"
        if self.holder(target) is not None:
            return
        self.rows += 1
        before = [number for number, line in self._in_force() if {line.old, line.new} & {target, given}]
        self.guarded[given] = (max(before, default=-1), target)
        self._put(key, target)
        self.had[given] = {self.rows}

    def _in_force(self) -> list[tuple[int, Mapped]]:
        waves = [wave for execution in self.executions for wave in execution if wave.status == "moved"]
        return [
            (wave.number, line)
            for wave in waves
            for line in self.maps[wave.number]
            if wave.first <= line.ordinal <= wave.last and line.ordinal not in wave.unmoved
        ]

    def delete(self, row: int) -> None:
        del self.ids[row], self.keys[row]

    def execute(self, rule: str, cut: int, whole: bool, arrives: str | None) -> None:
        """Two waves, the second left out unless ``whole``; then, where a row ``arrives`` meanwhile, a sweep."""
        if len(self.maps) + 2 > MAPS:
            return
        number = len(self.maps) + 1
        self.maps[number] = self._planned(rule)
        end = len({line.ordinal for line in self.maps[number]})
        cut = min(cut, end)
        waves = [Wave(number, 1, cut), Wave(number, cut + 1, end)]
        self.executions.append(waves)
        for wave in waves if whole else waves[:1]:
            self._move(wave)
        if whole and arrives is not None:
            self.upload(arrives)
            row, self.maps[number + 1] = self.rows, []
            if row in self.ids:
                self.maps[number + 1] = [Mapped(1, "move", self.ids[row], f"{rule} {arrives}")]
                waves.append(Wave(number + 1, 1, 1))
                self._move(waves[-1])

    def _planned(self, rule: str) -> list[Mapped]:
        lines = []
        for ordinal, key in enumerate(sorted(set(self.keys.values())), start=1):
            survivor, *others = sorted((row for row in self.ids if self.keys[row] == key), key=lambda row: -row)
            target = f"{rule} {key}"
            role = "keep" if self.ids[survivor] == target else "move"
            lines.append(Mapped(ordinal, role, self.ids[survivor], target))
            lines += [Mapped(ordinal, "merge", self.ids[row], target) for row in others]
        return lines

    def _move(self, wave: Wave) -> None:
        self.batches += 1
        wave.batches.append((self.batches, "forward"))
        wave.status = "moved"
        for ordinal in range(wave.first, wave.last + 1):
            cluster = [line for line in self.maps[wave.number] if line.ordinal == ordinal]
            row_of = {line.old: self.holder(line.old) for line in cluster}
            [kept] = [line for line in cluster if line.role != "merge"]
            survivor = row_of[kept.old]
            if survivor is None or self.holder(kept.new) not in (None, *row_of.values()):
                wave.unmoved[ordinal] = {line.old for line in cluster}
                continue
            for line in cluster:
                loser = row_of[line.old]
                if line.role == "merge" and loser is not None:
                    self.merged[loser] = survivor
                    self.delete(loser)
            self.give(survivor, kept.new)

    def undo(self, chosen: int | None) -> None:
        """The newest execution that moved rows, or one wave of it."""
        moved = [[wave for wave in waves if wave.status == "moved"] for waves in self.executions]
        newest = next((waves for waves in reversed(moved) if waves), [])
        for wave in reversed(newest if chosen is None else newest[chosen : chosen + 1]):
            self.batches += 1
            wave.batches.append((self.batches, "back"))
            wave.status = "rolled_back"
            for ordinal in range(wave.last, wave.first - 1, -1):
                if ordinal not in wave.unmoved:
                    self._take_back(wave, ordinal)

    def _take_back(self, wave: Wave, ordinal: int) -> None:
        lines = self.maps[wave.number]
        cluster = [line for line in lines if line.ordinal == ordinal]
        [kept] = [line for line in cluster if line.role != "merge"]
        row = self.holder(kept.new)
        if row is not None and self.holder(kept.old) not in (None, row):
            wave.unmoved[ordinal] = {kept.new}
            self.unsure |= {row, *self._archived(cluster)}
            return
        if row is None:
            lines.remove(kept)
        else:
            if any(after >= wave.number and self.had[given] == {row} for given, (after, _) in self.guarded.items()):
                self.unsure.add(row)
            self.give(row, kept.old)
        for loser, id in self._archived(cluster).items():
            self.merged[loser] = None
            if row is not None and self.holder(id) is None:
                del self.merged[loser]
                self.keys[loser] = self.keys[row]
                self.give(loser, id)

    def _archived(self, cluster: list[Mapped]) -> dict[int, str]:
        """The rows that are merged and had these losers' ids last."""
        losers = {line.old: line for line in cluster if line.role == "merge"}
        return {
            max(row for row in self.had[id] if row in self.merged): id
            for id in losers
            if any(row in self.merged for row in self.had[id])
        }


@st.composite
def histories(draw: st.DrawFn) -> History:
    history = History()
    for _ in range(draw(st.integers(1, 3))):
        history.upload(draw(st.sampled_from(KEYS)))
    for _ in range(draw(st.integers(3, 14))):
        draw(st.sampled_from(STEPS))(draw, history)
    return history


def _row(draw: st.DrawFn, history: History) -> int | None:
    return draw(st.sampled_from(sorted(history.ids))) if history.ids else None


def _rekey(draw: st.DrawFn, history: History) -> None:
    row, key = _row(draw, history), draw(st.sampled_from(KEYS))
    if row is not None:
        history.keys[row] = key


def _delete(draw: st.DrawFn, history: History) -> None:
    row = _row(draw, history)
    if row is not None:
        history.delete(row)


def _upload(draw: st.DrawFn, history: History) -> None:
    key, rule = draw(st.sampled_from(KEYS)), draw(st.sampled_from((None, *RULES)))
    history.upload(key, rule and f"{rule} {key}")


def _guard(draw: st.DrawFn, history: History) -> None:
    history.guard(draw(st.sampled_from(KEYS)), draw(st.sampled_from(RULES)))


def _execute(draw: st.DrawFn, history: History) -> None:
    rule, cut = draw(st.sampled_from(RULES)), draw(st.integers(0, 3))
    history.execute(rule, cut, draw(st.booleans()), draw(st.sampled_from((None, None, *KEYS))))


def _undo(draw: st.DrawFn, history: History) -> None:
    history.undo(draw(st.sampled_from((None, None, 0, 1))))


Step = Callable[[st.DrawFn, History], None]
STEPS: tuple[Step, ...] = (_rekey, _rekey, _delete, _upload, _guard, _execute, _execute, _execute, _undo, _undo)
