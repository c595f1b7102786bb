"""The command itself: a request to end is heeded while the verbs are still loaded, which takes a second or two."""

import os
import signal
import sys


def main() -> None:
    """Load the command line and run it."""
    _open_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from uuid_pipeline.cli.main import main as run

    run()


def _open_streams() -> None:
    """Who closed them (``>&-``) wants to hear nothing; left closed, the next file or socket would be taken for them."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w")  # noqa: PTH123, SIM115  (open to the end)
            setattr(sys, name, stream)


def _end(*_: object) -> None:
    # At once: nothing is open yet, and an exception inside an import would be shown as a fault of the module.
    os.write(2, b"Error: Interrupted before anything was begun.\n")
    os._exit(130)
