"""Approval: a plan becomes an execution, with its waves and its gates."""

from sqlalchemy import Connection

from uuid_pipeline.engine import gates, lease, ledger, sql
from uuid_pipeline.engine.backups import backup_gate
from uuid_pipeline.engine.backups.backup_gate import Attestation
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.engine.planning import (
    POSITIONS,
    Plan,
    PlannedWave,
    newest,
    of_assessment,
    require_fresh,
    stale_reason,
)
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError


def approve(
    connection: Connection, store: Store, plan_id: str, attested: Attestation | None = None,
    assessment: int | None = None,
) -> ledger.Execution:  # fmt: skip
    """Approve a plan: begin an execution with the plan's waves and gates, and note the backup that it has.

    Of several plans with one id the newest is meant, or that of the ``assessment`` named: another run may have made the
    same plan since, and its gates are another run's matter.
    Approving the plan of the open execution again returns that one, with the snapshot ``attested`` now if nothing has
    moved yet. Raises RefusedError when the plan is unknown, stale, empty or has a gate that did not pass, when the
    backup is not as the spec asks, or when another execution has begun to move rows.
    """
    plan = _approvable(connection, store, plan_id, assessment)
    if plan is None:
        open_one = _open_of(connection, plan_id)
        if open_one.status == "approved" and attested is not None:
            backup_gate.attest_anew(connection, store, attested, open_one.execution_id)
        return open_one
    _supersede_open(connection, store, plan_id)
    gates.require(connection, Scope(assessment=plan.assessment_no), gates.PLANNING_STAGES, "approval")
    note_backup = backup_gate.at_approval(connection, store, plan.content["catalog_digest"], attested)
    execution_id = _insert_execution(connection, plan, store.spec.approval_hours)
    sweeps = [
        PlannedWave(f"{POSITIONS['sweep']}-sweep-{number}", "sweep", 1, 0, 0)
        for number in range(1, plan.content["sweep_passes"] + 1)
    ]
    for position, wave in enumerate([*plan.waves, *sweeps], 1):
        sql.execute(
            connection,
            """INSERT INTO uuid_pipeline.waves
                   (execution_id, position, wave, kind, first_ordinal, last_ordinal, documents)
               VALUES (%(execution)s, %(position)s, %(name)s, %(kind)s, %(first)s, %(last)s, %(documents)s)""",
            {
                "execution": execution_id,
                "position": position,
                "name": f"{execution_id}-{wave.name}",
                "kind": wave.kind,
                "first": wave.first_ordinal,
                "last": wave.last_ordinal,
                "documents": wave.documents,
            },
        )
    note_backup(execution_id)
    gates.inherit(connection, plan.assessment_no, execution_id)
    ledger.audit(connection, "approved", {"execution": execution_id, "plan": plan_id})
    return ledger.execution(connection, execution_id)


def _approvable(connection: Connection, store: Store, plan_id: str, assessment: int | None) -> Plan | None:
    """The plan that is meant; None when the open execution already is of it."""
    # Serialises approvals; the unique index on open executions is the last word.
    sql.execute(connection, "SELECT FROM uuid_pipeline.lease FOR UPDATE")
    ledger.keep_unchanged(connection, plan_id)
    open_one = ledger.unfinished(connection)
    if open_one is not None and open_one.plan_id == plan_id and open_one.status == "running":
        return None  # two runs made the same plan side by side, and the other was first
    found = sql.rows(
        connection,
        """SELECT p.assessment_no, p.plan_id, p.content,
                  EXISTS (SELECT FROM uuid_pipeline.executions e WHERE e.assessment_no = p.assessment_no) AS used
           FROM uuid_pipeline.plans p WHERE p.plan_id = %(id)s
             AND p.assessment_no = coalesce(%(assessment)s, p.assessment_no) ORDER BY p.assessment_no DESC LIMIT 1""",
        {"id": plan_id, "assessment": assessment},
    )
    if not found:
        newest_plan = newest(connection)
        known = f" The newest plan is {newest_plan.plan_id}." if newest_plan else ""
        raise RefusedError(f"There is no plan {plan_id}.{known} Run: uuid-pipeline plan")
    if found[0].used:
        if open_one is not None and open_one.plan_id == plan_id and not open_one.expired:
            # Approved, and nothing has moved yet: whether it still could.
            require_fresh(connection, store, Plan(found[0].assessment_no, found[0].plan_id, found[0].content))
            return None
        raise RefusedError(
            f"Plan {plan_id} was approved before, and that execution has ended. Run: uuid-pipeline plan, and approve "
            "what it makes; where nothing has changed, that has the same id."
        )
    plan = Plan(found[0].assessment_no, found[0].plan_id, found[0].content)
    if plan.nothing_to_do:
        raise RefusedError(f"Plan {plan_id} moves nothing; there is nothing to approve.")
    require_fresh(connection, store, plan)
    return plan


def _open_of(connection: Connection, plan_id: str) -> ledger.Execution:
    found = ledger.unfinished(connection)
    if found is None or found.plan_id != plan_id:
        raise RefusedError(f"Plan {plan_id} has no open execution. Run: uuid-pipeline status")
    return found


def hindrance(connection: Connection, store: Store, plan_id: str) -> str | None:
    """Why no plan can be approved now: a rollback, or an execution, that is to be finished first."""
    for execution in ledger.rolling_back(connection):
        return f"Execution {execution.execution_id} is being rolled back. Run: uuid-pipeline rollback --all"
    open_one = ledger.unfinished(connection)
    if open_one is None or open_one.status != "running":
        return None
    if stale_reason(connection, store, of_assessment(connection, open_one.assessment_no)) is not None:
        return None
    return (
        f"Execution {open_one.execution_id} (plan {open_one.plan_id}) has begun and can go on. "
        f"Finish it (uuid-pipeline run) or undo it (uuid-pipeline rollback --all) before approving {plan_id}."
    )


def _supersede_open(connection: Connection, store: Store, plan_id: str) -> None:
    """Close an open execution that a new plan replaces: one not begun, or one gone stale."""
    hindered = hindrance(connection, store, plan_id)
    if hindered is not None:
        raise RefusedError(hindered)
    open_one = ledger.unfinished(connection)
    if open_one is None:
        return
    writer = lease.holder(connection)
    if writer is not None and writer.alive:
        raise RefusedError(
            f"{writer.holder} (run {writer.run_id}) is writing to this store. Wait for it, then approve."
        )
    ledger.change_status(connection, open_one.execution_id, "superseded")


def _insert_execution(connection: Connection, plan: Plan, hours: int) -> str:
    """Insert under an id made from the time; a second approval in one second takes the next free one."""
    return str(
        sql.scalar(
            connection,
            """INSERT INTO uuid_pipeline.executions
                   (execution_id, assessment_no, plan_id, status, approved_by, expires_at)
               SELECT to_char(stamp, 'YYYY-MM-DD-HH24MISS'), %(no)s, %(plan)s, 'approved', %(actor)s,
                      now() + make_interval(hours => %(hours)s)
               FROM (SELECT now() AT TIME ZONE 'UTC' + n * interval '1 s' AS stamp FROM generate_series(0, 999) n) s
               WHERE NOT EXISTS (SELECT FROM uuid_pipeline.executions
                                 WHERE execution_id = to_char(stamp, 'YYYY-MM-DD-HH24MISS'))
               ORDER BY stamp LIMIT 1 RETURNING execution_id""",
            {"no": plan.assessment_no, "plan": plan.plan_id, "actor": ledger.actor(), "hours": hours},
        )
    )
