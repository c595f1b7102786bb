"""Peak memory of a process with all its children, from /proc; PostgreSQL's own processes are not ours."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_INTERVAL_SECONDS = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_bytes(pid: int) -> int:
    """Memory of a process and its descendants now: all that the first holds, and what the others do not share.

    A process that was forked a moment ago, to start another program, still shares every page.
    """
    total = 0
    with suppress(OSError):  # It ended meanwhile.
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        total += sum(_own_bytes(child) for child in _descendants(pid))
    return total


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if not _is_same_memory(pid, child):
                    yield child
                yield from _descendants(child)


def _is_same_memory(parent: int, child: int) -> bool:
    """Whether a child, made by vfork, still runs in its parent's very memory: its pages are private to the two.

    Its parent stands still meanwhile, so both are described alike to the page.
    """
    with suppress(OSError):
        one, other = (Path(f"/proc/{pid}/statm").read_text() for pid in (parent, child))
        return one == other
    return False


def _own_bytes(pid: int) -> int:
    with suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().strip() != "postgres":
            found = re.findall(r"^Private_\w+:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            return sum(map(int, found)) * 1024
    return 0


class MemoryWatch(threading.Thread):
    """Samples a process tree until stopped; ``peak_bytes`` is the most that it held at one sample."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._pid = pid
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, tree_bytes(self._pid))

    def stop(self) -> None:
        self._stopped.set()
        self.join()
