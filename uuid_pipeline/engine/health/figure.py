"""One figure of the store's health: its value or why it is not known, and what it was measured of."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

Unit = Literal["share", "rows", "uses", "milliseconds"]


@dataclass(frozen=True)
class Figure:
    """``value`` is None where it is not known, and ``finding`` says why. ``part`` of ``whole`` where it is a share.

    ``as_of``: when it was measured, None for now. Without a value, a ``whole`` of 0 says that there is
    nothing to measure.
    """

    name: str
    unit: Unit
    value: float | None
    finding: str
    part: int | None = None
    whole: int | None = None
    as_of: datetime | None = None


def share(name: str, part: int, whole: int, what: str) -> Figure:
    """``part`` of ``whole``, from 0 to 1; unknown when there is nothing that it could be a part of."""
    if whole == 0:
        return nothing(name, "share", f"nothing to measure: 0 {what}")
    return Figure(name, "share", part / whole, f"{part} of {whole} {what}", part, whole)


def nothing(name: str, unit: Unit, why: str) -> Figure:
    """A figure of which there is nothing to measure: unknown, and no earlier value stands for it."""
    return replace(unknown(name, unit, why), whole=0)


def unknown(name: str, unit: Unit, why: str) -> Figure:
    """A figure that could not be had; never taken for 0, and never an alarm."""
    return Figure(name, unit, None, f"unknown: {why}")
