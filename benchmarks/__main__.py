"""`python -m benchmarks`: everything side by side, in one go; exit code 1 when a target is missed."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks import contenders, network, probe, report, runs, store, verdicts
from benchmarks.report import Results
from benchmarks.runs import Run
from uuid_pipeline.demo import server
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.errors import PipelineError

RUN = "bench_run"
# Between two machines of one data centre; what it came to is measured and printed.
NETWORK_MILLISECONDS = 0.5
_SETTINGS = ("shared_buffers", "max_wal_size", "work_mem", "fsync", "synchronous_commit")

Contender = Callable[[EmbeddedServer, str], Run]


@dataclass(frozen=True)
class Size:
    """How large, and how often; ``curve`` are the smaller sizes, in documents."""

    documents: int
    curve: tuple[int, ...]
    wide: int
    sample: int
    before_seconds: float
    repeat: int
    through_command_line: bool


def size_of(options: argparse.Namespace) -> Size:
    """The issue's sizes at scale 1; everything shrinks with it."""
    documents = max(20, round(100_000 * options.scale))
    return Size(
        documents=documents,
        curve=tuple(sorted({max(2, round(documents * share)) for share in options.curve})),
        wide=max(20, round(5_000 * options.scale)),
        sample=min(1_000, documents),
        before_seconds=min(15.0, max(0.5, 150 * options.scale)),
        repeat=options.repeat,
        through_command_line=not options.skip_command_line,
    )


def main() -> int:
    """Run everything; the exit code."""
    options = _options()
    try:
        with embedded_server() as server_:
            results = measure(server_, size_of(options), options.vectors)
    except PipelineError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    written = report.write(results, options.out)
    sys.stdout.write("\n".join([*report.lines(results), "", *[f"Written: {path}" for path in written]]) + "\n")
    return 0 if all(verdict.passed for verdict in results.verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1: 100,000 documents, a million chunks")
    parser.add_argument("--repeat", type=int, default=3, help="runs of the engine and of the hand-written transaction")
    parser.add_argument(
        "--curve", type=float, nargs="*", default=[0.01, 0.03, 0.1, 0.3], help="smaller sizes, as shares of the whole"
    )
    parser.add_argument("--vectors", action="store_true", help="also 50,000 wide vectors with HNSW (takes long)")
    parser.add_argument(
        "--skip-command-line", action="store_true", help="judge the engine's functions, without Dagster around them"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


@contextmanager
def embedded_server() -> Iterator[EmbeddedServer]:
    """A server of this benchmark's own, gone with its data afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench_", ignore_cleanup_errors=True) as directory:
        # Root's server runs as another user, who must be able to reach its data.
        Path(directory).chmod(0o755)
        home = Path(directory) / "home"
        try:
            yield server.start(home)
        finally:
            server.destroy(home)


def measure(server_: EmbeddedServer, size: Size, vectors: bool) -> Results:
    """Every part, in the order in which the report shows them."""
    results = Results(describe(server_), size.documents)
    compare(server_, size, results)
    over_network(server_, size, results)
    with_application(server_, size, results)
    cost_by_size(server_, size, results)
    if vectors:
        wide(server_, size, results)
    results.verdicts = judge(results)
    return results


def describe(server_: EmbeddedServer) -> dict[str, object]:
    """The machine and the server."""
    with psycopg.connect(server_.url("postgres")) as connection:
        [(version,)] = connection.execute("SELECT version()").fetchall()
        found = {name: connection.execute(f"SHOW {name}").fetchall()[0][0] for name in _SETTINGS}
    return report.machine(version, found)


def fresh(server_: EmbeddedServer, template: str, contender: Contender, name: str) -> Run:
    """One run of a contender on a clone of its own, which is dropped afterwards."""
    url = store.clone(server_, template, RUN)
    done = contender(server_, url)
    say(f"{name}: {done.seconds:.2f} s")
    return done


def compare(server_: EmbeddedServer, size: Size, results: Results) -> None:
    """All contenders, those of the target by turns; each must leave the same store as the first."""
    say(f"building {size.documents:,} documents")
    template = store.make_template(server_, size.documents)
    expected: list[tuple[object, ...]] = []

    def run(name: str, contender: Contender) -> None:
        results.runs.setdefault(name, []).append(fresh(server_, template, contender, name))
        found = store.digest(server_.url(RUN))
        expected.append(found)
        if found != expected[0]:
            raise PipelineError(f"{name} left another store than the first contender: {found}, not {expected[0]}")

    for _ in range(size.repeat):
        run("replica", lambda _, url: Run(contenders.replica(url)))
        run("functions", lambda _, url: runs.functions(url))
        if size.through_command_line:
            run("engine", runs.command_line)
    run("cascade", lambda _, url: Run(contenders.cascade(url)))

    def loop(_: EmbeddedServer, url: str) -> Run:
        return Run(contenders.loop(url, size.sample).whole(size.documents))

    results.runs["loop"] = [fresh(server_, template, loop, "loop")]
    results.notes.append(f"loop: {size.sample:,} of {size.documents:,} documents moved, the whole extrapolated.")


def over_network(server_: EmbeddedServer, size: Size, results: Results) -> None:
    """The engine and the loop once more, with a round trip between them and the server."""
    template = store.make_template(server_, size.documents)
    with network.between(store.clone(server_, template, RUN), NETWORK_MILLISECONDS) as url:
        results.round_trip_ms = network.round_trip(url)
        results.network["functions"] = [runs.functions(url)]
    with network.between(store.clone(server_, template, RUN), NETWORK_MILLISECONDS) as url:
        sample = min(size.sample, 200)
        results.network["loop"] = [Run(contenders.loop(url, sample).whole(size.documents))]
    said = ", ".join(f"{name} {found[0].seconds:.1f} s" for name, found in results.network.items())
    say(f"with a round trip of {results.round_trip_ms:.2f} ms: {said}")


def with_application(server_: EmbeddedServer, size: Size, results: Results) -> None:
    """One more run of the engine with an application beside it, whose time counts for nothing else."""
    url = store.clone(server_, store.make_template(server_, size.documents), RUN)
    application = probe.Application(url)
    application.start()
    time.sleep(size.before_seconds)
    started = time.perf_counter()
    try:
        done = runs.functions(url)
    finally:
        ended = time.perf_counter()
        application.stop()
    say(f"engine with an application beside it: {done.seconds:.2f} s")
    spans = {"before": (0.0, started), "during": (started, ended), "while moving": runs.moving(done, started, ended)}
    for span, (since, until) in spans.items():
        results.application[f"read {span}"] = probe.latencies(application.reads, since, until)
        results.application[f"write {span}"] = probe.latencies(application.writes, since, until)
    results.application_errors = application.errors


def cost_by_size(server_: EmbeddedServer, size: Size, results: Results) -> None:
    """Microseconds a row of the engine's functions and of the hand-written transaction, from small to large."""
    pair: dict[str, Contender] = {
        "functions": lambda _, url: runs.functions(url),
        "replica": lambda _, url: Run(contenders.replica(url)),
    }
    for documents in size.curve:
        template = store.make_template(server_, documents)
        for name, contender in pair.items():
            seconds = min(
                fresh(server_, template, contender, f"{name} {documents}").seconds for _ in range(size.repeat)
            )
            put(results, name, documents, seconds)
    for name in pair:
        put(results, name, size.documents, report.fastest(results.runs)[name])


def put(results: Results, name: str, documents: int, seconds: float) -> None:
    chunks = documents * store.CHUNKS_A_DOCUMENT
    results.cost.setdefault(name, {})[chunks] = seconds * 1e6 / store.rows_of(documents)


def wide(server_: EmbeddedServer, size: Size, results: Results) -> None:
    """The engine, which decides by itself about the vector index, against the transaction that rebuilds it."""
    say(f"building {size.wide * store.CHUNKS_A_DOCUMENT:,} wide vectors with HNSW")
    template = store.make_template(server_, size.wide, store.build_wide)
    results.wide = {
        "replica-rebuild": [fresh(server_, template, lambda _, url: Run(contenders.replica_with_rebuild(url)), "wide")],
        "functions": [fresh(server_, template, lambda _, url: runs.functions(url), "engine, wide")],
    }


def judge(results: Results) -> list[verdicts.Verdict]:
    """Every target of the issue."""
    every = [run for found in results.runs.values() for run in found]
    return [
        *verdicts.of_speed(report.fastest(results.runs)),
        *verdicts.of_network(*[results.network[name][0].seconds for name in ("loop", "functions")]),
        *verdicts.of_application(
            results.application["read before"].p99,
            results.application["read while moving"].p99,
            len(results.application_errors),
        ),
        *verdicts.of_memory(max(run.peak_mb or 0 for run in every)),
        *verdicts.of_growth(results.cost["functions"]),
    ]


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
