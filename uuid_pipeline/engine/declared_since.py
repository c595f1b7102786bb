"""Soft references that were declared after an execution's plan was made: it is undone with them as well.

Its new ids may have come into columns that its own spec knew nothing of, or that were not there yet. A later execution
moves these by its own spec, and when it goes back it leaves them with the ids of before itself: this one's new ones.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import earlier_store, sql, traps
from uuid_pipeline.engine.catalog import Catalog
from uuid_pipeline.engine.store import Reference, Store, bind
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import SoftReference, Spec


def store_to_undo(connection: Connection, assessment: int, given: Spec | None) -> Store:
    """The store as an execution's plan knew it, with what was declared since, where rows can be written there.

    ``given``: the spec of now, if there is one; what of it does not fit stops no rollback. Raises RefusedError as
    :func:`earlier_store.store_of` does.
    """
    store = earlier_store.store_of(connection, assessment)
    for soft in _declared(connection, store, assessment, given):
        wider = _with(store, soft)
        if wider is not None and set(traps.of_tables(wider)) <= set(traps.of_tables(store)):
            store = wider
    return store


def references(connection: Connection, assessment: int, given: Spec | None) -> tuple[Store, list[Reference]]:
    """The store as the plan knew it, and what was declared since, also where no row can be written."""
    store = earlier_store.store_of(connection, assessment)
    found = [_with(store, soft) for soft in _declared(connection, store, assessment, given)]
    return store, [wider.references[-1] for wider in found if wider is not None]


def _with(store: Store, soft: SoftReference) -> Store | None:
    """The store with one reference more, its last; None where the column is gone, is a foreign key, or cannot hold
    such ids."""
    declared = [*store.spec.soft_references, soft]
    try:
        wider = bind(store.spec.model_copy(update={"soft_references": declared}), store.catalog)
    except UsageError:
        return None
    return wider if len(wider.references) > len(store.references) else None


def _declared(connection: Connection, store: Store, assessment: int, given: Spec | None) -> list[SoftReference]:
    """What later executions declare, and the spec of now: each place once, and none that the plan knew."""
    specs = _later_specs(connection, assessment, store.catalog) + ([given] if given is not None else [])
    known = {_place(soft) for soft in store.spec.soft_references}
    declared: dict[tuple[str, str, str, str | None], SoftReference] = {}
    for soft in [soft for spec in specs for soft in _meant(spec, store)]:
        declared.setdefault(_place(soft), soft)
    return [soft for place, soft in declared.items() if place not in known]


def _place(soft: SoftReference) -> tuple[str, str, str, str | None]:
    return soft.table, soft.column, soft.entity, soft.path


_LATER = """
SELECT l.assessment_no AS no FROM uuid_pipeline.executions e
JOIN uuid_pipeline.executions l ON (l.approved_at, l.execution_id) > (e.approved_at, e.execution_id)
WHERE e.assessment_no = %(no)s ORDER BY l.approved_at, l.execution_id
"""


def _later_specs(connection: Connection, assessment: int, catalog: Catalog) -> list[Spec]:
    """Those of later executions, whatever became of these: what one that is back has moved, it left to this one."""
    later = [int(row.no) for row in sql.rows(connection, _LATER, {"no": assessment})]
    return [earlier_store.spec_now(connection, number, catalog) for number in later]


def _meant(spec: Spec, store: Store) -> list[SoftReference]:
    """The spec's soft references to keys of the store's entities, whatever the spec calls these."""
    names = {(one.table.schema, one.table.name, one.key): one.name for one in store.entities}
    meant = {name: names.get((spec.schema_name, one.table, one.key)) for name, one in spec.entities.items()}
    return [
        soft.model_copy(update={"entity": meant[soft.entity]})
        for soft in spec.soft_references
        if meant[soft.entity] is not None
    ]
