"""``uuid-pipeline health``"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import open_configured_store, open_session
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.health import history
from uuid_pipeline.engine.health.history import Tick
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.operations import metrics
from uuid_pipeline.reports.health import check_records, figure_records
from uuid_pipeline.settings import read_settings


def health(
    full: Annotated[bool, typer.Option("--full", help="Read whole tables, whenever the last time was.")] = False,
    new_baseline: Annotated[
        bool, typer.Option("--new-baseline", help="Compare latency with the last five ticks' from now on.")
    ] = False,
    last: Annotated[bool, typer.Option("--last", help="Show the newest tick; look at nothing.")] = False,
    prometheus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it for node_exporter's textfile collector (*.prom).")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve the newest tick on loopback: /metrics, /healthz.")
    ] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Look at the store's health once: figures against thresholds. Exit 1 when a check fails that is no warning."""

    def verb(answer: Answer) -> None:
        if listen is not None and (full or new_baseline or last or prometheus):
            raise UsageError("--listen only serves what ticks have found; leave the other options out.")
        if last and (full or new_baseline):
            raise UsageError("--last looks at nothing; leave out --full and --new-baseline.")
        if listen is not None:
            _serve(*metrics.address(listen))
            answer.say("Ended.")
            return
        if last:
            _with_store(lambda engine: _show_newest(engine, answer, prometheus))
            return
        with open_session() as session:
            outcome = session.run("health", uuid_health={"full": full, "new_baseline": new_baseline})
            # A check that fails ends no run; what ends one leaves no checks.
            if outcome.error is not None and not outcome.checks:
                raise outcome.error
            _show_newest(session.engine, answer, prometheus)

    answer_with(verb, as_json, spec)


def _with_store(work: Callable[[Engine], None]) -> None:
    engine = open_configured_store(read_settings())
    try:
        work(engine)
    finally:
        engine.dispose()


def _show_newest(engine: Engine, answer: Answer, prometheus: Path | None) -> None:
    with engine.begin() as connection:
        tick = history.newest(connection) if ledger.exists(connection) else None
    if tick is None:
        raise RefusedError(
            "No look at this store's health is on record (none yet, or all older than retention keeps). "
            "Run: uuid-pipeline health"
        )
    if prometheus is not None:
        metrics.write(engine, prometheus)
        answer.data["prometheus"] = str(prometheus)
    show(answer, tick)


def show(answer: Answer, tick: Tick) -> None:
    """A tick for people and programs; sets the exit code."""
    answer.data |= {
        "tick": {"tick_no": tick.tick_no, "at": tick.at, "whole": tick.whole, "seconds": tick.seconds},
        "figures": {
            one.name: {
                "value": one.value, "unit": one.unit, "part": one.part, "whole": one.whole, "as_of": one.as_of,
                "finding": one.finding,
            }
            for one in tick.figures
        },
        "checks": [
            {
                "check": check.name, "severity": check.severity, "passed": check.passed, "value": check.value,
                "threshold": check.threshold, "failing_since": check.failing_since, "finding": check.finding,
                "runbook": check.runbook,
            }
            for check in tick.checks
        ],
    }  # fmt: skip
    read = "whole tables read" if tick.whole else "whole tables not read"
    answer.say(f"Tick {tick.tick_no}, {tick.at:%Y-%m-%d %H:%M:%S} UTC, {tick.seconds:.1f} s, {read}")
    answer.say(*show_table("Figures", figure_records(tick)))
    answer.say(*show_table("Checks", check_records(tick)))
    failed = [check for check in tick.checks if not check.passed]
    answer.say(*[f"What to do: {check.runbook}" for check in failed])
    answer.exit_code = 1 if tick.alarming else 0


def _serve(host: str, port: int) -> None:
    engine = open_configured_store(read_settings())
    try:
        with metrics.server(engine, host, port) as server:
            shown = f"[{host}]" if ":" in host else host
            sys.stderr.write(f"http://{shown}:{server.server_port}/metrics and /healthz  (Ctrl-C ends it)\n")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return
    finally:
        engine.dispose()
