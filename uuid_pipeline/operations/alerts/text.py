"""An alert as people read it: figure, threshold, since when, where to look, what to do."""

from datetime import UTC, datetime
from urllib.parse import quote

from uuid_pipeline.operations.alerts.decision import Alert
from uuid_pipeline.operations.sending import Message

_MARKS = {"failed": "FAILED", "recovered": "recovered", "run failed": "RUN FAILED"}


def message(alert: Alert, ui: str) -> Message:
    """The alert as a message; ``ui`` is where people reach the UI."""
    title = f"[uuid-pipeline] {_MARKS[alert.kind]} ({alert.severity}): {alert.subject}"
    if alert.kind == "recovered":
        title = f"[uuid-pipeline] recovered: {alert.subject}"
    lines = [
        f"**{alert.subject}**: {' '.join(alert.finding.split())}",
        "",
        *[f"- {name}: {value}" for name, value in _facts(alert)],
        f"- Look: {link(alert, ui)}",
        f"- Run: {ui.rstrip('/')}/runs/{alert.run_id}",
        f"- What to do: {alert.runbook}",
        f"- Alert: {alert.id}",
    ]
    return Message(title, "\n".join(lines))


def _facts(alert: Alert) -> list[tuple[str, str]]:
    facts = []
    if alert.figure is not None:
        facts.append(("Figure", f"{alert.figure:g}"))
    if alert.threshold is not None:
        facts.append(("Threshold", f"{alert.threshold:g}"))
    facts.append(("Since", _time(alert.since)))
    if alert.kind == "recovered":
        facts.append(("Recovered", _time(alert.at)))
    return facts


def link(alert: Alert, ui: str) -> str:
    """The page of the UI that shows the check, or the run."""
    base = ui.rstrip("/")
    if alert.asset is None or alert.check is None:
        return f"{base}/runs/{alert.run_id}"
    return f"{base}/assets/{quote(alert.asset)}?view=checks&checkDetail={quote(alert.check)}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
