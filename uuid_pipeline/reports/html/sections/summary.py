"""The executive summary: the verdicts, and the figures before and now."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Banner, Comparison, Section, Text, Tiles, Tone
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import READY, in_unit, plural

_STATES: dict[str, tuple[Badge, str]] = {
    "approved": (Badge("open", "Approved"), "The plan is approved; nothing has moved yet."),
    "running": (Badge("open", "Under way"), "The migration is under way."),
    "completed": (Badge("good", "Complete"), "The migration is complete."),
    "finalized": (Badge("good", "Finalized"), "The migration is complete and finalized."),
    "superseded": (Badge("open", "Superseded"), "A newer plan took this one's place."),
    "cancelled": (Badge("open", "Cancelled"), "The migration was cancelled between two batches."),
    "rolling_back": (Badge("open", "Rolling back"), "A rollback has begun and must finish."),
    "rolled_back": (Badge("open", "Rolled back"), "The migration was rolled back: old ids again."),
    "partly_rolled_back": (Badge("open", "Partly rolled back"), "Some waves were rolled back."),
}


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    tiles = figures(subject)
    blocks = (_state(subject), _readiness(subject), Tiles(tiles), Text(_words(subject)))
    return Section(
        "summary", "Executive summary", _lead(store, subject), blocks,
        data={tile.name: {"before": tile.before, "now": tile.now, "unit": tile.unit} for tile in tiles}
        | {"readiness": {verdict: subject.readiness.count(verdict) for verdict in READY}},
    )  # fmt: skip


def _lead(store: Store, subject: Subject) -> str:
    count = subject.evidence.now.documents
    table = f"{store.main.table.schema}.{store.main.table.name}"
    return f"{plural(count, 'document')} in {table}: their ids before and now, what was proven, and what is still open."


def _state(subject: Subject) -> Banner:
    if subject.execution is not None:
        standing = subject.evidence.standing or subject.execution.status
        ended = subject.execution.status == "finalized"
        badge, headline = _STATES["finalized" if ended and standing == "completed" else standing]
        return Banner(badge, f"{headline} It is finalized." if ended and badge.tone != "good" else headline,
                      _moved(subject))  # fmt: skip
    if subject.plan.nothing_to_do:
        return Banner(Badge("good", "Nothing to do"), "Every id that can be derived is as it should be.")
    return Banner(
        Badge("open", "Waits for approval"), "A plan is made; nothing has moved.",
        f"To approve it: {subject.plan.approve_command}",
    )  # fmt: skip


def _moved(subject: Subject) -> str:
    moved = sum(found["moved"] for _, found in subject.evidence.waves)
    merged = sum(found.get("merged", 0) for _, found in subject.evidence.waves)
    if subject.evidence.standing == "rolled_back":
        return "Every row is under the id that it had before."
    aside = {name for _, found in subject.evidence.waves for name in found} - {"planned", "moved", "merged"}
    left = sum(found.get(name, 0) for _, found in subject.evidence.waves for name in aside)
    said = f"{plural(moved, 'document')} moved to the target id"
    said += f", {merged:,} merged into a survivor" if merged else ""
    return f"{said}, {left:,} set aside." if left else f"{said}, none left out."


def _readiness(subject: Subject) -> Banner:
    readiness = subject.readiness
    headline = {
        "ready": "Ready for production.",
        "not ready": "Not ready for production.",
        "not measured": "Not yet shown to be ready for production.",
    }[readiness.verdict]
    counted = ", ".join(f"{readiness.count(v)} {v}" for v in READY if readiness.count(v))
    opened = plural(len(readiness.open), "item")
    return Banner(
        READY[readiness.verdict], headline,
        f"Criteria: {counted}. " + (f"{opened} for somebody to do." if readiness.open else "Nothing is left to do."),
    )  # fmt: skip


def _tone(passed: bool | None) -> Tone:
    return "plain" if passed is None else "good" if passed else "bad"


def figures(subject: Subject) -> tuple[Comparison, ...]:
    """The summary's figures; before is the plan's inventory, now is counted as the report is made."""
    was, now, evidence = subject.before, subject.evidence.now, subject.evidence
    share = (now.due / now.documents) if now.documents else None
    due = was["documents"] - was["deterministic"] if was else None
    before, after = evidence.lookups_before, evidence.lookups_after
    merged = sum(found.get("merged", 0) for _, found in evidence.waves)
    tiles = [
        Comparison("documents", "Documents", was.get("documents"), now.documents,
                   note=f"{merged:,} merged into their twins" if merged else ""),
        Comparison("deterministic", "Under their target id", was.get("deterministic"), now.deterministic,
                   tone=_tone(now.deterministic == now.documents if now.documents else None)),
        Comparison("mismatch", "Id mismatch", due / was["documents"] if was.get("documents") and due is not None
                   else None, share, "share", _tone(None if share is None else share <= 0.01)),
        Comparison("affected_users", "Users affected", was.get("affected_users"), now.affected_users,
                   tone=_tone(None if now.affected_users is None else now.affected_users == 0)),
        Comparison("high_impact_users", "High-impact users", was.get("high_impact_users"), now.high_impact_users,
                   tone=_tone(None if now.high_impact_users is None else now.high_impact_users == 0)),
        Comparison("found_by_target", "Found by the target id", before.found_by_target if before else None,
                   after.found_by_target, tone=_tone(after.found_by_target == after.sampled if after.sampled else None),
                   note=f"of {after.sampled} documents looked up"),
        Comparison("orphans", "Orphaned rows", was.get("orphans"), sum(now.orphans.values()),
                   tone=_tone(not sum(now.orphans.values()))),
        Comparison("consistency", "Documents with chunks", was.get("consistency"), now.consistency, "share",
                   _tone(None) if now.consistency is None else "good" if now.consistency >= 0.8 else "open"),
    ]  # fmt: skip
    asked = evidence.kept.retrieval.get("after")
    if asked is not None:
        first = evidence.kept.retrieval.get("before")
        tiles.append(Comparison("retrievable", "Retrievable, as their owners ask", first["found"] if first else None,
                                asked["found"], note=f"of {asked['measured']:,} documents asked for"))  # fmt: skip
    return tuple(tiles)


def _words(subject: Subject) -> str:
    """The case in a few sentences, for those who read nothing else."""
    was, now = subject.before, subject.evidence.now
    if not was:
        return "The figures of the state before are no longer in the ledger; those of now were counted for this report."
    due = was["documents"] - was["deterministic"]
    users = "" if was["affected_users"] is None else f" of {plural(was['affected_users'], 'user')}"
    size = "" if was["bytes"] is None else f" ({in_unit(was['bytes'], 'bytes')})"
    before = "Before the migration" if subject.execution else "When the plan was made"
    said = f"{before}, {due:,} of {plural(was['documents'], 'document')}{users}{size} stood under an id that workers "
    said += "and retrieval do not compute, so that neither found them. "
    said += f"Now {now.deterministic:,} of {now.documents:,} stand under the id that their own natural key gives, each "
    said += "recomputed from its row for this report. "
    if now.with_children is not None and now.with_children < now.documents:
        left = now.documents - now.with_children
        said += f"{plural(left, 'document')} have no chunks: no change of ids makes these retrievable. "
    return said.strip()
