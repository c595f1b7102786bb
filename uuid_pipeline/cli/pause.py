"""``uuid-pipeline pause``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def pause(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Let the running execution wait after its current batch, until it is resumed or cancelled."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.wish(session, answer, "pause")

    answer_with(verb, as_json, spec)
