"""HNSW indexes of tables that move, and for which waves it is cheaper to drop one and build it again.

A moved id is in the primary key's index, so its row's UPDATE is never HOT and writes every other index of the row too:
8.2 ms a row for HNSW, against 72 s to build one over 50,000 rows (ENGINE.md, section 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Entity, MovedTable, Store

BUILD_SECONDS_A_ROW = 72 / 50_000
UPDATE_SECONDS_A_ROW = 0.0082
# The share of an index's rows from which building it anew is cheaper than updating it.
SHARE = 0.2
# Below this an update of every row takes seconds: less than dropping, waiting and building is worth.
FEW_ROWS = 2_000


@dataclass(frozen=True)
class VectorIndex:
    """All that it takes to build an HNSW index again as it was; kept in the ledger while it is dropped.

    ``head`` and ``where`` are its definition before and after the place of a tablespace. ``statistics`` are the
    targets set by hand, by column number; ``hindrance`` says why this role cannot rebuild it.
    """

    schema: str
    table: str
    name: str
    definition: str
    head: str
    where: str
    filled: str
    tablespace: str
    comment: str | None
    statistics: dict[str, int]
    extensions: list[str]
    hindrance: str | None

    @property
    def place(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Span:
    """Ordinals of one assessment that are to be written."""

    assessment_no: int
    first: int
    last: int


@dataclass(frozen=True)
class Considered:
    """An index with the rows that it holds, and the share of them that each span writes."""

    index: VectorIndex
    rows: int
    shares: tuple[float, ...]


# An HNSW index is never unique, clustered or a constraint's: nothing else hangs on it. Rows without a vector are not
# in it; whether an expression is NULL would take computing it.
_INDEXES = """
SELECT n.nspname AS schema, c.relname AS table, x.relname AS name, pg_get_indexdef(x.oid) AS definition,
       pg_get_expr(i.indpred, i.indrelid) AS predicate,
       (SELECT quote_ident(a.attname) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = i.indkey[0])
           AS vector,
       (SELECT s.spcname FROM pg_tablespace s JOIN pg_database d ON d.datname = current_database()
        WHERE s.oid = CASE x.reltablespace WHEN 0 THEN d.dattablespace ELSE x.reltablespace END) AS tablespace,
       obj_description(x.oid, 'pg_class') AS comment,
       (SELECT coalesce(jsonb_object_agg(a.attnum::text, a.attstattarget), '{}') FROM pg_attribute a
        WHERE a.attrelid = x.oid AND a.attstattarget >= 0) AS statistics,
       array(SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
             WHERE d.classid = 'pg_class'::regclass AND d.objid = x.oid AND d.deptype = 'x'
               AND d.refclassid = 'pg_extension'::regclass ORDER BY 1) AS extensions,
       CASE WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN 'this role does not own the table'
            WHEN NOT has_schema_privilege(n.oid, 'CREATE') THEN 'this role may not create in the schema'
            WHEN x.reltablespace <> 0 AND NOT has_tablespace_privilege(x.reltablespace, 'CREATE')
            THEN 'this role may not create in its tablespace' END AS hindrance
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'hnsw'
JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = ANY(%(oids)s) AND i.indisvalid ORDER BY 1, 2, 3
"""


def read(connection: Connection, tables: Sequence[int]) -> list[VectorIndex]:
    """The valid HNSW indexes of these tables (by oid)."""
    catalogs.pin_names(connection)
    return [_index(row) for row in sql.rows(connection, _INDEXES, {"oids": list(tables)})]


def _index(row: Any) -> VectorIndex:
    where = f" WHERE {row.predicate}" if row.predicate else ""
    legible = row.definition.endswith(where) and row.definition.startswith("CREATE INDEX ")
    conditions = [row.predicate] if row.predicate else []
    conditions += [f"{row.vector} IS NOT NULL"] if row.vector else []
    return VectorIndex(
        schema=row.schema, table=row.table, name=row.name, definition=row.definition,
        head=row.definition.removesuffix(where), where=where,
        filled=" AND ".join(f"({condition})" for condition in conditions) or "true",
        tablespace=row.tablespace, comment=row.comment, statistics=row.statistics, extensions=row.extensions,
        hindrance=row.hindrance if legible else "its definition is not of the form that is known here",
    )  # fmt: skip


def consider(connection: Connection, store: Store, spans: Sequence[Span]) -> list[Considered]:
    """Each HNSW index of the store's tables, also one that a crashed run left dropped, with the share by span."""
    found: list[Considered] = []
    dropped = [VectorIndex(**record) for record in catalogs.altered_indexes(connection)]
    for moved in store.tables:
        place = (moved.table.schema, moved.table.name)
        valid = read(connection, [moved.table.oid])
        known = {index.name for index in valid}
        indexes = valid + [i for i in dropped if (i.schema, i.table) == place and i.name not in known]
        if indexes:
            shares = _shares(connection, store, moved, spans)
            found += [Considered(index, _rows(connection, index.schema, index), shares) for index in indexes]
    return found


def _rows(connection: Connection, schema: str, index: VectorIndex) -> int:
    statement = sql.compose(
        "SELECT count(*) FROM {table} WHERE {filled}",
        table=sql.table(schema, index.table),
        filled=sql.as_written(index.filled),
    )
    return int(sql.scalar(connection, statement))


def _shares(connection: Connection, store: Store, moved: MovedTable, spans: Sequence[Span]) -> tuple[float, ...]:
    """Share of the table's rows that each span writes, by the id map; of a table that only refers, by the share of
    the entity that it refers to."""
    held = [name for _, name in moved.columns] + [reference.entity for reference in moved.embedded]
    entities = [store.entity(name) for name in dict.fromkeys(held)]
    totals = {entity.name: _total(connection, entity) for entity in entities}
    return tuple(
        max(min(1.0, _mapped(connection, entity, span) / max(1, totals[entity.name])) for entity in entities)
        for span in spans
    )


def _total(connection: Connection, entity: Entity) -> int:
    table = sql.table(entity.table.schema, entity.table.name)
    return int(sql.scalar(connection, sql.compose("SELECT count(*) FROM {table}", table=table)))


def _mapped(connection: Connection, entity: Entity, span: Span) -> int:
    statement = sql.compose(
        """SELECT count(*) FROM {map}
           WHERE assessment_no = %(assessment_no)s AND ordinal BETWEEN %(first)s AND %(last)s""",
        map=ledger.map_table(entity),
    )
    return int(sql.scalar(connection, statement, asdict(span)))


def reason_to_keep(rows: int, share: float, hindrance: str | None) -> str | None:
    """Why an index stays in place while this share of its rows moves; None when it is to be dropped and rebuilt."""
    if rows < FEW_ROWS:
        return f"it holds {rows} rows, which are soon updated"
    if share <= SHARE:
        return f"{share:.0%} of its rows move, and up to {SHARE:.0%} updating is cheaper than building"
    return hindrance


def rebuild_seconds(rows: int) -> float:
    """An estimate, by the speed of another machine."""
    return round(rows * BUILD_SECONDS_A_ROW, 1)


def update_seconds(rows: int) -> float:
    """An estimate, by the speed of another machine."""
    return round(rows * UPDATE_SECONDS_A_ROW, 1)


@dataclass(frozen=True)
class Choice:
    """The plan's say on HNSW indexes: what it shows as rebuilt and kept, its risks, and the seconds that it costs."""

    rebuilt: list[dict[str, Any]]
    kept: list[dict[str, Any]]
    risks: list[str]
    seconds: float


def choose(connection: Connection, store: Store, waves: Mapping[str, Span]) -> Choice:
    """Decide for every HNSW index and every wave (by name) whether the index is dropped while the wave runs."""
    found = consider(connection, store, list(waves.values()))
    parts = [_choose_one(considered, dict(zip(waves, considered.shares, strict=True))) for considered in found]
    return Choice(
        [entry for part in parts for entry in part.rebuilt],
        [entry for part in parts for entry in part.kept],
        [risk for part in parts for risk in part.risks],
        sum(part.seconds for part in parts),
    )


def _choose_one(considered: Considered, shares: Mapping[str, float]) -> Choice:
    index, rows = considered.index, considered.rows
    by_reason: dict[str | None, list[str]] = {}
    for wave, share in shares.items():
        by_reason.setdefault(reason_to_keep(rows, share, index.hindrance), []).append(wave)
    dropped = by_reason.pop(None, [])
    entry = {"index": index.name, "table": index.place, "rows": rows}
    kept = [{**entry, "waves": names, "reason": reason} for reason, names in by_reason.items()]
    updated = round(rows * sum(share for wave, share in shares.items() if wave not in dropped))
    seconds = update_seconds(updated)
    risks = []
    if index.hindrance in by_reason:
        risks.append(
            f"index {index.name} of {index.place} stays in place, since {index.hindrance}: each of about {updated} "
            f"updates of it costs some {1000 * UPDATE_SECONDS_A_ROW:.0f} ms (estimate: {seconds:.0f} s)"
        )
    if not dropped:
        return Choice([], kept, risks, seconds)
    share = sum(shares[wave] for wave in dropped)
    spent = rebuild_seconds(rows * len(dropped))
    reason = (
        f"{share:.0%} of its rows move in {'this wave' if len(dropped) == 1 else 'these waves'}: about "
        f"{update_seconds(round(rows * share)):.0f} s to update, {spent:.0f} s to build (estimates, by a speed "
        "measured elsewhere)"
    )
    risks.append(scan_risk(index.name, index.place, dropped, rows))
    rebuilt = {**entry, "waves": dropped, "share": round(share, 4), "reason": reason, "estimated_seconds": spent}
    return Choice([rebuilt], kept, risks, seconds + spent)


def scan_risk(name: str, place: str, waves: Sequence[str], rows: int) -> str:
    """What it means that an index is dropped while these waves run."""
    return (
        f"similarity search scans {place} while wave {', '.join(waves)} runs, and until index {name} "
        f"is built again after it (estimate: {rebuild_seconds(rows):.0f} s)"
    )


def due(connection: Connection, store: Store, spans: Sequence[Span]) -> list[VectorIndex]:
    """The indexes to drop now, for these spans together: what is left to write must still be worth a build."""
    return [
        found.index
        for found in (consider(connection, store, spans) if spans else [])
        if reason_to_keep(found.rows, sum(found.shares), found.index.hindrance) is None
    ]
