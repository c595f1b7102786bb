"""``uuid-pipeline retention``"""

from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import open_session
from uuid_pipeline.engine.privacy import retention as keeping
from uuid_pipeline.reports.tables import megabytes


def retention(
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; without this, only say what is due.")] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Remove what the spec keeps no longer: maps, archives, history, dumps, reports. Never what a rollback needs."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            kept = session.store.spec.retention
            with session.engine.begin() as connection:
                found = keeping.due(connection, kept, session.settings.home)
            answer.data["due"] = [vars(one) for one in found]
            answer.data["applied"] = apply
            records = [
                {"kind": one.kind, "name": one.name, "since": f"{one.since:%Y-%m-%d}", "rows": one.rows,
                 "size": megabytes(one.bytes)} for one in found
            ]  # fmt: skip
            if apply and found:
                outcome = session.run("retention", keep_for_so_long={"apply": True})
                if outcome.error is not None:
                    raise outcome.error
        limits = ", ".join(f"{name.removesuffix('_days')} {days} days" for name, days in kept if days is not None)
        said = f"{'Removed' if apply else 'Due'}: {len(found)} (kept: {limits or 'all, the spec gives no days'})"
        answer.data["message"] = said
        answer.say(said, *(show_table("", records) if records else []))
        if found and not apply:
            answer.say("Nothing was removed. To remove it: uuid-pipeline retention --apply")

    answer_with(verb, as_json, spec)
