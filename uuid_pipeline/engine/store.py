"""The spec bound to the catalogs: entities with their tables, and every reference to them."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from uuid_pipeline.engine.catalog import Catalog, Table
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import EntitySpec, SoftReference, Spec

KEY_TYPES = ("uuid", "text", "character varying")
Form = Literal["key", "text", "array", "json"]


@dataclass(frozen=True)
class Entity:
    """A table whose key is derived; ``parent_column`` holds the parent's key in this table."""

    name: str
    spec: EntitySpec
    table: Table
    parent: str | None
    parent_column: str | None
    level: int

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def key_type(self) -> str:
        """``uuid`` or ``text``: the type that the ledger stores the entity's ids in."""
        return "uuid" if self.table.columns[self.key].type == "uuid" else "text"


@dataclass(frozen=True)
class Reference:
    """A column that holds an entity's key; ``foreign_key`` is None for a soft reference.

    ``form`` says how it holds it: ``key`` in the key's own type, ``text`` as its text, or in a column that holds keys
    of several entities; ``array`` among others, ``json`` at ``path`` (``*`` stands for every element of an array).
    """

    table: Table
    column: str
    entity: str
    foreign_key: str | None
    form: Form = "key"
    path: tuple[str, ...] = ()
    keeps_orphans: bool = False

    @property
    def name(self) -> str:
        return ".".join([self.table.name, self.column, *self.path])


@dataclass(frozen=True)
class MovedTable:
    """A table that the migration writes to, with each column that holds an id, and of which entity.

    ``columns`` are those that hold an id as it is; ``embedded`` are the references that hold it in another form.
    """

    table: Table
    columns: tuple[tuple[str, str], ...]
    entity: Entity | None
    embedded: tuple[Reference, ...] = ()


# Two of them are never compared, and as a key a store stands for itself.
@dataclass(frozen=True, eq=False)
class Store:
    """Everything the engine needs to know of one store. ``entities`` are ordered parents first."""

    spec: Spec
    catalog: Catalog
    entities: tuple[Entity, ...]
    references: tuple[Reference, ...]
    tables: tuple[MovedTable, ...]
    skipped: tuple[str, ...]

    def entity(self, name: str) -> Entity:
        return next(entity for entity in self.entities if entity.name == name)

    @property
    def roots(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if entity.parent is None)

    @property
    def main(self) -> Entity:
        """The entity that waves and reports count: the first root of the spec."""
        return self.roots[0]

    def children(self, parent: Entity) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if entity.parent == parent.name)


def bind(spec: Spec, catalog: Catalog) -> Store:
    """Bind a spec to a catalog.

    Raises UsageError naming each table or column that the store lacks, with the nearest that it has.
    """
    faults, skipped = _missing_names(spec, catalog)
    if faults:
        raise UsageError("\n".join(["The spec does not fit the store:", *[f"  {fault}" for fault in faults]]))
    entities = _entities(spec, catalog)
    references = _references(spec, catalog, entities)
    return Store(spec, catalog, entities, references, _moved_tables(entities, references), tuple(skipped))


def nearest(wanted: str, names: Iterable[str]) -> str:
    """A clause naming what the store has that is most like ``wanted``."""
    found = difflib.get_close_matches(wanted, list(names), n=1, cutoff=0.0)
    return f"; the nearest it has is {found[0]}" if found else ""


def _missing_names(spec: Spec, catalog: Catalog) -> tuple[list[str], list[str]]:
    if not catalog.tables:
        near = nearest(spec.schema_name, catalog.elsewhere) or "; no schema of this database holds any"
        return [f"schema {spec.schema_name}: the store has none of that name that holds a table{near}"], []
    faults: list[str] = []
    skipped: list[str] = []
    for name, entity in spec.entities.items():
        described = entity.describe.columns().values()
        columns = [entity.key, *entity.template.fields, *described, *entity.merge_as_set]
        faults += _missing(catalog, entity.table, columns, f"entity {name}")
    for part, declared in (
        ("soft reference", spec.soft_references),
        ("ignored reference", spec.ignore_references),
    ):
        for reference in declared:
            missing = _missing(catalog, reference.table, [reference.column], part)
            (skipped if reference.optional else faults).extend(missing)
    return faults, skipped


def _missing(catalog: Catalog, table_name: str, columns: Iterable[str], part: str) -> list[str]:
    table = catalog.table(table_name)
    if table is None:
        near = nearest(table_name, catalog.names())
        return [f"{part}: schema {catalog.schema} has no table {table_name}{near}"]
    return [
        f"{part}: table {table_name} has no column {column}{nearest(column, table.columns)}"
        for column in dict.fromkeys(columns)
        if column not in table.columns
    ]


def _entities(spec: Spec, catalog: Catalog) -> tuple[Entity, ...]:
    made: dict[str, Entity] = {}

    def make(name: str) -> Entity:
        if name in made:
            return made[name]
        entity = spec.entities[name]
        table = catalog.tables[spec.schema_name, entity.table]
        _require_key(name, entity, table)
        _require_described_types(name, entity, table)
        parent = make(entity.parent) if entity.parent else None
        column = _parent_column(spec, catalog, name, parent) if parent else None
        made[name] = Entity(
            name, entity, table, entity.parent, column, parent.level + 1 if parent else 0
        )  # fmt: skip
        return made[name]

    for name in spec.entities:
        make(name)
    return tuple(sorted(made.values(), key=lambda entity: entity.level))


def _require_key(name: str, entity: EntitySpec, table: Table) -> None:
    type_name = table.columns[entity.key].type
    if table.kind not in ("r", "p"):
        raise UsageError(
            f"Entity {name}: {table.schema}.{table.name} is a view or foreign table; name the table itself."
        )
    if type_name.split("(")[0] not in KEY_TYPES:
        raise UsageError(f"Entity {name}: the key {table.name}.{entity.key} is {type_name}; it must be uuid or text.")
    if "(" in type_name and int(type_name.split("(")[1].rstrip(")")) < 36:
        raise UsageError(f"Entity {name}: {table.name}.{entity.key} is {type_name}; a UUID's text takes 36 characters.")
    if table.columns[entity.key].folds:
        raise UsageError(
            f"Entity {name}: the key {table.name}.{entity.key} has a collation that takes different texts for equal "
            "(nondeterministic); a key's must not, since two ids must be equal only when they are the same."
        )
    if not table.columns[entity.key].not_null:
        raise UsageError(
            f"Entity {name}: {table.name}.{entity.key} may be NULL, so it is no key. Make it NOT NULL first."
        )
    if (entity.key,) not in table.unique_keys:
        raise UsageError(
            f"Entity {name}: {table.name}.{entity.key} has no unique index of its own, so it is no key. Where its "
            f"values are unique: CREATE UNIQUE INDEX CONCURRENTLY ON {table.schema}.{table.name} ({entity.key});"
        )


def _parent_column(spec: Spec, catalog: Catalog, name: str, parent: Entity) -> str:
    entity = spec.entities[name]
    found = [
        column
        for key in catalog.foreign_keys
        if (key.table_schema, key.table) == (spec.schema_name, entity.table)
        and (key.target_schema, key.target) == (parent.table.schema, parent.table.name)
        for column, target in zip(key.columns, key.target_columns, strict=True)
        if target == parent.key
    ]
    found += [r.column for r in spec.soft_references if (r.table, r.entity) == (entity.table, parent.name)]
    in_identity = [column for column in found if column in entity.template.fields]
    chosen = (in_identity or found or [""])[0]
    if (entity.table, chosen) in _shared_columns(spec):
        raise UsageError(
            f"Entity {name}: {entity.table}.{chosen} is declared for several entities under soft_references, so it "
            f"cannot say which {entity.parent} a row belongs to. Take `parent` out, or the other declarations."
        )
    if not found:
        raise UsageError(
            f"Entity {name}: no column of {entity.table} refers to its parent {parent.table.name}.{parent.key}. "
            "Declare it under soft_references, or take `parent` out."
        )
    return chosen


def _references(spec: Spec, catalog: Catalog, entities: tuple[Entity, ...]) -> tuple[Reference, ...]:
    found = _by_foreign_key(catalog, entities)
    known = {(reference.table.oid, reference.column) for reference in found}
    of_name = {entity.name: entity for entity in entities}
    shared = _shared_columns(spec)
    for soft in spec.soft_references:
        table = catalog.table(soft.table)
        if table is not None and soft.column in table.columns and (table.oid, soft.column) not in known:
            form = _form(soft, table, of_name[soft.entity])
            if form == "key" and (soft.table, soft.column) in shared:
                form = "text"
            path = tuple(soft.path.split(".")) if soft.path else ()
            keeps = soft.orphans == "keep"
            found.append(Reference(table, soft.column, soft.entity, None, form, path, keeps))
    _refuse_undeclared_parents(entities, found)
    return tuple(found)


def _shared_columns(spec: Spec) -> set[tuple[str, str]]:
    """(table, column) of columns declared for several entities, as one that holds now this id, now that."""
    entities: dict[tuple[str, str], set[str]] = {}
    for soft in spec.soft_references:
        entities.setdefault((soft.table, soft.column), set()).add(soft.entity)
    return {place for place, names in entities.items() if len(names) > 1}


def _form(soft: SoftReference, table: Table, entity: Entity) -> Form:
    """How a soft reference holds the key. Raises UsageError for a column that cannot hold it."""
    where = f"soft reference {soft.table}.{soft.column}"
    kind = re.sub(r"\(.*\)", "", table.columns[soft.column].type)
    is_json = kind in ("json", "jsonb")
    if is_json != (soft.path is not None):
        raise UsageError(
            f"The spec's {where} is {kind}: "
            + ("say with `path` where in it the id is." if is_json else "`path` is for json columns only.")
        )
    if is_json:
        return "json"
    if kind in ("uuid[]", "text[]", "character varying[]"):
        return "array"
    if (kind == "uuid") == (entity.key_type == "uuid") and kind in KEY_TYPES:
        return "key"
    if kind in KEY_TYPES and kind != "uuid":
        return "text"
    raise UsageError(
        f"The spec's {where} is {kind}, which cannot hold a key of {entity.name} ({entity.key_type}); "
        "it must be uuid, text, an array of these, or json with a path."
    )


def _by_foreign_key(catalog: Catalog, entities: tuple[Entity, ...]) -> list[Reference]:
    """Columns that hold a key by foreign key, also at second hand: (document_id, ord) -> chunks (document_id, ord)."""
    holders = {(entity.table.oid, entity.key): entity.name for entity in entities}
    found: list[Reference] = []
    grown = True
    while grown:
        grown = False
        for key in catalog.foreign_keys:
            table = catalog.tables[key.table_schema, key.table]
            target = catalog.tables.get((key.target_schema, key.target))
            if target is None:
                continue  # a table that this schema refers to; profile.unsupported looks at those keys
            for column, target_column in zip(key.columns, key.target_columns, strict=True):
                entity = holders.get((target.oid, target_column))
                if entity is not None and (table.oid, column) not in holders:
                    holders[table.oid, column] = entity
                    found.append(Reference(table, column, entity, key.name))
                    grown = True
    return found


def _refuse_undeclared_parents(entities: tuple[Entity, ...], references: list[Reference]) -> None:
    of_table: dict[int, list[Reference]] = {}
    for reference in references:
        of_table.setdefault(reference.table.oid, []).append(reference)
    for entity in entities:
        for reference in of_table.get(entity.table.oid, []):
            if reference.column in entity.spec.template.fields and reference.column != entity.parent_column:
                raise UsageError(
                    f"Entity {entity.name}: its identity uses {reference.column}, which refers to {reference.entity}; "
                    + (
                        "an identity cannot be made of the ids of its own table, each of which would hang on another."
                        if reference.entity == entity.name
                        else "an identity may use the key of one entity only, declared as "
                        f"`parent: {reference.entity}`. Where that cannot be, take {entity.name} out of the spec: its "
                        "own ids then stay, and what its columns refer to is declared under soft_references."
                    )
                )


_DESCRIBED_TYPES = {
    "created_at": ("timestamp", "date"),
    "size": ("smallint", "integer", "bigint", "numeric", "real", "double precision"),
}


def _require_described_types(name: str, entity: EntitySpec, table: Table) -> None:
    for purpose, column in entity.describe.columns().items():
        wanted = _DESCRIBED_TYPES.get(purpose)
        actual = table.columns[column].type
        if wanted is not None and not actual.startswith(wanted):
            raise UsageError(
                f"Entity {name}: describe.{purpose} names {table.name}.{column}, which is {actual}; "
                f"it must be {' or '.join(wanted)}. Leave it out if there is none."
            )


def _moved_tables(entities: tuple[Entity, ...], references: tuple[Reference, ...]) -> tuple[MovedTable, ...]:
    columns: dict[int, dict[str, str]] = {}
    tables: dict[int, Table] = {}
    for entity in entities:
        tables[entity.table.oid] = entity.table
        columns.setdefault(entity.table.oid, {})[entity.key] = entity.name
    for reference in references:
        tables[reference.table.oid] = reference.table
        held = columns.setdefault(reference.table.oid, {})
        if reference.form == "key":
            held.setdefault(reference.column, reference.entity)
    own = {entity.table.oid: entity for entity in entities}
    embedded = [reference for reference in references if reference.form != "key"]
    return tuple(
        MovedTable(
            tables[oid],
            tuple(columns[oid].items()),
            own.get(oid),
            tuple(reference for reference in embedded if reference.table.oid == oid),
        )
        for oid in columns
    )
