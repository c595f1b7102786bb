"""``uuid-pipeline cancel``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def cancel(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """End the open execution after its current batch; what moved stays, and can be rolled back."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.wish(session, answer, "cancel")

    answer_with(verb, as_json, spec)
