"""The end: aliases removed, and with them the way back; then, if wanted, the ledger itself."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import control, gates, ledger, ledger_rights, sql
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.altered import rebuilding, silencing
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.engine.installed import aliases, dependents, guard
from uuid_pipeline.engine.installed.aliases import AliasUse
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import RefusedError


def consequences(connection: Connection) -> list[str]:
    """What finalizing makes impossible, a sentence each; empty when there is nothing to finalize."""
    ending = _ending(connection)
    if not ending and not aliases.serve_others(connection, ledger.assessments_in_force(connection)):
        return []
    said = [
        f"execution {e.execution_id} ({e.status}) can then no longer be rolled back"
        for e in ending
        if e.status != "rolled_back"
    ]
    return [*said, "old ids are then no longer translated: a writer that still uses one gets an error, or an orphan"]


def _ending(connection: Connection) -> list[ledger.Execution]:
    return [e for e in ledger.executions(connection) if "finalized" in ledger.TRANSITIONS.get(e.status, frozenset())]


def is_half_done(connection: Connection, executions: Sequence[ledger.Execution]) -> bool:
    """Whether every execution is finalized, and aliases stand that nothing needs any more."""
    final = bool(executions) and all(e.status == "finalized" for e in executions)
    return final and aliases.serve_others(connection, ledger.assessments_in_force(connection))


def require_closed(connection: Connection) -> None:
    """Raise RefusedError while an execution is open, or a rollback not finished."""
    for execution in [*ledger.rolling_back(connection), *filter(None, [ledger.unfinished(connection)])]:
        state, finish = execution.status, "run, or give it up: uuid-pipeline cancel"
        if execution.status == "rolling_back":
            finish = "rollback --all"
        elif control.desired(connection, execution.execution_id) == "pause":
            state, finish = "paused", "resume, then uuid-pipeline run; or give it up: uuid-pipeline cancel"
        raise RefusedError(
            f"Refused: execution {execution.execution_id} is {state}. Finish it first: uuid-pipeline {finish}"
        )


# What these find is wrong with rows, and is mended by a rollback or by hand. Schemas change for good reasons.
_OF_ROWS = ("conservation", "no_dangling_reference", "ids_exact", "timestamps_untouched")


def red_gates(connection: Connection) -> list[str]:
    """What the newest results of gates on rows found wrong in what is under new ids now, a sentence each."""
    found = []
    for execution in ledger.executions(connection):
        if execution.status in ("finalized", "rolled_back", "rolling_back"):
            continue
        scopes = [
            Scope(execution=execution.execution_id, wave=wave.wave)
            for wave in ledger.waves(connection, execution.execution_id)
            if wave.status == "moved"
        ]
        # After a part went back the whole is measured no more.
        if execution.status in ("running", "completed"):
            scopes.append(Scope(execution=execution.execution_id))
        for scope in scopes:
            for (_, gate), result in gates.latest(connection, scope).items():
                if not result.passed and gate.removeprefix("whole_") in _OF_ROWS:
                    found.append(f"{gate} is red in {scope}: {result.finding}")
        if execution.status == "completed":
            break  # the gates of the whole store are newer than anything of earlier executions
    return found


def require_green(connection: Connection) -> None:
    """Raise RefusedError while a gate on rows is red: what it found could then no longer be rolled back."""
    red = red_gates(connection)
    if red:
        raise RefusedError(
            "Refused: " + "; ".join(red) + ". After finalize nothing can be rolled back. Roll back (uuid-pipeline "
            "rollback --all), or mend what is named and look again: uuid-pipeline validate. To finalize all the same: "
            "uuid-pipeline finalize --despite-red-gates"
        )


def require_quiet(connection: Connection, store: Store) -> list[AliasUse]:
    """The use of every alias.

    Raises RefusedError while an execution is open, while the application has something that is made with what would be
    dropped, and while an old id was used lately.
    """
    require_closed(connection)
    dependents.require_none(connection, dependents.ALIASES)
    used = aliases.uses(connection)
    since = datetime.now(UTC) - timedelta(hours=store.spec.aliases.quiet_hours)
    lately = [use for use in used if use.last_used is not None and use.last_used > since]
    if lately:
        said = "; ".join(f"{use.entity}: {use.uses} uses, the last at {use.last_used:%Y-%m-%d %H:%M} UTC"
                         for use in lately)  # fmt: skip
        raise RefusedError(
            f"Refused: old ids are still in use ({said}), within the last {store.spec.aliases.quiet_hours:g} hours. "
            "Find the writers that use them; aliases.quiet_hours in the spec says how long it must have been quiet."
        )
    return used


def finalize(engine: Engine, store: Store, run_id: str) -> list[str]:
    """Remove the aliases and close every execution for good; returns the executions that are finalized now.

    Raises RefusedError as :func:`require_quiet` does, when another run writes, or when this role may roll back only.
    """
    with engine.begin() as asking:
        # Before anything is closed: a role that cannot remove the aliases must not take the way back.
        ledger_rights.require_owner(asking)
    with leases.held(engine, run_id) as (connection, lease):
        # What a run that died had altered, and no run has put back since.
        silencing.put_back(connection, lease)
        rebuilding.put_back(engine, connection, lease, lambda _: None)
        with connection.begin():
            leases.hold(connection, lease)
            require_quiet(connection, store)
            ending = [execution.execution_id for execution in _ending(connection)]
            # Closed first: after a crash between the two, nobody rolls back what has lost its aliases.
            for execution_id in ending:
                ledger.change_status(connection, execution_id, "finalized")
            in_force = ledger.assessments_in_force(connection)
        reach("finalized")
        if in_force:
            # A guard that rewrites ids needs them to resolve for as long as it stands.
            aliases.replace(engine, lease, store, in_force)
        else:
            aliases.remove(engine, lease)
    return ending


def drop_ledger(engine: Engine, run_id: str) -> bool:
    """Drop our schema, and everything in it; False when there is none. Raises RefusedError while anything needs it."""
    with engine.begin() as connection:
        if not ledger.exists(connection):
            return False
    with engine.connect() as connection:
        # Given back only when refused: otherwise the lease goes with the schema.
        lease = leases.acquire(engine, connection, run_id)
        connection.rollback()
        try:
            with connection.begin():
                leases.hold(connection, lease)
                _require_done(connection)
                dependents.require_none(connection, dependents.LEDGER)
                sql.execute(connection, "SET LOCAL client_min_messages = error")
                sql.execute(connection, "DROP SCHEMA uuid_pipeline CASCADE")
        except RefusedError:
            leases.release(engine, lease)
            raise
    return True


def _require_done(connection: Connection) -> None:
    guarded = guard.installed(connection)
    if guarded:
        raise RefusedError(f"Refused: a guard stands on {', '.join(guarded)}. First: uuid-pipeline guard remove")
    require_closed(connection)
    installed = aliases.installed(connection)
    if installed or _ending(connection):
        ledger.require_version(connection)
        raise RefusedError(
            "Refused: the ledger still holds what a rollback needs"
            + (f", and the alias triggers of {len(installed)} tables" if installed else "")
            + ". First: uuid-pipeline finalize"
        )
    altered = sql.rows(connection, "SELECT kind, object FROM uuid_pipeline.altered ORDER BY 1, 2")
    if altered:
        names = ", ".join(f"{row.kind} {row.object}" for row in altered)
        raise RefusedError(f"Refused: a run that died left altered: {names}. To put it back: uuid-pipeline run")
