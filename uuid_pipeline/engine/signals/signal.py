"""One reading of a health signal: what it says, and why."""

from dataclasses import dataclass
from typing import Literal

State = Literal["normal", "stop", "unknown"]


@dataclass(frozen=True)
class HealthSignal:
    """``reason`` is a sentence with the figure and its limit; ``figure`` is None where nothing could be measured."""

    name: str
    state: State
    reason: str
    figure: float | None


def compared(name: str, figure: float, limit: float, reason: str) -> HealthSignal:
    """A reading against its limit; the limit itself is still normal."""
    return HealthSignal(name, "stop" if figure > limit else "normal", reason, figure)


def unknown(name: str, reason: str) -> HealthSignal:
    """A reading that could not be had."""
    return HealthSignal(name, "unknown", reason, None)
