"""A line for people now and then, while a step of a run in this process takes long and says nothing itself."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from uuid_pipeline.engine.gates import WAVE_STAGE

FIRST_SECONDS = 10.0
AGAIN_SECONDS = 30.0
# They tell batch by batch how far they are.
_TELL_THEMSELVES = frozenset({WAVE_STAGE, "roll_back_waves"})
_ENDS = frozenset({dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE})


@contextmanager
def told(instance: dg.DagsterInstance, run_id: str, say: Callable[[str], None]) -> Iterator[None]:
    """While the block carries out this run, say which step is under way and for how long."""
    begun: dict[str, float] = {}
    over = threading.Event()

    def hear(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is None or event.step_key is None or event.step_key in _TELL_THEMSELVES:
            return
        if event.event_type == dg.DagsterEventType.STEP_START:
            begun[event.step_key] = time.monotonic()
        elif event.event_type in _ENDS:
            begun.pop(event.step_key, None)

    instance.add_event_listener(run_id, hear)
    thread = threading.Thread(target=_tell, args=(begun, over, say), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tell(begun: dict[str, float], over: threading.Event, say: Callable[[str], None]) -> None:
    due: dict[tuple[str, float], float] = {}
    while not over.wait(0.5):
        for step, since in list(begun.items()):
            seconds = time.monotonic() - since
            if seconds >= due.setdefault((step, since), FIRST_SECONDS):
                say(f"{step.replace('_', ' ')}: under way for {seconds:.0f} s")
                due[step, since] = seconds + AGAIN_SECONDS
