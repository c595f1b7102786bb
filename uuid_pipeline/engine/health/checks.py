"""Checks: a figure against its threshold, with the severity that the incident's report gave it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from uuid_pipeline.engine.health import consistency, generation, latency, migration_failures, retrieval
from uuid_pipeline.engine.health.figure import Figure
from uuid_pipeline.spec import HealthThresholds

Severity = Literal["critical", "error", "warning"]


@dataclass(frozen=True)
class Rule:
    """``setting``: the field of the spec's ``health.thresholds``. ``fails(value, threshold)``."""

    name: str
    figure: str
    setting: str
    severity: Severity
    description: str
    fails: Callable[[float, float], bool]


@dataclass(frozen=True)
class Check:
    """A rule applied at a tick. ``value`` is None where the figure is unknown, which alarms by itself of nothing.

    What failed before and cannot be measured now has not recovered: it goes on failing, and says so.

    ``failing_since``: the first of the ticks that have failed without a break, in UTC; None while it passes.
    """

    name: str
    figure: str
    severity: Severity
    passed: bool
    value: float | None
    threshold: float | None
    finding: str
    failing_since: datetime | None = None

    @property
    def alarming(self) -> bool:
        """Whether it failed, and is no mere warning."""
        return not self.passed and self.severity != "warning"

    @property
    def runbook(self) -> str:
        """The page that says what to do, as a path in this repository."""
        return f"docs/runbook/{self.name}.md"


def _too_few(value: float, failures: float) -> bool:
    return 1 - value > failures


def _too_many(value: float, most: float) -> bool:
    return value > most


RULES = (
    Rule("generation_success", generation.NAME, "generation_failure", "error",
         "New documents get the id that their natural key gives.", _too_few),
    Rule("mismatch_rate", "mismatch", "mismatch", "critical",
         "Documents have the id that their natural key gives.", _too_many),
    Rule("retrieval_success", retrieval.NAME, "retrieval_failure", "critical",
         "Documents with chunks are found, with them, by their target id.", _too_few),
    Rule("migration_failures", migration_failures.NAME, "migration_failure", "error",
         "What the newest execution took on has moved, with green gates.", _too_many),
    Rule("pipeline_consistency", consistency.NAME, "consistency", "warning",
         "Documents have chunks.", lambda value, least: value < least),
    Rule("lookup_latency", latency.DEGRADATION, "degradation", "warning",
         "Look-ups are about as fast as in the stored baseline.", _too_many),
)  # fmt: skip


def evaluate(
    figures: Mapping[str, Figure], thresholds: HealthThresholds, failing: Mapping[str, datetime], now: datetime
) -> tuple[Check, ...]:
    """Every rule on these figures; ``failing`` says since when a check failed at the tick before."""
    return tuple(_evaluated(rule, figures[rule.figure], thresholds, failing, now) for rule in RULES)


def _evaluated(
    rule: Rule, figure: Figure, thresholds: HealthThresholds, failing: Mapping[str, datetime], now: datetime
) -> Check:
    threshold: float | None = getattr(thresholds, rule.setting)
    if threshold is None:
        finding = f"{figure.finding}; health.thresholds.{rule.setting} is null, so it is not checked"
        return Check(rule.name, rule.figure, rule.severity, True, figure.value, None, finding)
    if figure.value is None:
        since = failing.get(rule.name) if figure.whole != 0 else None
        finding = f"{figure.finding}; it failed when it was last known" if since else figure.finding
        return Check(rule.name, rule.figure, rule.severity, since is None, None, threshold, finding, since)
    failed = rule.fails(figure.value, threshold)
    finding = f"{100 * figure.value:.1f} % ({figure.finding}); {rule.setting}: {100 * threshold:g} %"
    since = failing.get(rule.name, now) if failed else None
    return Check(rule.name, rule.figure, rule.severity, not failed, figure.value, threshold, finding, since)
