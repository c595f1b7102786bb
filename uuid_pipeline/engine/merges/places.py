"""Places that only the server can tell to be taken: by a unique index over part of a table or over expressions, or by
an exclusion constraint. What a row would meet there is tried."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches.locks import BatchPlan
from uuid_pipeline.engine.savepoints import undone

_TAKEN = ("23505", "23P01")  # by a unique index, by an exclusion constraint

Found = TypeVar("Found")
PutBack = Callable[[Sequence[int]], Found]


def while_free(connection: Connection, plan: BatchPlan, ordinals: Sequence[int], put_back: PutBack[Found]) -> Found:
    """Put the archived rows of these ordinals back, but for those whose place another row has taken since.

    Raises the driver's error where the index is younger than the merge: to drop it is for people to decide.
    """
    try:
        with connection.begin_nested():
            return put_back(ordinals)
    except DBAPIError as error:
        if not _is_taken(connection, plan, error):
            raise
        said = str(error.orig).strip()
    free = _free(connection, plan, ordinals, put_back)
    left = {"documents": len(ordinals) - len(free), "the store says": said}
    ledger.audit(connection, "left in the archive: another row has their place", left)
    return put_back(free)


def _free(connection: Connection, plan: BatchPlan, ordinals: Sequence[int], put_back: PutBack[Found]) -> list[int]:
    """Those of these ordinals whose rows find their places free, by trying halves."""
    if not ordinals or _goes(connection, plan, ordinals, put_back):
        return list(ordinals)
    if len(ordinals) == 1:
        return []
    half = len(ordinals) // 2
    halves = (ordinals[:half], ordinals[half:])
    return [ordinal for part in halves for ordinal in _free(connection, plan, part, put_back)]


def _goes(connection: Connection, plan: BatchPlan, ordinals: Sequence[int], put_back: PutBack[Found]) -> bool:
    try:
        with undone(connection):
            put_back(ordinals)
    except DBAPIError as error:
        if not _is_taken(connection, plan, error):
            raise
        return False
    return True


# An index with its constraint has one name, by which the server names either.
_WAS_THERE = """
SELECT catalog_before ? %(index)s FROM uuid_pipeline.executions WHERE execution_id = %(execution)s
"""


def _is_taken(connection: Connection, plan: BatchPlan, error: DBAPIError) -> bool:
    """Whether a row was refused for what is unique about another, by an index that stood before the first batch."""
    if sql.sqlstate(error) not in _TAKEN:
        return False
    where = error.orig.diag  # type: ignore[union-attr]
    index = f"index {where.schema_name}.{where.table_name}.{where.constraint_name}"
    return bool(sql.scalar(connection, _WAS_THERE, {"index": index, "execution": plan.execution_id}))
