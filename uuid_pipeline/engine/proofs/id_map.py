"""Gates of the id map: the rule gives the application's ids; each target is one natural key's, free, derived right."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import early, inventory, ledger, sql
from uuid_pipeline.engine.ahead import fetched_ahead
from uuid_pipeline.engine.batches.application import written_since
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.natural_keys import as_read
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.store import Entity, Reference, Store
from uuid_pipeline.identity import hasher, normalize

LISTED = 10


def witnesses_agree(connection: Connection, store: Store) -> GateResult:
    """Gate: each witness's natural key, read as the store would, gives the id that the application made of it."""
    target_of = hasher(store.spec.namespace)
    wrong, total = [], 0
    for entity in store.entities:
        for witness in entity.spec.witnesses:
            total += 1
            try:
                with connection.begin_nested():
                    read = _as_the_store_reads(connection, entity, witness)
            except DBAPIError as error:
                said = str(error.orig).splitlines()[0]
                wrong.append(f"{entity.name}: the store cannot read the witness for {witness['id']}: {said}")
                continue
            values = {k: normalize(v, entity.spec.normalize.get(k, [])) for k, v in read.items() if k != "id"}
            target = target_of(entity.spec.template.fill(values))
            if target != read["id"]:
                wrong.append(f"{entity.name}: the rule gives {target}, the application gave {witness['id']}")
    found = f"{total} witnesses agree" if total else "the spec gives no witness: the rule itself is unproven"
    return GateResult.of(
        "witnesses_agree",
        not wrong,
        found if not wrong else "; ".join(wrong),
        "correct namespace, identity or normalize in the spec until it gives the application's own ids",
        figures={"witnesses": total},
    )


def _as_the_store_reads(connection: Connection, entity: Entity, witness: Mapping[str, str]) -> dict[str, str]:
    """A witness's values as the text of their columns: a UUID in capitals, a date, a boolean as the YAML has them."""
    types = [entity.table.columns[entity.key if field == "id" else field].type for field in witness]
    read = [
        sql.compose("{value}::text::{type}::text", value=sql.bound(f"v{n}"), type=sql.as_written(type_name))
        # A cast to varchar(n) would cut the text without a word.
        if type_name.split("(")[0] not in ("text", "character varying")
        else sql.compose("{value}::text", value=sql.bound(f"v{n}"))
        for n, type_name in enumerate(types)
    ]
    values = {f"v{n}": value for n, value in enumerate(witness.values())}
    row = sql.rows(connection, sql.compose("SELECT {read}", read=sql.join(", ", read)), values)[0]
    return dict(zip(witness, row, strict=True))


def one_target_per_natural_key(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: no two natural keys have one target id; rows that share both are a cluster, not a conflict.

    A row that the application wrote since the inventory may have another natural key by now, and proves nothing.
    """
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    snapshot = ledger.inventory_snapshot(connection, assessment)
    values = {"no": assessment, "snapshot": snapshot, "execution": "", "listed": LISTED}
    shared, count = list[str](), 0
    for entity in store.entities:
        if not inventory.may_share_targets(connection, entity, assessment):
            continue
        rows = sql.rows(
            connection,
            sql.compose(
                """WITH met AS MATERIALIZED (
                       SELECT i.key, i.target_id FROM {inventory} i JOIN (
                           SELECT target_id FROM {inventory} WHERE assessment_no = %(no)s AND target_id IS NOT NULL
                           GROUP BY target_id HAVING count(*) > 1) shared USING (target_id)
                       WHERE i.assessment_no = %(no)s)
                   SELECT i.target_id, (array_agg(DISTINCT {parts}::text))[:3] AS keys, count(*) OVER () AS of_all
                   FROM met i JOIN {table} t ON t.{key} = i.key WHERE ({written}) IS NOT TRUE
                   GROUP BY i.target_id HAVING count(DISTINCT {parts}) > 1 ORDER BY 1 LIMIT %(listed)s""",
                parts=as_read(entity),
                table=sql.table(entity.table.schema, entity.table.name),
                key=sql.name(entity.key),
                inventory=ledger.inventory_table(entity),
                written=written_since("t"),
            ),
            values,
        )
        count += rows[0].of_all if rows else 0
        shared += [
            f"{entity.name} {row.target_id}: {', '.join(_shown(store, key) for key in row.keys)}" for row in rows
        ]
    return GateResult.of(
        "one_target_per_natural_key",
        not shared,
        "every target id has one natural key" if not shared else f"shared target ids: {_listed(shared, count)}",
        "put a separator that no value holds between the identity's fields, or the column that tells these rows apart",
    )


def _shown(store: Store, natural_key: str) -> str:
    return str(redaction.shown(store.spec, "natural_key", natural_key))


def no_collision(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: no target id is held by a foreign row, nor by a soft reference that the batch could not turn to its row.

    A row of the same cluster may hold it: merging takes that one out of the way. Of a row that came since the inventory
    nothing follows: the batch sets aside what it meets.
    """
    found = [_taken_targets(connection, entity, assessment) for entity in store.entities]
    count = sum(of_entity for _, of_entity in found)
    taken = [sentence for sentences, _ in found for sentence in sentences]
    faults = [_listed(taken, count)] if taken else []
    turned = []
    for reference in store.references:
        if reference.foreign_key is None:
            faults += _spelled_otherwise(connection, store, reference)
            why_not = early.why_not(connection, reference)
            unmarked = why_not is None and not early.marked(connection, store.entity(reference.entity), assessment)
            held = 0 if unmarked else early.count(connection, store, reference, assessment)
            if held and why_not:
                faults.append(f"{held} target ids are in {reference.name}, which {why_not}")
            elif held:
                turned.append(f"{reference.name} holds {held} target ids already, and is turned to their rows")
    return GateResult.of(
        "no_collision",
        not faults,
        "; ".join(["no target id is taken", *turned]) if not faults else f"taken: {'; '.join(faults)}",
        "look at the rows that hold these ids; they are not the ones that the ids are derived for. While an id is one "
        "row's old and another's new one, nobody could tell which a writer or a reference means: give the row that "
        "holds it an unused random id first, with what refers to it, then plan again; or say `on_collision: wait` in "
        "the spec, and these documents are left until those rows have moved",
        figures={"collisions": count + len(faults) - bool(taken)},
    )


def _taken_targets(connection: Connection, entity: Entity, assessment: int) -> tuple[list[str], int]:
    """The first target ids that another row holds, each in a sentence; and how many there are."""
    rows = sql.rows(
        connection,
        sql.compose(
            """WITH met AS MATERIALIZED (SELECT m.* FROM {map} m JOIN {table} t ON t.{key} = m.new_id
                                         WHERE m.assessment_no = %(no)s AND m.role = 'move' AND {version_5})
               SELECT m.old_id AS key, m.new_id AS target_id, n.new_id AS next, count(*) OVER () AS of_all
               FROM met m LEFT JOIN {map} n ON n.assessment_no = %(no)s AND n.old_id = m.new_id
               WHERE {alone} AND EXISTS (SELECT FROM {inventory} i
                                         WHERE i.assessment_no = %(no)s AND i.key = m.new_id)
               ORDER BY m.ordinal, m.old_id LIMIT %(listed)s""",
            alone=_no_twin(entity),
            inventory=ledger.inventory_table(entity),
            map=ledger.map_table(entity),
            table=sql.table(entity.table.schema, entity.table.name),
            key=sql.name(entity.key),
            version_5=_is_of_version_5(entity),
        ),
        {"no": assessment, "listed": LISTED},
    )
    said = [
        f"{entity.name} {row.key} -> {row.target_id}, held by a row that "
        + (f"is to become {row.next}" if row.next else "stays")
        for row in rows
    ]
    return said, int(rows[0].of_all) if rows else 0


def _listed(first: Sequence[str], count: int) -> str:
    """The first of ``count`` sentences, and how many more there are."""
    more = [f"and {count - len(first)} more"] if count > len(first) else []
    return "; ".join([*first, *more])


def _is_of_version_5(entity: Entity) -> sql.Composable:
    """Whether the key of the row ``t`` is of the version of every target id; most keys that are to move are not."""
    if entity.key_type == "uuid":
        return sql.compose("get_byte(uuid_send(t.{key}), 6) >> 4 = 5", key=sql.name(entity.key))
    return sql.compose("substr(t.{key}, 15, 1) = '5'", key=sql.name(entity.key))


def _spelled_otherwise(connection: Connection, store: Store, reference: Reference) -> list[str]:
    """Ids in json text that escapes spell (PHP's ``\\/``): what a rollback would write is another text."""
    if reference.table.columns[reference.column].type != "json":
        return []
    entity = store.entity(reference.entity)
    statement = sql.compose(
        """SELECT count(*) FROM {table} t WHERE strpos(t.{column}::text, %(escape)s) > 0 AND EXISTS (
               SELECT FROM uuid_pipeline.json_tokens(t.{column}, %(path)s) s JOIN {target} e ON e.{key}::text = s.id
               WHERE s.token <> to_json(s.id)::text)""",
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        target=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )
    count = sql.scalar(connection, statement, {"escape": "\\", "path": list(reference.path)})
    said = "spell ids with escapes, which no rollback could write again as they were: make the column jsonb"
    return [f"{count} rows of {reference.name} {said}"] if count else []


def _no_twin(entity: Entity) -> sql.Composable:
    """Whether no mapped row ``h`` has the target id of ``m`` already, as a twin in the same cluster does."""
    return sql.compose(
        """NOT EXISTS (SELECT FROM {map} h WHERE h.assessment_no = %(no)s AND h.old_id = m.new_id
                       AND h.new_id = m.new_id)""",
        map=ledger.map_table(entity),
    )


def recomputed_independently(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: from raw values, by an implementation that shares no code with the first, every id comes out the same.

    Of a row that the application wrote since the inventory nothing follows: its batch reads it anew.
    """
    checked, changed = 0, 0
    differing: list[str] = []
    for entity in store.entities:
        found: dict[str, str] = {}
        batches = fetched_ahead(connection, _raw_values(connection, store, entity, assessment))
        with contextlib.closing(batches):
            for rows in batches:
                targets = _second_opinion(store, entity, rows)
                checked += len(targets) - targets.count(None)
                found |= _differing(entity, rows, targets)
        written = _written_since_the_inventory(connection, entity, assessment, list(found))
        changed += len(written)
        differing += [said for key, said in found.items() if key not in written]
    said = f"{checked - changed} ids recomputed, all equal"
    said += f"; {changed} rows were changed since the inventory and are read anew by their batch" if changed else ""
    return GateResult.of(
        "recomputed_independently",
        not differing,
        said if not differing else f"{len(differing)} differ: {'; '.join(differing[:5])}",
        "report a fault of uuid-pipeline, with the spec",
        figures={"recomputed": checked, "differing": len(differing), "changed": changed},
    )


def _written_since_the_inventory(
    connection: Connection, entity: Entity, assessment: int, keys: Sequence[str]
) -> set[str]:
    """Those of these rows that the application has written since."""
    if not keys:
        return set()
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    statement = sql.compose(
        """SELECT t.{key}::text AS key FROM {table} t WHERE t.{key} = ANY(%(keys)s::{type}[]) AND {written}""",
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
        type=sql.as_written(entity.key_type),
        written=written_since("t"),
    )
    values = {"keys": list(keys), "snapshot": ledger.inventory_snapshot(connection, assessment), "execution": ""}
    return {row.key for row in sql.rows(connection, statement, values)}


def _second_opinion(store: Store, entity: Entity, rows: Sequence[Any]) -> list[str | None]:
    # Here, since few commands recompute a map and all would wait for numpy.
    from uuid_pipeline.engine.proofs import second_opinion

    pieces = second_opinion.read_template(entity.spec.identity)
    raw = [row[2:] for row in rows]
    keys = second_opinion.keys(pieces, entity.spec.normalize, entity.spec.template.fields, raw)
    return second_opinion.targets(str(store.spec.namespace), keys)


def _differing(entity: Entity, rows: Sequence[Any], targets: list[str | None]) -> dict[str, str]:
    """By key a sentence for each row whose mapped id is another; what lacks a part of its natural key has nothing to
    equal."""
    if targets == [row[1] for row in rows]:
        return {}
    return {
        old_id: f"{entity.name} {old_id}: map {mapped}, recomputed {target}"
        for (old_id, mapped, *_), target in zip(rows, targets, strict=True)
        if target is not None and target != mapped
    }


def _raw_values(connection: Connection, store: Store, entity: Entity, assessment: int) -> Iterator[list[Any]]:
    """Old id, mapped id, raw values of the identity's fields; a parent's key is replaced by what its map says."""
    fields = entity.spec.template.fields
    parent = store.entity(entity.parent) if entity.parent and entity.parent_column in fields else None
    values = [
        sql.Text("p.new_id::text")
        if parent and field == entity.parent_column
        else sql.compose("t.{column}::text", column=sql.name(field))
        for field in fields
    ]
    join = sql.Text("")
    if parent and entity.parent_column:
        join = sql.compose(
            "JOIN {map} p ON p.assessment_no = %(no)s AND p.old_id = t.{parent}",
            map=ledger.map_table(parent),
            parent=sql.name(entity.parent_column),
        )  # type: ignore[assignment]
    statement = sql.compose(
        """SELECT m.old_id::text, m.new_id::text, {values} FROM {map} m JOIN {table} t ON t.{key} = m.old_id {join}
           WHERE m.assessment_no = %(no)s""",
        values=sql.join(", ", values),
        map=ledger.map_table(entity),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        join=join,
    )
    return sql.stream(connection, statement, {"no": assessment})
