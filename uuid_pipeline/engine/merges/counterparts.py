"""What merging whole sets leaves without a counterpart, as far as the plan can foresee it: by the rows of today."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import embedded_ids, inventory, ledger, sql
from uuid_pipeline.engine.installed import functions
from uuid_pipeline.engine.mapping import survivor_order
from uuid_pipeline.engine.priorities import complete_statuses
from uuid_pipeline.engine.store import Entity, Reference, Store

# As a batch decides it: of each set below one document the source with most rows stays whole, the survivor's own when
# even; of the others the rows whose natural key the kept set lacks are archived and have nothing in their place.
_LOST = """
WITH shared AS (
    SELECT target_id FROM {parents} WHERE assessment_no = %(no)s AND target_id IS NOT NULL
    GROUP BY target_id HAVING count(*) > 1),
clusters AS (
    SELECT i.key AS parent, target_id AS owner,
           row_number() OVER (PARTITION BY target_id ORDER BY {survivor}, i.key) = 1 AS own
    FROM {parents} i JOIN shared USING (target_id) WHERE i.assessment_no = %(no)s),
rows AS (
    SELECT i.key::text AS key, i.natural_key, i.parent_key AS parent, c.owner, c.own,
           jsonb_build_array({columns}) AS set_of
    FROM clusters c JOIN {inventory} i ON i.assessment_no = %(no)s AND i.parent_key = c.parent
    JOIN {table} t ON t.{key} = i.key WHERE i.natural_key IS NOT NULL AND i.quarantined IS NULL),
counted AS (
    SELECT r.*, count(*) OVER source AS size, bool_or(own) OVER source AS owners FROM rows r
    WINDOW source AS (PARTITION BY owner, set_of, parent)),
-- Each set is read once: joined with itself, many clusters would be compared row by row.
placed AS (
    SELECT key, owner, natural_key,
           dense_rank() OVER (PARTITION BY owner, set_of ORDER BY size DESC, owners DESC, parent) AS place FROM counted)
SELECT array_agg(key) AS keys FROM placed GROUP BY owner, natural_key HAVING bool_and(place > 1)
"""


def merged_as_sets(store: Store) -> list[Entity]:
    """The entities of which whole sets may go to the archive."""
    return [entity for entity in store.entities if entity.parent is not None and entity.spec.merge_as_set]


def lost(connection: Connection, store: Store, entity: Entity, assessment: int) -> int:
    """How many natural keys of such an entity would be archived while nothing takes their place."""
    if not inventory.may_share_targets(connection, _parent(store, entity), assessment):
        return 0
    counted = sql.compose("SELECT count(*) FROM ({lost}) gone", lost=_lost(store, entity))
    return int(sql.scalar(connection, counted, _values(store, assessment)))


def _values(store: Store, assessment: int) -> dict[str, Any]:
    return {"no": assessment, "complete": complete_statuses(store)}


def _parent(store: Store, entity: Entity) -> Entity:
    return store.entity(entity.parent or "")


def _lost(store: Store, entity: Entity) -> sql.Composable:
    parent = _parent(store, entity)
    return sql.compose(
        _LOST,
        parents=ledger.inventory_table(parent),
        survivor=survivor_order(parent),
        inventory=ledger.inventory_table(entity),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        columns=sql.join(", ", [sql.compose("t.{c}", c=sql.name(column)) for column in entity.spec.merge_as_set]),
    )


def held(connection: Connection, store: Store, assessment: int) -> dict[str, int]:
    """Rows, by reference, whose text, array or JSON holds ids of what is lost, or of what hangs on that.

    A column of keys is turned, emptied or archived with its row; these can only stay as they are written, so only
    those of which the spec does not say that ids of no row may stay are looked at.
    """
    found: dict[str, int] = {}
    for entity in merged_as_sets(store):
        if lost(connection, store, entity, assessment):
            functions.put_embedded(connection)
            keys = sql.compose("SELECT DISTINCT unnest(g.keys) AS key FROM ({lost}) g", lost=_lost(store, entity))
            for name, count in _held(connection, store, entity, keys, assessment).items():
                found[name] = found.get(name, 0) + count
    return found


def _held(
    connection: Connection, store: Store, entity: Entity, keys: sql.Composable, assessment: int
) -> dict[str, int]:
    found = {}
    for reference in store.references:
        if reference.entity == entity.name and reference.form != "key" and not reference.keeps_orphans:
            values = {**_values(store, assessment), "path": list(reference.path)}
            found[reference.name] = int(sql.scalar(connection, _holding(reference, keys), values))
    for child in (other for other in store.entities if other.parent == entity.name):
        below = sql.compose(
            "SELECT i.key::text AS key FROM {inventory} i WHERE i.assessment_no = %(no)s "
            "AND i.parent_key::text IN (SELECT key FROM ({keys}) above)",
            inventory=ledger.inventory_table(child),
            keys=keys,
        )
        found |= _held(connection, store, child, below, assessment)
    return {name: count for name, count in found.items() if count}


def _holding(reference: Reference, keys: sql.Composable) -> sql.Composable:
    return sql.compose(
        """WITH lost AS MATERIALIZED ({keys})
           SELECT count(*) FROM {table} t CROSS JOIN LATERAL (SELECT t.{column} AS was) w
           WHERE EXISTS (SELECT FROM {ids} i(id) WHERE i.id IN (SELECT key FROM lost))""",
        keys=keys,
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        ids=embedded_ids.ids_in(reference),
    )
