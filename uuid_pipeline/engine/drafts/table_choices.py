"""Which tables of a schema a first specification could be about, and in what order."""

import re
from collections.abc import Sequence

from sqlalchemy import Connection

from uuid_pipeline.engine.catalog import Catalog, Column, Table, tables_by_schema
from uuid_pipeline.engine.store import KEY_TYPES, nearest
from uuid_pipeline.errors import UsageError

# People and tenants are what documents belong to: their ids stay, unless asked for by --table.
_OWNERS = re.compile(
    r"(^|_)(users?|people|persons?|accounts?|profiles?|customers?|tenants?|teams?|members?|workspaces?"
    r"|organi[sz]ations?|orgs?)$"
)
_DOCUMENTS = re.compile(r"document|docs?($|_)|file|upload|article|paper|asset|record")
_OTHER_TEXT = re.compile(r"character|(.+\.)?citext$")

PROPOSED = 20


def choose_schema(connection: Connection, wanted: str | None) -> str:
    """The schema asked for, else the only one with tables, else ``public``. Raises UsageError naming those found."""
    found = list(tables_by_schema(connection))
    listed = ", ".join(found) or "none"
    if wanted is not None:
        if wanted not in found:
            raise UsageError(f"Schema {wanted} holds no table; schemas that do: {listed}{nearest(wanted, found)}.")
        return wanted
    if not found:
        raise UsageError("The store has no table. Connect to the database that holds the documents.")
    if len(found) > 1 and "public" not in found:
        raise UsageError(f"Several schemas hold tables: {listed}. Choose one with --schema.")
    return found[0] if len(found) == 1 else "public"


def key_of(table: Table) -> str | None:
    """The one column of a primary key that could hold a derived id, or of the only such unique key without NULLs where
    there is no primary key."""
    if table.kind not in ("r", "p") or table.is_partition:
        return None
    keys = [table.primary_key] if table.primary_key else table.unique_keys
    columns = [table.columns[key[0]] for key in keys if len(key) == 1]
    fit = [column.name for column in columns if column.not_null and _fits(column)]
    return fit[0] if len(fit) == 1 else None


def _fits(column: Column) -> bool:
    kind, _, length = column.type.partition("(")
    return kind in KEY_TYPES and (not length or int(length.rstrip(")")) >= 36)


def of_unfit_type(catalog: Catalog) -> list[tuple[Table, str]]:
    """Tables that others refer to and whose key is text of a kind that no id can be derived into, with that type."""
    found = []
    for (schema, _), table in catalog.tables.items():
        if schema == catalog.schema and len(table.primary_key) == 1 and key_of(table) is None:
            kind = table.columns[table.primary_key[0]].type
            if _OTHER_TEXT.match(kind) and referring(catalog, table):
                found.append((table, kind))
    return sorted(found, key=lambda one: one[0].name)


def without_key(catalog: Catalog) -> list[Table]:
    """Tables that others refer to, without a primary key and without a column that could stand for one."""
    own = [table for (schema, _), table in catalog.tables.items() if schema == catalog.schema]
    found = [t for t in own if not t.primary_key and key_of(t) is None and referring(catalog, t)]
    return sorted(found, key=lambda table: table.name)


def of_several_columns(catalog: Catalog) -> list[Table]:
    """Tables that others refer to, or that have an ``id``, and whose primary key is of several columns."""
    own = [table for (schema, _), table in catalog.tables.items() if schema == catalog.schema]
    found = [t for t in own if len(t.primary_key) > 1 and (referring(catalog, t) or "id" in t.primary_key)]
    return sorted(found, key=lambda table: table.name)


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


def asked_for(catalog: Catalog, names: Sequence[str]) -> list[Table]:
    """The tables named, parents first. Raises UsageError for one that is not there or cannot be an entity."""
    found = []
    for name in dict.fromkeys(names):
        table = catalog.table(name)
        if table is None:
            near = nearest(name, catalog.names())
            raise UsageError(f"Schema {catalog.schema} has no table {name}{near}.")
        if key_of(table) is None:
            key = ", ".join(table.primary_key) or "none"
            raise UsageError(
                f"No draft can be made of table {name}: its primary key ({key}) is not one column of type uuid or text "
                "(varchar of at least 36). Where its ids are in another column with a unique index of its own, write "
                "the specification by hand with that as `key` (docs/specification.md)."
            )
        found.append(table)
    return _parents_first(catalog, found)


def candidates(catalog: Catalog) -> list[Table]:
    """Every table of the schema that could be an entity, those that others refer to most first."""
    own = [table for (schema, _), table in catalog.tables.items() if schema == catalog.schema]
    return sorted(
        (table for table in own if key_of(table) is not None), key=lambda t: (-len(referring(catalog, t)), t.name)
    )


def most_referred(catalog: Catalog) -> list[Table]:
    """The tables to propose when none is named; a person goes through no more than PROPOSED at once."""
    able = [table for table in candidates(catalog) if not _OWNERS.search(table.name)]
    # Without foreign keys only a name can tell which table is the one that matters.
    # Of those with such a name the shortest: the others are about parts of it.
    named = sorted(able, key=lambda table: (_DOCUMENTS.search(table.name) is None, len(table.name)))
    referred = [table for table in able if referring(catalog, table)][:PROPOSED]
    return _parents_first(catalog, referred or named[:1])


def left_out(catalog: Catalog, seeds: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    """What others refer to and is not among ``seeds``: people and tenants, and the rest."""
    others = [table for table in candidates(catalog) if table not in seeds and referring(catalog, table)]
    owners = [table for table in others if _OWNERS.search(table.name)]
    return owners, [table for table in others if table not in owners]


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
