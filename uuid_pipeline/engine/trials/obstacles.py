"""What a changed key meets: every constraint, unique index and trigger of the tables that an approach writes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.store import Entity, Reference, Store

Kind = Literal["primary key", "unique constraint", "unique index", "exclusion", "check", "foreign key", "trigger"]
UNIQUE: tuple[Kind, ...] = ("primary key", "unique constraint", "unique index", "exclusion")


@dataclass(frozen=True)
class Obstacle:
    """A constraint, unique index or trigger on ``schema.table``.

    ``columns`` are those of its table that it looks at. ``expressions`` and ``predicate``: of a unique index, as SQL
    over its table. Of a foreign key: ``target`` (schema, table) with ``target_columns``, and its action on update as
    pg_constraint has it (a no action, r restrict, c cascade, n set null, d set default).
    """

    name: str
    kind: Kind
    schema: str
    table: str
    columns: tuple[str, ...]
    expressions: tuple[str, ...] = ()
    predicate: str | None = None
    nulls_collide: bool = False
    target: tuple[str, str] | None = None
    target_columns: tuple[str, ...] = ()
    on_update: str = ""
    deferrable: bool = False
    deferred: bool = False
    is_constraint: bool = True
    events: str = ""
    function: str = ""
    does: str = ""

    @property
    def place(self) -> tuple[str, str]:
        return self.schema, self.table

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.table}"

    def refers_to(self, entity: Entity) -> bool:
        """Whether it is a foreign key that holds the entity's own key."""
        return self.target == (entity.table.schema, entity.table.name) and entity.key in self.target_columns

    def column_of(self, entity: Entity) -> str:
        """The column that holds the entity's key, of a foreign key that refers to it."""
        return self.columns[self.target_columns.index(entity.key)]


_UNIQUE = """
SELECT coalesce(k.conname, c.relname) AS name, n.nspname AS schema, t.relname AS "table",
       CASE k.contype WHEN 'p' THEN 'primary key' WHEN 'u' THEN 'unique constraint' WHEN 'x' THEN 'exclusion'
            ELSE 'unique index' END AS kind,
       array(SELECT DISTINCT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum > 0
               AND (a.attnum = ANY (i.indkey::int2[])
                    OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                               AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))) AS columns,
       array(SELECT pg_get_indexdef(i.indexrelid, g.n, true) FROM generate_series(1, i.indnkeyatts) g(n))
           AS expressions,
       pg_get_expr(i.indpred, i.indrelid) AS predicate,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_collide,
       coalesce(k.condeferrable, false) AS deferrable, coalesce(k.condeferred, false) AS deferred,
       k.oid IS NOT NULL AS is_constraint
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = ANY(%(oids)s) AND (i.indisunique OR k.contype = 'x') AND i.indisvalid
ORDER BY 2, 3, i.indexrelid
"""

_CHECKS = """
SELECT k.conname AS name, n.nspname AS schema, t.relname AS "table",
       array(SELECT a.attname::text FROM unnest(k.conkey) u JOIN pg_attribute a
             ON a.attrelid = k.conrelid AND a.attnum = u) AS columns
FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE k.conrelid = ANY(%(oids)s) AND k.contype = 'c' ORDER BY 2, 3, 1
"""

_FOREIGN_KEYS = """
SELECT k.conname AS name, n.nspname AS schema, t.relname AS "table",
       array(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(n, p)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY u.p) AS columns,
       tn.nspname AS target_schema, tt.relname AS target,
       array(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u(n, p)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.n ORDER BY u.p) AS target_columns,
       k.confupdtype::text AS on_update, k.condeferrable AS deferrable, k.condeferred AS deferred
FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_class tt ON tt.oid = k.confrelid JOIN pg_namespace tn ON tn.oid = tt.relnamespace
WHERE k.contype = 'f' AND (k.conrelid = ANY(%(oids)s) OR k.confrelid = ANY(%(oids)s)) ORDER BY 2, 3, 1
"""


def read(connection: Connection, store: Store) -> tuple[Obstacle, ...]:
    """Every constraint, unique index and trigger of the tables that would move, and the foreign keys to them."""
    catalogs.pin_names(connection)
    oids = {"oids": [moved.table.oid for moved in store.tables]}
    unique = [_built(row, row.kind) for row in sql.rows(connection, _UNIQUE, oids)]
    checks = [_built(row, "check") for row in sql.rows(connection, _CHECKS, oids)]
    keys = [_foreign_key(row) for row in sql.rows(connection, _FOREIGN_KEYS, oids)]
    fired = [
        Obstacle(
            name=t.name, kind="trigger", schema=t.schema, table=t.table, columns=(), events=t.events,
            function=t.function, does="; ".join(triggers.deeds(t.language, t.source)),
        )
        for t in triggers.read(connection, store)
    ]  # fmt: skip
    return (*unique, *checks, *keys, *fired)


def _built(row: Any, kind: Kind) -> Obstacle:
    facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row._mapping.items() if k != "kind"}
    return Obstacle(kind=kind, **facts)


def _foreign_key(row: Any) -> Obstacle:
    facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row._mapping.items()}
    target = (str(facts.pop("target_schema")), str(facts.pop("target")))
    return Obstacle(kind="foreign key", target=target, **facts)


def references_to(store: Store, entity: Entity) -> tuple[Reference, ...]:
    """The columns that hold this entity's key by a foreign key that names it directly; what the usual tools know of."""
    return tuple(
        r
        for r in store.references
        if r.entity == entity.name
        and any(
            k.name == r.foreign_key
            and (k.table_schema, k.table) == (r.table.schema, r.table.name)
            and (k.target_schema, k.target) == (entity.table.schema, entity.table.name)
            for k in store.catalog.foreign_keys
        )
    )


def soft_references_to(store: Store, entity: Entity) -> tuple[Reference, ...]:
    """The columns that hold this entity's key and that no foreign key names: no tool that reads catalogs sees them."""
    hard = references_to(store, entity)
    return tuple(r for r in store.references if r.entity == entity.name and r not in hard and r.form in ("key", "text"))


def touching(store: Store, entity: Entity, found: Sequence[Obstacle]) -> tuple[Obstacle, ...]:
    """Those that rows of one entity meet when their key changes, in whatever way."""
    own = (entity.table.schema, entity.table.name)
    held = {((r.table.schema, r.table.name), r.column) for r in references_to(store, entity)}
    tables = {place for place, _ in held}
    return tuple(
        o
        for o in found
        if o.place == own
        or (o.kind == "trigger" and o.place in tables)
        or (o.kind == "foreign key" and o.refers_to(entity))
        or (o.kind not in ("trigger", "foreign key") and any((o.place, c) in held for c in o.columns))
    )
