"""The targets, as checks that can fail; pure."""

from collections.abc import Mapping
from dataclasses import dataclass

ENGINE_TO_REPLICA = 1.3
LOOP_TO_ENGINE = 10.0
P99_DURING_TO_BEFORE = 3.0
PEAK_MB = 300.0
COST_GROWTH = 1.3


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured, against what."""

    target: str
    measured: float
    limit: float
    passed: bool

    def line(self) -> str:
        return f"[{'pass' if self.passed else 'FAIL'}] {self.target}: {self.measured:.2f} (limit {self.limit:g})"


def at_most(target: str, measured: float, limit: float) -> Verdict:
    return Verdict(target, measured, limit, measured <= limit)


def at_least(target: str, measured: float, limit: float) -> Verdict:
    return Verdict(target, measured, limit, measured >= limit)


def of_speed(seconds: Mapping[str, float]) -> list[Verdict]:
    """From the fastest run of each contender: the engine by itself, and through the command line if that ran."""
    return [
        at_most(f"{name} / hand-written transaction", seconds[name] / seconds["replica"], ENGINE_TO_REPLICA)
        for name in ("functions", "engine")
        if name in seconds
    ]


def of_network(loop: float, functions: float) -> list[Verdict]:
    """From whole runs with a network between: the loop's tool never ran on its server."""
    return [at_least("per-document loop / functions, over a network", loop / functions, LOOP_TO_ENGINE)]


def of_application(before: float, during: float, errors: int) -> list[Verdict]:
    """From the 99th percentiles of the application's query, and how many of its statements failed."""
    return [
        at_most("p99 of the application's query, while moving / before", during / before, P99_DURING_TO_BEFORE),
        at_most("application errors during the run", errors, 0),
    ]


def of_memory(peak_mb: float) -> list[Verdict]:
    return [at_most("peak memory of our processes, MB", peak_mb, PEAK_MB)]


def of_growth(cost_by_chunks: Mapping[int, float]) -> list[Verdict]:
    """From the cost a row at each size: the largest against a tenth of it, or the nearest that was measured."""
    largest = max(cost_by_chunks)
    smaller = min(cost_by_chunks, key=lambda size: abs(size - largest / 10))
    if smaller == largest:
        return []
    growth = cost_by_chunks[largest] / cost_by_chunks[smaller]
    return [at_most(f"cost a row at {largest:,} chunks / at {smaller:,}", growth, COST_GROWTH)]
