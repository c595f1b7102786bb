"""``uuid-pipeline backup``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def backup(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Take a backup of what is touched, restore it into a scratch database, and compare."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.take_backup(session, answer)

    answer_with(verb, as_json, spec)
