"""What a trial found, as plain data."""

from dataclasses import dataclass, field

from uuid_pipeline.engine.trials.collisions import Collision
from uuid_pipeline.engine.trials.moving import Sampled
from uuid_pipeline.engine.trials.obstacles import Obstacle


@dataclass(frozen=True)
class Refusal:
    """An error that the approach met on one row; ``obstacle`` is None when it names none that we know."""

    obstacle: Obstacle | None
    step: str
    sqlstate: str
    message: str
    collision: Collision | None = None


@dataclass(frozen=True)
class Attempt:
    """One approach on one row. ``finished``: it went through in the end, with what refused it out of the way.

    By reference: rows ``lost`` (they refer to nothing now) and ``left_behind`` (they still hold the old id).
    ``changed``: columns besides the ids that have other values, by table or reference. ``written``: rows more or fewer,
    by table.
    """

    approach: str
    row: Sampled
    refusals: tuple[Refusal, ...]
    finished: bool
    lost: dict[str, int] = field(default_factory=dict)
    left_behind: dict[str, int] = field(default_factory=dict)
    changed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
