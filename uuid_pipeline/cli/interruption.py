"""That a request to end (Ctrl-C, SIGTERM, SIGHUP) reaches the verb at work, whatever Python and Dagster are doing then.

A signal's handler raises, and there are two places where that is lost: inside a destructor, where Python ignores every
exception, and where Dagster notes the signal for later and then forgets the note.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

AGAIN_SECONDS = 0.05
_ASKED_BY = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_REQUESTS = {"KeyboardInterrupt", "DagsterExecutionInterruptedError"}
_noted: list[socket.socket] = []
Hook = Callable[["sys.UnraisableHookArgs"], object]


def heed() -> None:
    """From now on SIGTERM (a service manager, docker stop) and SIGHUP (a lost connection) are what Ctrl-C is.

    Main thread only. Who started us by nohup wants us to outlive the terminal: there SIGHUP stays ignored.
    Not so Ctrl-C in a job of a shell's background, which inherits that it is ignored: Dagster would give SIGTERM the
    same.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    answer_by(signal.default_int_handler)
    if not _noted:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        # Python itself writes each signal's number there, whoever has the handler by then.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        _noted.extend([reader, writer])
        sys.unraisablehook = _repeating(sys.unraisablehook)


def answer_by(handler: Callable[[int, FrameType | None], object]) -> None:
    """Let this answer every request to end, but a SIGHUP that is ignored."""
    for number in _ASKED_BY:
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, handler)


def heed_no_more() -> None:
    """From now on the process ends by itself, with the exit code that it has; main thread only."""
    for number in _ASKED_BY:
        signal.signal(number, signal.SIG_IGN)


def _repeating(otherwise: Hook) -> Hook:
    """What Python is about to ignore is, if it was a request to end, made once more, outside of the destructor."""

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if ignored.exc_type.__name__ not in _REQUESTS:
            otherwise(ignored)
            return
        repeat = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
        repeat.daemon = True
        repeat.start()

    return hook


def raise_if_asked() -> None:
    """Raise KeyboardInterrupt when somebody has asked us to end and nothing has come of it."""
    if not _noted:
        return
    try:
        numbers = _noted[0].recv(4096)
    except BlockingIOError:
        return
    if _ASKED_BY.intersection(numbers):
        raise KeyboardInterrupt
