"""A request to end reaches the verb wherever it comes: exit code 130, and soon."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster._utils.interrupts import capture_interrupts

from uuid_pipeline.cli import interruption
from uuid_pipeline.cli.output import Answer

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
# As a shell without job control starts a command with "&".
IN_THE_BACKGROUND = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")


class Destroyed:
    """Asks its process to end from a destructor, and is there still when the handler raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


class Faulty:
    def __del__(self) -> None:
        raise ValueError("a fault, and no request")


@pytest.fixture(autouse=True)
def hangups_end_us() -> Iterator[None]:
    """Whatever started the tests: under nohup every process that they start would inherit that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def work(_: Answer) -> None:
    sys.stdout.write("at work\n")
    sys.stdout.flush()
    time.sleep(2 * SECONDS)


def asked_in_a_destructor(answer: Answer) -> None:
    Destroyed()
    work(answer)


def asked_where_dagster_notes_it_and_forgets(answer: Answer) -> None:
    with capture_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    interruption.raise_if_asked()
    work(answer)


def a_fault_in_a_destructor(_: Answer) -> None:
    Faulty()
    interruption.raise_if_asked()


def verb(name: str, *before: str) -> "subprocess.Popen[str]":
    """A process that is this verb, started by the command ``before`` it."""
    lines = [
        "import typer",
        "from uuid_pipeline.cli.output import answer_with",
        f"from {__name__} import {name}",
        "try:",
        f"    answer_with({name}, as_json=False, spec=None)",
        "except typer.Exit as ended:",
        "    raise SystemExit(ended.exit_code)",
    ]
    command = [*before, sys.executable, "-c", "\n".join(lines)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def code_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize("moment", ["asked_in_a_destructor", "asked_where_dagster_notes_it_and_forgets"])
def test_a_request_that_would_be_lost_ends_the_verb_all_the_same(moment: str) -> None:
    code, err = code_of(verb(moment))

    assert code == 130, err
    assert "Interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_verb_in_a_shells_background_can_be_asked_to_end_too(asked: signal.Signals) -> None:
    process = verb("work", *IN_THE_BACKGROUND)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    began = time.monotonic()
    process.send_signal(asked)

    code, err = code_of(process)

    assert code == 130, err
    assert time.monotonic() - began < SECONDS / 2


def test_a_verb_started_by_nohup_outlives_the_terminal() -> None:
    process = verb("work", "sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)

    code, err = code_of(process)

    assert code == 130, err


def test_another_fault_in_a_destructor_is_shown_and_ends_nothing() -> None:
    code, err = code_of(verb("a_fault_in_a_destructor"))

    assert code == 0
    assert "a fault, and no request" in err


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_that_comes_while_the_verbs_are_still_loaded_is_answered_as_any(asked: signal.Signals) -> None:
    program = "import os, signal, sys; from uuid_pipeline.cli import start; "
    # Typer is among what is loaded; whoever asks for it now has the signal come in the middle.
    program += "sys.meta_path.insert(0, type('Asks', (), {'find_spec': staticmethod(lambda name, *_: "
    program += f"os.kill(os.getpid(), {int(asked)}) if name == 'typer' else None)}})); start.main()"
    command = [sys.executable, "-c", program, "status", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)

    assert done.returncode == 130
    assert json.loads(done.stdout) == {"error": "Interrupted before anything was begun.", "exit_code": 130}
    assert done.stderr == "Error: Interrupted before anything was begun.\n"


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_after_the_answer_leaves_the_exit_code_that_the_answer_says(
    asked: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from uuid_pipeline.cli import start; start.main()", "status", "--json"]
    environment = {**os.environ, "UUID_PIPELINE_HOME": str(tmp_path / "none")}
    environment.pop("UUID_PIPELINE_DATABASE_URL", None)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        time.sleep(0.02)  # from the line to the end of the verb
        while process.poll() is None:
            process.send_signal(asked)
            time.sleep(0.005)

        assert process.returncode == answer["exit_code"] == 2
