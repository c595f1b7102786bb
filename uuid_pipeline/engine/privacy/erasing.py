"""Erasure: all that the ledger holds of one user's documents, found by their ids wherever they stand, and removed.

Which tables there are is read from the catalogs, not known here: what another part of the ledger comes to keep is
covered from its first day.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import inventory, ledger, planning, sql
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.privacy import belonging, scrubbing
from uuid_pipeline.engine.privacy.belonging import LedgerTable
from uuid_pipeline.engine.privacy.erased_ids import NATURAL_KEY, find_ids, theirs
from uuid_pipeline.engine.privacy.scrubbing import ERASED, pruned, scrubbed
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError, UsageError


@dataclass(frozen=True)
class Erasure:
    """What an erasure removes: rows deleted and values replaced by table of ours, documents, and what is lost by it.

    ``digest`` is of exactly this; it is what a person approves.
    """

    documents: int
    ids: frozenset[str]
    deleted: dict[str, int]
    replaced: dict[str, int]
    consequences: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether the store knows this user at all."""
        return bool(self.documents or self.deleted or self.replaced)

    @property
    def digest(self) -> str:
        content = [sorted(self.ids), self.deleted, self.replaced]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def look(engine: Engine, store: Store, user: str) -> Erasure:
    """What erasing this user would remove; changes nothing.

    Raises UsageError when the spec names no owner, RefusedError while an execution is open.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        found = _erase(connection, store, user)
        transaction.rollback()
    return found


def erase(
    engine: Engine, store: Store, user: str, digest: str, run_id: str, elsewhere: Callable[[Erasure], object]
) -> Erasure:
    """Remove what :func:`look` found, in one transaction, and say so in the audit without the user's id.

    ``elsewhere`` removes what is kept outside of the store, before the ledger forgets by which ids that is found: what
    dies in between is done by the next call. Raises RefusedError when it is not what was approved any more, when
    another run writes, or while an inventory is taken.
    """
    with leases.held(engine, run_id) as (connection, lease), connection.begin():
        leases.hold(connection, lease)
        _require_no_inventory_under_way(connection)
        found = _erase(connection, store, user)
        if found.digest != digest:
            raise RefusedError(
                f"Refused: what would be erased is not what was approved ({digest}); it is {found.digest} now. "
                "Look again: uuid-pipeline erase --user ID"
            )
        elsewhere(found)
        detail = {"documents": found.documents, "deleted": found.deleted, "replaced": found.replaced}
        ledger.audit(connection, ledger.ERASED_A_USER, detail)
    return found


def _require_no_inventory_under_way(connection: Connection) -> None:
    """Refuse while rows are read as they were before the application erased its own; who comes later waits for us."""
    if not sql.scalar(connection, f"SELECT pg_try_advisory_xact_lock({inventory.UNDER_WAY})"):
        raise RefusedError(
            "Refused: an inventory is being taken (a plan, or a run's sweep), and would bring back what is erased now. "
            "Give the same command again once it has ended."
        )


def _erase(connection: Connection, store: Store, user: str) -> Erasure:
    if store.main.spec.describe.owner is None:
        raise UsageError("The spec names no owner (describe.owner), so nobody's documents can be told from another's.")
    for execution in [*ledger.rolling_back(connection), *filter(None, [ledger.unfinished(connection)])]:
        raise RefusedError(
            f"Refused: execution {execution.execution_id} is {execution.status}, and needs every row of its map. "
            "Finish it (uuid-pipeline run) or undo it (uuid-pipeline rollback --all) first."
        )
    documents = find_ids(connection, store, _as_stored(connection, store, user))
    consequences = tuple(_consequences(connection, store))
    ids = frozenset(row.id for row in sql.rows(connection, "SELECT id FROM pg_temp.erased_ids"))
    tables = belonging.tables(connection)
    belonging.mark(connection, store, tables)
    deleted: dict[str, int] = {}
    replaced: dict[str, int] = {}
    for table in tables:
        if gone := _delete_rows(connection, table):
            deleted[table.name] = gone
        if belonging.is_map_of(store.main, table):
            changed = _blank_natural_keys(connection, table)
        else:
            changed = 0 if table.is_of_rows else _replace_values(connection, table, ids)
        if changed:
            replaced[table.name] = changed
    if any(name.startswith("archive_") for name in deleted):
        consequences += ("rows of this user that merging archived can then no longer be brought back",)
    return Erasure(documents, ids, deleted, replaced, consequences)


def _as_stored(connection: Connection, store: Store, user: str) -> str:
    """The user's id as the owner's column has it as text: a uuid in capitals, say, is the same one."""
    owner = store.main.table.columns[store.main.spec.describe.owner or ""]
    statement = sql.compose("SELECT %(user)s::text::{type}::text", type=sql.as_written(owner.type))
    try:
        with connection.begin_nested():
            return str(sql.scalar(connection, statement, {"user": user}))
    except DBAPIError as error:
        raise UsageError(
            f"{store.main.table.name}.{owner.name} is {owner.type}, and the given id is none: it can mean nobody."
        ) from error


def _consequences(connection: Connection, store: Store) -> Iterator[str]:
    """What cannot be done any more once these rows are gone, a sentence each."""
    plan = planning.newest(connection)
    executions = ledger.executions(connection)
    waits = plan is not None and all(one.assessment_no != plan.assessment_no for one in executions)
    if plan is not None and waits and _mapped(connection, store, plan.assessment_no):
        yield f"plan {plan.plan_id}, which waits for approval, must be made again: uuid-pipeline plan"
    for execution in executions:
        if execution.status in ("finalized", "rolled_back"):
            continue
        lost = _mapped(connection, store, execution.assessment_no)
        if lost:
            yield (
                f"{lost} documents of execution {execution.execution_id} ({execution.status}) can then no longer be "
                "rolled back, and their old ids no longer resolve; its validation cannot be repeated"
            )


def _mapped(connection: Connection, store: Store, assessment: int) -> int:
    """Documents of the user in an assessment's id map."""
    count = "SELECT count(*) FROM {map} m WHERE m.assessment_no = %(no)s AND {theirs}"
    counts = [sql.compose(count, map=ledger.map_table(root), theirs=theirs(root, "m.old_id")) for root in store.roots]
    return sum(int(sql.scalar(connection, statement, {"no": assessment})) for statement in counts)


def _delete_rows(connection: Connection, table: LedgerTable) -> int:
    statement = sql.compose(
        "DELETE FROM {table} t USING pg_temp.erased_rows e WHERE e.name = %(name)s AND e.at = t.ctid",
        table=table.relation,
    )
    return int(sql.execute(connection, statement, {"name": table.name}).rowcount)


def _blank_natural_keys(connection: Connection, table: LedgerTable) -> int:
    """Natural keys with the user's id, of documents that are another's by now: these can still go back."""
    statement = sql.compose(
        """UPDATE {table} t SET natural_key = %(erased)s FROM pg_temp.erased_ids e
           WHERE e.of = %(of)s AND e.id = t.natural_key""",
        table=table.relation,
    )
    return int(sql.execute(connection, statement, {"erased": ERASED, "of": NATURAL_KEY}).rowcount)


def _replace_values(connection: Connection, table: LedgerTable, ids: frozenset[str]) -> int:
    """Ids inside text and JSON of rows that stay; counts the values that changed."""
    changed = 0
    sought = scrubbing.wanted(ids)
    for column, (kind, nullable) in table.loose.items():
        read = sql.compose(
            "SELECT t.ctid::text, t.{c}::text FROM {table} t WHERE t.{c} IS NOT NULL", c=sql.name(column),
            table=table.relation,
        )  # fmt: skip
        write = sql.compose(
            "UPDATE {table} SET {c} = %(value)s::text::{type} WHERE ctid = %(at)s::text::tid", table=table.relation,
            c=sql.name(column), type=sql.Text(kind),
        )  # fmt: skip
        found = [
            (at, new) for rows in sql.stream(connection, read, {}) for at, old in rows
            if (new := scrubbed(pruned(old, ids) if kind in ("json", "jsonb") else old, sought)) != old
        ]  # fmt: skip
        for at, new in found:
            value = None if nullable and new == ERASED else new
            sql.execute(connection, write, {"at": at, "value": value})
        changed += len(found)
    return changed
