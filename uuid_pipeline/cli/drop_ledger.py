"""``uuid-pipeline drop-ledger``"""

from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, confirm
from uuid_pipeline.cli.session import open_configured_store
from uuid_pipeline.engine import finalizing
from uuid_pipeline.settings import read_settings

LOST = (
    "the id maps go: nothing then tells which old id became which new one (uuid-pipeline export keeps a copy)",
    "the archives of merged rows go with all that is in them",
    "journal, gates, fingerprints and audit go: nothing then proves what was done",
)


def drop_ledger(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Remove our schema from the store, with maps, archives and journal. Refused before finalize."""

    def verb(answer: Answer) -> None:
        engine = open_configured_store(read_settings())
        try:
            confirm("Dropping the ledger:", LOST, yes)
            answer.say("Dropping the ledger:", *[f"  {line}" for line in LOST])
            dropped = finalizing.drop_ledger(engine, "drop-ledger")
        finally:
            engine.dispose()
        answer.data["consequences"] = list(LOST) if dropped else []
        gone = "The ledger is gone" if dropped else "Nothing to drop: this store has no ledger"
        answer.data["message"] = f"{gone}; the store holds nothing of uuid-pipeline."
        answer.say(answer.data["message"])

    answer_with(verb, as_json, spec)
