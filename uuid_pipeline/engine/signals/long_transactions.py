"""Health signal: the oldest transaction of others in this database, prepared ones included."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.signals import sessions
from uuid_pipeline.engine.signals.signal import HealthSignal, compared, unknown
from uuid_pipeline.spec import Throttle

NAME = "long_transactions"

# A prepared transaction belongs to no session any more; it shows when it was prepared, not when it began.
_OLDEST = sessions.with_others("""
, transactions AS (
    SELECT xact_start AS began, format('pid %%s, %%s, %%s', pid, coalesce(nullif(application_name, ''), 'no name'),
                                       state) AS who
    FROM others WHERE xact_start IS NOT NULL
    UNION ALL
    SELECT prepared, format('prepared transaction %%s', gid) FROM pg_prepared_xacts WHERE database = current_database()
), oldest AS (SELECT began, who FROM transactions ORDER BY began LIMIT 1)
SELECT (SELECT count(*) FROM others WHERE hidden) AS hidden, (SELECT who FROM oldest) AS who,
       extract(epoch FROM clock_timestamp() - (SELECT began FROM oldest))::float8 AS seconds
""")


def read(connection: Connection, throttle: Throttle) -> HealthSignal:
    """Its age in seconds; unknown when sessions are hidden from the role."""
    limit = throttle.long_transaction_seconds or 0.0
    row = sql.rows(connection, _OLDEST)[0]
    if row.hidden:
        return unknown(NAME, sessions.hidden_reason(connection, row.hidden))
    if row.who is None:
        return compared(NAME, 0.0, limit, f"no transaction of others is open; the limit is {limit:g} s")
    age = f"the oldest transaction of others ({row.who}) is {row.seconds:.1f} s old"
    return compared(NAME, row.seconds, limit, f"{age}; the limit is {limit:g} s")


def unavailable(connection: Connection) -> str | None:
    """Why this server or role can never give it; None when it can."""
    return sessions.unavailable(connection)
