"""One answer a verb: JSON on stdout, or text for people; errors in words, with their exit code."""

import codecs
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from dagster_postgres.utils import DagsterPostgresException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uuid_pipeline.cli import interruption
from uuid_pipeline.engine.connection import DATABASE_ERRORS, explained
from uuid_pipeline.errors import STANDS, InterruptedRunError, PipelineError, UsageError
from uuid_pipeline.settings import absolute, without_own_secrets

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; logs go to stderr.")]
SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="The specification (YAML); default: UUID_PIPELINE_SPEC, else the demo's."),
]

AttestOption = Annotated[
    str | None,
    typer.Option("--attest", metavar="NAME", help="Where the spec says `backup: attested`: the provider's snapshot."),
]
AttestedAtOption = Annotated[
    str | None,
    typer.Option("--attested-at", metavar="TIME", help="When it was taken: 2026-05-01T14:30Z; without a zone, UTC."),
]

WAITS_FOR_APPROVAL = 3


@dataclass
class Answer:
    """What a verb has to say: data for programs, lines for people."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    exit_code: int = 0

    def say(self, *lines: str) -> None:
        self.lines += lines

    def section(self, title: str) -> None:
        self.lines += ["", title, "-" * len(title)]

    def pairs(self, pairs: list[tuple[str, str]]) -> None:
        width = max((len(label) for label, _ in pairs), default=0)
        self.lines += [f"  {label:<{width}}  {value}" for label, value in pairs]


def answer_with(verb: Callable[[Answer], None], as_json: bool, spec: Path | None) -> None:
    """Run a verb and print its answer; every error of ours becomes words and an exit code."""
    answer = Answer()
    interruption.heed()
    try:
        if spec is not None:
            os.environ["UUID_PIPELINE_SPEC"] = str(absolute(spec))
        verb(answer)
    except PipelineError as error:
        answer.exit_code = error.exit_code
        answer.data["error"] = without_own_secrets(error.message)
    except DATABASE_ERRORS as error:
        told = _of_dagster(error) or explained(error)
        answer.exit_code = told.exit_code
        answer.data["error"] = without_own_secrets(told.message)
    except OSError as error:
        answer.exit_code = 2
        named = f" {error.filename}" if error.filename is not None else ""
        answer.data["error"] = without_own_secrets(
            f"This machine refused a file or directory:{named} ({error.strerror or error}). Mend that, or set "
            "UUID_PIPELINE_HOME to a directory that can be written and has room."
        )
    except KeyboardInterrupt:
        interrupted = InterruptedRunError()
        answer.exit_code, answer.data["error"] = interrupted.exit_code, interrupted.message
    except DagsterPostgresException:
        answer.exit_code = 2
        answer.data["error"] = (
            "Dagster's own database does not answer (UUID_PIPELINE_DAGSTER_URL, or the embedded one below "
            f"UUID_PIPELINE_HOME). {STANDS}"
        )
    except (typer.Exit, typer.Abort):
        raise
    except Exception:  # noqa: BLE001  (who reads our JSON gets it also when the fault is ours)
        answer.exit_code = 1
        sys.stderr.write(without_own_secrets(traceback.format_exc()))
        answer.data["error"] = f"This is a fault of uuid-pipeline's; what led to it stands above. {STANDS}"
    answer.data["exit_code"] = answer.exit_code
    _print(answer, as_json)
    raise typer.Exit(answer.exit_code)


def _of_dagster(error: Exception) -> PipelineError | None:
    """What Dagster's own database refused, known by Dagster's driver; None for the store's errors."""
    cause = getattr(error, "orig", None)
    if not type(cause).__module__.startswith("psycopg2"):
        return None
    return UsageError(
        f"Dagster's own database (UUID_PIPELINE_DAGSTER_URL, or the embedded one below UUID_PIPELINE_HOME) refused a "
        f"statement: {' '.join(str(cause).split())}. {STANDS}"
    )


def confirm(title: str, consequences: Sequence[str], yes: bool) -> None:
    """Ask before what cannot be undone, where there is somebody to ask: on a terminal.

    Raises UsageError when the answer is no.
    """
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    sys.stderr.write("\n".join([title, *[f"  {line}" for line in consequences], ""]))
    if not typer.confirm("Go on?", err=True):
        raise UsageError("Nothing was done.")


def json_of(data: Mapping[str, object]) -> str:
    """One line of JSON, in characters that stdout can write; it is read as UTF-8, whatever the locale."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return json.dumps(data, default=_jsonable, ensure_ascii=not is_utf8)


def _print(answer: Answer, as_json: bool) -> None:
    error = answer.data.get("error")
    text = json_of(answer.data) if as_json else "\n".join(answer.lines)
    try:
        sys.stdout.write(f"{text}\n" if text else "")
        sys.stdout.flush()
    except OSError as fault:
        # The work is done, and its exit code stands; Python would try to write the rest again, and exit with another.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(fault, BrokenPipeError):  # who reads no more (head) knows
            _tell(f"The answer could not be written to stdout: {fault.strerror or fault}.")
    if error:
        _tell(f"Error: {error}")


def _tell(line: str) -> None:
    # Where the terminal is gone nobody reads it, and the exit code stands.
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")


def _jsonable(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def show_table(title: str, records: list[dict[str, Any]]) -> list[str]:
    """A text table as lines, as wide as it needs."""
    table = Table(title=title, title_justify="left")
    for column in records[0] if records else []:
        table.add_column(str(column), overflow="fold")
    for record in records:
        # As text: a value in brackets is no markup.
        table.add_row(*[Text("" if value is None else str(value)) for value in record.values()])
    console = Console(width=140, file=None, record=True, quiet=False, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip().splitlines()
