"""The store as an earlier plan knew it, bound to the tables of now: a rollback gives back what that plan changed.

What the application has dropped since holds nothing to give back. A column whose foreign key it dropped still does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import places, sql
from uuid_pipeline.engine.catalog import Catalog, read_catalog, table_oid
from uuid_pipeline.engine.merges import archive
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import EntitySpec, SoftReference, Spec

_PROFILE = "SELECT profile FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s"


def spec_of(connection: Connection, assessment: int) -> Spec:
    """The spec that an assessment was made with."""
    return spec_in(sql.scalar(connection, _PROFILE, {"no": assessment}))


def spec_in(profile: Mapping[str, Any]) -> Spec:
    """The spec in an assessment's profile, its entities in the order in which they were written."""
    spec = profile["spec"]
    # A profile of an earlier version does not tell the order.
    order = profile.get("entity_order", list(spec["entities"]))
    return Spec.model_validate(spec | {"entities": {name: spec["entities"][name] for name in order}})


def store_of(connection: Connection, assessment: int) -> Store:
    """The store bound by the spec that an assessment was made with, whatever is given now.

    Raises RefusedError when a table of an entity is gone, or a column that identity is made of; when what the plan
    names has another name now; or when a foreign key from another schema is gone, without which its rows are not found.
    """
    spec, references = _planned(connection, assessment)
    catalog = _keyed_as_then(connection, assessment, read_catalog(connection, spec.schema_name))
    _require_names(connection, assessment, spec, references)
    try:
        store = bind(_as_things_are(spec, catalog, references), catalog)
    except UsageError as error:
        raise RefusedError(
            f"Refused: plan {_plan_id(connection, assessment)} keeps the spec that it was made with, whatever the spec "
            f"of now says, and the store has changed since. {error.message}\nPut back what is missing, for as long as "
            "it takes to undo what was moved."
        ) from error
    _require_found(connection, store, references)
    return store


def spec_now(connection: Connection, assessment: int, catalog: Catalog) -> Spec:
    """The spec that an assessment was made with, without what the store has no longer; what it knew by foreign keys
    that are gone it declares."""
    spec, references = _planned(connection, assessment)
    return _as_things_are(spec, catalog, references)


def _planned(connection: Connection, assessment: int) -> tuple[Spec, list[dict[str, Any]]]:
    """An assessment's spec and the references that it found, each with its schema."""
    profile = sql.scalar(connection, _PROFILE, {"no": assessment})
    spec = spec_in(profile)
    # A profile of an earlier version names no schema.
    return spec, [{"schema": spec.schema_name, **reference} for reference in profile["references"]]


# What rows that a merge turned or emptied are found again by; of one table it is the same of all.
_KEYS = """
SELECT r.table_name AS name, min(r.row_key::text)::jsonb AS row_key
FROM uuid_pipeline.repointed r JOIN uuid_pipeline.executions e USING (execution_id)
WHERE e.assessment_no = %(no)s GROUP BY r.table_name
"""


def _keyed_as_then(connection: Connection, assessment: int, catalog: Catalog) -> Catalog:
    """The catalog with the primary keys by which the ledger remembers rows, whatever the tables have now."""
    remembered = {row.name: tuple(row.row_key) for row in sql.rows(connection, _KEYS, {"no": assessment})}
    tables = {
        place: replace(table, primary_key=remembered.get(f"{table.schema}.{table.name}", table.primary_key))
        for place, table in catalog.tables.items()
    }
    return replace(catalog, tables=tables)


def _plan_id(connection: Connection, assessment: int) -> str:
    found = "SELECT plan_id FROM uuid_pipeline.plans WHERE assessment_no = %(no)s"
    return str(sql.scalar(connection, found, {"no": assessment}))


# Columns by which turned and emptied rows are found, and which get back what they held.
_REPOINTED = """
SELECT DISTINCT r.table_name AS name, k.name AS column
FROM uuid_pipeline.repointed r JOIN uuid_pipeline.executions e USING (execution_id)
CROSS JOIN LATERAL jsonb_object_keys(r.row_key || r.before) k(name) WHERE e.assessment_no = %(no)s
"""


def _require_names(connection: Connection, assessment: int, spec: Spec, references: Sequence[dict[str, Any]]) -> None:
    """Raise RefusedError when a table or column by whose name the ledger finds its rows was renamed since."""
    found = "SELECT places_before FROM uuid_pipeline.executions WHERE assessment_no = %(no)s"
    then = sql.scalar(connection, found, {"no": assessment})
    every = places.renamed(connection, then) if then else []
    if not every:
        return
    needed = {(f"{one['schema']}.{one['table']}", one["column"]) for one in references}
    for entity in spec.entities.values():
        columns = (entity.key, *entity.template.fields, *entity.merge_as_set)
        needed |= {(f"{spec.schema_name}.{entity.table}", column) for column in columns}
    needed |= {(row.name, row.column) for row in sql.rows(connection, _REPOINTED, {"no": assessment})}
    tables = {table for table, _ in needed}
    tables |= archive.archived_tables(connection, assessment)
    renamed = [
        one
        for one in every
        if (
            f"{one.schema}.{one.table}" in tables
            if one.column is None
            else (f"{one.schema}.{one.table}", one.column) in needed
        )
    ]
    if renamed:
        raise RefusedError(
            f"Refused: since plan {_plan_id(connection, assessment)} was carried out names were changed by which it is "
            f"undone: {'; '.join(map(str, renamed))}. Rename them back for as long as that takes: "
            + " ".join(one.back for one in renamed)
        )


def _as_things_are(spec: Spec, catalog: Catalog, references: Sequence[dict[str, Any]]) -> Spec:
    """The spec without what is gone, and with a soft reference in the place of each foreign key that is."""
    dropped = [
        SoftReference(table=one["table"], column=one["column"], entity=one["entity"])
        for one in references
        if one["foreign_key"] is not None and one["schema"] == spec.schema_name and not _stands(catalog, one)
    ]
    soft = [one for one in [*spec.soft_references, *dropped] if _is_there(catalog, one.table, one.column)]
    ignored = [one for one in spec.ignore_references if _is_there(catalog, one.table, one.column)]
    entities = {name: _described(entity, catalog) for name, entity in spec.entities.items()}
    return spec.model_copy(update={"soft_references": soft, "ignore_references": ignored, "entities": entities})


def _is_there(catalog: Catalog, table: str, column: str) -> bool:
    found = catalog.table(table)
    return found is not None and column in found.columns


def _stands(catalog: Catalog, reference: dict[str, Any]) -> bool:
    """Whether a foreign key of its name still refers from the reference's column."""
    return any(
        (key.table_schema, key.table, key.name) == (reference["schema"], reference["table"], reference["foreign_key"])
        and reference["column"] in key.columns
        for key in catalog.foreign_keys
    )


def _described(entity: EntitySpec, catalog: Catalog) -> EntitySpec:
    """What tells people about a document may be gone: it is then unknown."""
    gone = [name for name, column in entity.describe.columns().items() if not _is_there(catalog, entity.table, column)]
    return entity.model_copy(update={"describe": entity.describe.model_copy(update=dict.fromkeys(gone))})


def _require_found(connection: Connection, store: Store, references: Sequence[dict[str, Any]]) -> None:
    """A table of another schema is known by its foreign key alone."""
    known = {(one.table.schema, one.table.name, one.column) for one in store.references}
    for one in references:
        place = one["schema"], one["table"], one["column"]
        if one["schema"] != store.spec.schema_name and place not in known and _column_stands(connection, *place):
            raise RefusedError(
                f"Refused: {'.'.join(place)} held ids of the {one['entity']} by foreign key {one['foreign_key']}, "
                "which is gone: a rollback would leave its rows behind. Put the key back first (NOT VALID is enough)."
            )


def _column_stands(connection: Connection, schema: str, table: str, column: str) -> bool:
    oid = table_oid(connection, schema, table)
    asked = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = %(oid)s AND attname = %(column)s)"
    return oid is not None and bool(sql.scalar(connection, asked, {"oid": oid, "column": column}))
