"""What a verb answers when it fails: one JSON object in any case, an exit code, and no password."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from dagster_postgres.utils import DagsterPostgresException

from uuid_pipeline.cli.output import Answer, answer_with, show_table
from uuid_pipeline.errors import PipelineError, RefusedError, UsageError

SECRET = "pl4nted-s3cret"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UsageError("no such file"), 2),
        (RefusedError("gates are open"), 1),
        (PipelineError("pg_dump failed"), 1),
        (PermissionError(13, "Permission denied", "/nowhere"), 2),
        (DagsterPostgresException("too many retries for DB connection"), 2),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_failure_is_one_json_object_with_an_error_and_an_exit_code(
    raised: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(answer: Answer) -> None:
        answer.data["found"] = 3
        raise raised

    with pytest.raises(typer.Exit) as ended:
        answer_with(verb, as_json=True, spec=None)

    assert ended.value.exit_code == code
    said = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == code
    assert said["found"] == 3
    assert said["error"]


def test_a_spec_below_a_directory_that_is_gone_is_one_json_object_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UUID_PIPELINE_SPEC", "set, so that it is as before after the test")
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()

    with pytest.raises(typer.Exit) as ended:
        answer_with(lambda _: None, as_json=True, spec=Path("spec.yaml"))

    assert ended.value.exit_code == 2
    assert "current directory is gone" in json.loads(capsys.readouterr().out)["error"]


def test_a_locale_that_lacks_a_character_of_the_answer_changes_no_exit_code_and_no_json() -> None:
    program = "from uuid_pipeline.cli.start import main; main()"
    command = [sys.executable, "-c", program, "verify-bundle", "--json", "für … Łódź"]
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}

    done = subprocess.run(command, capture_output=True, env=latin, check=False)

    assert done.returncode == 2, done.stderr
    assert "für … Łódź" in json.loads(done.stdout)["error"]
    assert "für \\u2026 \\u0141ód\\u017a".encode("latin-1") in done.stderr


def test_the_trace_of_a_fault_of_ours_goes_to_stderr_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://app:{SECRET}@store.example/db"
    monkeypatch.setenv("UUID_PIPELINE_DATABASE_URL", url)

    def verb(_: Answer) -> None:
        raise KeyError(url)

    with pytest.raises(typer.Exit):
        answer_with(verb, as_json=True, spec=None)

    said = capsys.readouterr()
    assert "KeyError" in said.err
    assert SECRET not in said.err + said.out
    assert "fault of uuid-pipeline" in json.loads(said.out)["error"]


def test_leaving_on_purpose_is_no_failure() -> None:
    def verb(_: Answer) -> None:
        raise typer.Exit(7)

    with pytest.raises(typer.Exit) as ended:
        answer_with(verb, as_json=False, spec=None)
    assert ended.value.exit_code == 7


def test_what_stands_in_brackets_is_shown_as_it_is() -> None:
    shown = "\n".join(show_table("Files", [{"title": "[draft] plan", "finding": "5 of 5 [from before]"}]))
    assert "[draft] plan" in shown
    assert "5 of 5 [from before]" in shown


CLOSED, FULL = 'exec "$@" >&-', 'exec "$@" > /dev/full'


@pytest.mark.parametrize(("redirection", "said"), [(CLOSED, ""), (FULL, "could not be written to stdout")])
def test_where_the_answer_cannot_be_written_the_exit_code_is_still_the_works_own(redirection: str, said: str) -> None:
    program = "from uuid_pipeline.cli.start import main; main()"
    command = [sys.executable, "-c", program, "verify-bundle", "--json", "no such file"]

    done = subprocess.run(["sh", "-c", redirection, "sh", *command], capture_output=True, text=True, check=False)

    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
