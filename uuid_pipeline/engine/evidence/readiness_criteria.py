"""The criteria of production readiness: one function each, over evidence that was read once."""

from uuid_pipeline.engine import gates
from uuid_pipeline.engine.evidence import lookups
from uuid_pipeline.engine.evidence.lookups import Timing
from uuid_pipeline.engine.evidence.readiness import Action, Criterion, Evidence, Judge, Readiness
from uuid_pipeline.engine.evidence.readiness_safety import (
    APPLICATION,
    OPERATOR,
    backup,
    monitoring,
    rehearsal,
    retrieval,
    verdict_of,
)
from uuid_pipeline.engine.gates import GateResult

# The report's own limits.
MISMATCH_LIMIT = 0.01
CONSISTENCY_LIMIT = 0.80
GENERATION_LIMIT = 0.95

DATA = "owner of the data"


def evaluate(evidence: Evidence) -> Readiness:
    """Every criterion, in the order of the page."""
    return Readiness(tuple(judge(evidence) for judge in CRITERIA))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def next_command(evidence: Evidence) -> str:
    """What brings the migration on from where it is."""
    execution = evidence.execution
    if execution is None:
        return "" if evidence.plan.nothing_to_do else evidence.plan.approve_command
    if execution.status in ("approved", "running", "rolling_back"):
        return "uuid-pipeline run"
    return "" if evidence.completed else "uuid-pipeline plan"


def data_migration(evidence: Evidence) -> Criterion:
    moved = sum(found["moved"] + found.get("merged", 0) for _, found in evidence.waves)
    planned = sum(wave.documents for wave in evidence.plan.waves)
    planned += sum(wave.documents for wave, _ in evidence.waves if wave.kind == "sweep")
    nothing = evidence.execution is None and evidence.plan.nothing_to_do
    state = evidence.execution.status.replace("_", " ") if evidence.execution else "not approved"
    figure = f"{moved} of {planned} planned documents moved or merged ({_share(moved, planned)}); execution {state}"
    done = nothing or evidence.completed
    command = next_command(evidence)
    return Criterion(
        "data_migration", "Data migration",
        "batch journal and rows set aside, against the approved plan",
        "nothing to move" if nothing else figure, verdict_of(done),
        None if done else Action(OPERATOR, "carry the plan out to its end", command),
    )  # fmt: skip


def id_consistency(evidence: Evidence) -> Criterion:
    now = evidence.now.every_root
    passed = None if not now.documents else now.due <= MISMATCH_LIMIT * now.documents
    figure = f"{now.deterministic} of {now.documents} ids equal their recomputed target id; mismatch "
    figure += f"{_share(now.due, now.documents)} (limit {100 * MISMATCH_LIMIT:g} %), {now.quarantined} quarantined"
    action = None
    if now.due and (passed is False or evidence.completed):
        what = f"{now.due:,} documents are not under their target id"
        what += f", {now.quarantined:,} of them quarantined: mend their natural keys" if now.quarantined else ""
        who = DATA if now.quarantined == now.due else OPERATOR
        action = Action(who, what, next_command(evidence) or "uuid-pipeline plan")
    return Criterion(
        "id_consistency", "System validation: id consistency",
        "every document's id recomputed from its own row, now",
        figure if now.documents else "the store holds no documents", verdict_of(passed), action,
    )  # fmt: skip


def lookup_by_target(evidence: Evidence) -> Criterion:
    after = evidence.lookups_after
    passed = after.found_by_target == after.sampled if after.sampled else None
    was = evidence.lookups_before
    before = f"{was.found_by_target} of {was.sampled} before; " if was else ""
    listed = after.with_children_by_target
    chunks = "" if listed is None else f", {listed} of them with chunks"
    return Criterion(
        "lookup_by_target", "System restoration: look-ups find the documents",
        "a sample of documents looked up by the target id, as workers and retrieval do",
        f"{before}{after.found_by_target} of {after.sampled} found now{chunks}", verdict_of(passed),
        None if passed is not False else Action(OPERATOR, "finish the migration", next_command(evidence)),
    )  # fmt: skip


def user_impact(evidence: Evidence) -> Criterion:
    now = evidence.now.affected_users
    before = (evidence.before or {}).get("summary", {}).get("affected_users")
    figure = "the spec names no owner" if now is None else f"{now} users affected now"
    if before is not None and now is not None:
        figure = f"{before} users affected before, {now} now"
    passed = None if now is None else now == 0
    action = None
    if passed is False:
        action = _for_affected_users(evidence)
    return Criterion(
        "user_impact", "User impact", "owners with a document that is not under its target id, now",
        figure, verdict_of(passed), action, binds=now is not None,
    )  # fmt: skip


def _for_affected_users(evidence: Evidence) -> Action:
    now = evidence.now.every_root
    if now.due and now.quarantined >= now.due:
        what = f"mend the natural keys of {now.quarantined:,} quarantined documents"
        return Action(DATA, what, "uuid-pipeline inventory")
    command = next_command(evidence) or "uuid-pipeline plan"
    return Action(OPERATOR, "bring their documents under their target ids", command)


def references_whole(evidence: Evidence) -> Criterion:
    orphans = {name: count for name, count in evidence.now.orphans.items() if count}
    said = ", ".join(f"{name} {count}" for name, count in orphans.items())
    figure = f"{sum(orphans.values())} orphans in {len(evidence.now.orphans)} references"
    return Criterion(
        "orphans", "Data integrity: no orphans", "each reference joined with its table, now",
        f"{figure}: {said}" if said else figure, verdict_of(not orphans),
        Action(DATA, "give these rows their document back, or delete them") if orphans else None,
    )  # fmt: skip


def _of_gates(found: list[GateResult | None]) -> bool | None:
    results = [result for result in found if result is not None]
    if any(not result.passed for result in results):
        return False
    return True if len(results) == len(found) else None


def conservation(evidence: Evidence) -> Criterion:
    found = evidence.gate(gates.VALIDATION_STAGE, "whole_conservation")
    passed = _of_gates([found])
    return Criterion(
        "conservation", "Data integrity: nothing lost", "every moved table's rows and digest, ids read back by the map",
        _conserved(found), verdict_of(passed), _validate(evidence, passed),
    )  # fmt: skip


def _conserved(found: GateResult | None) -> str:
    if found is None:
        return "not compared yet"
    rows, differing = found.figures.get("rows", 0), found.figures.get("differing_tables", 0)
    return f"{rows:,.0f} rows compared with the state before; {differing:.0f} tables differ without a reason"


def _validate(evidence: Evidence, passed: bool | None) -> Action | None:
    if passed:
        return None
    if passed is None and (evidence.execution is None or evidence.execution.status in ("approved", "running")):
        return Action(OPERATOR, "validate after the last wave", "uuid-pipeline run")
    return Action(OPERATOR, "look at the finding; roll back if it stays", "uuid-pipeline rollback --all")


def determinism(evidence: Evidence) -> Criterion:
    planned = evidence.gate("id_mapping", "recomputed_independently")
    ended = evidence.gate(gates.VALIDATION_STAGE, "whole_ids_exact")
    witnessed = evidence.gate("id_mapping", "witnesses_agree")
    passed = _of_gates([planned, ended, witnessed])
    findings = "; ".join(result.finding for result in (witnessed, planned, ended) if result is not None)
    certificate = evidence.kept.certificate
    if certificate is not None:
        passed = passed and bool(certificate["implementations_agree"])
        rows = sum(one["rows"] for one in certificate["entities"].values())
        agree = "agree" if certificate["implementations_agree"] else "DO NOT AGREE"
        findings += f"; certificate {certificate['digest'][:12]}: both implementations {agree} on {rows:,} rows"
    return Criterion(
        "determinism", "Determinism of the ids",
        "each id by two implementations that share no code, against the application's own witnesses",
        findings or "not recomputed yet", verdict_of(passed), _validate(evidence, passed),
    )  # fmt: skip


def schema_as_before(evidence: Evidence) -> Criterion:
    schema = evidence.gate(gates.VALIDATION_STAGE, "whole_schema_unchanged")
    dates = evidence.gate(gates.VALIDATION_STAGE, "timestamps_untouched")
    passed = _of_gates([schema, dates]) if not evidence.altered else False
    findings = "; ".join(result.finding for result in (schema, dates) if result is not None)
    left = f"not put back: {', '.join(evidence.altered)}" if evidence.altered else ""
    return Criterion(
        "schema", "Schema and dates as before", "definitions, grants and every date column, before and now",
        "; ".join(filter(None, [findings, left])) or "not compared yet", verdict_of(passed),
        Action(OPERATOR, "the next run puts it back", "uuid-pipeline run")
        if evidence.altered else _validate(evidence, passed),
    )  # fmt: skip


def all_gates(evidence: Evidence) -> Criterion:
    count = len(evidence.open_gates)
    return Criterion(
        "gates", "Every gate of every stage", "the ledger's newest result of each gate, of this very attempt",
        "all passed" if not count else f"{count} not passed or not evaluated: {evidence.open_gates[0]}",
        verdict_of(not count),
        Action(OPERATOR, "go on with the stages", next_command(evidence)) if count else None,
    )  # fmt: skip


def new_documents(evidence: Evidence) -> Criterion:
    now = evidence.now
    passed = (now.new_deterministic or 0) >= GENERATION_LIMIT * now.new if now.new else None
    figure = "no document was created since the approval"
    if now.new:
        figure = f"{now.new_deterministic} of {now.new} documents created since the approval are deterministic"
    if now.new is None:
        figure = "the spec names no creation date" if evidence.execution else "nothing is approved yet"
    return Criterion(
        "new_documents", "Generation of new documents", "ids of the documents created since the approval, recomputed",
        figure, verdict_of(passed), None if passed else _towards_new_documents(evidence),
        binds=passed is False,
    )  # fmt: skip


def _towards_new_documents(evidence: Evidence) -> Action:
    """What to do while no new document shows how ids are made now, or those that there are have random ones."""
    if evidence.now.new:
        what = f"mend what makes ids for new documents (limit: {100 * GENERATION_LIMIT:g} % deterministic)"
        return Action(APPLICATION, what, "uuid-pipeline guard")
    if evidence.now.new is None and evidence.execution:
        what = "`describe.created_at` in the spec tells new documents from old ones: name the column"
        return Action(APPLICATION, what, "uuid-pipeline plan")
    return Action(APPLICATION, "upload one document through the application, then look again", "uuid-pipeline report")


def pipeline_consistency(evidence: Evidence) -> Criterion:
    now = evidence.now
    share = now.consistency
    passed = None if share is None else share >= CONSISTENCY_LIMIT
    without = now.documents - (now.with_children or 0)
    figure = "the spec has no entity below documents" if now.with_children is None else "no documents"
    if share is not None:
        figure = f"{now.with_children} of {now.documents} documents have chunks: {100 * share:.1f} %"
        figure += f" (limit {100 * CONSISTENCY_LIMIT:g} %)"
    action = None
    if without and share is not None:
        action = Action(APPLICATION, f"{without:,} documents have no chunks; no change of ids makes them retrievable: "
                        "process them again, or delete them", "uuid-pipeline regenerate")  # fmt: skip
    return Criterion(
        "pipeline_consistency", "Pipeline consistency", "documents with at least one chunk, counted now",
        figure, verdict_of(passed), action, binds=False,
    )  # fmt: skip


def performance(evidence: Evidence) -> Criterion:
    before, after = evidence.lookups_before, evidence.lookups_after
    known = before is not None and evidence.completed and after.sampled > 0
    slower = [
        lookups.degraded(then, now, (before.round_trip, after.round_trip))
        for then, now in ((before.by_key, after.by_key), (before.children, after.children))
        if then is not None or now is not None
    ] if before is not None and known else []  # fmt: skip
    passed = None if not known or None in slower else not any(slower)
    figure = "not measured before and after yet"
    if before is not None and known:
        figure = f"look-up by id, median {_ms(before.by_key)} before, {_ms(after.by_key)} now; "
        figure += f"chunks of a document {_ms(before.children)} before, {_ms(after.children)} now; "
        figure += f"a round trip that reads nothing {_ms(before.round_trip)} and {_ms(after.round_trip)}"
    return Criterion(
        "performance", "Performance", f"{after.sampled} documents looked up from here, before and now; limit "
        f"{100 * lookups.DEGRADED:g} % slower and more than {lookups.NOISE_MS:g} ms, beyond what slows any round trip",
        figure, verdict_of(passed),
        Action(OPERATOR, "look at the indexes and statistics of the moved tables") if passed is False else None,
        binds=passed is False,
    )  # fmt: skip


def _ms(timing: Timing | None) -> str:
    return "unknown" if timing is None else f"{timing.median:.2f} ms"


def old_ids(evidence: Evidence) -> Criterion:
    uses = sum(use.uses for use in evidence.alias_uses)
    last = max((use.last_used for use in evidence.alias_uses if use.last_used), default=None)
    figure = f"{uses} old ids translated" + (f", the last at {last:%Y-%m-%d %H:%M} UTC" if last else "")
    hours = evidence.store.spec.aliases.quiet_hours
    if evidence.execution is not None and evidence.execution.status == "finalized":
        return Criterion("old_ids", "Old ids", "alias triggers and their counters", "aliases removed by finalize",
                         "ready", binds=False)  # fmt: skip
    if not evidence.alias_tables:
        return Criterion("old_ids", "Old ids", "alias triggers and their counters", "no aliases are installed",
                         "not measured", binds=False)  # fmt: skip
    return Criterion(
        "old_ids", "Old ids go on working in writes", f"alias triggers on {', '.join(evidence.alias_tables)}", figure,
        "ready",
        Action(APPLICATION, f"when no old id was used for {hours:g} hours, remove the aliases: with them goes the way "
               "back", "uuid-pipeline finalize"),
        binds=False,
    )  # fmt: skip


def way_back(evidence: Evidence) -> Criterion:
    execution = evidence.execution
    moved = [wave for wave, _ in evidence.waves if wave.status == "moved"]
    measured = "id maps, archives and aliases in the ledger"
    if execution is None or not moved:
        undone = evidence.standing == "rolled_back"
        figure = "rolled back: every old id again" if undone else "nothing moved"
        return Criterion("way_back", "Rollback is possible", measured, figure, "ready", binds=False)
    if execution.status == "finalized":
        return Criterion("way_back", "Rollback is possible", measured, "finalized: only a backup leads back now",
                         "not ready", Action(OPERATOR, "keep the backup as long as you may want to go back"),
                         binds=False)  # fmt: skip
    possible = bool(evidence.alias_tables)
    return Criterion(
        "way_back", "Rollback is possible", measured,
        f"{len(moved)} waves can go back: uuid-pipeline rollback --all" if possible else "the aliases are missing",
        verdict_of(possible), None if possible else Action(OPERATOR, "install them again", "uuid-pipeline run"),
    )  # fmt: skip


CRITERIA: tuple[Judge, ...] = (
    data_migration, lookup_by_target, retrieval, user_impact, id_consistency, references_whole, conservation,
    determinism, schema_as_before, all_gates, performance, pipeline_consistency, new_documents, old_ids, way_back,
    backup, rehearsal, monitoring,
)  # fmt: skip
