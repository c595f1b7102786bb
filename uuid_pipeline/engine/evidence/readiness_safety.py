"""Criteria over what other stages keep in the ledger: retrieval, backup, rehearsal, monitoring."""

from uuid_pipeline.engine import gates
from uuid_pipeline.engine.evidence.readiness import Action, Criterion, Evidence, Verdict

OPERATOR = "operator of the migration"
APPLICATION = "owner of the application"


def verdict_of(passed: bool | None) -> Verdict:
    return "not measured" if passed is None else "ready" if passed else "not ready"


def retrieval(evidence: Evidence) -> Criterion:
    """Of documents that have chunks: those that have none are the pipeline's, and counted there."""
    before, after = (evidence.kept.retrieval.get(phase) for phase in ("before", "after"))
    gate = evidence.gate(gates.VALIDATION_STAGE, "whole_documents_retrievable")
    passed = gate.passed if gate is not None and after is not None else None
    figure = "not measured yet"
    if after is not None:
        was = f"{before['found']} of {before['measured']} before; " if before else ""
        figure = f"{was}{after['found']} of {after['measured']} found now"
        times = [found and found["p50_ms"] for found in (before, after)]
        if None not in times:
            figure += f"; median {times[0]:.1f} ms before, {times[1]:.1f} ms now"
        figure += f"; {'no' if passed else 'some'} document that has chunks is missed"
    action = None
    if passed is False:
        action = Action(OPERATOR, gate.finding if gate else "", "uuid-pipeline rollback --all")
    elif passed is None and evidence.completed:
        action = Action(OPERATOR, "measure it", "uuid-pipeline validate")
    return Criterion(
        "retrieval", "System restoration: retrieval as the users are",
        after["how"] if after else "look-up by target id, and the owner's own similarity query",
        figure, verdict_of(passed), action,
    )  # fmt: skip


def backup(evidence: Evidence) -> Criterion:
    found, wanted = evidence.kept.backup, evidence.store.spec.backup
    name, title = "backup", "Backup"
    if wanted == "none":
        other = Action(OPERATOR, "take one by other means, or set backup: dump")
        figure = "the spec asks for none: a risk that the approval repeats"
        return Criterion(name, title, "the spec", figure, "not ready", other, binds=False)
    if found is None:
        return Criterion(name, title, "backups recorded in the ledger", "none is recorded", "not measured",
                         Action(OPERATOR, "take a backup, restored and compared", "uuid-pipeline backup"))  # fmt: skip
    at = f"{found['taken_at']:%Y-%m-%d %H:%M} UTC"
    if found["mode"] == "attested":
        return Criterion(name, title, "a provider's snapshot, attested by a person; not looked into",
                         f"{found['name']} of {at}", "ready")  # fmt: skip
    rows = sum(int(table["rows"]) for table in found["tables"])
    compared = "equal to the store" if found["equal"] else "NOT equal to the store"
    figure = (
        f"{at}, {found['bytes'] / 1e6:.2f} MB, restored in {found['restore_seconds']:.1f} s: {rows:,} rows {compared}"
    )
    action = None if found["equal"] else Action(OPERATOR, "take a new one", "uuid-pipeline backup")
    return Criterion(name, title, "pg_dump of one snapshot, restored, fingerprints compared", figure,
                     verdict_of(bool(found["equal"])), action)  # fmt: skip


def rehearsal(evidence: Evidence) -> Criterion:
    found = evidence.kept.rehearsal
    passed = bool(found["passed"]) if found else None
    figure = "none with this plan's spec and catalog"
    if found:
        figure = f"{found['documents']} documents forward in {found['seconds']:.1f} s, back in "
        figure += f"{found['rollback_seconds']:.1f} s, on {found['rehearsed_on']}"
    if found and passed and not found["documents"] and not evidence.plan.nothing_to_do:
        passed, figure = None, "it had nothing to move, and says nothing of this plan"
    done = evidence.completed or passed
    return Criterion(
        "rehearsal", "Rehearsal", "the whole migration and its rollback on a restored copy", figure,
        verdict_of(passed), None if done else Action(OPERATOR, "rehearse", "uuid-pipeline rehearse"), binds=False,
    )  # fmt: skip


def monitoring(evidence: Evidence) -> Criterion:
    checks = evidence.kept.health
    failing = [check["check"] for check in checks if not check["passed"] and check["severity"] != "warning"]
    figure = "the store's health was not looked at yet"
    if checks:
        passing = sum(check["passed"] for check in checks)
        figure = f"{passing} of {len(checks)} checks pass, as of {checks[0]['at']:%Y-%m-%d %H:%M} UTC"
        figure += f"; failing: {', '.join(failing)}" if failing else ""
    action = None if checks else Action(OPERATOR, "look once, then switch the schedule on", "uuid-pipeline health")
    if failing:
        action = Action(APPLICATION, f"see the runbook of {', '.join(failing)}", "uuid-pipeline health")
    return Criterion(
        "monitoring", "Monitoring", "the newest look at the store's health, against its thresholds", figure,
        verdict_of(not failing if checks else None), action, binds=bool(failing),
    )  # fmt: skip
