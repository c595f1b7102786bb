"""What a benchmark leaves: a table to read, JSON to compare, a plot of cost against size."""

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.probe import Latencies
from benchmarks.runs import Run
from benchmarks.verdicts import Verdict


@dataclass
class Results:
    """Everything measured, as it is written to the JSON."""

    machine: dict[str, Any]
    documents: int
    runs: dict[str, list[Run]] = field(default_factory=dict)
    network: dict[str, list[Run]] = field(default_factory=dict)
    round_trip_ms: float = 0.0
    wide: dict[str, list[Run]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    application: dict[str, Latencies] = field(default_factory=dict)
    application_errors: list[str] = field(default_factory=list)
    cost: dict[str, dict[int, float]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)


def machine(server_version: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ": unknown")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "postgresql": server_version,
        "settings": dict(settings),
    }


def fastest(runs: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    return {name: min(run.seconds for run in found) for name, found in runs.items()}


def lines(results: Results) -> list[str]:
    """The report as text."""
    said = [f"{key}: {value}" for key, value in results.machine.items()]
    said += _table(f"{results.documents:,} documents, {results.documents * 10:,} chunks", results.runs)
    said += ["", f"The same with a round trip of {results.round_trip_ms:.2f} ms between them and the server"]
    said += [f"  {name:<18}{runs[0].seconds:>9.2f} s" for name, runs in results.network.items()]
    if results.wide:
        said += _table("Wide vectors with HNSW", results.wide)
    for name, runs in (results.runs | {f"{name}, wide": runs for name, runs in results.wide.items()}).items():
        if runs[0].stages:
            best = min(runs, key=lambda run: run.seconds)
            said += ["", f"{name}, by stage (s)"]
            said += [f"  {stage:<28}{seconds:8.2f}" for stage, seconds in best.stages.items()]
    said += ["", "The application beside the engine (ms)"]
    for name, found in results.application.items():
        said.append(
            f"  {name:<16} p50 {found.p50:7.2f}  p99 {found.p99:7.2f}  worst {found.worst:8.2f}"
            f"  queries {found.queries:,}"
        )
    said.append(f"  errors: {len(results.application_errors)}")
    said += [f"    {count} x {error}" for error, count in Counter(results.application_errors).most_common(3)]
    said += ["", "Cost a row (microseconds) by chunks"]
    for name, costs in results.cost.items():
        said.append(f"  {name:<18}" + "  ".join(f"{size:,}: {cost:.1f}" for size, cost in sorted(costs.items())))
    return [*said, "", *results.notes, "", *[verdict.line() for verdict in results.verdicts]]


def _table(title: str, runs: Mapping[str, Sequence[Run]]) -> list[str]:
    said = ["", title, f"  {'':<18}{'min s':>9}{'median s':>10}{'/ replica':>11}{'peak MB':>9}{'runs':>6}"]
    base = fastest(runs)[next(name for name in runs if name.startswith("replica"))]
    for name, found in runs.items():
        seconds = [run.seconds for run in found]
        peak = max((run.peak_mb or 0 for run in found), default=0)
        said.append(
            f"  {name:<18}{min(seconds):>9.2f}{statistics.median(seconds):>10.2f}{min(seconds) / base:>11.2f}"
            f"{f'{peak:.0f}' if peak else '':>9}{len(found):>6}"
        )
    return said


def write(results: Results, directory: Path) -> list[Path]:
    """Write results.json and cost.png; the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "results.json"
    data.write_text(json.dumps(asdict(results), indent=2) + "\n")
    return [data, plot(results.cost, directory / "cost.png")]


def plot(cost: Mapping[str, Mapping[int, float]], path: Path) -> Path:
    """Cost a row against size, each contender a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, costs in cost.items():
        sizes = sorted(costs)
        axes.plot(sizes, [costs[size] for size in sizes], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("chunks")
    axes.set_ylabel("microseconds a row")
    axes.set_title("Cost against size")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
