"""What the verbs show of the inventory, the plan and its clusters: in words, and in the answer's data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from uuid_pipeline.cli.output import Answer, show_table
from uuid_pipeline.cli.session import Session
from uuid_pipeline.engine import inventory, ledger, planning
from uuid_pipeline.engine.evidence.look_alikes import LookAlikes
from uuid_pipeline.operations.runs import Outcome
from uuid_pipeline.reports.tables import counts, inventory_lines, plan_lines

SHOWN_CLUSTERS = 20


def show_inventory(session: Session, answer: Answer, outcome: Outcome) -> None:
    """The figures of the inventory that a run took."""
    with session.engine.begin() as connection:
        assessment = ledger.assessment_of_run(connection, outcome.run_id)
        summary = inventory.summarize(connection, session.store, assessment)
        aside = inventory.quarantined(connection, session.store, assessment.assessment_no)
        of_aside = inventory.quarantined_counts(connection, session.store, assessment.assessment_no)
        classes = inventory.id_classes(connection, session.store, assessment.assessment_no)
    roots = [root.name for root in session.store.roots]
    answer.data["inventory"] = {
        **asdict(summary), "consistency": summary.consistency,
        # What each row has is counted of every kind of document; who has it, and what is below it, of the main one.
        "documents": sum(sum(classes[root].values()) for root in roots),
        **{name: sum(classes[root].get(name, 0) for root in roots) for name in ("deterministic", "random", "stray")},
        "quarantined": sum(of_aside.get(root, 0) for root in roots),
    }  # fmt: skip
    answer.data["id_classes"] = classes
    answer.data["quarantined"] = aside
    answer.data["quarantined_found"] = of_aside
    answer.section("Inventory")
    answer.pairs(inventory_lines(summary))
    for entity, by_class in classes.items():
        if entity != session.store.main.name:
            answer.pairs([(f"{entity} ids", ", ".join(f"{n} {name}" for name, n in by_class.items()) or "none")])
    for row in aside:
        answer.say(f"  quarantined {row['entity']} {row['id']}: {row['reason']}")
    listed = Counter(row["entity"] for row in aside)
    for entity, count in of_aside.items():
        if count > listed[entity]:
            answer.say(f"  and {count - listed[entity]} more rows of {entity} are quarantined")


def show_constraints(answer: Answer, analysis: dict[str, Any]) -> None:
    """Why the usual migrations fail here, with the verdict: at the top of the answer's data, and in words."""
    answer.data["constraint_analysis"] = analysis["constraint_analysis"]
    answer.data["verdict"] = analysis["verdict"]
    answer.data["approaches"] = analysis["approaches"]
    answer.section("Why the usual migrations fail here")
    answer.say(f"  {analysis['verdict']}.")
    answer.pairs([(f"{a['entity']}, {a['approach']}", a["finding"]) for a in analysis["approaches"]])
    answer.say(f"  ({'tried on ' + analysis['where'] + '; ' if analysis['where'] else ''}{analysis['note']})")


def show_plan(answer: Answer, plan: planning.Plan) -> None:
    """A plan for people and programs."""
    shown = (
        "tier", "tier_reason", "approach", "risks", "silenced_triggers", "fired_triggers", "sweep_passes", "backup",
        "unreadable_signals", "witnesses", "batch_rows", "estimate", "risk_register", "covers", "left",
    )  # fmt: skip
    answer.data["plan_id"] = plan.plan_id
    answer.data["plan"] = {"moves": plan.moves, "merges": plan.merges} | {name: plan.content[name] for name in shown}
    answer.data["plan"]["waves"] = [asdict(wave) for wave in plan.waves]
    answer.section("Plan")
    answer.pairs(plan_lines(plan))


def show_clusters(
    session: Session, answer: Answer, clusters: list[dict[str, Any]], of_clusters: Mapping[str, int]
) -> None:
    """Which rows share a natural key, and which of them stays; of rows below documents only how many.

    ``of_clusters``: how many there are, by entity; ``clusters`` are the first of them.
    """
    answer.data["plan"] |= {"clusters": clusters, "clusters_found": dict(of_clusters)}
    roots = {root.name for root in session.store.roots}
    decided = [cluster for cluster in clusters if cluster["entity"] in roots]
    if decided:
        shown = [
            {
                "entity": c["entity"],
                "kind": c["kind"],
                "survivor": c["survivor"],
                "by rule": c["survivor_rule"],
                "merged into it": "\n".join(c["ids"][1:]),
                "archives": counts(c.get("archives", {})),
            }
            for c in decided[:SHOWN_CLUSTERS]
        ]
        count = sum(n for entity, n in of_clusters.items() if entity in roots)
        more = f", the first {SHOWN_CLUSTERS} of {count}" if count > SHOWN_CLUSTERS else ""
        answer.say("", *show_table(f"Clusters{more}", shown))
    for entity in sorted(of_clusters.keys() - roots):
        said = "which row stays is decided when their documents are merged"
        answer.say(f"  {of_clusters[entity]} clusters of {entity}: {said}")


def show_look_alikes(answer: Answer, found: Sequence[LookAlikes]) -> None:
    """Documents that are no cluster and yet look the same to a person; nothing is done with them."""
    answer.data["plan"]["look_alikes"] = [asdict(kind) for kind in found]
    for kind in found:
        if kind.groups:
            answer.say(f"  {kind.kind}: {kind.rows} documents in {kind.groups} groups; for information, left alone")
