"""Health signal: how far the slowest physical standby is behind in replaying."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.signals import sessions
from uuid_pipeline.engine.signals.signal import HealthSignal, compared, unknown
from uuid_pipeline.spec import Throttle

NAME = "replication_lag"

# replay_lag was true at reply_time and keeps its last value for a while after the standby has caught up; so it counts
# only while WAL is missing there, and grows until the standby speaks again. Receivers that replay nothing
# (pg_receivewal) and logical subscribers are no standbys.
_STANDBYS = """
SELECT coalesce(nullif(r.application_name, ''), r.client_addr::text, 'pid ' || r.pid) AS standby, r.state,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), r.replay_lsn)::float8 AS bytes,
       CASE WHEN r.replay_lsn >= pg_current_wal_flush_lsn() THEN 0
            ELSE extract(epoch FROM coalesce(r.replay_lag, '0') + greatest(clock_timestamp() - r.reply_time, '0'))
       END::float8 AS seconds
FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
WHERE coalesce(s.slot_type, 'physical') = 'physical'
  AND (r.state IS NULL OR (r.state IN ('streaming', 'catchup') AND r.replay_lsn IS NOT NULL))
ORDER BY r.state = 'catchup' DESC, 4 DESC NULLS LAST
"""

# A standby that has lost its connection is in no statistics, but its slot still waits for it.
_ABANDONED = """
SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn)::float8 AS bytes FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active AND NOT temporary AND restart_lsn IS NOT NULL AND wal_status <> 'lost'
ORDER BY 2 DESC LIMIT 1
"""


def read(connection: Connection, throttle: Throttle) -> HealthSignal:
    """Seconds of the slowest; unknown when the role may not see them."""
    limit = f"the limit is {throttle.replication_lag_seconds or 0.0:g} s"
    standbys = sql.rows(connection, _STANDBYS)
    hidden = sum(standby.state is None for standby in standbys)
    if hidden:
        return unknown(NAME, f"the lag of {hidden} standbys cannot be seen: {unavailable(connection)}")
    for slot in sql.rows(connection, _ABANDONED):
        reason = f"the replication slot {slot.slot_name} waits for its standby, {_mega(slot.bytes)} behind; {limit}"
        return HealthSignal(NAME, "stop", f"{reason}. Drop the slot if its standby is no more", None)
    if not standbys:
        return HealthSignal(NAME, "normal", f"no standby is connected; {limit}", None)
    return _slowest(standbys[0], throttle.replication_lag_seconds or 0.0, limit)


def _slowest(standby: Any, seconds: float, limit: str) -> HealthSignal:
    if standby.state == "catchup":
        # While catching up, replay_lag tells the age of what was sent last, not of what is still missing.
        reason = f"the standby {standby.standby} is catching up, {_mega(standby.bytes)} behind; {limit}"
        return HealthSignal(NAME, "stop", reason, standby.seconds)
    reason = f"the standby {standby.standby} is {standby.seconds:.1f} s ({_mega(standby.bytes)}) behind; {limit}"
    return compared(NAME, standby.seconds, seconds, reason)


def _mega(size: float) -> str:
    return f"{max(size, 0) / 1e6:.1f} MB"


def unavailable(connection: Connection) -> str | None:
    """Why this server or role can never give it; None when it can."""
    return sessions.forbidden(connection)
