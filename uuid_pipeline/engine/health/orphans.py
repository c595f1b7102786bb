"""Orphans: rows whose reference points at no row."""

from uuid_pipeline.engine import orphans
from uuid_pipeline.engine.health.figure import Figure
from uuid_pipeline.engine.health.look import Look

NAME = "orphans"


def measure(look: Look) -> list[Figure]:
    """Reads whole tables."""
    found = {name: count for name, count in orphans.count(look.connection, look.store).items() if count}
    said = ", ".join(f"{name} {count}" for name, count in found.items()) or "no reference points at nothing"
    return [Figure(NAME, "rows", float(sum(found.values())), said)]
