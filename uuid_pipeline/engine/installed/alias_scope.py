"""What a spec may not leave out while aliases stand: stale ids that the next installation would no longer translate."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Store

# What moved nothing has no aliases; what is finalized has none any more.
_IN_FORCE = """
SELECT e.execution_id, a.profile FROM uuid_pipeline.executions e JOIN uuid_pipeline.assessments a USING (assessment_no)
WHERE e.status <> 'finalized' AND EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.execution_id = e.execution_id)
ORDER BY e.execution_id DESC
"""


def left_out(connection: Connection, store: Store) -> list[str]:
    """Entities and references of executions whose aliases stand that the store has and its spec does not, a sentence
    each.
    """
    if sql.scalar(connection, "SELECT to_regclass('uuid_pipeline.executions')") is None:
        return []
    found: dict[str, str] = {}
    for row in sql.rows(connection, _IN_FORCE):
        for what in (*_entities(store, row.profile["spec"]), *_references(store, row.profile)):
            found.setdefault(what, row.execution_id)
    return [
        f"execution {execution} moved {what}, and its aliases stand, but the spec no longer says so: put that back, or "
        "end the execution first (uuid-pipeline finalize)"
        for what, execution in found.items()
    ]


def _entities(store: Store, spec: Mapping[str, Any]) -> Iterator[str]:
    now = {(one.name, one.table.schema, one.table.name, one.key) for one in store.entities}
    for name, entity in spec["entities"].items():
        place = (spec["schema"], entity["table"])
        if place in store.catalog.tables and (name, *place, entity["key"]) not in now:
            yield f"the ids {place[0]}.{place[1]}.{entity['key']} of the entity {name}"


def _references(store: Store, profile: Mapping[str, Any]) -> Iterator[str]:
    now = {(one.table.schema, one.table.name, one.column, one.entity) for one in store.references}
    known = {entity.name for entity in store.entities}
    for one in profile["references"]:
        place = (one.get("schema", profile["spec"]["schema"]), one["table"])
        table = store.catalog.tables.get(place)
        there = table is not None and one["column"] in table.columns
        if there and one["entity"] in known and (*place, one["column"], one["entity"]) not in now:
            yield f"{place[0]}.{place[1]}.{one['column']} with ids of {one['entity']}"
