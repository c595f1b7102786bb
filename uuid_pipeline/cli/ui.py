"""``uuid-pipeline ui``"""

import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session
from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations.instance import dagster_home

HOST = "127.0.0.1"
# How warnings begin that nobody who opens the UI can do anything about.
_NOT_FOR_USERS = ("Function `dev_command` is superseded", "Specifying a partitions_def on an AssetCheckSpec")


def ui(
    port: Annotated[int, typer.Option("--port", help="The port on loopback.")] = 3000,
    spec: SpecOption = None,
) -> None:
    """Open the Dagster UI of this home on loopback; end it with Ctrl-C."""

    def verb(_answer: Answer) -> None:
        with open_session() as session:
            workspace = dagster_home(session.settings) / "workspace.yaml"
        require_free(port)
        program = Path(sys.executable).with_name("dagster")
        dagster = str(program) if program.exists() else shutil.which("dagster")
        if dagster is None:
            raise UsageError("The program `dagster` is not installed beside this Python.")
        sys.stderr.write(f"Dagster UI: http://{HOST}:{port}  (Ctrl-C ends it)\n")
        # A shell starts what it puts into the background deaf to SIGINT, by which this is ended.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Notes to us about Dagster's own changes.
        os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{said}" for said in _NOT_FOR_USERS))
        # A run's process loads all of Dagster before it answers; on a busy machine that takes longer than the minute
        # that Dagster grants, and the run would be a failure that nobody caused.
        os.environ.setdefault("DAGSTER_GRPC_TIMEOUT_SECONDS", "300")
        # Links in alerts lead here, unless people reach the UI elsewhere.
        os.environ.setdefault("UUID_PIPELINE_UI_URL", f"http://{HOST}:{port}")
        command = [dagster, "dev", "-w", str(workspace), "-h", HOST, "-p", str(port)]
        # The UI takes this process over, so that a signal to it ends the UI and nothing stays behind.
        os.execv(dagster, command)

    answer_with(verb, False, spec)


def require_free(port: int) -> None:
    """Raise UsageError when something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"Port {port} on {HOST} is in use ({error.strerror}). Give another with --port."
            ) from error
