"""A first specification, from the catalogs: which tables are entities, and what makes a row of each what it is."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Catalog, Table, read_catalog
from uuid_pipeline.engine.drafts import natural_key_choices, table_choices
from uuid_pipeline.engine.drafts.natural_key_choices import KeyChoice
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.soft_references.references import FoundReference, Search
from uuid_pipeline.engine.soft_references.sampling import bounded
from uuid_pipeline.engine.store import Reference, Store, bind
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import EntitySpec, SoftReference, Spec

LISTED = 30

_DESCRIBED = {
    "owner": (
        r"(user|owner|account|tenant|customer|author)(_id)?|created_by|uploaded_by",
        r"uuid|text|char|(small|big)?int",
    ),
    "created_at": (r"(created|inserted|uploaded|added)(_at|_on|_date|_time)?|creation_date", r"timestamp|date"),
    "status": (r"(.*_)?(status|state)", r"text|char"),
    "size": (r"(.*_)?(size|bytes|bytes_len|length|byte_size|size_bytes)", r"smallint|integer|bigint|numeric"),
    "title": (r"title|(file|original_file|display)_?name|name|subject|label", r"text|char"),
}


@dataclass(frozen=True)
class ProposedEntity:
    """A table whose key could be derived. Without a ``choice`` a person must say what its rows are made of."""

    name: str
    table: Table
    key: str
    spec: EntitySpec
    choice: KeyChoice | None
    others: tuple[KeyChoice, ...]
    describe: Mapping[str, str]
    referred_by: tuple[str, ...]


@dataclass(frozen=True)
class _Ground:
    """What every proposal is tried on: the catalog, and the soft references found so far."""

    connection: Connection
    catalog: Catalog
    namespace: uuid.UUID
    surrogates: Mapping[int, frozenset[str]]
    soft: tuple[FoundReference, ...] = ()
    never: frozenset[int] = frozenset()  # tables that are no children of any

    def spec(self, entities: Iterable[ProposedEntity]) -> Spec:
        return Spec(
            namespace=self.namespace,
            schema=self.catalog.schema,
            entities={entity.name: entity.spec for entity in entities},
            soft_references=[_declared(found) for found in self.soft],
        )

    def store(self, entities: Iterable[ProposedEntity]) -> Store:
        return bind(self.spec(entities), self.catalog)

    def binds(self, entities: Iterable[ProposedEntity]) -> bool:
        try:
            self.store(entities)
        except (UsageError, ValidationError):
            return False
        return True

    def choices(self, table: Table) -> list[KeyChoice]:
        return natural_key_choices.of(self.connection, self.catalog, table, self.surrogates)

    def held(self, proposed: Mapping[str, ProposedEntity]) -> Mapping[int, Mapping[str, Reference]]:
        """By table, column -> reference, of the columns that refer to what is proposed so far."""
        found: dict[int, dict[str, Reference]] = {}
        for reference in self.store(proposed.values()).references if proposed else ():
            if reference.form != "json":
                found.setdefault(reference.table.oid, {})[reference.column] = reference
        return found


@dataclass(frozen=True)
class LeftTable:
    """A table that others refer to, and why its ids are proposed to stay."""

    table: str
    why: str


@dataclass(frozen=True)
class Draft:
    """All that the text of a first specification is written from."""

    namespace: uuid.UUID
    store: Store
    entities: tuple[ProposedEntity, ...]
    left: tuple[LeftTable, ...]
    search: Search
    statuses: tuple[str | None, ...]
    soft: tuple[FoundReference, ...]
    distances: Mapping[tuple[int, str], str]

    @property
    def todo(self) -> list[str]:
        """Entities that a person must still say the natural key of."""
        return [entity.name for entity in self.entities if entity.choice is None]

    @property
    def undeclared(self) -> list[FoundReference]:
        """What holds ids too, and is left to a person to decide."""
        return [f for f in self.search.found if f.status in ("declared", "undeclared") and f not in self.soft]


def draft(connection: Connection, schema: str, tables: Sequence[str], namespace: uuid.UUID) -> Draft:
    """Propose entities, in order, from ``tables`` or from those that others refer to most; then search for references.

    Reads only. Raises UsageError when no table can be an entity.
    """
    catalog = read_catalog(connection, schema)
    seeds = table_choices.asked_for(catalog, tables) if tables else table_choices.most_referred(catalog)
    if not seeds:
        near = [f"{table.name} (its key is {kind})" for table, kind in table_choices.of_unfit_type(catalog)]
        near += [f"{table.name} (no primary key)" for table in table_choices.without_key(catalog)]
        raise UsageError(
            f"No table of schema {schema} has a primary key of one column of type uuid, text or varchar of at least "
            f"36, which is what a draft starts from{': ' + ', '.join(near) if near else ''}. Choose another schema "
            "with --schema; or, where a table's ids are in a unique column of another kind of key, write the "
            "specification by hand (docs/specification.md): `key` may be any such column."
        )
    ground = _Ground(connection, catalog, namespace, natural_key_choices.surrogates(connection, catalog))
    proposed: dict[str, ProposedEntity] = {}
    left: list[LeftTable] = []
    for position, table in enumerate(seeds):
        choices = ground.choices(table)
        entity = _propose(ground, proposed, table, choices) or (
            _unidentified(ground, proposed, table, choices) if tables or position == 0 else None
        )
        if entity is None:
            left.append(LeftTable(table.name, _why_left(choices)))
        else:
            proposed[entity.name] = entity
    owners, rest = table_choices.left_out(catalog, seeds)
    left += [LeftTable(table.name, "people or tenants: ask for it with --table") for table in owners]
    left += [
        LeftTable(table.name, f"its key is {kind}; an id can be derived into uuid, text, varchar of at least 36")
        for table, kind in table_choices.of_unfit_type(catalog)
    ]
    left += [
        LeftTable(
            table.name,
            f"its key ({', '.join(table.primary_key)}) is of several columns; `key` may be one that has a unique index "
            "of its own",
        )
        for table in table_choices.of_several_columns(catalog)
    ]
    left += [
        LeftTable(table.name, "it has no primary key; `key` may be a column without NULLs that has a unique index")
        for table in table_choices.without_key(catalog)
    ]
    if rest and not tables:
        left.append(LeftTable(_listed(rest), "others are referred to by more tables: ask for these with --table"))
    if not proposed:
        raise UsageError(f"No column of {seeds[0].name} could make up a natural key. Choose another with --table.")
    return _searched(ground, proposed, left)


def _listed(tables: Sequence[Table]) -> str:
    names = [table.name for table in tables]
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def _searched(ground: _Ground, proposed: dict[str, ProposedEntity], left: Sequence[LeftTable]) -> Draft:
    """The draft with its children and soft references; a child found by those is searched for in its turn."""
    seeds = frozenset(proposed)
    while True:
        proposed = _with_children(ground, proposed)
        store = ground.store(proposed.values())
        search = references.search(ground.connection, store)
        found = [f for f in search.found if f.status in ("declared", "undeclared") and f.obstacle is None]
        known = _with_soft_parents(proposed, found)
        mixed = _mixed(known, seeds, found)
        if mixed:
            left = [*left, *mixed.values()]
            ground = replace(ground, never=ground.never | {known[name].table.oid for name in mixed})
            proposed = {name: entity for name, entity in proposed.items() if name in seeds}
            continue
        ground = replace(ground, soft=tuple(f for f in found if not _in_the_way(f, known)))
        grown = _with_children(ground, known)
        if grown.keys() == proposed.keys():
            break
        proposed = grown
    entities = tuple(known.values())
    statuses = _statuses(ground.connection, entities[0])
    return Draft(
        ground.namespace,
        ground.store(entities),
        entities,
        tuple(left),
        search,
        statuses,
        ground.soft,
        _distances(ground.connection, entities),
    )


# By pgvector's names of operator classes: vector_cosine_ops, halfvec_l2_ops and the like.
_DISTANCES = """
SELECT i.indrelid AS oid, a.attname::text AS column, min(d.name) AS distance
FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) k(attnum, opclass)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_opclass o ON o.oid = k.opclass
JOIN (VALUES ('cosine', '_cosine_ops'), ('l2', '_l2_ops'), ('inner_product', '_ip_ops')) d(name, suffix)
  ON o.opcname::text LIKE '%%' || replace(d.suffix, '_', '\\_')
WHERE i.indrelid = ANY(%(oids)s) GROUP BY 1, 2 HAVING count(DISTINCT d.name) = 1
"""


def _distances(connection: Connection, entities: Sequence[ProposedEntity]) -> dict[tuple[int, str], str]:
    """By table and vector column, the distance that its indexes are for, where it is one."""
    oids = [entity.table.oid for entity in entities]
    return {(row.oid, row.column): row.distance for row in sql.rows(connection, _DISTANCES, {"oids": oids})}


def _with_soft_parents(
    proposed: Mapping[str, ProposedEntity], found: Sequence[FoundReference]
) -> dict[str, ProposedEntity]:
    """The entities, those whose natural key holds another's key without a foreign key as its children."""
    made = dict(proposed)
    for name, entity in proposed.items():
        parents = {
            f.entity
            for f in found
            if f.form == "key" and f.table == entity.table.name and f.column in entity.spec.template.fields
        }
        if entity.choice and entity.spec.parent is None and len(parents - {name}) == len(parents) == 1:
            spec = entity.spec.model_copy(update={"parent": parents.pop()})
            made[name] = replace(entity, spec=spec, describe={})
    return made


def _mixed(
    proposed: Mapping[str, ProposedEntity], seeds: frozenset[str], found: Sequence[FoundReference]
) -> dict[str, LeftTable]:
    """Children whose natural key holds moving ids beside the parent's, as of a polymorphic column: no id is made of it.

    Such a table's own ids may stay; what it holds moves with what it refers to.
    """
    mixed = {}
    for name, entity in proposed.items():
        others = [f for f in found if name not in seeds and _in_the_way(f, {name: entity})]
        if others:
            columns = ", ".join(sorted({f.column for f in others}))
            ids = ", ".join(sorted({f.entity for f in others}))
            mixed[name] = LeftTable(entity.table.name, f"its unique key holds ids of {ids} in {columns}, which change")
    return mixed


def _in_the_way(found: FoundReference, proposed: Mapping[str, ProposedEntity]) -> bool:
    """Whether an identity is made of the column, as if it were no reference to the entity that it refers to."""
    return any(
        entity.table.name == found.table
        and found.column in entity.spec.template.fields
        and (entity.spec.parent != found.entity or found.form != "key")
        for entity in proposed.values()
    )


def _statuses(connection: Connection, entity: ProposedEntity) -> tuple[str | None, ...]:
    """The values of the first entity's status that some of its rows have; nothing where they cannot be read."""
    column = entity.describe.get("status")
    if column is None:
        return ()
    statement = sql.compose(
        "SELECT {column}::text AS status FROM (SELECT {column} FROM {table} LIMIT {limit}) t "
        "GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 30",
        column=sql.name(column),
        table=sql.table(entity.table.schema, entity.table.name),
        limit=sql.literal(natural_key_choices.LOOKED_AT),
    )
    try:
        with bounded(connection, natural_key_choices.SECONDS, by_index=False):
            return tuple(row.status for row in sql.rows(connection, statement))
    except DBAPIError:
        return ()


def _declared(found: FoundReference) -> SoftReference:
    path = ".".join(found.path) or None
    return SoftReference(table=found.table, column=found.column, entity=found.entity, path=path)


def _propose(
    ground: _Ground, proposed: Mapping[str, ProposedEntity], table: Table, choices: Sequence[KeyChoice]
) -> ProposedEntity | None:
    """The entity with the first choice that binds."""
    held = ground.held(proposed).get(table.oid, {}) if choices else {}
    for choice in choices:
        used = [held[column] for column in choice.columns if column in held]
        parents = {reference.entity for reference in used}
        if choice.obstacle is not None or len(parents) > 1 or any(reference.form != "key" for reference in used):
            continue
        entity = _entity(ground.catalog, proposed, table, choice.columns, next(iter(parents), None))
        if entity is not None and ground.binds([*proposed.values(), entity]):
            return replace(entity, choice=choice, others=tuple(other for other in choices if other != choice))
    return None


def _unidentified(
    ground: _Ground, proposed: Mapping[str, ProposedEntity], table: Table, choices: Sequence[KeyChoice]
) -> ProposedEntity | None:
    """The entity with its natural key still to be said; any column stands in for it while we search."""
    held = ground.held(proposed).get(table.oid, {})
    for column in table.columns:
        entity = _entity(ground.catalog, proposed, table, (column,), None) if column not in held else None
        if entity is not None and ground.binds([*proposed.values(), entity]):
            return replace(entity, others=tuple(choices))
    return None


def _entity(
    catalog: Catalog,
    proposed: Mapping[str, ProposedEntity],
    table: Table,
    columns: Sequence[str],
    parent: str | None,
) -> ProposedEntity | None:
    key = table_choices.key_of(table)
    if key is None or key in columns:
        return None
    try:
        spec = EntitySpec(table=table.name, key=key, identity=":".join(f"{{{c}}}" for c in columns), parent=parent)
    except ValidationError:
        return None  # a name that an identity cannot spell
    if spec.template.fields != tuple(columns):
        return None  # braces of a name, which an identity reads as its own
    describe = _describe(table, key) if parent is None else {}
    name = _entity_name(table.name, proposed)
    return ProposedEntity(name, table, key, spec, None, (), describe, table_choices.referring(catalog, table))


def _with_children(ground: _Ground, proposed: Mapping[str, ProposedEntity]) -> dict[str, ProposedEntity]:
    """And tables whose own natural key holds a proposed entity's key: once that moves, theirs means something else."""
    grown = dict(proposed)
    count = -1
    while count != len(grown):
        count = len(grown)
        taken = {entity.table.oid for entity in grown.values()}
        by_table = ground.held(grown)
        for table in table_choices.candidates(ground.catalog):
            held = by_table.get(table.oid, {}) if table.oid not in taken | ground.never else {}
            choices = ground.choices(table) if held else []
            of_parent = [choice for choice in choices if choice.unique and held.keys() & set(choice.columns)]
            entity = _propose(ground, grown, table, of_parent)
            if entity is not None:
                grown[entity.name] = entity
                by_table = ground.held(grown)
    return grown


def _why_left(choices: Sequence[KeyChoice]) -> str:
    if not choices:
        return "nothing but its primary key is unique, so nothing says what makes two rows the same"
    return "no unique key of it fits: " + "; ".join(
        f"({', '.join(choice.columns)}) {choice.obstacle or 'refers to more than one entity, or to itself'}"
        for choice in choices
    )


def _describe(table: Table, key: str) -> dict[str, str]:
    """Columns for people, by name and type."""
    found: dict[str, str] = {}
    for purpose, (names, types) in _DESCRIBED.items():
        for column in table.columns.values():
            fits = re.fullmatch(names, column.name.lower()) and re.match(types, column.type)
            if fits and column.name != key and column.name not in found.values():
                found[purpose] = column.name
                break
    return found


def _entity_name(table: str, taken: Mapping[str, ProposedEntity]) -> str:
    """The table's name in the singular, as a spec allows it."""
    name = re.sub(r"[^a-z0-9]+", "_", table.lower()).strip("_").lstrip("0123456789_") or "entity"
    if name.endswith("ies"):
        name = f"{name[:-3]}y"
    elif name.endswith("s") and not name.endswith("ss"):
        name = name[:-1]
    name = re.sub(r"_(\d+)$", r"\1", name[:36])
    while name in taken:
        name += "x"
    return name
