"""``uuid-pipeline finalize``"""

from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, confirm
from uuid_pipeline.cli.session import open_session
from uuid_pipeline.engine import finalizing
from uuid_pipeline.engine.installed import aliases


def finalize(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    despite: Annotated[bool, typer.Option("--despite-red-gates", help="Also where a gate found rows wrong.")] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Remove the aliases: after this, nothing can be rolled back. Refused while old ids are in use, or a gate red."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            with session.engine.begin() as connection:
                finalizing.require_closed(connection)
                if not despite:
                    finalizing.require_green(connection)
                lost = finalizing.consequences(connection)
                if lost and despite:
                    lost += finalizing.red_gates(connection)
                used = aliases.uses(connection)
            answer.data["consequences"] = lost
            answer.data["alias_uses"] = [
                {"entity": use.entity, "uses": use.uses, "last_used": use.last_used} for use in used
            ]
            if not lost:
                answer.data["message"] = "Nothing to finalize."
                answer.say(answer.data["message"])
                return
            confirm("Finalizing:", lost, yes)
            answer.say("Finalizing:", *[f"  {line}" for line in lost])
            outcome = session.run("finalize", finalize_executions={"despite_red_gates": despite})
            if outcome.error is not None:
                raise outcome.error
            answer.data["message"] = "Finalized: the aliases are gone. To remove the ledger: uuid-pipeline drop-ledger"
            answer.say(answer.data["message"])

    answer_with(verb, as_json, spec)
