"""``uuid-pipeline rollback``"""

from typing import Annotated

import typer

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session_to_undo
from uuid_pipeline.errors import UsageError


def rollback(
    everything: Annotated[bool, typer.Option("--all", help="Every wave of every execution, newest first.")] = False,
    wave: Annotated[str | None, typer.Option("--wave", help="One wave, by name or kind.")] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Give moved rows their old ids again."""

    def verb(answer: Answer) -> None:
        if everything == (wave is not None):
            raise UsageError("Say what to roll back: either --all, or --wave NAME.")
        with open_session_to_undo() as session:
            steps.finish_rollback(session, answer)
            steps.roll_back(session, answer, wave)

    answer_with(verb, as_json, spec)
