"""Whether retrieval is as it was: neighbours and scores through the id map, and whose fault a miss is. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uuid_pipeline.engine.retrievals.asking import Neighbour
from uuid_pipeline.engine.retrievals.sights import Sight

# Equal vectors give equal distances; another processor after a failover may add up in another order.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Before:
    """What the baseline says of one document; ``neighbours`` is None where they were not read."""

    found: bool | None
    chunks: int | None
    owner_rows: int | None
    digest: str | None
    neighbours: tuple[Neighbour, ...] | None
    cut: bool


def as_data(neighbours: Sequence[Neighbour], cut: bool) -> dict[str, Any]:
    return {"rows": [list(one) for one in neighbours], "cut": cut}


def same_neighbours(before: Before, sight: Sight, targets: Mapping[str, str]) -> bool | None:
    """Whether the same rows came at the same distances; None where that cannot be compared.

    ``targets`` gives for an old id its new one; an id that is not in it stands for itself. Of more equally near rows
    than were kept only those that are nearer count.
    """
    asked = sight.asked
    if before.neighbours is None or asked is None or asked.found is None or before.digest != sight.digest:
        return None
    then, now = _mapped(before.neighbours, targets), _mapped(asked.neighbours, targets)
    if before.cut or asked.cut:
        then, now = _nearer_than_last(then), _nearer_than_last(now)
    return len(then) == len(now) and all(
        a[:2] == b[:2] and _equal(a[2], b[2])
        for a, b in zip(sorted(then, key=_order), sorted(now, key=_order), strict=True)
    )


def _mapped(neighbours: Sequence[Neighbour], targets: Mapping[str, str]) -> list[Neighbour]:
    return [
        (targets.get(document, document), chunk and targets.get(chunk, chunk), distance)
        for document, chunk, distance in neighbours
    ]


def _nearer_than_last(neighbours: list[Neighbour]) -> list[Neighbour]:
    last = neighbours[-1][2] if neighbours else None
    return [one for one in neighbours if not _equal(one[2], last)]


def _order(neighbour: Neighbour) -> tuple[str, str, float]:
    document, chunk, distance = neighbour
    return (document, chunk or "", math.inf if distance is None else distance)


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def quiet(before: Before, sight: Sight, owners: Mapping[str | None, tuple[int, int]]) -> bool:
    """Whether nobody wrote, added or removed a row of this owner since."""
    now = owners.get(sight.owner)
    return now is not None and now == (before.owner_rows, 0)


def percentile(milliseconds: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile, rounded to microseconds; None of nothing."""
    if not milliseconds:
        return None
    ranked = sorted(milliseconds)
    return round(ranked[max(math.ceil(share * len(ranked)) - 1, 0)], 3)
