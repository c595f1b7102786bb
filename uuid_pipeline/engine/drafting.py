"""A first specification, from the catalogs: which tables are entities, and what makes a row of each what it is."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import natural_key_choices, references, sql
from uuid_pipeline.engine.catalog import Catalog, Table, read_catalog
from uuid_pipeline.engine.natural_key_choices import KeyChoice
from uuid_pipeline.engine.references import Search
from uuid_pipeline.engine.sampling import bounded
from uuid_pipeline.engine.store import KEY_TYPES, Store, bind, nearest
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import EntitySpec, SoftReference, Spec

# People and tenants are what documents belong to: their ids stay, unless asked for by --table.
_OWNERS = re.compile(
    r"(^|_)(users?|people|persons?|accounts?|profiles?|customers?|tenants?|teams?|members?|workspaces?"
    r"|organi[sz]ations?|orgs?)$"
)
_DESCRIBED = {
    "owner": (r"(user|owner|account|tenant|customer|author)(_id)?|created_by|uploaded_by", r"uuid|text|char|int"),
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

    @property
    def todo(self) -> list[str]:
        """Entities that a person must still say the natural key of."""
        return [entity.name for entity in self.entities if entity.choice is None]

    @property
    def soft(self) -> list[references.FoundReference]:
        """The soft references found that a spec can declare."""
        return [found for found in self.search.of("undeclared") if found.obstacle is None]


_SCHEMAS = """
SELECT DISTINCT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'uuid_pipeline')
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e')
ORDER BY 1
"""


def choose_schema(connection: Connection, wanted: str | None) -> str:
    """The schema asked for, else the only one with tables, else ``public``. Raises UsageError naming those found."""
    found = [row.nspname for row in sql.rows(connection, _SCHEMAS)]
    listed = ", ".join(found) or "none"
    if wanted is not None:
        if wanted not in found:
            raise UsageError(f"Schema {wanted} holds no table; schemas that do: {listed}{nearest(wanted, found)}.")
        return wanted
    if not found:
        raise UsageError("The store has no table. Connect to the database that holds the documents.")
    if len(found) > 1 and "public" not in found:
        raise UsageError(f"Several schemas hold tables: {listed}. Choose one with --schema.")
    return str(found[0] if len(found) == 1 else "public")


def draft(connection: Connection, schema: str, tables: Sequence[str], namespace: uuid.UUID) -> Draft:
    """Propose entities, in order, from ``tables`` or from those that others refer to most; then search for references.

    Reads only. Raises UsageError when no table can be an entity.
    """
    catalog = read_catalog(connection, schema)
    seeds = _asked_for(catalog, tables) if tables else _most_referred(catalog)
    if not seeds:
        raise UsageError(
            f"No table of schema {schema} has a primary key of one uuid or text column: nothing whose ids could move. "
            "Choose another schema with --schema."
        )
    surrogates = natural_key_choices.surrogates(connection, catalog)
    proposed: dict[str, ProposedEntity] = {}
    left: list[LeftTable] = []
    for position, table in enumerate(seeds):
        choices = natural_key_choices.of(connection, catalog, table, surrogates)
        must = bool(tables) or position == 0
        entity = _propose(catalog, namespace, proposed, table, choices, must)
        if entity is None:
            left.append(LeftTable(table.name, _why_left(choices)))
        else:
            proposed[entity.name] = entity
    _add_children(connection, catalog, namespace, proposed, seeds, surrogates)
    left += [LeftTable(table.name, "people or tenants: ask for it with --table") for table in _owners(catalog, seeds)]
    store = bind(_spec(namespace, catalog, proposed.values()), catalog)
    return Draft(
        namespace, store, tuple(proposed.values()), tuple(left), references.search(connection, store),
        _statuses(connection, next(iter(proposed.values()))),
    )  # fmt: skip


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


def final_spec(made: Draft) -> Spec:
    """The spec that the draft proposes, its soft references declared."""
    soft = [
        SoftReference(table=f.table, column=f.column, entity=f.entity, path=".".join(f.path) or None) for f in made.soft
    ]
    return made.store.spec.model_copy(update={"soft_references": soft})


def _key_of(table: Table) -> str | None:
    """The one column of a primary key that could hold a derived id."""
    if table.kind not in ("r", "p") or table.is_partition or len(table.primary_key) != 1:
        return None
    column = table.columns[table.primary_key[0]]
    kind, _, length = column.type.partition("(")
    fits = not length or int(length.rstrip(")")) >= 36
    return column.name if kind in KEY_TYPES and fits else None


def referring(catalog: Catalog, table: Table) -> tuple[str, ...]:
    """Names of the other tables with a foreign key to this one."""
    return tuple(
        sorted(
            {
                key.table
                for key in catalog.foreign_keys
                if (key.target_schema, key.target) == (table.schema, table.name)
                and (key.table_schema, key.table) != (table.schema, table.name)
            }
        )
    )


def _asked_for(catalog: Catalog, names: Sequence[str]) -> list[Table]:
    found = []
    for name in dict.fromkeys(names):
        table = catalog.table(name)
        if table is None:
            near = nearest(name, catalog.names())
            raise UsageError(f"Schema {catalog.schema} has no table {name}{near}.")
        if _key_of(table) is None:
            key = ", ".join(table.primary_key) or "none"
            raise UsageError(
                f"Table {name} cannot be an entity: its primary key ({key}) must be one column of type uuid or text "
                "(varchar of at least 36)."
            )
        found.append(table)
    return _parents_first(catalog, found)


def _candidates(catalog: Catalog) -> list[Table]:
    own = [table for (schema, _), table in catalog.tables.items() if schema == catalog.schema]
    return sorted(
        (table for table in own if _key_of(table) is not None), key=lambda t: (-len(referring(catalog, t)), t.name)
    )


def _most_referred(catalog: Catalog) -> list[Table]:
    able = [table for table in _candidates(catalog) if not _OWNERS.search(table.name)]
    return _parents_first(catalog, [table for table in able if referring(catalog, table)] or able[:1])


def _owners(catalog: Catalog, seeds: Sequence[Table]) -> list[Table]:
    return [
        table
        for table in _candidates(catalog)
        if table not in seeds and _OWNERS.search(table.name) and referring(catalog, table)
    ]


def _parents_first(catalog: Catalog, tables: Sequence[Table]) -> list[Table]:
    """The same order, but each table after those that it refers to."""
    ordered: list[Table] = []
    seen: set[int] = set()

    def visit(table: Table) -> None:
        if table.oid in seen:
            return
        seen.add(table.oid)
        targets = {(k.target_schema, k.target) for k in catalog.foreign_keys if _is_of(k.table_schema, k.table, table)}
        for other in tables:
            if (other.schema, other.name) in targets:
                visit(other)
        ordered.append(table)

    for table in tables:
        visit(table)
    return ordered


def _is_of(schema: str, name: str, table: Table) -> bool:
    return (schema, name) == (table.schema, table.name)


def _propose(
    catalog: Catalog,
    namespace: uuid.UUID,
    proposed: Mapping[str, ProposedEntity],
    table: Table,
    choices: Sequence[KeyChoice],
    must: bool,
) -> ProposedEntity | None:
    """The first choice that binds. Without one None, or, where it ``must`` be, an entity with its key still to say."""
    name = _entity_name(table.name, proposed)
    usable = [choice for choice in choices if choice.obstacle is None]
    for choice in usable:
        parents = _parents(catalog, namespace, proposed, table, choice.columns)
        if len(parents) > 1:
            continue
        entity = _entity(catalog, table, name, choice.columns, next(iter(parents), None))
        if entity is None:
            continue
        made = replace(entity, choice=choice, others=tuple(other for other in choices if other != choice))
        if _binds(catalog, namespace, [*proposed.values(), made]):
            return made
    if not must:
        return None
    held = _references(catalog, namespace, proposed, table)
    for column in table.columns:
        made_of = _entity(catalog, table, name, (column,), None) if column not in held else None
        if made_of is not None and _binds(catalog, namespace, [*proposed.values(), made_of]):
            return replace(made_of, others=tuple(choices))
    return None


def _entity(
    catalog: Catalog, table: Table, name: str, columns: Sequence[str], parent: str | None
) -> ProposedEntity | None:
    key = _key_of(table)
    if key is None or key in columns:
        return None
    try:
        spec = EntitySpec(table=table.name, key=key, identity=":".join(f"{{{c}}}" for c in columns), parent=parent)
    except ValidationError:
        return None  # a name that an identity cannot spell
    describe = _describe(table, key) if parent is None else {}
    return ProposedEntity(name, table, key, spec, None, (), describe, referring(catalog, table))


def _spec(namespace: uuid.UUID, catalog: Catalog, entities: Iterable[ProposedEntity]) -> Spec:
    return Spec(namespace=namespace, schema=catalog.schema, entities={e.name: e.spec for e in entities})


def _binds(catalog: Catalog, namespace: uuid.UUID, entities: Sequence[ProposedEntity]) -> bool:
    try:
        bind(_spec(namespace, catalog, entities), catalog)
    except (UsageError, ValidationError):
        return False
    return True


def _references(
    catalog: Catalog, namespace: uuid.UUID, proposed: Mapping[str, ProposedEntity], table: Table
) -> dict[str, str]:
    """Column -> entity, of the columns of a table that refer to what is proposed so far."""
    if not proposed:
        return {}
    store = bind(_spec(namespace, catalog, proposed.values()), catalog)
    return {r.column: r.entity for r in store.references if r.table.oid == table.oid}


def _parents(
    catalog: Catalog,
    namespace: uuid.UUID,
    proposed: Mapping[str, ProposedEntity],
    table: Table,
    columns: Sequence[str],
) -> set[str]:
    held = _references(catalog, namespace, proposed, table)
    return {held[column] for column in columns if column in held}


def _add_children(
    connection: Connection,
    catalog: Catalog,
    namespace: uuid.UUID,
    proposed: dict[str, ProposedEntity],
    seeds: Sequence[Table],
    surrogates: Mapping[int, frozenset[str]],
) -> None:
    """Tables whose own natural key holds a proposed entity's key: once that moves, theirs means something else."""
    waiting = [table for table in _candidates(catalog) if table not in seeds]
    grown = True
    while grown:
        grown = False
        for table in list(waiting):
            held = _references(catalog, namespace, proposed, table)
            choices = natural_key_choices.of(connection, catalog, table, surrogates) if held else []
            of_parent = [choice for choice in choices if choice.unique and held.keys() & set(choice.columns)]
            entity = _propose(catalog, namespace, proposed, table, of_parent, must=False)
            if entity is not None:
                proposed[entity.name] = entity
                waiting.remove(table)
                grown = True


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
