"""What a backup holds: each touched table with all that its definition is made of, and the tables that it refers to."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.backups import extensions, name_paths, portable
from uuid_pipeline.engine.backups.extensions import Extension
from uuid_pipeline.engine.backups.portable import Recipe
from uuid_pipeline.engine.store import Store


@dataclass(frozen=True)
class Relation:
    schema: str
    name: str
    oid: int
    kind: str
    needed: bool
    readable: bool

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Scope:
    """What to dump, and what to make of it.

    ``recipes`` reads each table whose rows are in the dump, the touched ones (``touched``) among them.

    ``roles`` are those that policies name; ``our_triggers`` need the ledger, which no copy has.
    ``search_path``: where names are looked for that the store's functions do not qualify.
    ``left_out`` says in a sentence each what the touched tables have to do with and the dump lacks.
    """

    schemas: tuple[str, ...]
    touched: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    without_rows: tuple[Relation, ...]
    excluded: tuple[Relation, ...]
    extensions: tuple[Extension, ...]
    roles: tuple[str, ...]
    our_triggers: tuple[str, ...]
    search_path: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The selection as pg_dump's options."""
        return [
            *[f"--schema={_pattern(schema)}" for schema in self.schemas],
            *[f"--exclude-table-data={_pattern(r.schema, r.name)}" for r in self.without_rows],
            *[f"--exclude-table={_pattern(r.schema, r.name)}" for r in self.excluded],
        ]


def _pattern(*parts: str) -> str:
    """A name as pg_dump's pattern: quoted, nothing in it is a wildcard."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


# Schemas that hold a part of what the tables are made of, but for what an extension brings.
_SCHEMAS = (
    extensions.MADE_OF
    + """
SELECT DISTINCT n.nspname FROM made_of m
LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
LEFT JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid
LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
LEFT JOIN pg_operator o ON m.classid = 'pg_operator'::regclass AND o.oid = m.objid
LEFT JOIN pg_opclass k ON m.classid = 'pg_opclass'::regclass AND k.oid = m.objid
LEFT JOIN pg_opfamily f ON m.classid = 'pg_opfamily'::regclass AND f.oid = m.objid
LEFT JOIN pg_collation l ON m.classid = 'pg_collation'::regclass AND l.oid = m.objid
LEFT JOIN pg_ts_config s ON m.classid = 'pg_ts_config'::regclass AND s.oid = m.objid
LEFT JOIN pg_ts_dict d ON m.classid = 'pg_ts_dict'::regclass AND d.oid = m.objid
JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, t.typnamespace, p.pronamespace, o.oprnamespace, k.opcnamespace,
    f.opfnamespace, l.collnamespace, s.cfgnamespace, d.dictnamespace)
WHERE NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = m.classid AND x.objid = m.objid AND x.deptype = 'e')
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname <> 'uuid_pipeline' ORDER BY 1
"""
)

# The catalogs do not tell what a function's body calls: it may be any routine in a schema that the body names, or that
# is on the search path. Of such a schema the dump has routines and types, no tables.
_CALLED = (
    extensions.MADE_OF  # noqa: S608 (both parts are constants)
    + """
SELECT n.nspname FROM pg_namespace n
WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND n.nspname <> 'uuid_pipeline'
  AND EXISTS (SELECT FROM pg_proc r WHERE r.pronamespace = n.oid
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = r.oid
                              AND d.deptype = 'e'))
  AND EXISTS (SELECT FROM made_of m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
              JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('c', 'internal')
              WHERE n.nspname = ANY(%(path)s) OR position(n.nspname IN p.prosrc) > 0)
ORDER BY 1
"""
)

# relkind: a composite type's relation is dumped with the type, a toast table and an index with their table.
_RELATIONS = (
    extensions.MADE_OF  # noqa: S608 (both parts are constants)
    + """
SELECT n.nspname, c.relname, c.oid, c.relkind::text,
       EXISTS (SELECT FROM made_of m WHERE m.classid = 'pg_class'::regclass AND m.objid = c.oid) AS needed,
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
           AND NOT (c.relrowsecurity AND row_security_active(c.oid)) AS readable
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname = ANY(%(schemas)s)
  AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_class'::regclass AND x.objid = c.oid
                  AND x.deptype = 'e')
ORDER BY 1, 2
"""
)

_ROLES = """
SELECT DISTINCT pg_get_userbyid(r) AS role FROM pg_policy p CROSS JOIN LATERAL unnest(p.polroles) r
JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r <> 0 AND n.nspname = ANY(%(schemas)s) ORDER BY 1
"""

# As a dump's contents name them.
_OUR_TRIGGERS = """
SELECT concat_ws(' ', n.nspname, c.relname, g.tgname) FROM pg_trigger g
JOIN pg_proc p ON p.oid = g.tgfoid AND p.pronamespace = to_regnamespace('uuid_pipeline')
JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
"""

_KEYS_OUT = """
SELECT k.conname, k.conrelid::regclass::text AS holder, k.confrelid::regclass::text AS target
FROM pg_constraint k WHERE k.contype = 'f' AND k.conrelid = ANY(%(held)s) AND NOT k.confrelid = ANY(%(held)s)
ORDER BY 2, 1
"""


def choose(connection: Connection, store: Store) -> Scope:
    """What a backup of this store holds.

    The spec's schema is dumped with all that it defines; of other schemas only what the touched tables are made of.
    Rows: of the touched tables and, where this role may read them, of those that their foreign keys lead to.
    """
    touched = [moved.table.oid for moved in store.tables]
    found = [row.nspname for row in sql.rows(connection, _SCHEMAS, {"oids": touched})]
    path = name_paths.of_session(connection)
    called = [row.nspname for row in sql.rows(connection, _CALLED, {"oids": touched, "path": list(path)})]
    schemas = tuple(dict.fromkeys([store.spec.schema_name, *found, *called]))
    values = {"schemas": list(schemas), "oids": touched}
    relations = [Relation(*row) for row in sql.rows(connection, _RELATIONS, values)]
    excluded = [r for r in relations if not _defined(r, store, touched)]
    kept = [r for r in relations if r not in excluded]
    unread = [r for r in kept if r.kind == "S" and not r.readable]
    with_rows = [r for r in kept if r.kind in ("r", "p") and (r.needed or r.oid in touched)]
    names = {r.oid: r.shown for r in relations}
    brought = extensions.of_tables(connection, touched)
    return Scope(
        schemas=schemas,
        touched=tuple(names[oid] for oid in touched if oid in names),
        recipes=portable.recipes(connection, [r.oid for r in with_rows]),
        without_rows=tuple(r for r in kept if r in unread or (r.kind in ("r", "p", "m") and r not in with_rows)),
        excluded=tuple(excluded),
        extensions=brought,
        roles=tuple(row.role for row in sql.rows(connection, _ROLES, {"schemas": list(schemas)})),
        our_triggers=tuple(row[0] for row in sql.rows(connection, _OUR_TRIGGERS)),
        search_path=tuple(dict.fromkeys([*path, *schemas, *[extension.schema for extension in brought]])),
        left_out=(
            *_left_out(connection, with_rows),
            *[f"how far the sequence {r.shown} has come: this role may not read it" for r in unread],
        ),
    )


def _defined(relation: Relation, store: Store, touched: Sequence[int]) -> bool:
    """Whether the dump has this relation at all: pg_dump locks what it dumps, and may not lock what we may not read."""
    if relation.oid in touched:
        return True
    # A sequence is read, not locked.
    return (relation.readable or relation.kind == "S") and (
        relation.needed or relation.schema == store.spec.schema_name
    )


def _left_out(connection: Connection, with_rows: Sequence[Relation]) -> list[str]:
    held = {"held": [relation.oid for relation in with_rows]}
    return [
        f"{row.target}, which the foreign key {row.conname} of {row.holder} leads to: this role may not read it"
        for row in sql.rows(connection, _KEYS_OUT, held)
    ]
