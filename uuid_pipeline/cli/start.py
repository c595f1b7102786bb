"""The command itself: a request to end is heeded while the verbs are still being loaded, which takes a second or two."""

import os
import signal


def main() -> None:
    """Load the command line and run it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from uuid_pipeline.cli.main import main as run

    run()


def _end(*_: object) -> None:
    # At once: nothing is open yet, and an exception inside an import would be shown as a fault of the module.
    os.write(2, b"Error: Interrupted before anything was begun.\n")
    os._exit(130)
