"""The command itself: a request to end is heeded while the verbs are still loaded, which takes a second or two."""

import io
import os
import sys

from uuid_pipeline.cli import interruption


def main() -> None:
    """Load the command line and run it."""
    _open_streams()
    interruption.answer_by(_end)
    from uuid_pipeline.cli.main import main as run

    run()


def _open_streams() -> None:
    """Who closed them (``>&-``) wants to hear nothing; left closed, the next file or socket would be taken for them."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w")  # noqa: PTH123, SIM115  (open to the end)
            setattr(sys, name, stream)
    for written in (sys.stdout, sys.stderr):
        # Work that was done is not to end in a fault because a locale lacks a character of its answer.
        if isinstance(written, io.TextIOWrapper):
            # And who reads through a pipe, as a log does, is to see each line when it is said.
            written.reconfigure(errors="backslashreplace", line_buffering=True)


def _end(*_: object) -> None:
    # At once: nothing is open yet, and an exception inside an import would be shown as a fault of the module.
    message = b"Interrupted before anything was begun."
    if "--json" in sys.argv[1:]:
        os.write(1, b'{"error": "%b", "exit_code": 130}\n' % message)
    os.write(2, b"Error: %b\n" % message)
    os._exit(130)
