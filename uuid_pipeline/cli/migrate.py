"""``uuid-pipeline migrate``"""

from typing import Annotated

import typer

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def migrate(
    wave: Annotated[
        str | None, typer.Option("--wave", help="One wave, by name or kind; default: all, in order.")
    ] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Carry out the approved plan, or one wave of it. Validate afterwards."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            execution = steps.open_execution(session, answer)
            if execution is None:
                return
            steps.migrate(session, answer, execution, wave)
            answer.say("", "Next: uuid-pipeline validate")

    answer_with(verb, as_json, spec)
