"""Whether what a rollback has given back is what was there before: each moved table against its fingerprint of then.

Only where nobody else wrote: what the application changed since it keeps, and what refers to that may differ too.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.batches import deletions
from uuid_pipeline.engine.merges import archive
from uuid_pipeline.engine.proofs import comparison
from uuid_pipeline.engine.store import Store


def differing(connection: Connection, store: Store, execution: ledger.Execution) -> list[str]:
    """Tables that are not as they were before this execution, which is rolled back whole; none where that proves
    nothing. Each with its rows of then and now."""
    # What a trigger writes that is to fire is in our transactions, and nobody takes it back.
    if "fire" in store.spec.triggers.values():
        return []
    # What the ledger has forgotten of a user stays as the migration left it.
    if ledger.erased_since(connection, execution.approved_at, "^(id_map|archive)_"):
        return []
    # What has no place any more is named by itself: the application may have taken it in a table that never moved.
    if _is_left(connection, store, execution):
        return []
    found: list[str] = deletions.patiently(
        connection, lambda: _differing(connection, store, execution), lambda differ: not differ
    )
    return found


def _is_left(connection: Connection, store: Store, execution: ledger.Execution) -> bool:
    """Whether rows that merges of this execution archived are in the archive still."""
    kept = archive.shelves(connection, store, execution.assessment_no)
    left = [sql.compose("SELECT EXISTS (SELECT FROM {archive})", archive=one.relation) for one in kept]
    return any(sql.scalar(connection, statement) for statement in left)


def _differing(connection: Connection, store: Store, execution: ledger.Execution) -> list[str]:
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    before = fingerprint.before(connection, execution)
    altered = comparison.with_other_columns(connection, store, execution)
    differ, quiet = list[str](), True
    for moved in store.tables:
        name = fingerprint.qualified(moved)
        if name not in before or name in altered:
            continue
        then, deleted = before[name]
        now = fingerprint.of_table(connection, moved)
        merged = comparison.merged_of(connection, name, execution)
        quiet = quiet and not (
            comparison.application_writes(connection, moved, execution, deleted + int(merged.archived))
            or comparison.moved_twice(connection, store, moved, execution)
            or (now.rows < then.rows and comparison.may_be_gone(connection, moved, execution))
        )
        if now != then:
            differ.append(f"{name} ({then.rows} rows before, {now.rows} now)")
    return differ if quiet else []
