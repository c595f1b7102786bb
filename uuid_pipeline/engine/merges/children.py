"""Which rows below the documents of a cluster stay: decided under the locks, from what is there now."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import held_of
from uuid_pipeline.engine.merges.working_tables import merged
from uuid_pipeline.engine.natural_keys import first_invalid, part
from uuid_pipeline.engine.store import Entity, Store


def forget_invalid(connection: Connection, store: Store, entity: Entity) -> None:
    """What is quarantined has no natural key to be merged by: it is left alone, below the survivor."""
    if not entity.spec.valid:
        return
    held = held_of(store, entity.name)
    goal = sql.compose("h.{value}", value=held.value(entity.parent_column or ""))
    statement = sql.compose(
        """SELECT h.key::text AS key, ARRAY[{valid}]::text[] AS checked FROM {held} h JOIN {table} t ON t.ctid = h.at
           WHERE h.natural_key IS NOT NULL AND h.ordinal IN (SELECT ordinal FROM pg_temp.merging)""",
        valid=sql.join(", ", [part(entity, field, goal) for field in entity.spec.valid]),
        held=held.relation,
        table=held.table,
    )
    invalid = [row.key for row in sql.rows(connection, statement) if first_invalid(entity, row.checked) is not None]
    forget = sql.compose("UPDATE {held} SET natural_key = NULL WHERE key::text = ANY(%(keys)s)", held=held.relation)
    sql.execute(connection, forget, {"keys": invalid})


# A set is what merge_as_set names below one document: the source with most rows stays whole, the survivor's own when
# even; the others go whole. Of rows that still share a natural key the survivor's own stays.
_CHILDREN = """
WITH rows AS (
    SELECT h.at, h.key, h.ordinal, t.{parent} AS parent, coalesce(m.survivor, t.{parent}) AS owner,
           m.loser IS NULL AS own, m.loser IS NOT NULL AND m.survivor IS NULL AS lost,
           h.natural_key, h.natural_key IS NOT NULL AS known, {set_of} AS set_of
    FROM {held} h JOIN {table} t ON t.ctid = h.at LEFT JOIN {merged_parent} m ON m.loser = t.{parent}
    WHERE h.ordinal IN (SELECT ordinal FROM pg_temp.merging)),
sources AS (
    SELECT owner, set_of, parent, row_number() OVER (
               PARTITION BY owner, set_of ORDER BY count(*) DESC, bool_or(own) DESC, parent) AS place
    FROM rows WHERE known AND NOT lost GROUP BY owner, set_of, parent),
ranked AS (
    SELECT r.*, s.place, row_number() OVER (
               PARTITION BY r.owner, r.natural_key ORDER BY {whole_sets} r.own DESC, r.key) AS turn
    FROM rows r LEFT JOIN sources s ON s.owner = r.owner AND s.set_of = r.set_of AND s.parent = r.parent),
judged AS (SELECT ranked.*, lost OR known AND (turn > 1 {outside}) AS goes FROM ranked),
gone AS (
    INSERT INTO {merged} (loser, survivor, ordinal)
    SELECT g.key, k.key, g.ordinal FROM judged g
    LEFT JOIN judged k ON k.owner = g.owner AND k.natural_key = g.natural_key AND NOT k.goes
    WHERE g.goes RETURNING loser, survivor)
INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
SELECT %(oid)s, j.at, j.ordinal, gone.survivor::text FROM gone JOIN judged j ON j.key = gone.loser
"""


def decide(connection: Connection, store: Store, entity: Entity) -> None:
    """Note which of the entity's held rows go, and what stands in the place of each."""
    held = held_of(store, entity.name)
    columns = [sql.compose("t.{c}", c=sql.name(column)) for column in entity.spec.merge_as_set]
    as_set = bool(columns)
    statement = sql.Text(_CHILDREN).format(
        parent=sql.name(entity.parent_column or ""),
        set_of=sql.compose("jsonb_build_array({c})", c=sql.join(", ", columns)) if as_set else sql.Text("'[]'::jsonb"),
        held=held.relation,
        table=held.table,
        merged_parent=merged(store, entity.parent or ""),
        merged=merged(store, entity.name),
        whole_sets=sql.Text("s.place," if as_set else ""),
        outside=sql.Text("OR place > 1" if as_set else ""),
    )
    sql.execute(connection, statement, {"oid": entity.table.oid})
