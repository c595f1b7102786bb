"""Pause, resume, cancel: what people want of an execution, written in the ledger, obeyed between two batches."""

import time
from collections.abc import Callable

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.errors import RefusedError

POLL_SECONDS = 0.5


def pause(connection: Connection) -> ledger.Execution:
    """Ask the open execution to wait after its current batch. Raises RefusedError when there is none."""
    return _wish(connection, "pause")


def resume(connection: Connection) -> ledger.Execution:
    """Let a paused execution go on. Raises RefusedError when there is none."""
    return _wish(connection, "run")


def cancel(connection: Connection) -> ledger.Execution:
    """End the open execution after its current batch; what moved stays and can be rolled back.

    Raises RefusedError when there is none.
    """
    execution = _wish(connection, "cancel")
    writer = leases.holder(connection)
    if writer is None or not writer.alive:
        ledger.change_status(connection, execution.execution_id, "cancelled")
    return ledger.execution(connection, execution.execution_id)


def _wish(connection: Connection, desired: str) -> ledger.Execution:
    execution = ledger.unfinished(connection)
    if execution is None:
        back = [one.execution_id for one in ledger.rolling_back(connection)]
        if back:
            raise RefusedError(
                f"Execution {back[0]} is being rolled back, and that obeys no {desired}: it is not left half-way. "
                "See: uuid-pipeline status"
            )
        raise RefusedError("No execution is approved or running. See: uuid-pipeline status")
    sql.execute(
        connection,
        "UPDATE uuid_pipeline.executions SET desired = %(desired)s WHERE execution_id = %(id)s",
        {"desired": desired, "id": execution.execution_id},
    )
    ledger.audit(connection, f"asked to {desired}", {"execution": execution.execution_id})
    return execution


def desired(connection: Connection, execution_id: str) -> str:
    """``run``, ``pause`` or ``cancel``."""
    return str(
        sql.scalar(
            connection,
            "SELECT desired FROM uuid_pipeline.executions WHERE execution_id = %(id)s",
            {"id": execution_id},
        )
    )


def require_not_paused(connection: Connection, execution_id: str) -> None:
    """Raise RefusedError when nobody has resumed a paused execution: a new run must not start it by itself."""
    if desired(connection, execution_id) == "pause":
        raise RefusedError(paused(execution_id))


def paused(execution_id: str) -> str:
    """What somebody is told who would begin a paused execution."""
    return f"Execution {execution_id} is paused. To go on: uuid-pipeline resume"


def await_resumption(engine: Engine, wave: ledger.Wave, say: Callable[[str], None]) -> None:
    """Before a wave: wait while paused, with no lease to keep. What has ended is refused by the wave itself."""
    with engine.connect() as connection:
        wish = _wish_of_an_open(connection, wave.execution_id)
        connection.rollback()
        if wish != "pause":
            return
        say(f"{wave.wave}: paused between two waves; uuid-pipeline resume lets it go on")
        number = _begin_wait(connection, wave)
        while wish == "pause":
            time.sleep(POLL_SECONDS)
            with connection.begin():
                wish = _wish_of_an_open(connection, wave.execution_id)
        with connection.begin():
            _end_wait(connection, number)
    say(f"{wave.wave}: resumed" if wish == "run" else f"{wave.wave}: the execution has ended")


def _wish_of_an_open(connection: Connection, execution_id: str) -> str:
    """As :func:`desired`; ``cancel`` when the execution has ended meanwhile: a rollback does not wait for a pause."""
    execution = ledger.unfinished(connection)
    if execution is None or execution.execution_id != execution_id:
        return "cancel"
    return desired(connection, execution_id)


def obey(connection: Connection, wave: ledger.Wave, lease: Lease, say: Callable[[str], None]) -> None:
    """Between two batches: wait while paused, keeping the lease; end the execution when cancelled.

    Raises RefusedError when it was cancelled.
    """
    wish = desired(connection, wave.execution_id)
    connection.rollback()
    if wish == "pause":
        say(f"{wave.wave}: paused; uuid-pipeline resume lets it go on")
        wish = _wait(connection, wave, lease)
        say(f"{wave.wave}: resumed" if wish == "run" else f"{wave.wave}: cancelled")
    if wish == "cancel":
        with connection.begin():
            leases.hold(connection, lease)
            ledger.change_status(connection, wave.execution_id, "cancelled")
        raise RefusedError(
            f"Execution {wave.execution_id} was cancelled; what its committed batches moved stays. "
            "To undo it: uuid-pipeline rollback --all. To go on from here: uuid-pipeline plan"
        )


def _wait(connection: Connection, wave: ledger.Wave, lease: Lease) -> str:
    number = _begin_wait(connection, wave)
    while True:
        time.sleep(POLL_SECONDS)
        with connection.begin():
            leases.hold(connection, lease)
            wish = desired(connection, wave.execution_id)
            if wish != "pause":
                _end_wait(connection, number)
                return wish


def _end_wait(connection: Connection, number: int) -> None:
    ended = "UPDATE uuid_pipeline.waits SET ended_at = clock_timestamp() WHERE wait_no = %(no)s"
    sql.execute(connection, ended, {"no": number})


def _begin_wait(connection: Connection, wave: ledger.Wave) -> int:
    with connection.begin():
        return int(
            sql.scalar(
                connection,
                """INSERT INTO uuid_pipeline.waits (wave, cause, reason)
                   VALUES (%(wave)s, 'pause', 'paused by a person') RETURNING wait_no""",
                {"wave": wave.wave},
            )
        )
