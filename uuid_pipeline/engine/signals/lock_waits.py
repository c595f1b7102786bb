"""Health signal: sessions of the application that wait for a lock at this moment."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.signals import sessions
from uuid_pipeline.engine.signals.signal import HealthSignal, compared, unknown
from uuid_pipeline.spec import Throttle

NAME = "lock_waits"

_WAITING = sessions.with_others("""
SELECT count(*) FILTER (WHERE hidden) AS hidden, count(*) FILTER (WHERE wait_event_type = 'Lock') AS waiting,
       (array_agg(pid ORDER BY pid) FILTER (WHERE wait_event_type = 'Lock'))[:5] AS pids
FROM others
""")


def read(connection: Connection, throttle: Throttle) -> HealthSignal:
    """How many wait; unknown when sessions are hidden from the role."""
    limit = throttle.lock_waits or 0
    row = sql.rows(connection, _WAITING)[0]
    if row.hidden:
        return unknown(NAME, sessions.hidden_reason(connection, row.hidden))
    who = f" (pid {', '.join(map(str, row.pids))})" if row.pids else ""
    return compared(NAME, row.waiting, limit, f"{row.waiting} sessions wait for a lock{who}; the limit is {limit}")


def unavailable(connection: Connection) -> str | None:
    """Why this server or role can never give it; None when it can."""
    return sessions.unavailable(connection)
