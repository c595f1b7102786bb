"""``uuid-pipeline resume``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def resume(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Let a paused execution go on."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.wish(session, answer, "resume")

    answer_with(verb, as_json, spec)
