"""Clusters: rows of one entity with one normalised natural key, of what kind they are, and which row survives."""

from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import inventory, ledger, sql
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.mapping import SURVIVOR_LOOKS_AT, survivor_order
from uuid_pipeline.engine.merges import actions, archive, counterparts, emptying, foreseen, refused_documents
from uuid_pipeline.engine.natural_keys import as_stored
from uuid_pipeline.engine.priorities import complete_statuses
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.profile import missing_merge_rights
from uuid_pipeline.engine.store import Entity, Store

SHOWN = 5

# How many owners a cluster has: rows of nobody among rows of somebody are another owner's.
_OWNERS: LiteralString = "count(DISTINCT i.owner) + (count(i.owner) BETWEEN 1 AND count(*) - 1)::int"

# Which groups of rows with one target id are asked for.
_EVERY: LiteralString = "count(*) > 1"
_ACROSS_OWNERS: LiteralString = _OWNERS + " > 1"

# Quarantined rows belong to no cluster.
_SHARED = """
SELECT i.target_id FROM {inventory} i WHERE i.assessment_no = %(no)s AND i.target_id IS NOT NULL
GROUP BY i.target_id HAVING {which}
"""

# The survivor comes first, by the spec's order.
_CLUSTERS = """
WITH shared AS ({shared} ORDER BY i.target_id LIMIT %(limit)s)
SELECT i.natural_key, count(*) AS rows, {told} AS told, {owners} AS owners,
       bool_or(i.id_class = 'deterministic') AS twin, count(DISTINCT {stored}) > 1 AS spelled,
       (array_agg(i.key::text ORDER BY {survivor}, i.key))[:20] AS ids
FROM {inventory} i JOIN shared USING (target_id) LEFT JOIN {table} t ON t.{key} = i.key
WHERE i.assessment_no = %(no)s GROUP BY i.natural_key ORDER BY i.natural_key
"""


def clusters(connection: Connection, store: Store, assessment: int, limit: int = 1000) -> list[dict[str, Any]]:
    """The first clusters of each entity: kind, natural key, ids (of a document the survivor first)."""
    return _described(connection, store, assessment, _EVERY, limit)


def counted(connection: Connection, store: Store, assessment: int) -> dict[str, int]:
    """How many clusters there are, by entity; entities without one are left out."""
    return _counted(connection, store, assessment, _EVERY)


def _counted(connection: Connection, store: Store, assessment: int, which: LiteralString) -> dict[str, int]:
    found = {
        entity.name: int(
            sql.scalar(
                connection,
                sql.compose("SELECT count(*) FROM ({shared}) s", shared=_shared(entity, which)),
                {"no": assessment},
            )
        )
        for entity in store.entities
        if inventory.may_share_targets(connection, entity, assessment)
    }
    return {name: count for name, count in found.items() if count}


def _shared(entity: Entity, which: LiteralString) -> sql.Composable:
    return sql.Text(_SHARED).format(inventory=ledger.inventory_table(entity), which=sql.Text(which))


def _described(
    connection: Connection, store: Store, assessment: int, which: LiteralString, limit: int
) -> list[dict[str, Any]]:
    return [
        {
            "entity": entity.name,
            "kind": _kind(row),
            "natural_key": row.natural_key,
            "rows": row.rows,
            "owners": row.owners,
            "survivor": row.ids[0] if entity.parent is None else "decided when its documents are merged",
            "survivor_rule": _decided_by(entity, row.told) if entity.parent is None else None,
            "ids": list(row.ids),
        }
        for entity in store.entities
        for row in _found(connection, store, entity, assessment, which, limit)
    ]


def with_consequences(
    connection: Connection, store: Store, assessment: int, found: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The clusters, those of documents with the rows by table that merging archives and turns, as foreseen now.

    A cluster of more rows than are listed is left without.
    """
    result = list(found)
    for root in store.roots:
        places = [
            n
            for n, cluster in enumerate(found)
            if cluster["entity"] == root.name and len(cluster["ids"]) == cluster["rows"]
        ]
        ids = [found[n]["ids"] for n in places]
        for n, seen in zip(places, foreseen.foresee(connection, store, root, assessment, ids), strict=True):
            result[n] = {**found[n], "archives": seen.archives, "turns": seen.turns}
    return result


def _decided_by(entity: Entity, told: list[list[str | None]]) -> str:
    """The first rule that tells the survivor from the next row; ``told``: what each rule looks at, of these two."""
    for rule, values in zip(entity.spec.survivor, told, strict=True):
        if values[0] != values[1]:
            return rule
    return "smallest key"


def _kind(row: Any) -> str:
    """A twin is under the target id already; a race differs in nothing that identity is made of."""
    if row.twin:
        return "re-upload twin"
    return "spelling" if row.spelled else "race"


def _found(
    connection: Connection, store: Store, entity: Entity, assessment: int, which: LiteralString, limit: int
) -> list[Any]:
    if not inventory.may_share_targets(connection, entity, assessment):
        return []
    statement = sql.Text(_CLUSTERS).format(
        shared=_shared(entity, which),
        owners=sql.Text(_OWNERS),
        inventory=ledger.inventory_table(entity),
        stored=as_stored(entity),
        survivor=survivor_order(entity),
        told=_told(entity),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )
    values = {"no": assessment, "limit": limit, "complete": complete_statuses(store)}
    return sql.rows(connection, statement, values)


def _told(entity: Entity) -> sql.Composable:
    """What each of the spec's rules looks at, of the survivor and of the row that comes next."""
    looked = [
        sql.compose(
            "(array_agg(({value})::text ORDER BY {survivor}, i.key))[1:2]",
            value=sql.Text(SURVIVOR_LOOKS_AT[rule]),
            survivor=survivor_order(entity),
        )
        for rule in entity.spec.survivor
    ]
    return sql.compose("ARRAY[{looked}]", looked=sql.join(", ", looked))


def _shown(store: Store, found: list[dict[str, Any]], count: int) -> str:
    """The first of ``count`` clusters in words."""
    shown = "; ".join(
        f"{c['entity']} {c['natural_key']} ({c['rows']} rows: {', '.join(c['ids'][:3])})"
        for c in redaction.records(store.spec, found[:SHOWN])
    )
    return f"{count} clusters: {shown}" + ("; ..." if count > SHOWN else "")


_PARTLY_UNIQUE = """
SELECT i.indexrelid::regclass::text AS index, pg_get_expr(i.indpred, i.indrelid) AS predicate
FROM pg_index i WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indisvalid AND i.indpred IS NOT NULL ORDER BY 1
"""


def _on_both_sides(connection: Connection, entity: Entity, assessment: int) -> list[str]:
    """Clusters with rows that a partial unique index counts and rows that it does not, as deleted ones may be.

    To the application only the former are one and the same thing; which is to stay is for the spec to say.
    """
    catalogs.pin_names(connection)
    faults = []
    for index in sql.rows(connection, _PARTLY_UNIQUE, {"oid": entity.table.oid}):
        statement = sql.compose(
            """SELECT count(*) FROM (
                   SELECT FROM {inventory} i JOIN ({shared}) s USING (target_id)
                   JOIN (SELECT {key} AS row, ({predicate}) AS inside FROM {table}) t ON t.row = i.key
                   WHERE i.assessment_no = %(no)s GROUP BY i.target_id
                   HAVING count(*) FILTER (WHERE t.inside) BETWEEN 1 AND count(*) - 1) c""",
            inventory=ledger.inventory_table(entity),
            shared=_shared(entity, _EVERY),
            key=sql.name(entity.key),
            predicate=sql.as_written(index.predicate),
            table=sql.table(entity.table.schema, entity.table.name),
        )
        count = sql.scalar(connection, statement, {"no": assessment})
        if count:
            faults.append(
                f"{count} clusters of {entity.name} hold rows on both sides of the unique index {index.index} "
                f"(WHERE {index.predicate})"
            )
    return faults


def each_cluster_decided(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: every cluster of documents has its survivor, unless the spec wants duplicates to block, or says nothing of
    them where the application itself tells some of a cluster's rows from others."""
    roots = {entity.name for entity in store.roots}
    found = [c for c in clusters(connection, store, assessment) if c["entity"] in roots]
    counts = {name: count for name, count in counted(connection, store, assessment).items() if name in roots}
    blocking = [c for c in found if store.entity(c["entity"]).spec.on_duplicate == "block"]
    blocked = sum(counts[name] for name in {c["entity"] for c in blocking})
    faults = (
        [f"the spec says on_duplicate: block, and there are {_shown(store, blocking, blocked)}"] if blocking else []
    )
    for name in counts:
        if "on_duplicate" not in store.entity(name).spec.model_fields_set:
            faults += _on_both_sides(connection, store.entity(name), assessment)
    said = (
        f"each will be merged into its survivor: {_shown(store, found, sum(counts.values()))}"
        if found
        else "every natural key belongs to one row"
    )
    return GateResult.of(
        "each_cluster_decided",
        not faults,
        said if not faults else "; ".join(faults),
        "remove or re-own the surplus rows in the application, or write on_duplicate: merge into the spec, by whose "
        "`survivor` one of each cluster stays; then plan again",
        figures={"clusters": sum(counts.values())},
    )


def never_across_users(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: no cluster joins rows of different owners, nor rows of nobody with somebody's."""
    found = _described(connection, store, assessment, _ACROSS_OWNERS, SHOWN)
    count = sum(_counted(connection, store, assessment, _ACROSS_OWNERS).values()) if found else 0
    return GateResult.of(
        "never_across_users",
        not found,
        _shown(store, found, count) if found else _all_of_one_owner(store),
        "put the owner into the identity; rows of different users must never get one id. A row that has no owner is "
        "nobody else's either: give it its owner",
        figures={"clusters": count},
    )


def _all_of_one_owner(store: Store) -> str:
    unknown = [root.name for root in store.roots if root.spec.describe.owner is None]
    if len(unknown) == len(store.roots):
        return "the spec names no owner, so this is not known"
    beside = f"; of {', '.join(unknown)} the spec names no owner, so this is not known" if unknown else ""
    return f"no cluster spans two owners{beside}"


# Unique indexes over part of a table or over expressions, and exclusion constraints (a key WITHOUT OVERLAPS is one):
# what a turned row would meet there cannot be foreseen, nor what it meets in a column that the server makes of its ids.
# A constraint depends on its columns, and its index on the constraint.
_ODD_UNIQUE = """
WITH made AS (
    SELECT d.adnum AS attnum
    FROM pg_attrdef d JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
    JOIN pg_attribute a ON a.attrelid = p.refobjid AND a.attnum = p.refobjsubid
    WHERE d.adrelid = %(oid)s AND p.refobjid = d.adrelid AND a.attname = ANY(%(columns)s) AND a.attnum <> d.adnum)
SELECT format(CASE WHEN i.indisexclusion THEN 'the exclusion constraint %%s holds an id'
              WHEN i.indpred IS NULL AND i.indexprs IS NULL
                  THEN 'the unique index %%s is over a column that is generated from an id'
              ELSE 'the unique index %%s is partial or over an expression that uses an id' END, i.indexrelid::regclass)
       AS sentence
FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('x', 'p', 'u')
WHERE i.indrelid = %(oid)s
  AND (i.indisexclusion OR i.indisunique AND (i.indpred IS NOT NULL OR i.indexprs IS NOT NULL
                                              OR EXISTS (SELECT FROM made m WHERE m.attnum = ANY(i.indkey))))
  AND EXISTS (SELECT FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
              WHERE (d.classid, d.objid) IN (('pg_class'::regclass, i.indexrelid), ('pg_constraint'::regclass, k.oid))
                AND d.refobjid = i.indrelid
                AND (a.attname = ANY(%(columns)s) OR a.attnum IN (SELECT m.attnum FROM made m)))
"""


def _over_periods(store: Store) -> list[str]:
    """Foreign keys over periods that hold an id: which rows cover a period together, merging does not follow."""
    ids = {(m.table.schema, m.table.name, column) for m in store.tables for column, _ in m.columns}
    return [
        f"the foreign key {key.name} of {key.table_schema}.{key.table} is over periods and holds an id"
        for key in store.catalog.foreign_keys
        if key.period and any((key.table_schema, key.table, column) in ids for column in key.columns)
    ]


def _too_wide(store: Store) -> list[str]:
    displaced, _ = emptying.touched_by_merging(store)
    return [
        f"{table.schema}.{table.name} has {len(table.columns)} columns; one of which rows may be archived leaves room "
        f"for ours with at most {archive.MAX_COLUMNS}"
        for table in displaced
        if len(table.columns) > archive.MAX_COLUMNS
    ]


def _across_parents(connection: Connection, store: Store, assessment: int) -> list[str]:
    """Rows of one natural key below different documents: merging stays within one document, so they never become one.

    Only an identity that does not name the parent makes these.
    """
    faults = []
    for entity in store.entities:
        if entity.parent is None or entity.parent_column in entity.spec.template.fields:
            continue
        if not inventory.may_share_targets(connection, entity, assessment):
            continue
        statement = sql.compose(
            """SELECT count(*) AS n, min(s.keys) AS keys FROM (
                   SELECT (array_agg(i.key::text ORDER BY i.key))[:2] AS keys
                   FROM {inventory} i JOIN {parents} p ON p.assessment_no = %(no)s AND p.key = i.parent_key
                   WHERE i.assessment_no = %(no)s AND i.target_id IS NOT NULL
                   GROUP BY i.target_id HAVING count(DISTINCT p.target_id) > 1) s""",
            inventory=ledger.inventory_table(entity),
            parents=ledger.inventory_table(store.entity(entity.parent)),
        )
        found = sql.rows(connection, statement, {"no": assessment})[0]
        if found.n:
            faults.append(
                f"{found.n} natural keys of {entity.name} are shared by rows of different {entity.parent}s "
                f"({' and '.join(found.keys)}, for one), which cannot become one row: put {{{entity.parent_column}}} "
                f"into the identity of {entity.name}"
            )
    return faults


def _in_the_way_of_merging(connection: Connection, store: Store, assessment: int) -> list[str]:
    """What merging anything would meet in this store, a sentence each."""
    faults = _over_periods(store)
    for moved in store.tables:
        if not moved.table.primary_key:
            where = f"{moved.table.schema}.{moved.table.name}"
            faults.append(
                f"{where} has no primary key, so a re-pointed row could not be found again: give it one (ALTER TABLE "
                "... ADD PRIMARY KEY; a unique index over columns without NULLs may become it: ... USING INDEX)"
            )
        columns = [column for column, _ in moved.columns]
        odd = sql.rows(connection, _ODD_UNIQUE, {"oid": moved.table.oid, "columns": columns})
        faults += [row.sentence for row in odd]
    tier = triggers.choose(connection, store)
    faults += [*_too_wide(store), *actions.misled(store, tier), *tier.of_merging]
    faults += refused_documents.found(connection, store, assessment)
    faults += [
        f"{count} rows of {name} hold ids of rows that merging archives with nothing in their place: give it "
        "`orphans: keep` in the spec if these may stay as they are written"
        for name, count in sorted(counterparts.held(connection, store, assessment).items())
    ]
    missing = missing_merge_rights(connection, store)
    return faults + [f"{right.right} on {right.object} is missing: {right.remedy.rstrip(';')}" for right in missing]


def conflicts_resolvable(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: whatever merging displaces can be told apart, archived and brought back."""
    found = clusters(connection, store, assessment)
    below = [c for c in found if store.entity(c["entity"]).parent is not None]
    counts = counted(connection, store, assessment)
    of_below = sum(count for name, count in counts.items() if store.entity(name).parent is not None)
    faults = [
        f"the spec says on_duplicate: block for {name}, and there are {_shown(store, of_entity, counts[name])}"
        for name in {c["entity"] for c in below}
        if store.entity(name).spec.on_duplicate == "block"
        for of_entity in [[c for c in below if c["entity"] == name]]
    ]
    faults += _across_parents(connection, store, assessment)
    if found:
        faults += _in_the_way_of_merging(connection, store, assessment)
    said = (
        "no two children share a natural key"
        if not below
        else f"to be merged below documents: {_shown(store, below, of_below)}"
    )
    return GateResult.of(
        "conflicts_resolvable",
        not faults,
        said if not faults else "; ".join(faults),
        "do what is said of each, or resolve the duplicates in the application; then plan again",
        figures={"clusters": of_below},
    )
