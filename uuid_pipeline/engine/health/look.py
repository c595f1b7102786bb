"""What a tick gives to those who measure: the connection, the store, since when, and how much it may cost."""

import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import rows_up_to
from uuid_pipeline.engine.health.identified import Identified
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError


@dataclass(frozen=True)
class Look:
    """``whole``: this tick may read whole tables. ``since``: the start of the tick before, in UTC.

    ``sample``: documents of the rotating sample with their target ids. ``deadline``: for the whole scan, by
    time.monotonic().
    """

    connection: Connection
    store: Store
    since: datetime
    whole: bool
    sample: tuple[Identified, ...]
    deadline: float

    def in_time(self) -> None:
        """Raise RefusedError when the whole scan has taken longer than the spec allows."""
        if time.monotonic() > self.deadline:
            limit = self.store.spec.health.full_scan_seconds
            raise RefusedError(f"the scan took longer than health.full_scan_seconds ({limit:g})")


def limit_statements(connection: Connection, seconds: float) -> None:
    """Let the server cancel each statement of this transaction that takes longer."""
    milliseconds = {"milliseconds": str(max(1, round(1000 * seconds)))}
    sql.execute(connection, "SELECT set_config('statement_timeout', %(milliseconds)s, true)", milliseconds)


def is_small(connection: Connection, store: Store) -> bool:
    """Whether the tables that hold ids have at most ``small_rows`` rows in all; never counts more than these.

    Statistics may be missing or old, so they only say when not to count.
    """
    left = store.spec.health.small_rows
    if sum(moved.table.estimated_rows for moved in store.tables) > left:
        return False
    for moved in store.tables:
        left -= rows_up_to(connection, moved.table, left + 1)
        if left < 0:
            return False
    return True
