"""A line an approach and obstacle: what trying it showed, or else what the catalogs say, with the rows counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Reference, Store
from uuid_pipeline.engine.trials import counting
from uuid_pipeline.engine.trials.approaches import Approach
from uuid_pipeline.engine.trials.findings import Attempt, Refusal
from uuid_pipeline.engine.trials.known import KNOWN
from uuid_pipeline.engine.trials.obstacles import UNIQUE, Obstacle, references_to, touching
from uuid_pipeline.engine.trials.trying import Tried

Outcome = Literal["passes", "fails", "changes", "loses", "leaves behind", "unknown"]
Basis = Literal["tried", "derived, not tried"]


@dataclass(frozen=True)
class Entry:
    """What one approach does with one obstacle.

    ``documents``: rows of the entity that it concerns, of all that were looked at; None where only the sample tells.
    ``whose``: of these, in whose way which row stands. ``collides_with``: of the sample, whose row with its key.
    """

    approach: str
    entity: str
    object: str
    kind: str
    table: str
    outcome: Outcome
    basis: Basis
    sqlstate: str | None = None
    message: str | None = None
    collides_with: str | None = None
    documents: int | None = None
    whose: dict[str, int] | None = None


def made(store: Store, known: Sequence[Obstacle], tried: Tried | None, entities: Sequence[Entity]) -> list[Entry]:
    """Every approach and every obstacle of these entities, from what was tried; counts come later."""
    found: list[Entry] = []
    for entity in entities:
        for approach in KNOWN:
            met = [o for o in touching(store, entity, known) if not (approach.at_once and o.kind == "trigger")]
            found += [_entry(approach, entity, obstacle, tried) for obstacle in met]
            if not approach.at_once:
                found += [_left(approach, entity, r, tried) for r in _soft(store, entity)]
    return found


def _soft(store: Store, entity: Entity) -> list[Reference]:
    hard = references_to(store, entity)
    return [r for r in store.references if r.entity == entity.name and r not in hard and r.foreign_key is None]


def _of(tried: Tried | None, approach: Approach, entity: Entity) -> list[Attempt]:
    if tried is None:
        return []
    return [a for a in tried.attempts if a.approach == approach.name and a.row.entity == entity.name]


def _entry(approach: Approach, entity: Entity, obstacle: Obstacle, tried: Tried | None) -> Entry:
    attempts = _of(tried, approach, entity)
    base = Entry(
        approach.name, entity.name, obstacle.name, obstacle.kind, obstacle.label, "passes", "tried"
    )  # fmt: skip
    refusals = [r for a in attempts for r in a.refusals if r.obstacle == obstacle]
    if refusals:
        waits = approach.defers and obstacle.kind == "foreign key" and tried is not None and tried.altered
        once = "; once it is made DEFERRABLE this passes" if waits and any(a.finished for a in attempts) else ""
        return _refused(base, refusals, once)
    if obstacle.kind == "trigger":
        return _trigger(base, approach, entity, obstacle, tried)
    lost = [a for a in attempts if obstacle.kind == "foreign key" and any(_is(obstacle, name) for name in a.lost)]
    if lost:
        n = sum(count for a in lost for name, count in a.lost.items() if _is(obstacle, name))
        return replace(base, outcome="loses", message=f"{n} rows of the sample refer to nothing afterwards")
    went_through = [a.finished for a in attempts if tried and obstacle not in tried.absent]
    if not any(went_through):
        return replace(base, outcome="unknown", basis="derived, not tried")
    # A row that something else stopped before may not have met this one: then the count has the last word.
    return base if all(went_through) else replace(base, outcome="unknown")


def _is(obstacle: Obstacle, reference: str) -> bool:
    return reference in {f"{obstacle.table}.{column}" for column in obstacle.columns}


def _refused(base: Entry, refusals: Sequence[Refusal], once: str) -> Entry:
    collisions = Counter(r.collision.who for r in refusals if r.collision)
    shown = {r.collision.who: r.collision for r in refusals if r.collision}
    return replace(
        base,
        outcome="fails",
        sqlstate=refusals[0].sqlstate,
        message=f"{refusals[0].step}: {refusals[0].message}{once}",
        collides_with="; ".join(str(shown[who]) for who, _ in collisions.most_common()) or None,
    )


def _trigger(base: Entry, approach: Approach, entity: Entity, obstacle: Obstacle, tried: Tried | None) -> Entry:
    alone = [
        a for t, a in (tried.by_trigger if tried else ())
        if t == obstacle and a.approach == approach.name and a.row.entity == entity.name
    ]  # fmt: skip
    if not alone or not all(a.finished for a in alone):
        said = f"{obstacle.events}: {obstacle.does}"
        return replace(base, outcome="unknown", basis="derived, not tried", message=said)
    columns = sorted({f"{place.split('.')[0]}.{c}" for a in alone for place, cs in a.changed.items() for c in cs})
    written = Counter[str]()
    for a in alone:
        written.update(a.written)
    deeds = [f"changes {', '.join(columns)}"] if columns else []
    deeds += [f"writes {n:+d} rows to {table}" for table, n in sorted(written.items())]
    return replace(base, outcome="changes", message="; ".join(deeds)) if deeds else base


def _left(approach: Approach, entity: Entity, reference: Reference, tried: Tried | None) -> Entry:
    attempts = _of(tried, approach, entity)
    base = Entry(
        approach.name, entity.name, reference.name, "soft reference",
        f"{reference.table.schema}.{reference.table.name}", "leaves behind", "tried",
        message="no foreign key names it: it goes on holding the old id",
    )  # fmt: skip
    # Another foreign key may carry it along; only a row of the sample that has such a reference tells.
    seen = any(reference.name in a.left_behind for a in attempts)
    return base if seen else replace(base, basis="derived, not tried")


def counted(
    connection: Connection, store: Store, known: Sequence[Obstacle], entries: Sequence[Entry]
) -> tuple[list[Entry], dict[tuple[str, str], int]]:
    """The entries with their counts over the rows looked at, and by (entity, approach) the rows that fail at all.

    What was not tried fails where the count finds rows.
    """
    result: list[Entry] = []
    totals: dict[tuple[str, str], int] = {}
    for entity in store.entities:
        tally = counting.Tally(entity)
        for approach in KNOWN:
            group = [e for e in entries if (e.entity, e.approach) == (entity.name, approach.name)]
            conditions = {
                str(n): condition
                for n, entry in enumerate(group)
                for condition in [_condition(store, entity, approach, known, entry)]
                if condition is not None
            }
            if group:
                numbers = tally.each(connection, conditions)
                judged = [
                    _judged(
                        _meeting(entity, known, entry, numbers.get(str(n))),
                        numbers.get(str(n), _harmless(entity, known, entry)),
                        _loses(approach, known, entry),
                    )
                    for n, entry in enumerate(group)
                ]
                failing = {k: c for k, c in conditions.items() if judged[int(k)].outcome == "fails"}
                totals[entity.name, approach.name] = tally.any(connection, failing)
                result += [_with_whose(connection, entity, approach, known, e) for e in judged]
    return result, totals


def _obstacle(known: Sequence[Obstacle], entry: Entry) -> Obstacle | None:
    return next((o for o in known if (o.name, o.label, o.kind) == (entry.object, entry.table, entry.kind)), None)


def _condition(
    store: Store, entity: Entity, approach: Approach, known: Sequence[Obstacle], entry: Entry
) -> sql.Composable | None:
    obstacle = _obstacle(known, entry)
    if obstacle is None:
        return _holds_softly(store, entity, entry)
    if entry.outcome == "loses" or _loses(approach, known, entry):
        return counting.has_reference(obstacle, entity) if obstacle.refers_to(entity) else None
    if obstacle.kind == "trigger":
        return counting.has_row(obstacle, store, entity) if entry.outcome == "changes" else None
    return counting.refused(approach, obstacle, store, entity)


def _harmless(entity: Entity, known: Sequence[Obstacle], entry: Entry) -> int | None:
    """0 for what has no condition because nothing in the catalogs would refuse; None for what only a trial tells."""
    obstacle = _obstacle(known, entry)
    if obstacle is None or obstacle.kind in ("trigger", "exclusion"):
        return None
    return None if obstacle.kind == "check" and entity.key in obstacle.columns else 0


def _loses(approach: Approach, known: Sequence[Obstacle], entry: Entry) -> bool:
    """Whether the approach leaves references to a foreign key that would empty them (SET NULL, SET DEFAULT)."""
    obstacle = _obstacle(known, entry)
    leaves = not approach.moves_references and not approach.at_once
    return leaves and obstacle is not None and obstacle.kind == "foreign key" and obstacle.on_update in ("n", "d")


def _holds_softly(store: Store, entity: Entity, entry: Entry) -> sql.Composable | None:
    found = next((r for r in _soft(store, entity) if r.name == entry.object and r.form in ("key", "text")), None)
    return None if found is None else counting.holds(found)


def _meeting(entity: Entity, known: Sequence[Obstacle], entry: Entry, number: int | None) -> Entry:
    """An entry as it is where rows meet each other: each was tried alone, and of those that want one id one gets it."""
    obstacle = _obstacle(known, entry)
    if entry.outcome != "passes" or not number or obstacle is None or obstacle.kind not in UNIQUE:
        return entry
    if (obstacle.place, obstacle.columns) != ((entity.table.schema, entity.table.name), (entity.key,)):
        return entry
    said = "each row passes alone; of rows that share a target id only the first gets it"
    return replace(entry, outcome="fails", basis="derived, not tried", message=said)


def _judged(entry: Entry, number: int | None, loses: bool) -> Entry:
    """An outcome that was not tried follows from the count; one that was tried stands, and the count is its extent."""
    if entry.outcome == "passes" or (entry.outcome == "leaves behind" and number == 0):
        return replace(entry, outcome="passes", documents=0)
    if entry.outcome == "unknown" and number is not None and entry.kind != "trigger":
        if not number:
            return replace(entry, outcome="passes", documents=0)
        return replace(entry, outcome="loses" if loses else "fails", basis="derived, not tried", documents=number)
    return replace(entry, documents=number)


def _with_whose(
    connection: Connection, entity: Entity, approach: Approach, known: Sequence[Obstacle], entry: Entry
) -> Entry:
    obstacle = _obstacle(known, entry)
    if obstacle is None or entry.outcome != "fails":
        return entry
    return replace(entry, whose=counting.whose(connection, entity, approach, obstacle) or None)
