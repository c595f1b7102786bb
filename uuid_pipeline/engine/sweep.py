"""The sweep: what arrived since the plan is derived and moved; it merges nothing, and what changed waits for a plan."""

import json

from sqlalchemy import Connection

from uuid_pipeline.engine import early, inventory, ledger, mapping, sql
from uuid_pipeline.engine.store import Entity, Store


def prepare(connection: Connection, store: Store, wave: ledger.Wave) -> ledger.Wave:
    """Take what is there now: an id map of its own and the span of ordinals for this wave.

    Wants a REPEATABLE READ transaction, whose snapshot is the cutoff. The later passes of one that found nothing are
    not needed. A sweep that looked before is returned as it is.
    """
    looked = sql.scalar(
        connection, "SELECT assessment_no FROM uuid_pipeline.waves WHERE wave = %(wave)s", {"wave": wave.wave}
    )
    if looked is not None:
        return wave
    seen = _seen(connection, wave.execution_id)
    number = _begin(connection, wave)
    _find_due(connection, store, wave)
    inventory.take(connection, store, number, due)
    mapping.write(connection, store, number, _last_ordinal(connection, wave))
    _leave_clusters(connection, store, number)
    _leave_moved(connection, store, number, seen)
    first, last, documents = _span(connection, store, number)
    sql.execute(
        connection,
        """UPDATE uuid_pipeline.waves SET assessment_no = %(no)s, first_ordinal = %(first)s, last_ordinal = %(last)s,
               documents = %(documents)s WHERE wave = %(wave)s""",
        {"no": number, "first": first, "last": last, "documents": documents, "wave": wave.wave},
    )
    if documents:
        # What mentions a row that was deleted after its move, and is there anew: a rollback gives it back what it held.
        early.mark(connection, store, number)
    else:
        sql.execute(
            connection,
            """UPDATE uuid_pipeline.waves SET status = 'unneeded'
               WHERE execution_id = %(id)s AND kind = 'sweep' AND position > %(position)s AND status = 'planned'""",
            {"id": wave.execution_id, "position": wave.position},
        )
    return ledger.wave(connection, wave.wave)


def due(entity: Entity) -> sql.Composable:
    """The temporary table of the keys that a sweep looks at."""
    return sql.table("pg_temp", f"due_{entity.name}")


def _begin(connection: Connection, wave: ledger.Wave) -> int:
    return int(
        sql.scalar(
            connection,
            """INSERT INTO uuid_pipeline.assessments (run_id, spec_digest, catalog_digest, profile, kind)
               SELECT run_id, spec_digest, catalog_digest, profile || %(of)s::jsonb, 'sweep'
               FROM uuid_pipeline.assessments WHERE assessment_no =
                   (SELECT assessment_no FROM uuid_pipeline.executions WHERE execution_id = %(id)s)
               RETURNING assessment_no""",
            {"id": wave.execution_id, "of": json.dumps({"sweep": wave.wave})},
        )
    )


def _find_due(connection: Connection, store: Store, wave: ledger.Wave) -> None:
    """Rows that neither the plan nor an earlier pass has seen, or that their batch let go, and the parents of these."""
    seen = _seen(connection, wave.execution_id)
    for entity in store.entities:
        # Made of its rows at once: unlike an INSERT, this may read the tables with several processes.
        unseen = sql.compose(
            """CREATE TEMPORARY TABLE {due} ON COMMIT DROP AS
               WITH {others} SELECT o.key FROM others o WHERE {unseen}""",
            due=due(entity),
            others=_others(entity),
            unseen=_unseen(store, entity),
        )
        sql.execute(connection, unseen, {"seen": seen})
        sql.execute(connection, sql.compose("ALTER TABLE {due} ADD PRIMARY KEY (key)", due=due(entity)))
    _find_parents(connection, store)
    _leave_aside(connection, store, wave.execution_id)


def _find_parents(connection: Connection, store: Store) -> None:
    for entity in reversed(store.entities):
        if entity.parent is not None:
            parents = sql.compose(
                """INSERT INTO {parents} SELECT DISTINCT t.{parent} FROM {due} d JOIN {table} t ON t.{key} = d.key
                   WHERE t.{parent} IS NOT NULL ON CONFLICT DO NOTHING""",
                parents=due(store.entity(entity.parent)),
                parent=sql.name(entity.parent_column or ""),
                due=due(entity),
                table=sql.table(entity.table.schema, entity.table.name),
                key=sql.name(entity.key),
            )
            sql.execute(connection, parents)


def _leave_aside(connection: Connection, store: Store, execution_id: str) -> None:
    """What a wave set aside waits for its own wave or for the next plan, whatever was written below it meanwhile.

    So does what the plan has named as quarantined.
    """
    for entity in store.entities:
        if entity.parent is None:
            quarantined = sql.compose(
                """DELETE FROM {due} d USING {inventory} i WHERE i.assessment_no = ANY(%(seen)s) AND i.key = d.key
                   AND i.quarantined IS NOT NULL""",
                due=due(entity),
                inventory=ledger.inventory_table(entity),
            )
            sql.execute(connection, quarantined, {"seen": _seen(connection, execution_id)})
            leave = sql.compose(
                """DELETE FROM {due} d USING uuid_pipeline.unmoved u WHERE u.execution_id = %(execution)s
                   AND u.entity = %(entity)s AND u.reason <> 'gone' AND u.old_id = d.key::text""",
                due=due(entity),
            )
        else:
            # Every row that is due has its parent beside it, but where that was left just now.
            leave = sql.compose(
                """DELETE FROM {due} d USING {table} t WHERE t.{key} = d.key AND t.{parent} IS NOT NULL
                   AND NOT EXISTS (SELECT FROM {parents} p WHERE p.key = t.{parent})""",
                due=due(entity),
                table=sql.table(entity.table.schema, entity.table.name),
                key=sql.name(entity.key),
                parent=sql.name(entity.parent_column or ""),
                parents=due(store.entity(entity.parent)),
            )
        sql.execute(connection, leave, {"execution": execution_id, "entity": entity.name})


def later_arrivals(connection: Connection, store: Store, execution_id: str) -> dict[str, int]:
    """Rows by entity that came after the last look of this execution: no failure, and due for the next plan."""
    values = {"seen": _seen(connection, execution_id), "execution": execution_id}
    return {
        entity.name: int(
            sql.scalar(
                connection,
                sql.compose(
                    "WITH {others} SELECT (SELECT count(*) FROM others o WHERE {unseen})"
                    " + (SELECT count(*) FROM others o WHERE {returned})",
                    others=_others(entity),
                    unseen=_unseen(store, entity),
                    returned=_returned(entity),
                ),
                values,
            )
        )
        for entity in store.entities
    }


def _others(entity: Entity) -> sql.Composable:
    """The keys under which no id map of the assessments ``seen`` has its new ids, as ``others``.

    After the waves hardly any row has such a one: what is asked next is asked of few, and the whole table is read once.
    """
    return sql.compose(
        """others AS MATERIALIZED (SELECT t.{key} AS key FROM {table} t WHERE NOT EXISTS (
               SELECT FROM {map} m WHERE m.assessment_no = ANY(%(seen)s) AND m.new_id = t.{key}))""",
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
        map=ledger.map_table(entity),
    )


def _unseen(store: Store, entity: Entity) -> sql.Composable:
    """Whether no inventory of the assessments ``seen`` knows the key of ``o``, but as a row that its batch let go."""
    return sql.compose(
        """NOT EXISTS (SELECT FROM {inventory} i
                       WHERE i.assessment_no = ANY(%(seen)s) AND i.key = o.key AND NOT ({let_go}))""",
        inventory=ledger.inventory_table(entity),
        let_go=_let_go(store, entity),
    )


def _let_go(store: Store, entity: Entity) -> sql.Composable:
    """Whether the row ``i`` was due and its batch found it elsewhere: below a parent that had moved by then.

    Such a row has left the map, and its parent has not. So has one whose target id another row took; that one waits for
    the next plan, since the id is an alias now.
    """
    if entity.parent is None:
        return sql.Text("false")
    return sql.compose(
        """i.quarantined IS NULL AND i.id_class <> 'deterministic'
           AND NOT EXISTS (SELECT FROM {map} m WHERE m.assessment_no = ANY(%(seen)s) AND m.old_id = i.key)
           AND EXISTS (SELECT FROM {parents} p JOIN {table} t ON t.{parent} <> p.new_id
                       WHERE p.assessment_no = i.assessment_no AND p.old_id = i.parent_key AND t.{key} = i.key)""",
        map=ledger.map_table(entity),
        parents=ledger.map_table(store.entity(entity.parent)),
        table=sql.table(entity.table.schema, entity.table.name),
        parent=sql.name(entity.parent_column or ""),
        key=sql.name(entity.key),
    )


def _returned(entity: Entity) -> sql.Composable:
    """Whether the row of ``o`` is one that the application deleted and wrote again under an id that had moved."""
    return sql.compose(
        """EXISTS (SELECT FROM {map} m WHERE m.assessment_no = ANY(%(seen)s) AND m.old_id = o.key
                   AND m.new_id <> m.old_id
                   AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.execution_id = %(execution)s
                                   AND u.ordinal = m.ordinal AND u.reason <> 'gone'))""",
        map=ledger.map_table(entity),
    )


def _seen(connection: Connection, execution_id: str) -> list[int]:
    """The plan's assessment, and those of the sweeps that have looked."""
    waves = ledger.waves(connection, execution_id)
    return sorted({wave.assessment_no for wave in waves})


def _last_ordinal(connection: Connection, wave: ledger.Wave) -> int:
    """Ordinals go on where the execution's ended, so that one names one cluster in its journal."""
    return max(w.last_ordinal for w in ledger.waves(connection, wave.execution_id))


def _leave_clusters(connection: Connection, store: Store, number: int) -> None:
    """New merges were approved by nobody: duplicates among arrivals are left for the next plan."""
    for entity in store.entities:
        sql.execute(
            connection,
            sql.compose(
                """DELETE FROM {map} m WHERE m.assessment_no = %(no)s
                   AND m.ordinal IN (SELECT ordinal FROM {map} WHERE assessment_no = %(no)s AND role = 'merge')""",
                map=ledger.map_table(entity),
            )
            if entity.parent is None
            else sql.compose(
                "DELETE FROM {map} m WHERE m.assessment_no = %(no)s AND role = 'merge'", map=ledger.map_table(entity)
            ),
            {"no": number},
        )


def _leave_moved(connection: Connection, store: Store, number: int, seen: list[int]) -> None:
    """What this execution has moved is moved no second time, though its natural key is another one by now.

    Its id would be free for another row, while ids of before still stand for it. It waits for the next plan, with all
    that hangs on its document.
    """
    for entity in store.entities:
        moved_again = sql.compose(
            """SELECT m.ordinal FROM {map} m WHERE m.assessment_no = %(no)s AND m.role = 'move' AND EXISTS (
                   SELECT FROM {map} e WHERE e.assessment_no = ANY(%(seen)s) AND e.new_id = m.old_id)""",
            map=ledger.map_table(entity),
        )
        ordinals = [row.ordinal for row in sql.rows(connection, moved_again, {"no": number, "seen": seen})]
        for other in store.entities if ordinals else ():
            # Out of the inventory too, so that it is counted as not yet seen.
            leave = sql.compose(
                """WITH left_alone AS (DELETE FROM {map} WHERE assessment_no = %(no)s AND ordinal = ANY(%(ordinals)s)
                                       RETURNING old_id)
                   DELETE FROM {inventory} i USING left_alone l WHERE i.assessment_no = %(no)s AND i.key = l.old_id""",
                map=ledger.map_table(other),
                inventory=ledger.inventory_table(other),
            )
            sql.execute(connection, leave, {"no": number, "ordinals": ordinals})


def _span(connection: Connection, store: Store, number: int) -> tuple[int, int, int]:
    """First and last ordinal, and documents; (1, 0, 0) when there is nothing."""
    spans = [
        sql.rows(
            connection,
            sql.compose(
                """SELECT min(ordinal) AS first, max(ordinal) AS last, count(*) AS documents FROM {map}
                   WHERE assessment_no = %(no)s""",
                map=ledger.map_table(root),
            ),
            {"no": number},
        )[0]
        for root in store.roots
    ]
    found = [span for span in spans if span.documents]
    if not found:
        return 1, 0, 0
    return (
        min(span.first for span in found), max(span.last for span in found), sum(span.documents for span in found)
    )  # fmt: skip
