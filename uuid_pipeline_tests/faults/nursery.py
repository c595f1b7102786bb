"""A process that forks the writers of fault tests, each told at which point to send itself a signal.

Imports take seconds, a fork does not; the tests' own process has threads, so it cannot fork by itself.
Run as ``python -m uuid_pipeline_tests.faults.nursery``: reads a request a line, answers each with a line.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from uuid_pipeline.engine import sync_points
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.faults import scene


@dataclass(frozen=True)
class Fate:
    """A writer's work (a key of scene.WORK), and the signal that it sends itself when it is there the nth time."""

    work: str
    point: str
    nth: int
    signal: int


@dataclass(frozen=True)
class Writer:
    """``code`` is the exit code, negative for a signal; None while it is stopped. ``said`` is its error, if any."""

    pid: int
    code: int | None
    said: str


class Nursery:
    """Writers of one store."""

    def __init__(self, url: str, spec_file: Path) -> None:
        self._place = {"url": url, "spec": str(spec_file)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uuid_pipeline_tests.faults.nursery"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def run(self, fate: Fate) -> Writer:
        """Let a writer work until its fate has come, or its work is done."""
        return self._ask(self._place | asdict(fate))

    def wake(self, writer: Writer) -> Writer:
        """Let a stopped writer go on to its end."""
        return self._ask({"wake": writer.pid})

    def _ask(self, request: dict[str, object]) -> Writer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Writer(**json.loads(self._process.stdout.readline()))


def _work(url: str, spec: str, fate: Fate) -> None:
    left = fate.nth

    def meet_fate() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), fate.signal)

    if fate.point:
        sync_points.on(fate.point, meet_fate)
    scene.WORK[fate.work](open_store(url), load_spec(Path(spec)))


def _fork(url: str, spec: str, errors: Path, **fate: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _work(url, spec, Fate(**fate))  # type: ignore[arg-type]
        except BaseException:  # noqa: BLE001 - the parent tells it
            errors.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    return pid


def _serve(errors: Path) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        errors.write_text("")
        if "wake" in request:
            pid = int(request["wake"])
            os.kill(pid, signal.SIGCONT)
        else:
            pid = _fork(errors=errors, **request)
        _, status = os.waitpid(pid, os.WUNTRACED)
        code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps({"pid": pid, "code": code, "said": errors.read_text()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    import tempfile

    with tempfile.NamedTemporaryFile() as said:
        _serve(Path(said.name))
