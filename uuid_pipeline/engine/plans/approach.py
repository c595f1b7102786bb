"""The approach: which share of the documents is wrong, what is advised at that share, and what a plan then covers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.spec import StrategySettings

Name = Literal["full", "hybrid", "forward-only", "regenerate", "none"]
Covers = Literal["everything due", "the first waves", "nothing"]

WAVE_KINDS = ("canary", "recent", "remaining")
SHOWN: dict[Name, str] = {
    "full": "full migration",
    "hybrid": "hybrid",
    "forward-only": "forward-only",
    "regenerate": "regeneration",
    "none": "nothing to migrate",
}


@dataclass(frozen=True)
class Approach:
    """``advised`` by the figures; ``name`` is the spec's own choice where it makes one. ``share`` is 0 to 1."""

    name: Name
    advised: Name
    by_spec: bool
    share: float
    covers: Covers
    reasons: tuple[str, ...]

    @property
    def shown(self) -> str:
        return SHOWN[self.name]


def wave_kinds(settings: StrategySettings) -> tuple[str, ...]:
    """The kinds of waves that a plan may have: all of them unless the spec itself restricts them."""
    return {"hybrid": WAVE_KINDS[:2], "forward-only": (), "regenerate": ()}.get(settings.approach, WAVE_KINDS)


def covers(settings: StrategySettings) -> Covers:
    """What of the documents that are due a plan under these settings moves."""
    kinds = wave_kinds(settings)
    return "everything due" if kinds == WAVE_KINDS else "the first waves" if kinds else "nothing"


def advise(summary: Summary, settings: StrategySettings) -> Name:
    """By the share of ids that are random or stray: above ``full_above``, above ``hybrid_above``, or below both."""
    if not summary.documents:
        return "none"
    share = (summary.random + summary.stray) / summary.documents
    return "full" if share > settings.full_above else "hybrid" if share > settings.hybrid_above else "forward-only"


def choose(summary: Summary, settings: StrategySettings) -> Approach:
    """The approach with its reasons. Without a choice in the spec it is advice: the plan covers all that is due."""
    advised = advise(summary, settings)
    by_spec = settings.approach != "auto" and advised != "none"
    name: Name = settings.approach if by_spec and settings.approach != "auto" else advised
    wrong = summary.random + summary.stray
    share = wrong / summary.documents if summary.documents else 0.0
    reasons = [*_of_figures(summary, wrong, share, settings, advised), *_of_choice(settings, name, advised, by_spec)]
    return Approach(name, advised, by_spec, share, covers(settings), (*reasons, *_of_contents(summary)))


def _of_figures(summary: Summary, wrong: int, share: float, settings: StrategySettings, advised: Name) -> Sequence[str]:
    if advised == "none":
        return ["the store holds no documents"]
    limits = {
        "full": f"above {100 * settings.full_above:g} %",
        "hybrid": f"above {100 * settings.hybrid_above:g} %, up to {100 * settings.full_above:g} %",
    }
    return [
        f"{wrong} of {summary.documents} documents ({100 * share:.1f} %) are not under the id of their natural key: "
        f"{limits.get(advised, f'up to {100 * settings.hybrid_above:g} %')} the advice is {SHOWN[advised]}"
    ]


_RESTRICTED = {
    "hybrid": "the plan moves the first waves (canary and recent); the rest waits for a later plan",
    "forward-only": "the plan moves nothing: documents that exist keep their ids, and only new ones are to be right",
    "regenerate": "the plan moves nothing: documents are to be made anew by the application, "
    "under their own ids: uuid-pipeline regenerate lists them, and queues them on approval",
}


def _of_choice(settings: StrategySettings, name: Name, advised: Name, by_spec: bool) -> list[str]:
    if by_spec:
        agreed = "which is also the advice" if name == advised else f"where the advice would be {SHOWN[advised]}"
        return [f"the spec sets approach: {settings.approach}, {agreed}", *filter(None, [_RESTRICTED.get(name)])]
    if advised in ("hybrid", "forward-only"):
        return [
            "this is advice: the plan covers every document that is due all the same, in waves of which the first ones "
            "matter most; to restrict it, set strategy.approach in the spec"
        ]
    return []


def _of_contents(summary: Summary) -> list[str]:
    """What no id can mend."""
    if summary.with_children is None or summary.with_children == summary.documents:
        return []
    without = summary.documents - summary.with_children
    return [
        f"{without} of {summary.documents} documents have no chunks: no id makes them findable, only processing does"
    ]
