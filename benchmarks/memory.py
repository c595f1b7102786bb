"""Peak memory of a process with all its children, from /proc; PostgreSQL's own processes are not ours."""

import os
import threading
from contextlib import suppress
from pathlib import Path

_INTERVAL_SECONDS = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants now; pages that several share are counted for each."""
    total = 0
    with suppress(OSError):  # It ended meanwhile.
        if Path(f"/proc/{pid}/comm").read_text().strip() != "postgres":
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_bytes(int(child)) for child in (task / "children").read_text().split())
    return total


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
