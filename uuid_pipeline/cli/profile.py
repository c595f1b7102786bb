"""``uuid-pipeline profile``"""

from typing import Annotated, Any

import typer

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.cli.shown import show_constraints
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.operations.runs import Outcome
from uuid_pipeline.reports.constraints import entry_records

TryOnStoreOption = Annotated[
    bool,
    typer.Option(
        "--try-on-store",
        help="Try the usual migrations on a few of the store's own rows, in a transaction that is rolled back, "
        "instead of on a copy.",
    ),
]


def profile(try_on_store: TryOnStoreOption = False, as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Show what the store is made of: tables, references, triggers, traps; and why the usual migrations fail on it."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            outcome = session.run("profile", None, store_profile={"try_on_store": try_on_store})
            # No check ran where the profile itself was refused; a red one says what it found in the profile.
            if outcome.checks:
                _show(answer, _found(session, outcome))
            answer.section("Gates")
            steps.gates_of(answer, outcome)

    answer_with(verb, as_json, spec)


def _found(session: Session, outcome: Outcome) -> dict[str, Any]:
    """The profile that a run took, without what the spec hides."""
    with session.engine.begin() as connection:
        found = ledger.assessment_of_run(connection, outcome.run_id).profile
    if "natural_key" in redaction.hidden(session.store.spec):
        for entity in found["spec"]["entities"].values():
            entity["witnesses"] = [redaction.mark(witness) for witness in entity["witnesses"]]
    return found


def _show(answer: Answer, found: dict[str, Any]) -> None:
    answer.data["profile"] = found
    server = f"PostgreSQL {found['server_version']}, role {found['role']}"
    answer.say(f"{server}, tier {found['tier']}: {found['tier_reason']}")
    for title in ("tables", "references"):
        answer.say("", *show_table(title, found[title]))
    for title in ("silenced_triggers", "fired_triggers"):
        answer.say("", *show_table(title.replace("_", " "), _triggers(found[title])))
    show_constraints(answer, found["constraint_analysis"])
    answer.say("", *show_table("what each approach meets", entry_records(found["constraint_analysis"])))
    show_search(found["search"], answer)
    answer.say(*[f"Skipped, optional: {line}" for line in found["skipped"]])
    answer.say(*[f"Warning: {line}" for line in found["warnings"]])


def _triggers(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = ("trigger", "table", "events", "does", "spec")
    return [{column: trigger[column] for column in columns} for trigger in described]


def show_search(searched: dict[str, Any], answer: Answer) -> None:
    """What was found without a foreign key, what was left out, and what it cost."""
    shown = ("name", "entity", "form", "rows", "exact", "status", "reason")
    records = [
        {column: ".".join([f["table"], f["column"], *f["path"]]) if column == "name" else f[column] for column in shown}
        for f in searched["found"]
    ]
    answer.say("", *show_table("references found by searching", records))
    answer.say("", *show_table("derived values (left as they are)", searched["derived"]))
    answer.say(
        "",
        f"Searched {searched['columns']} columns, {searched['rows']:,} rows, {searched['bytes'] / 1e6:.1f} MB "
        f"in {searched['seconds']} s",
    )
    for label in ("sampled_only", "not_searched", "notes"):
        answer.say(*[f"  {label.replace('_', ' ')}: {line}" for line in searched[label]])
