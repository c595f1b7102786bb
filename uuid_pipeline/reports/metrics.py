"""The newest tick's figures as Prometheus metrics, read from the ledger: nothing is measured for a scrape."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from uuid_pipeline.engine.health.figure import Figure
from uuid_pipeline.engine.health.history import Tick

# (entity, mode, caught, without target id)
GuardCounts = list[tuple[str, str, int, int]]
Read = Callable[[], tuple[Tick | None, GuardCounts]]

HELP = {
    "generation": "Share of documents whose id is the one that their natural key gives",
    "generation_new": "The same, of the documents created since the tick before",
    "mismatch": "Share of rows with another id than their natural key gives",
    "mismatch_sampled": "Share of the rotating sample with another id than their natural key gives",
    "stray": "Share of documents whose id is neither random nor right",
    "quarantined": "Documents without a target id",
    "consistency": "Share of documents that have chunks",
    "retrieval": "Share of sampled documents with chunks that are found by their target id",
    "migration_failure": "Share of the newest execution's documents that did not move",
    "orphans": "Rows whose reference points at no row",
    "alias_uses": "Stale ids that were translated, since the aliases were installed",
    "lookup_milliseconds": "Median time of a look-up by a document's id, with what hangs on it",
    "lookup_degradation": "How much slower than the stored baseline look-ups are",
}


class TickCollector(Collector):
    """Metrics of whatever ``read`` gives at the time of the scrape; figures that are unknown are left out."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        tick, guarded = self._read()
        if tick is not None:
            yield from _tick_metrics(tick)
        if guarded:
            yield from _guard_metrics(guarded)


def registry(read: Read) -> CollectorRegistry:
    """A registry of these metrics alone."""
    made = CollectorRegistry()
    made.register(_Described(read))
    return made


class _Described(TickCollector):
    """A registry asks once at the start for the metrics' names; that is no scrape."""

    def describe(self) -> list[Metric]:
        return []


def _tick_metrics(tick: Tick) -> Iterator[Metric]:
    yield _gauge("last_tick_timestamp_seconds", "When the newest tick began", tick.at.timestamp())
    yield _gauge("last_tick_duration_seconds", "How long it took", tick.seconds)
    by_name: dict[str, Metric] = {}
    as_of = GaugeMetricFamily("uuid_pipeline_figure_timestamp_seconds", "When a figure was measured", labels=["figure"])
    for figure in tick.figures:
        if figure.value is None:
            continue
        _add(by_name, figure)
        if figure.as_of is not None:
            as_of.add_metric([figure.name], figure.as_of.timestamp())
    yield from by_name.values()
    yield as_of
    passing = GaugeMetricFamily(
        "uuid_pipeline_check_passing", "1 while a check passes, 0 while it fails", labels=["check", "severity"]
    )
    for check in tick.checks:
        passing.add_metric([check.name, check.severity], float(check.passed))
    yield passing


def _add(found: dict[str, Metric], figure: Figure) -> None:
    if figure.unit == "uses":
        name = "uuid_pipeline_alias_uses"
        found[name] = CounterMetricFamily(name, HELP["alias_uses"], value=float(figure.whole or 0))
        return
    value = float(figure.value or 0.0)
    if figure.unit == "milliseconds":
        found[figure.name] = _gauge("lookup_seconds", HELP[figure.name], value / 1000)
        return
    stem, entity = figure.name, None
    if figure.name not in HELP:
        stem, _, entity = figure.name.partition("_")
    suffix = "_ratio" if figure.unit == "share" else ""
    if stem != "mismatch":
        found[stem] = _gauge(f"{stem}{suffix}", HELP[stem], value)
        return
    mismatch = found.setdefault(
        "mismatch", GaugeMetricFamily("uuid_pipeline_mismatch_ratio", HELP["mismatch"], labels=["entity"])
    )
    mismatch.add_sample("uuid_pipeline_mismatch_ratio", {"entity": entity or "main"}, value)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"uuid_pipeline_{name}", documentation, value=value)


def _guard_metrics(guarded: GuardCounts) -> Iterator[Metric]:
    caught = CounterMetricFamily(
        "uuid_pipeline_guard_caught", "New rows that the guard caught", labels=["entity", "mode"]
    )
    unjudged = CounterMetricFamily(
        "uuid_pipeline_guard_unjudged", "New rows without a target id, which pass the guard", labels=["entity", "mode"]
    )
    for entity, mode, rows, without in guarded:
        caught.add_metric([entity, mode], float(rows))
        unjudged.add_metric([entity, mode], float(without))
    yield caught
    yield unjudged
