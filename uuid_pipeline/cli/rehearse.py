"""``uuid-pipeline rehearse``"""

from typing import Annotated

import typer

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def rehearse(
    users: Annotated[
        int | None,
        typer.Option("--users", min=1, help="On the documents of so many users only; default: the spec's, else all."),
    ] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Migrate a restored copy of the store and roll it back, with every gate, and compare every row."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.rehearse(session, answer, users)

    answer_with(verb, as_json, spec)
