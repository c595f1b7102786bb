"""Alias use: how often the application wrote or asked for an id from before, since the tick before."""

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.figure import Figure, unknown
from uuid_pipeline.engine.health.look import Look
from uuid_pipeline.engine.installed import aliases

NAME = "alias_uses"

_BEFORE = "SELECT whole FROM uuid_pipeline.health_figures WHERE figure = 'alias_uses' AND value IS NOT NULL"


def measure(look: Look) -> list[Figure]:
    """``whole`` is the count since the aliases were installed, ``part`` and the value what came to it."""
    used = aliases.uses(look.connection)
    if not used:
        return [unknown(NAME, "uses", "no aliases are installed")]
    total = sum(use.uses for use in used)
    before = sql.scalar(look.connection, _BEFORE + " ORDER BY tick_no DESC LIMIT 1")
    # Aliases that were removed and installed again count anew.
    fresh = total if before is None or before > total else total - int(before)
    said = ", ".join(f"{use.entity} {use.uses}" for use in used)
    return [Figure(NAME, "uses", float(fresh), f"{fresh} since the tick before; in all: {said}", fresh, total)]
