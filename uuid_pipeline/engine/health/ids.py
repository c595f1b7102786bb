"""Mismatch, stray, and generation overall: every row's id against the target id that its own columns give.

Each entity by itself: a level of many rows that takes too long costs its own figure, not that of the documents.
"""

from collections import Counter

from uuid_pipeline.engine.derivation import id_class
from uuid_pipeline.engine.health import identified
from uuid_pipeline.engine.health.figure import Figure, share
from uuid_pipeline.engine.health.look import Look
from uuid_pipeline.engine.store import Entity, Store


def names(store: Store, entity: Entity) -> list[str]:
    """The figures of :func:`measure` for this entity."""
    if entity.name != store.main.name:
        return [f"mismatch_{entity.name}"]
    return ["generation", "mismatch", "stray", "quarantined"]


def measure(look: Look, entity: Entity) -> list[Figure]:
    """Reads every row of the entity. Raises RefusedError at the deadline."""
    classes = _classes(look, entity)
    judged = classes["deterministic"] + classes["random"] + classes["stray"]
    wrong = judged - classes["deterministic"]
    table = f"rows of {entity.table.name}"
    if entity.name != look.store.main.name:
        return [share(f"mismatch_{entity.name}", wrong, judged, table)]
    aside = classes["quarantined"]
    return [
        share("generation", classes["deterministic"], judged, table),
        share("mismatch", wrong, judged, table),
        share("stray", classes["stray"], judged, table),
        Figure("quarantined", "rows", float(aside), f"{aside} {table} have no target id", aside, judged + aside),
    ]


def _classes(look: Look, entity: Entity) -> Counter[str]:
    found: Counter[str] = Counter()
    for rows in identified.stream(look.connection, look.store, entity):
        found.update("quarantined" if row.target is None else id_class(row.key, row.target) for row in rows)
        look.in_time()
    return found


def measure_sample(look: Look) -> list[Figure]:
    """Mismatch in the rotating sample: between two whole scans it tells that something has changed."""
    judged = [row for row in look.sample if row.target is not None]
    wrong = sum(row.key != row.target for row in judged)
    return [share("mismatch_sampled", wrong, len(judged), "documents of the sample")]
