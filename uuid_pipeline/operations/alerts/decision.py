"""What to alert about, decided without Dagster: from what was failing and what was evaluated since."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

Kind = Literal["failed", "recovered", "run failed"]
# What nobody could deliver for so long is given up, the oldest first, and said: a cursor must stay small.
MOST_KEPT = 200
FIRST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one check, as Dagster recorded it; ``at`` in seconds since 1970, ``event`` its storage id.

    ``since``: since when it fails, where the check itself knows: a sensor may have been switched on later.
    """

    event: int
    asset: str
    check: str
    partition: str | None
    passed: bool
    severity: str
    finding: str
    run_id: str
    at: float
    figure: float | None = None
    threshold: float | None = None
    runbook: str | None = None
    since: float | None = None

    @property
    def subject(self) -> str:
        """Which check of which asset, and of which wave."""
        return f"{self.asset}.{self.check}" + (f" [{self.partition}]" if self.partition else "")


@dataclass(frozen=True)
class FailedRun:
    """A run that failed for another reason than a check that is alerted about anyway."""

    event: int
    run_id: str
    subject: str
    message: str
    at: float


class Alert(BaseModel):
    """One thing to tell. ``since`` and ``at`` in seconds since 1970; ``id`` names it in every channel and record."""

    id: str
    kind: Kind
    subject: str
    severity: str
    finding: str
    run_id: str
    at: float
    since: float
    figure: float | None = None
    threshold: float | None = None
    runbook: str
    asset: str | None = None
    check: str | None = None


class Outgoing(BaseModel):
    """An alert that some channels have not taken yet; ``due`` in seconds since 1970."""

    alert: Alert
    channels: list[str]
    attempts: int = 0
    due: float = 0.0


class State(BaseModel):
    """What a sensor remembers over restarts: where it read to, what fails since when, what is to be sent."""

    after: int | None = None
    failing: dict[str, float] = Field(default_factory=dict)
    outbox: list[Outgoing] = Field(default_factory=list)


GATE_RUNBOOK = "docs/runbook/gate_not_passed.md"
RUN_RUNBOOK = "docs/runbook/run_failed.md"


def of_checks(failing: dict[str, float], evaluations: Iterable[Evaluation]) -> tuple[dict[str, float], list[Alert]]:
    """Which checks fail now (since when), and an alert for each that began or ceased to."""
    now, alerts = dict(failing), []
    for evaluation in evaluations:
        known = now.get(evaluation.subject)
        if not evaluation.passed and known is None:
            since = evaluation.since or evaluation.at
            now[evaluation.subject] = since
            alerts.append(_alert(evaluation, "failed", since))
        elif evaluation.passed and known is not None:
            del now[evaluation.subject]
            alerts.append(_alert(evaluation, "recovered", known))
    return now, alerts


def _alert(evaluation: Evaluation, kind: Kind, since: float) -> Alert:
    return Alert(
        id=f"check-{evaluation.event}",
        kind=kind,
        subject=evaluation.subject,
        severity=evaluation.severity,
        finding=evaluation.finding,
        run_id=evaluation.run_id,
        at=evaluation.at,
        since=since,
        figure=evaluation.figure,
        threshold=evaluation.threshold,
        runbook=evaluation.runbook or GATE_RUNBOOK,
        asset=evaluation.asset,
        check=evaluation.check,
    )


def of_run(run: FailedRun) -> Alert:
    """The alert for a failed run."""
    return Alert(
        id=f"run-{run.run_id}",
        kind="run failed",
        subject=run.subject,
        severity="error",
        finding=run.message,
        run_id=run.run_id,
        at=run.at,
        since=run.at,
        runbook=RUN_RUNBOOK,
    )


def enqueue(outbox: list[Outgoing], alerts: Iterable[Alert], channels: list[str]) -> list[Outgoing]:
    """The outbox with new alerts for every channel; one that is in it already is not put there twice."""
    known = {outgoing.alert.id for outgoing in outbox}
    return outbox + [Outgoing(alert=alert, channels=channels) for alert in alerts if alert.id not in known]


def after_attempt(outgoing: Outgoing, left: list[str], now: float) -> Outgoing:
    """The same with the channels that did not take it, and when to try these again."""
    attempts = outgoing.attempts + 1
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (attempts - 1))
    return Outgoing(alert=outgoing.alert, channels=left, attempts=attempts, due=now + pause)


def cut(outbox: list[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
    """What is kept, and what is given up because too much waits: the oldest."""
    given_up = max(0, len(outbox) - MOST_KEPT)
    return outbox[given_up:], outbox[:given_up]
