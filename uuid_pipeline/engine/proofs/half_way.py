"""Soft references that a rollback has left half way: new ids of rows that have their old ones again.

A batch leaves none where it writes. But what was declared since may hold ids of waves that had gone back before, or
stand in tables whose rows no batch can write. What the plan itself knew is not counted: a rollback puts new ids back
there that were held before their rows had them.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import declared_since, embedded_ids, ledger, sql
from uuid_pipeline.engine.store import Reference, Store
from uuid_pipeline.spec import Spec


def named(connection: Connection, execution: ledger.Execution, given: Spec) -> list[str]:
    """References declared since this execution was planned that were left behind when it went back, each with the rows
    that hold such ids, and with how to put them right."""
    store, references = declared_since.references(connection, execution.assessment_no, given)
    found = [(one, _count(connection, store, one, execution)) for one in references if _may_look(connection, one)]
    return [f"{count} rows of {_where(one)}: {_remedy(one)}" for one, count in found if count]


def _may_look(connection: Connection, reference: Reference) -> bool:
    table = reference.table
    asked = "SELECT has_table_privilege(%(oid)s::oid, 'SELECT')"
    # What a view shows is in other tables.
    return table.kind in ("r", "p") and not table.hides_rows and bool(sql.scalar(connection, asked, {"oid": table.oid}))


def _where(reference: Reference) -> str:
    return f"{reference.table.schema}.{reference.name}"


# The map is joined to the reference first: hardly any row holds such an id, and only these are asked the rest.
_COUNT = """
SELECT count(DISTINCT h.row) FROM (
    SELECT r.row, m.assessment_no, m.ordinal, m.old_id, m.new_id FROM {map} m JOIN (
        SELECT (t.tableoid, t.ctid)::text AS row, {id} AS id FROM {table} t {ids} OFFSET 0) r ON r.id = {new_id}
    WHERE m.assessment_no = ANY(%(maps)s) AND m.role <> 'keep' OFFSET 0) h
WHERE EXISTS (SELECT FROM uuid_pipeline.batches b JOIN uuid_pipeline.waves w USING (wave)
              WHERE w.execution_id = %(execution)s AND b.direction = 'back'
                AND coalesce(w.assessment_no, %(no)s) = h.assessment_no
                AND h.ordinal BETWEEN b.first_ordinal AND b.last_ordinal
                AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.wave = b.wave AND u.ordinal = h.ordinal))
  AND EXISTS (SELECT FROM {target} o WHERE o.{key} = h.old_id)
  AND NOT EXISTS (SELECT FROM {target} n WHERE n.{key} = h.new_id)
"""


def _count(connection: Connection, store: Store, reference: Reference, execution: ledger.Execution) -> int:
    entity = store.entity(reference.entity)
    by_key = reference.form == "key"
    inside = "CROSS JOIN LATERAL (SELECT t.{column} AS was) w CROSS JOIN LATERAL {ids} i(id)"
    column = sql.name(reference.column)
    statement = sql.compose(
        _COUNT,
        map=ledger.map_table(entity),
        id=sql.compose("t.{column}", column=column) if by_key else sql.Text("i.id"),
        new_id=sql.Text("m.new_id" if by_key else "m.new_id::text"),
        table=sql.table(reference.table.schema, reference.table.name),
        ids=sql.Text("") if by_key else sql.compose(inside, column=column, ids=embedded_ids.ids_in(reference)),
        target=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )
    maps = {wave.assessment_no for wave in ledger.waves(connection, execution.execution_id)}
    values = {"execution": execution.execution_id, "no": execution.assessment_no, "maps": sorted(maps)}
    return int(sql.scalar(connection, statement, {**values, "path": list(reference.path)}))


def _remedy(reference: Reference) -> str:
    """The statement that gives each row the id of now; inside other values only what tells it."""
    resolve = sql.table(ledger.SCHEMA, f"resolve_{reference.entity}")
    if reference.form != "key":
        return f"{sql.shown(resolve)}(ID) tells of each id in them the one of now"
    statement = sql.compose(
        "UPDATE {table} SET {column} = {resolve}({column}) WHERE {column} <> {resolve}({column});",
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        resolve=resolve,
    )
    return sql.shown(statement)
