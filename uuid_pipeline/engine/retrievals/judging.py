"""Whose fault it is when a document is not found any more: ours, or a change that the application made since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches import application, deletions
from uuid_pipeline.engine.batches.deletions import Deletions
from uuid_pipeline.engine.proofs import returned
from uuid_pipeline.engine.retrievals import asking, comparison, owners_query
from uuid_pipeline.engine.retrievals.asking import Asker, Subject
from uuid_pipeline.engine.retrievals.comparison import Before
from uuid_pipeline.engine.retrievals.sights import Sampled, Seen, Sight
from uuid_pipeline.engine.store import Entity, Store


@dataclass
class Verdict:
    """``faults`` turn the gate red; ``excluded`` documents are counted by reason; ``notes`` say what was not compared.

    ``unexplained``: rows are missing and nobody is seen to have deleted them (the statistics may be late).
    """

    faults: list[str] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    compared: int = 0
    same: int = 0
    unexplained: bool = False

    def as_data(self) -> dict[str, Any]:
        return {"neighbours": {"compared": self.compared, "same": self.same}, "faults": self.faults}


def judge(
    connection: Connection,
    view: Connection,
    store: Store,
    execution_id: str,
    waves: Sequence[ledger.Wave],
    seen: Seen,
    sampled: Mapping[Sampled, Before | None],
    before: Mapping[str, Any],
) -> Verdict:
    """Judge what was seen against the baseline; ``view`` is the snapshot that it was seen in."""
    verdict = Verdict()
    moved = [wave for wave in waves if wave.status == "moved"]
    aside = _set_aside(connection, execution_id)
    moved_on = _moved_on(connection, store, execution_id, [one.target for one in sampled])
    merged = _merged(connection, store, moved, [one.document for one in sampled])
    judged: list[tuple[Sight, Before | None]] = []
    for sight in seen.sights:
        document = sight.sampled.document
        if document in aside:
            verdict.excluded[document] = f"set aside: {aside[document]}"
        elif document in merged:
            verdict.excluded[document] = "merged into another"
        elif sight.now is None and sight.sampled.target in moved_on:
            verdict.excluded[document] = "its natural key was changed by the application since, and its id with it"
        elif not _due(sight, moved):
            verdict.excluded[document] = "its wave has not moved"
        else:
            judged.append((sight, sampled[sight.sampled]))
    judged = _places(connection, view, store, execution_id, moved, before, verdict, judged)
    judged = _losses(connection, store, execution_id, seen, judged, before, verdict)
    _queries(view, seen, judged, before, verdict)
    _neighbours(connection, store, execution_id, seen, judged, verdict)
    return verdict


def _due(sight: Sight, moved: Sequence[ledger.Wave]) -> bool:
    ordinal = sight.sampled.ordinal
    return ordinal is None or any(wave.first_ordinal <= ordinal <= wave.last_ordinal for wave in moved)


def _set_aside(connection: Connection, execution_id: str) -> dict[str, str]:
    statement = "SELECT old_id, reason FROM uuid_pipeline.unmoved WHERE execution_id = %(id)s"
    return {row.old_id: row.reason for row in sql.rows(connection, statement, {"id": execution_id})}


def _merged(connection: Connection, store: Store, moved: Sequence[ledger.Wave], documents: list[str]) -> set[str]:
    statement = sql.compose(
        """SELECT old_id::text AS id FROM {map}
           WHERE assessment_no = ANY(%(maps)s) AND role = 'merge' AND old_id = ANY(%(ids)s::{type}[])""",
        map=ledger.map_table(store.main),
        type=sql.Text(store.main.key_type),
    )
    values = {"maps": sorted({wave.assessment_no for wave in moved}), "ids": documents}
    return {row.id for row in sql.rows(connection, statement, values)}


# A hop each time that a later batch moved the row on, or merged it into another.
_LED_ON = """
WITH RECURSIVE led (target, id, hops) AS (
    SELECT id, id, 0 FROM unnest(%(ids)s::{type}[]) id
    UNION ALL
    SELECT l.target, m.new_id, l.hops + 1 FROM led l JOIN {map} m ON m.old_id = l.id AND m.new_id <> l.id
    WHERE m.assessment_no = ANY(%(maps)s) AND l.hops < 8)
SELECT DISTINCT l.target::text AS id FROM led l JOIN {table} t ON t.{key} = l.id WHERE l.hops > 0
"""


def _moved_on(connection: Connection, store: Store, execution_id: str, targets: list[str]) -> set[str]:
    """Those of these target ids whose row a later batch has moved on, as its natural key had changed."""
    statement = sql.Text(_LED_ON).format(
        map=ledger.map_table(store.main),
        table=sql.table(store.main.table.schema, store.main.table.name),
        key=sql.name(store.main.key),
        type=sql.Text(store.main.key_type),
    )
    values = {"maps": ledger.assessments_since(connection, execution_id), "ids": targets}
    return {row.id for row in sql.rows(connection, statement, values)}


Judged = list[tuple[Sight, Before | None]]


def _places(
    connection: Connection,
    view: Connection,
    store: Store,
    execution_id: str,
    moved: Sequence[ledger.Wave],
    before: Mapping[str, Any],
    verdict: Verdict,
    judged: Judged,
) -> Judged:
    """A document that is still under its old id, though its wave moved and nothing set it aside."""
    elsewhere = {s.now: s.sampled.target for s, _ in judged if s.now is not None and s.now != s.sampled.target}
    if not elsewhere:
        return judged
    maps = {wave.assessment_no for wave in moved}
    back = returned.candidates(view, store.main, execution_id, maps, elsewhere)
    counts = {store.main.name: len(back)} if back else {}
    if returned.unexplained(connection, store, execution_id, before.get("epoch"), counts):
        verdict.unexplained, back = True, set()
    verdict.excluded |= dict.fromkeys(back, returned.SAID)
    verdict.faults += [
        f"{now} is not under its target id {target}" for now, target in elsewhere.items() if now not in back
    ]
    return [(sight, was) for sight, was in judged if sight.now not in elsewhere]


def _losses(
    connection: Connection,
    store: Store,
    execution_id: str,
    seen: Seen,
    judged: Judged,
    before: Mapping[str, Any],
    verdict: Verdict,
) -> Judged:
    """Rows and chunks that are gone: excused as far as somebody else is seen to have deleted or moved them."""
    gone = {sight.sampled.document: 1 for sight, _ in judged if sight.now is None}
    fewer = {
        sight.sampled.document: was.chunks - (sight.chunks or 0)
        for sight, was in judged
        if was is not None and was.chunks is not None and sight.now is not None and was.chunks > (sight.chunks or 0)
    }
    _merged_chunks(connection, store, execution_id, fewer, judged, verdict)
    _chunks_elsewhere(connection, store, execution_id, fewer, verdict)
    main, below = store.main.table, [way.table for way in owners_query.ways_to_children(store)]
    ways = [(gone, [main], "has no row under its target id, and nobody is seen to have deleted it")]
    ways.append((fewer, below, "has fewer chunks than before, and nobody is seen to have deleted them"))
    written = sum(count for _, count in seen.owners.values())
    for missing, tables, words in ways:
        if not missing:
            continue
        found = [deletions.seen(connection, table, execution_id, before.get("epoch")) for table in tables]
        excuse = _excuse(found, sum(missing.values()), 0 if missing is gone else written)
        if excuse is None:
            verdict.unexplained = True
            verdict.faults += [f"{document} {words}" for document in missing]
        else:
            verdict.excluded |= dict.fromkeys(missing, excuse)
    out = verdict.excluded.keys() | gone.keys() | fewer.keys()
    return [(sight, was) for sight, was in judged if sight.sampled.document not in out]


def _excuse(found: Sequence[Deletions], missing: int, written: int) -> str | None:
    """Why the missing rows are the application's doing; None when they cannot be."""
    if any(one.ours for one in found):
        return None
    if any(one.application is None for one in found):
        return "rows are gone, and the server's counters of deletes began anew: it cannot be told whose doing"
    if sum(one.application or 0 for one in found) + written >= missing:
        return "deleted or changed by the application since"
    if any(one.unreported for one in found):
        return "rows are gone, and idle sessions may not have told the server of their deletes: it cannot be told whose"
    return None


def _merged_chunks(
    connection: Connection,
    store: Store,
    execution_id: str,
    fewer: dict[str, int],
    judged: Judged,
    verdict: Verdict,
) -> None:
    """A survivor of a merge may lose chunks to the archive, which the journal counts by table."""
    if not fewer:
        return
    ordinals = {sight.sampled.document: sight.sampled.ordinal for sight, _ in judged}
    statement = """
        SELECT DISTINCT o.ordinal FROM unnest(%(ordinals)s::bigint[]) o(ordinal) JOIN uuid_pipeline.batches b
            ON b.execution_id = %(id)s AND b.direction = 'forward' AND o.ordinal BETWEEN b.first_ordinal
               AND b.last_ordinal WHERE b.moved->'merged'->'archived' <> '{}'"""
    wanted = [ordinals[document] for document in fewer if ordinals[document] is not None]
    rows = sql.rows(connection, statement, {"ordinals": wanted, "id": execution_id})
    archived = {row.ordinal for row in rows}
    twins = _of_clusters(connection, store, execution_id, archived)
    for document in list(fewer):
        if ordinals[document] in twins:
            verdict.excluded[document] = "a merge archived chunks of it"
            del fewer[document]


# Ids that a row of the plan's inventory may have by now: a hop each time that a batch found it below another parent.
_GONE = """
WITH RECURSIVE former (document, origin, id, hops) AS (
    SELECT {root}.key, i.key, i.key, 0 FROM {inventory} i {parents}
    WHERE i.assessment_no = %(plan)s AND {root}.key = ANY(%(documents)s::{type}[])
    UNION ALL
    SELECT f.document, f.origin, m.new_id, f.hops + 1
    FROM former f JOIN {map} m ON m.old_id = f.id AND m.new_id <> f.id
    WHERE m.assessment_no = ANY(%(maps)s) AND f.hops < 4),
there AS (SELECT f.document, f.origin, bool_or(t.{key} IS NOT NULL) AS found
          FROM former f LEFT JOIN {table} t ON t.{key} = f.id GROUP BY 1, 2)
SELECT document::text AS document, count(*) FILTER (WHERE NOT found) AS gone FROM there GROUP BY 1
"""


def _chunks_elsewhere(
    connection: Connection, store: Store, execution_id: str, fewer: dict[str, int], verdict: Verdict
) -> None:
    """Chunks that are there, below another document: the application gave them away, since no batch does.

    Only where it is known to have written, and the plan's inventory still says whose they were.
    """
    tables = [way.table.oid for way in owners_query.ways_to_children(store)]
    entities = [entity for entity in store.entities if entity.table.oid in tables]
    if not fewer or len(entities) != len(tables) or not _wrote(connection, execution_id, entities):
        return
    if not _has_inventory(connection, store, execution_id):
        return
    gone = dict.fromkeys(fewer, 0)
    for entity in entities:
        found = _gone(connection, store, entity, execution_id, sorted(fewer))
        for document in fewer:
            # What the plan's inventory has not seen, the application wrote since.
            gone[document] += found.get(document, 0)
    for document in list(fewer):
        fewer[document] = min(fewer[document], gone[document])
        if not fewer[document]:
            verdict.excluded[document] = "the application gave chunks of it to other documents"
            del fewer[document]


def _has_inventory(connection: Connection, store: Store, execution_id: str) -> bool:
    statement = sql.compose(
        "SELECT EXISTS (SELECT FROM {inventory} WHERE assessment_no = %(plan)s)",
        inventory=ledger.inventory_table(store.main),
    )
    plan = ledger.execution(connection, execution_id).assessment_no
    return bool(sql.scalar(connection, statement, {"plan": plan}))


def _wrote(connection: Connection, execution_id: str, entities: Sequence[Entity]) -> bool:
    """Whether the application wrote rows of these tables, before our batch took them or since."""
    if application.found_written(connection, execution_id):
        return True
    sql.execute(connection, "SELECT pg_current_xact_id()")  # age() counts from it
    values = {"execution": execution_id, "snapshot": ledger.first_snapshot(connection, execution_id)}
    return any(
        sql.scalar(
            connection,
            sql.compose(
                "SELECT EXISTS (SELECT FROM {table} t WHERE {written})",
                table=sql.table(entity.table.schema, entity.table.name),
                written=application.written_since("t"),
            ),
            values,
        )
        for entity in entities
    )


def _gone(
    connection: Connection, store: Store, entity: Entity, execution_id: str, documents: list[str]
) -> dict[str, int]:
    """Of each document how many rows that the plan saw below it are under no id any more that they may have had."""
    parents, below = list[sql.Composable](), "i"
    at = entity
    while at.parent is not None and store.entity(at.parent) != store.main:
        at = store.entity(at.parent)
        parents.append(_inventory_above(at, below, f"i{at.level}"))
        below = f"i{at.level}"
    parents.append(_inventory_above(store.main, below, "d"))
    statement = sql.Text(_GONE).format(
        root=sql.name("d"),
        inventory=ledger.inventory_table(entity),
        parents=sql.join(" ", parents),
        type=sql.Text(store.main.key_type),
        map=ledger.map_table(entity),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )
    values = {
        "plan": ledger.execution(connection, execution_id).assessment_no,
        "maps": ledger.assessments_since(connection, execution_id),
        "documents": documents,
    }
    return {row.document: int(row.gone) for row in sql.rows(connection, statement, values)}


def _inventory_above(entity: Entity, below: str, alias: str) -> sql.Composable:
    return sql.compose(
        "JOIN {inventory} {alias} ON {alias}.assessment_no = %(plan)s AND {alias}.key = {below}.parent_key",
        inventory=ledger.inventory_table(entity),
        alias=sql.name(alias),
        below=sql.name(below),
    )


def _of_clusters(connection: Connection, store: Store, execution_id: str, ordinals: set[int]) -> set[int]:
    """Those of these ordinals at which rows of any entity were merged."""
    found: set[int] = set()
    for entity in store.entities:
        statement = sql.compose(
            """SELECT DISTINCT m.ordinal FROM {map} m JOIN uuid_pipeline.executions e USING (assessment_no)
               WHERE e.execution_id = %(id)s AND m.role = 'merge' AND m.ordinal = ANY(%(ordinals)s)""",
            map=ledger.map_table(entity),
        )
        values = {"id": execution_id, "ordinals": sorted(ordinals)}
        found |= {int(row.ordinal) for row in sql.rows(connection, statement, values)}
    return found


def _queries(view: Connection, seen: Seen, judged: Judged, before: Mapping[str, Any], verdict: Verdict) -> None:
    """Documents that their owner's query found before and does not find now, though they have vectors."""
    if isinstance(seen.query, str) or seen.who is None:
        return
    if seen.who.said not in str(before["how"]):
        verdict.notes.append(f"asked otherwise than before ({before['how']}), so answers are not compared")
        return
    for sight, was in judged:
        asked = sight.asked
        if was is None or not was.found or not sight.vector or asked is None or asked.too_long or asked.found:
            continue
        if asked.found is None and asked.failure is None:
            continue
        document = sight.sampled.document
        if comparison.quiet(was, sight, seen.owners) or _found_by_all_seeing(view, seen, sight):
            why = f" ({asked.failure})" if asked.failure else ""
            verdict.faults.append(f"{sight.now} was found by its owner's query before, and is not now{why}")
        else:
            verdict.excluded[document] = "deleted or changed by the application since"


def _lost(sight: Sight, was: Before) -> bool:
    return bool(was.found and sight.asked is not None and not sight.asked.found)


def _found_by_all_seeing(view: Connection, seen: Seen, sight: Sight) -> bool:
    """Whether the same query finds the document where no policy binds: then it is the policies, not the rows."""
    if isinstance(seen.query, str) or seen.who is None or seen.who.role is None or sight.now is None:
        return False
    own = sql.rows(view, seen.query.own_vectors(), {"ids": [sight.now], "digests": [sight.digest or ""]})
    if not own:
        return False
    subject = Subject(sight.now, sight.owner, own[0].digest, own[0].vector)
    answer = asking.ask(view, seen.query, subject, Asker(None, "", seen.who.defaults), asking.QUERY_SECONDS)
    return bool(answer.found)


def _neighbours(
    connection: Connection, store: Store, execution_id: str, seen: Seen, judged: Judged, verdict: Verdict
) -> None:
    """Neighbours and scores through the map, where the owner's rows are as they were."""
    compared: Judged = [
        (sight, was)
        for sight, was in judged
        if was is not None
        and sight.sampled.document not in verdict.excluded
        and not _lost(sight, was)
        and comparison.quiet(was, sight, seen.owners)
    ]
    targets = _targets(connection, store, execution_id, compared)
    changed = 0
    for sight, was in judged:
        known = was is not None and was.neighbours is not None and sight.owner in seen.owners
        changed += known and (sight, was) not in compared and not (was and _lost(sight, was))
    live, other = application.found_written(connection, execution_id), 0
    for sight, was in compared:
        assert was is not None
        same = comparison.same_neighbours(was, sight, targets)
        if same is None:
            continue
        verdict.compared += 1
        verdict.same += same
        other += not same
        if not same and not live:
            verdict.faults.append(
                f"{sight.now} has other neighbours or scores than before, though nobody wrote to them"
            )
    if other and live:
        verdict.notes.append(
            f"other neighbours or scores for {other}, where the application wrote before our batches came"
        )
    if changed:
        verdict.notes.append(f"neighbours of {changed} not compared: their owners' rows changed since")


def _targets(connection: Connection, store: Store, execution_id: str, compared: Judged) -> dict[str, str]:
    """Old id -> new id of every id that stands in the neighbour lists, by the maps of this execution."""
    documents, chunks = set[str](), set[str]()
    for sight, was in compared:
        lists = [*(was.neighbours or ()), *(sight.asked.neighbours if sight.asked else ())] if was else []
        for document, chunk, _ in lists:
            documents.add(document)
            chunks |= {chunk} if chunk else set()
    maps = sorted({wave.assessment_no for wave in ledger.waves(connection, execution_id)})
    retrieval = store.spec.retrieval
    found: dict[str, str] = {}
    for entity in store.entities:
        named = retrieval is not None and entity.spec.table == retrieval.chunk_table
        ids = (documents if entity == store.main else set()) | (chunks if named else set())
        if ids:
            found |= _mapped(connection, store, entity.name, sorted(ids), maps)
    return found


def _mapped(connection: Connection, store: Store, name: str, ids: list[str], maps: list[int]) -> dict[str, str]:
    entity = store.entity(name)
    statement = sql.compose(
        """SELECT old_id::text AS old, new_id::text AS new FROM {map}
           WHERE assessment_no = ANY(%(maps)s) AND old_id = ANY(%(ids)s::{type}[])""",
        map=ledger.map_table(entity),
        type=sql.Text(entity.key_type),
    )
    return {row.old: row.new for row in sql.rows(connection, statement, {"maps": maps, "ids": ids})}
