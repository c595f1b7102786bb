"""Bringing alerts to the channels: each channel until it has taken each alert, and a record of every attempt."""

import hashlib
import time
from dataclasses import dataclass

import dagster as dg

from uuid_pipeline.operations import sending
from uuid_pipeline.operations.alerts.decision import Outgoing, after_attempt
from uuid_pipeline.operations.alerts.events import OWN_ASSET
from uuid_pipeline.operations.alerts.text import link, message

CHANNELS_VARIABLE = "UUID_PIPELINE_ALERT_URLS"


def channels(urls: list[str]) -> dict[str, str]:
    """URL by a name that says no secret and stays the same over restarts."""
    named = {}
    for url in urls:
        scheme = url.partition("://")[0]
        named[f"{scheme}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"] = url
    return named


@dataclass(frozen=True)
class Attempt:
    """One alert brought to its channels once: the fault by channel, None where it was taken."""

    outgoing: Outgoing
    faults: dict[str, str | None]

    @property
    def failed(self) -> dict[str, str]:
        return {channel: fault for channel, fault in self.faults.items() if fault is not None}


def deliver(
    outbox: list[Outgoing], named: dict[str, str], ui: str, deadline: float
) -> tuple[list[Outgoing], list[Attempt]]:
    """Try what is due, until ``deadline`` (time.monotonic()); returns what is left to send, and the attempts made."""
    left, attempts = [], []
    for outgoing in outbox:
        # A channel that is no longer configured has nothing more to get.
        wanted = [channel for channel in outgoing.channels if channel in named]
        if not wanted:
            continue
        if outgoing.due > time.time() or time.monotonic() > deadline:
            left.append(outgoing.model_copy(update={"channels": wanted}))
            continue
        text = message(outgoing.alert, ui)
        faults = {channel: sending.send(text, [named[channel]])[0].fault for channel in wanted}
        attempt = Attempt(outgoing, faults)
        attempts.append(attempt)
        if attempt.failed:
            left.append(after_attempt(outgoing, list(attempt.failed), time.time()))
    return left, attempts


def observation(attempt: Attempt, ui: str) -> dg.AssetObservation:
    """The record of an attempt, which the UI shows at the asset ``alerts``."""
    alert = attempt.outgoing.alert
    taken = [channel for channel, fault in attempt.faults.items() if fault is None]
    return dg.AssetObservation(
        OWN_ASSET,
        description=f"{alert.kind}: {alert.subject}",
        metadata={
            "alert": alert.id,
            "kind": alert.kind,
            "subject": alert.subject,
            "severity": alert.severity,
            "finding": alert.finding,
            "look": dg.MetadataValue.url(link(alert, ui)),
            "runbook": alert.runbook,
            "taken_by": ", ".join(taken) or "none",
            "not_taken_by": "\n".join(f"{channel}: {fault}" for channel, fault in attempt.failed.items()) or "none",
            "attempt": attempt.outgoing.attempts + 1,
        },
    )


def delivered_check(left: list[Outgoing], given_up: list[Outgoing], named: dict[str, str]) -> dg.AssetCheckEvaluation:
    """Whether every alert has reached every channel; what waits is named, so that a dead channel is seen in the UI."""
    waiting = [outgoing for outgoing in left if outgoing.attempts]
    lost = [outgoing.alert.id for outgoing in given_up]
    said = [
        f"{outgoing.alert.id} ({outgoing.alert.subject}) waits for {', '.join(outgoing.channels)} "
        f"after {outgoing.attempts} attempts"
        for outgoing in waiting[:20]
    ]
    said += [f"given up, too many wait: {', '.join(lost[:20])}"] if lost else []
    if not named:
        said = [f"no channel is configured: set {CHANNELS_VARIABLE}"]
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(OWN_ASSET),
        check_name="alerts_delivered",
        passed=not said,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(said) or "every alert has reached every channel",
        metadata={"waiting": len(waiting), "given_up": len(lost), "channels": len(named)},
    )
