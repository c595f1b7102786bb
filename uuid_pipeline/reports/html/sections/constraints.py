"""Why the usual migrations fail on this store: each approach, tried, with what refuses it."""

from sqlalchemy import Connection

from uuid_pipeline.engine.evidence import kept_evidence
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.constraints import collision
from uuid_pipeline.reports.html.blocks import Badge, Banner, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject

SHOWN = 40


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    found = kept_evidence.of_profile(connection, subject.plan.assessment_no, "constraint_analysis")
    if found is None:
        return None
    approaches: tuple[tuple[Cell, ...], ...] = tuple(
        (a["approach"], a["entity"], Badge("bad", "Fails") if a["fails_for"] else Badge("good", "Passes"),
         f"{a['fails_for']:,} of {a['of']:,}" + ("" if a["exact"] else " looked at"), a["finding"])
        for a in found["approaches"]
    )  # fmt: skip
    met = [entry for entry in found["constraint_analysis"] if entry["outcome"] != "passes"]
    entries: tuple[tuple[Cell, ...], ...] = tuple(
        (e["approach"], f"{e['entity']}: {e['kind']} {e['object']} on {e['table']}",
         " ".join(part for part in (e["outcome"], e["sqlstate"]) if part), e["documents"], collision(e), e["message"])
        for e in met[:SHOWN]
    )  # fmt: skip
    more = f"the first {SHOWN} of {len(met)}" if len(met) > SHOWN else ""
    how = f"tried on {found['where']}; {found['note']}" if found["tried"] else found["note"]
    blocks = (
        Banner(Badge("plain", "Verdict"), found["verdict"][:1].upper() + found["verdict"][1:], f"How: {how}."),
        Table("Approaches", ("Approach", "Entity", "Result", "Fails for", "Finding"), approaches),
        Table("Constraints and triggers that do not simply let it pass",
              ("Approach", "Entity and obstacle", "Outcome", "Rows", "Collides with", "Message"), entries, more),
    )  # fmt: skip
    lead = "The known ways to change these ids, each against every constraint and trigger of the store."
    data = {name: found[name] for name in ("verdict", "approaches", "tried")}
    return Section("constraints", "Constraint analysis", lead, blocks, data=data)
