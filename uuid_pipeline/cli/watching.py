"""Following a run from the terminal: redrawn in place where there is one, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text
from sqlalchemy import Engine

from uuid_pipeline.engine import lease, ledger
from uuid_pipeline.reports import progress

# Between two waves nobody holds the lease, while gates are evaluated and the next run begins.
BETWEEN_WAVES_SECONDS = 15.0

Show = Callable[[list[str]], None]


def watch(engine: Engine, interval: float) -> str:
    """Show the progress until nothing runs any more; returns the sentence to end with."""
    idle_since = time.monotonic()
    seen = False
    with _screen() as show:
        while True:
            lines, writing, unfinished = _now(engine)
            seen = seen or writing
            if writing:
                idle_since = time.monotonic()
            if not writing and not (seen and unfinished and time.monotonic() - idle_since < BETWEEN_WAVES_SECONDS):
                return "Nothing runs any more." if seen else "Nothing runs."
            show(lines)
            time.sleep(interval)


def _now(engine: Engine) -> tuple[list[str], bool, bool]:
    """What to show, whether a living process writes, and whether there is more for one to do."""
    with engine.begin() as connection:
        holder = lease.holder(connection)
        found = progress.at_work(connection)
        unfinished = bool(ledger.unfinished(connection) or ledger.rolling_back(connection))
    writing = holder is not None and holder.alive
    if found is None:
        return [f"{holder.holder} is at work" if holder else "between two steps"], writing, unfinished
    return [found.line, *found.waits], writing, unfinished


@contextmanager
def _screen() -> Iterator[Show]:
    if not sys.stdout.isatty():
        last: list[str] = []

        def line_by_line(lines: list[str]) -> None:
            if lines != last:
                last[:] = lines
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()

        yield line_by_line
        return
    with Live(Text(""), console=Console(), auto_refresh=False) as live:
        yield lambda lines: live.update(Text("\n".join(lines)), refresh=True)
