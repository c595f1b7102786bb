"""The owner's own similarity query as SQL, from the spec and the catalogs; and how a document's chunks are reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.store import Store, nearest

OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}


@dataclass(frozen=True)
class Way:
    """From the rows ``c`` of a table to their documents ``d``: what follows FROM, and every alias in it."""

    table: Table
    source: sql.Composable
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """The similarity query of one owner over everything that is theirs; ``owner_column`` is None where unknown."""

    store: Store
    way: Way
    vector: str
    vector_type: sql.Composable
    operator: sql.Composable
    chunk_key: str | None

    @property
    def owner_column(self) -> str | None:
        return self.store.main.spec.describe.owner

    def statement(self) -> sql.Composable:
        """The nearest ``k`` of the owner, ties included: document, chunk, distance, and whether %(document)s is among
        all of them. Wants %(vector)s, %(document)s, %(k)s, %(shown)s bound, and %(owner)s where there is one.
        """
        retrieval = self.store.spec.retrieval
        distance = sql.compose(
            "c.{vector} {operator} %(vector)s::{type}",
            vector=sql.name(self.vector),
            operator=self.operator,
            type=self.vector_type,
        )
        conditions = [sql.compose("c.{vector} IS NOT NULL", vector=sql.name(self.vector))]
        if self.owner_column is not None:
            column = self.store.main.table.columns[self.owner_column]
            mine = sql.compose(
                "d.{owner} = %(owner)s::{type}", owner=sql.name(self.owner_column), type=sql.as_written(column.type)
            )
            conditions.insert(0, mine)
        if retrieval is not None and retrieval.max_distance is not None:
            conditions.append(sql.compose("{distance} <= %(max_distance)s", distance=distance))
        return sql.compose(
            """SELECT q.document, q.chunk, q.distance, bool_or(q.document = %(document)s) OVER () AS found
               FROM (SELECT d.{key}::text AS document, {chunk} AS chunk, {distance} AS distance
                     FROM {source} WHERE {conditions}
                     ORDER BY {distance} FETCH FIRST %(k)s ROWS WITH TIES) q
               ORDER BY q.distance, q.document, q.chunk LIMIT %(shown)s""",
            key=sql.name(self.store.main.key),
            chunk=sql.compose("c.{key}::text", key=sql.name(self.chunk_key)) if self.chunk_key else sql.Text("NULL"),
            distance=distance,
            source=self.way.source,
            conditions=sql.join(" AND ", conditions),
        )

    def own_vectors(self) -> sql.Composable:
        """One vector of each document of %(ids)s, chosen by its content, so that it is the same one under any id.

        Of several that have the digest of the one asked with before (%(digests)s) that one; else the smallest.
        """
        column = self.way.table.columns[self.vector]
        sent = (
            sql.compose("{send}(c.{v})", send=sql.as_written(column.send_function), v=sql.name(self.vector))
            if column.send_function
            else sql.compose("convert_to(c.{v}::text, 'UTF8')", v=sql.name(self.vector))
        )
        return sql.compose(
            """SELECT p.document, p.digest, p.vector::text AS vector FROM (
                   SELECT DISTINCT ON (v.document) v.document, v.digest, v.vector FROM (
                       SELECT d.{key}::text AS document, md5({sent}) AS digest, c.{vector} AS vector
                       FROM {source} WHERE d.{key} = ANY(%(ids)s::{type}[]) AND c.{vector} IS NOT NULL) v
                   ORDER BY v.document, v.digest = ANY(%(digests)s) DESC, v.digest) p""",
            key=sql.name(self.store.main.key),
            type=sql.Text(self.store.main.key_type),
            sent=sent,
            vector=sql.name(self.vector),
            source=self.way.source,
        )

    def owners_rows(self, written: sql.Composable) -> sql.Composable:
        """By owner of %(owners)s: rows with a vector, and rows for which ``written`` holds."""
        if self.owner_column is None:
            owner, mine = sql.Text("NULL::text"), sql.Text("true")
        else:
            column = self.store.main.table.columns[self.owner_column]
            parts = {"owner": sql.name(self.owner_column), "type": sql.as_written(column.type)}
            owner = sql.compose("d.{owner}::text", **parts)  # type: ignore[assignment]
            mine = sql.compose("d.{owner} = ANY(%(owners)s::{type}[])", **parts)  # type: ignore[assignment]
        return sql.compose(
            """SELECT {owner} AS owner, count(c.{vector}) AS rows, count(*) FILTER (WHERE {written}) AS written
               FROM {source} WHERE {mine} GROUP BY 1""",
            owner=owner,
            vector=sql.name(self.vector),
            written=written,
            source=self.way.source,
            mine=mine,
        )


def of_store(connection: Connection, store: Store) -> Query | str:
    """The store's query, or why it has none that could be asked."""
    retrieval = store.spec.retrieval
    if retrieval is None:
        return "the spec has no `retrieval`"
    table = store.catalog.table(retrieval.chunk_table)
    if table is None:
        return f"there is no table {retrieval.chunk_table}{nearest(retrieval.chunk_table, store.catalog.names())}"
    if retrieval.vector not in table.columns:
        near = nearest(retrieval.vector, table.columns)
        return f"table {retrieval.chunk_table} has no column {retrieval.vector}{near}"
    way = way_to(store, table)
    if way is None:
        return f"no reference leads from {retrieval.chunk_table} to {store.main.table.name}"
    found = _vector_type(connection, table, retrieval.vector, OPERATORS[retrieval.distance])
    if isinstance(found, str):
        return found
    entity = next((entity for entity in store.entities if entity.table.oid == table.oid), None)
    return Query(store, way, retrieval.vector, *found, entity.key if entity else None)


def ways_to_children(store: Store) -> list[Way]:
    """The chunk table's way where the spec names one, else that of every entity right below the documents."""
    retrieval = store.spec.retrieval
    table = store.catalog.table(retrieval.chunk_table) if retrieval else None
    named = way_to(store, table) if table else None
    if named is not None:
        return [named]
    found = [way_to(store, child.table) for child in store.children(store.main)]
    return [way for way in found if way is not None]


def way_to(store: Store, table: Table) -> Way | None:
    """The shortest way along references from a table's rows to the documents; None where there is none."""
    main = store.main
    if table.oid == main.table.oid:
        return Way(table, _joined(table, [(main.table, main.key, main.key)]), ("c", "d"))
    tried = {table.oid}
    paths: list[list[tuple[Table, str, str]]] = [[]]
    while paths:
        path = paths.pop(0)
        at = path[-1][0] if path else table
        for column, entity_name in _upwards(store, at):
            entity = store.entity(entity_name)
            if entity == main:
                steps = [*path, (main.table, main.key, column)]
                names = ["c", *[f"x{index}" for index in range(len(steps) - 1)], "d"]
                return Way(table, _joined(table, steps), tuple(names))
            if entity.table.oid not in tried:
                tried.add(entity.table.oid)
                paths.append([*path, (entity.table, entity.key, column)])
    return None


def _upwards(store: Store, table: Table) -> list[tuple[str, str]]:
    """Columns of a table that hold an entity's key, with that entity; the one to its parent first."""
    own = next((entity for entity in store.entities if entity.table.oid == table.oid), None)
    found = [(r.column, r.entity) for r in store.references if r.table.oid == table.oid and r.form == "key"]
    parent = own.parent_column if own else None
    return sorted(found, key=lambda one: one[0] != parent)


def _joined(table: Table, steps: Sequence[tuple[Table, str, str]]) -> sql.Composable:
    """``table c JOIN … JOIN documents d``; each step is a table, its key, and the column before it that holds it."""
    parts: list[sql.Composable] = [sql.compose("{table} c", table=sql.table(table.schema, table.name))]
    before = "c"
    for index, (target, key, column) in enumerate(steps):
        alias = "d" if index == len(steps) - 1 else f"x{index}"
        parts.append(
            sql.compose(
                "JOIN {table} {alias} ON {alias}.{key} = {before}.{column}",
                table=sql.table(target.schema, target.name),
                alias=sql.Text(alias),
                key=sql.name(key),
                before=sql.Text(before),
                column=sql.name(column),
            )
        )
        before = alias
    return sql.join(" ", parts)


# The operator's schema is said in the query: pgvector may live where no search_path of ours or the users' leads.
_OPERATOR = """
SELECT quote_ident(tn.nspname) || '.' || quote_ident(t.typname) AS type, t.typname, quote_ident(n.nspname) AS schema
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
LEFT JOIN pg_operator o ON o.oprname = %(name)s AND o.oprleft = t.oid AND o.oprright = t.oid
LEFT JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s LIMIT 1
"""


def _vector_type(
    connection: Connection, table: Table, column: str, operator: str
) -> tuple[sql.Composable, sql.Composable] | str:
    """The column's type and the qualified operator, or why there is none."""
    values = {"oid": table.oid, "column": column, "name": operator}
    row = sql.rows(connection, _OPERATOR, values)[0]
    if row.schema is None:
        return f"{table.name}.{column} is {row.typname}, which has no operator {operator}"
    called = sql.compose("OPERATOR({schema}.{name})", schema=sql.as_written(row.schema), name=sql.as_written(operator))
    return sql.as_written(row.type), called
