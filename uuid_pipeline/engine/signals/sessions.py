"""The sessions of others in this database, as far as the role may see them."""

from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql

# Sessions that work for PostgreSQL itself have no user, parallel workers wait with their leader, and our own
# (connection.open_store names them) are no load of the application. Where a role may not look, backend_start is NULL;
# a session with track_activities off shows no transaction either.
# From the function that pg_stat_activity is made of: each transaction of ours asks, and the view is planned for longer
# than all the rest of it.
OTHERS = """
SELECT a.pid, a.application_name, a.state, a.state_change, a.wait_event_type, a.xact_start,
       a.backend_start IS NULL OR a.state = 'disabled' AS hidden
FROM pg_stat_get_activity(NULL) a
WHERE a.datid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
  AND coalesce(a.backend_type, '') NOT IN ('parallel worker', 'walsender')
  AND NOT (a.application_name = 'uuid_pipeline' AND a.usesysid = quote_ident(session_user)::regrole::oid)
"""


def with_others(statement: LiteralString) -> LiteralString:
    """A statement that reads from ``others``."""
    return f"WITH others AS ({OTHERS}) {statement}"


# An application that asked something this long ago is about to ask again. Of a session that this role may not look into
# nobody knows whether it rests.
REST_SECONDS = 10.0
OTHERS_AT_WORK = with_others(
    """SELECT EXISTS (SELECT FROM others o WHERE o.hidden OR o.state IS DISTINCT FROM 'idle'
                      OR o.state_change > clock_timestamp() - interval '10 s')"""
)


def hidden_reason(connection: Connection, hidden: int) -> str:
    """Why what these sessions do is not known, with the remedy."""
    cause = unavailable(connection) or "track_activities is off there"
    return f"what {hidden} sessions do cannot be seen: {cause}"


def unavailable(connection: Connection) -> str | None:
    """Why this role cannot see what sessions of others do; None when it can."""
    if sql.scalar(connection, "SELECT current_setting('track_activities')") == "off":
        return "the server's setting track_activities is off. Set it to on and reload"
    return forbidden(connection)


def forbidden(connection: Connection) -> str | None:
    """What to grant before this role can see the activity of others; None when it can."""
    row: Any = sql.rows(
        connection,
        """SELECT quote_ident(current_user) AS role,
                  pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS allowed""",
    )[0]
    if row.allowed:
        return None
    return f"the role {row.role} may not look. Let a superuser run: GRANT pg_read_all_stats TO {row.role};"
