"""Early references: columns without a foreign key that hold a row's target id before the row has it.

Workers that make the deterministic id themselves write such ones, and so does history that outlives a document which is
then uploaded again. The batch turns them to the row's present id before it moves the row, as merging turns references
of a loser to its survivor, and remembers what they held: else a rollback could not tell them from those that it moved.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.embedded_ids import ids_in
from uuid_pipeline.engine.store import Entity, Reference, Store

# A constraint depends on its columns, and its index on the constraint; an index over an expression has no column.
_UNIQUE = """
SELECT EXISTS (
    SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = %(column)s
    WHERE i.indrelid = %(oid)s AND (i.indisunique OR i.indisexclusion) AND (a.attnum = ANY(i.indkey::int2[]) OR EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
        AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum)))
"""


def why_not(connection: Connection, reference: Reference) -> str | None:
    """Why what this reference holds early cannot be turned; None where it can."""
    if reference.foreign_key is not None:
        return "is a foreign key"
    if not reference.table.primary_key:
        return "is in a table without a primary key, by which to remember what its rows held"
    if sql.scalar(connection, _UNIQUE, {"oid": reference.table.oid, "column": reference.column}):
        return "is part of a unique index, which might have no room for two that become one"
    return None


def mark(connection: Connection, store: Store, assessment: int) -> None:
    """Mark in the id map the rows whose target ids references hold early, where these can be turned."""
    for reference in store.references:
        if why_not(connection, reference) is None:
            statement = sql.compose(
                """UPDATE {map} m SET early = true FROM {early} e
                   WHERE m.assessment_no = %(no)s AND m.old_id = e.old_id AND NOT m.early""",
                map=ledger.map_table(store.entity(reference.entity)),
                early=_early(store, reference),
            )
            sql.execute(connection, statement, {"no": assessment, "path": list(reference.path)})


def marked(connection: Connection, entity: Entity, assessment: int) -> bool:
    """Whether any row of this entity's id map is marked."""
    statement = sql.compose(
        "SELECT EXISTS (SELECT FROM {map} WHERE assessment_no = %(no)s AND early)", map=ledger.map_table(entity)
    )
    return bool(sql.scalar(connection, statement, {"no": assessment}))


def count(connection: Connection, store: Store, reference: Reference, assessment: int) -> int:
    """Target ids that this reference holds early, of the rows in the id map."""
    statement = sql.compose("SELECT count(*) FROM {early} e", early=_early(store, reference))
    return int(sql.scalar(connection, statement, {"no": assessment, "path": list(reference.path)}))


def _early(store: Store, reference: Reference) -> sql.Composable:
    """Rows of the map that are to get an id that no row has yet, and that the reference holds.

    OFFSET keeps the joins in this order: hardly a target id is held, but the planner takes it that hardly one is free,
    and would read the whole reference anew for each that is.
    """
    entity = store.entity(reference.entity)
    return sql.compose(
        """(SELECT m.old_id FROM (
                SELECT m.old_id, m.new_id FROM {map} m
                WHERE m.assessment_no = %(no)s AND m.role = 'move' AND {held} OFFSET 0) m
            WHERE NOT EXISTS (SELECT FROM {target} o WHERE o.{key} = m.new_id))""",
        map=ledger.map_table(entity),
        held=_held(reference),
        target=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )


def _held(reference: Reference) -> sql.Composable:
    parts = {
        "table": sql.table(reference.table.schema, reference.table.name),
        "column": sql.name(reference.column),
    }
    if reference.form == "key":
        return sql.compose("m.new_id IN (SELECT t.{column} FROM {table} t)", **parts)
    return sql.compose(
        """m.new_id::text IN (SELECT i.id FROM {table} t CROSS JOIN LATERAL (SELECT t.{column} AS was) w
                              CROSS JOIN LATERAL {ids} i(id))""",
        ids=ids_in(reference),
        **parts,
    )
