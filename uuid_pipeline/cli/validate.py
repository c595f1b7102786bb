"""``uuid-pipeline validate``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def validate(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Compare the whole store with its state before the migration."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.validate(session, answer)

    answer_with(verb, as_json, spec)
