"""Retrieval, measured as owners ask and as workers look up: a loss is red, what the application writes is not."""

import json
import math
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.retrievals import retrieval, sights
from uuid_pipeline.engine.retrievals.asking import snapshot
from uuid_pipeline.engine.retrievals.sights import Sampled
from uuid_pipeline.spec import Retrieval, Spec
from uuid_pipeline_tests.conftest import NewDatabase, NewRole, Templates, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_between import upload
from uuid_pipeline_tests.integration.test_migration import REMOVE

SPEC = cycle.spec_with()
assert SPEC.retrieval is not None
RETRIEVAL: Retrieval = SPEC.retrieval


def asking(**changes: Any) -> Spec:
    return cycle.spec_with(retrieval=RETRIEVAL.model_copy(update=changes))


@pytest.fixture
def migrated(new_database: NewDatabase, templates: Templates) -> Iterator[Engine]:
    with opened(new_database(templates.name("incident", "migrated"))) as engine:
        yield engine


def whole(engine: Engine, spec: Spec = SPEC) -> GateResult:
    with engine.begin() as connection:
        execution = ledger.executions(connection)[0]
        return retrieval.whole_documents_retrievable(connection, cycle.bound(connection, spec), execution)


def measured(engine: Engine) -> dict[str, Any]:
    with engine.begin() as connection:
        found = retrieval.summary(connection, ledger.executions(connection)[0].execution_id)
    assert found is not None
    return found


def with_chunks(engine: Engine, count: int) -> list[str]:
    """Documents with chunks, of different owners."""
    rows = cycle.run_sql(
        engine,
        """SELECT min(document_id::text) FROM upload_pipeline.documents JOIN upload_pipeline.document_chunks
           USING (document_id) GROUP BY user_id ORDER BY 1 LIMIT %(n)s""",
        n=count,
    )
    return [str(row[0]) for row in rows]


def angle(one: list[float], other: list[float]) -> float:
    """Cosine distance by the school's formula."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return 1 - product / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def test_before_no_document_is_found_by_its_target_id_and_after_all_but_those_without_chunks(migrated: Engine) -> None:
    found = measured(migrated)
    chunkless = cycle.run_sql(
        migrated,
        """SELECT document_id::text FROM upload_pipeline.documents d WHERE NOT EXISTS (
               SELECT FROM upload_pipeline.document_chunks c WHERE c.document_id = d.document_id)""",
    )
    before, after = found["before"], found["after"]
    assert (before["measured"], before["found"], before["rate"], before["rows_by_target"]) == (38, 0, 0.0, 0)
    assert (after["measured"], after["found"], after["rows_by_target"]) == (38, 29, 38)
    assert after["rate"] == round(29 / 38, 4)
    # The owners' own queries found the documents before too: the two sides of the application never met.
    assert before["by_query"] == after["by_query"] == 29
    assert {one["document"] for one in found["not_retrievable"]} == {row[0] for row in chunkless}
    assert found["neighbours"] == {"compared": 29, "same": 29}
    for figures in (before, after):
        assert "under row-level security as role authenticated" in figures["how"]
        assert 0 < figures["p50_ms"] <= figures["p95_ms"]


def test_neighbours_and_scores_are_those_that_school_arithmetic_gives(incident: Engine) -> None:
    spec = asking(k=4)
    chunks = cycle.run_sql(
        incident,
        """SELECT c.chunk_id::text, d.document_id::text, d.user_id::text, c.embedding::text
           FROM upload_pipeline.document_chunks c JOIN upload_pipeline.documents d USING (document_id)""",
    )
    vectors = {chunk: json.loads(text) for chunk, _, _, text in chunks}
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    cycle.migrate_all(incident, spec, execution)
    cycle.assert_green(cycle.validate(incident))

    kept = cycle.run_sql(
        incident, "SELECT document, owner_rows, neighbours->'rows' FROM uuid_pipeline.retrieval_baseline"
    )
    asked = [row for row in kept if row[2] is not None]
    assert (len(kept), len(asked)) == (38, 29)
    for document, owner_rows, neighbours in asked:
        owner = next(user for _, own, user, _ in chunks if own == document)
        theirs = {chunk: own for chunk, own, user, _ in chunks if user == owner}
        assert owner_rows == len(theirs)
        # It asks with one of its own vectors, so the nearest is that one itself.
        assert neighbours[0][0] == document
        query = vectors[neighbours[0][1]]
        by_hand = sorted((angle(query, vectors[chunk]), chunk, own) for chunk, own in theirs.items())[:4]
        assert [(own, chunk) for _, chunk, own in by_hand] == [(own, chunk) for own, chunk, _ in neighbours]
        assert [one[2] for one in neighbours] == pytest.approx([score for score, _, _ in by_hand], abs=1e-6)
    assert measured(incident)["neighbours"] == {"compared": 29, "same": 29}


def test_a_policy_that_is_gone_turns_the_gate_red_and_green_again_when_it_is_back(migrated: Engine) -> None:
    policy = """CREATE POLICY own_chunks ON upload_pipeline.document_chunks FOR SELECT TO authenticated USING (EXISTS (
        SELECT FROM upload_pipeline.documents d WHERE d.document_id = document_chunks.document_id
        AND d.user_id = auth.uid()))"""
    cycle.run_sql(migrated, "DROP POLICY own_chunks ON upload_pipeline.document_chunks")
    found = whole(migrated)
    assert not found.passed
    assert found.finding.startswith("29 documents: ")
    assert "was found by its owner's query before, and is not now" in found.finding
    assert measured(migrated)["after"]["found"] == 0

    cycle.run_sql(migrated, policy)
    cycle.assert_green([whole(migrated)])
    cycle.run_sql(migrated, "REVOKE SELECT ON upload_pipeline.documents FROM authenticated")
    found = whole(migrated)
    assert not found.passed
    assert "permission denied for table documents" in found.finding


def test_a_policy_that_is_gone_is_red_for_an_owner_who_also_wrote(migrated: Engine) -> None:
    cycle.run_sql(migrated, "UPDATE upload_pipeline.documents SET filename = filename || '!'")
    cycle.assert_green([whole(migrated)])
    assert measured(migrated)["neighbours"]["compared"] == 0
    cycle.run_sql(migrated, "DROP POLICY own_documents ON upload_pipeline.documents")
    assert not whole(migrated).passed


def uncounted(engine: Engine, statement: str, **values: object) -> None:
    """A change that nobody is seen to have made: the session keeps it from the statistics of deletes."""
    with cycle.session(engine) as connection:
        connection.execute("SET track_counts = off")
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode(), values)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid_pipeline.engine.batches.deletions.STATISTICS_SECONDS", 1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DELETE FROM upload_pipeline.document_chunks WHERE document_id = %(id)s AND chunk_ord = 1",
         "has fewer chunks than before, and nobody is seen to have deleted them"),
        ("DELETE FROM upload_pipeline.documents WHERE document_id = %(id)s",
         "has no row under its target id, and nobody is seen to have deleted it"),
        ("UPDATE upload_pipeline.documents SET document_id = gen_random_uuid() WHERE document_id = %(id)s",
         "has no row under its target id"),
        ("UPDATE upload_pipeline.documents d SET document_id = m.old_id FROM uuid_pipeline.id_map_document m "
         "WHERE m.new_id = d.document_id AND d.document_id = %(id)s", "is not under its target id"),
    ],
    ids=["a chunk lost", "a document lost", "a wrong id", "an old id"],
)  # fmt: skip
def test_what_a_broken_migration_would_lose_is_red_by_name(migrated: Engine, damage: str, words: str) -> None:
    [document] = with_chunks(migrated, 1)
    old = cycle.run_sql(
        migrated, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE new_id = %(i)s", i=document
    )
    uncounted(migrated, damage, id=document)
    found = whole(migrated)
    assert not found.passed
    assert words in found.finding
    assert str(old[0][0]) in found.finding or document in found.finding


def test_a_document_deleted_between_plan_and_run_is_nobodys_fault(migrated: Engine) -> None:
    gone, _ = with_chunks(migrated, 2)
    upload(migrated)
    execution = cycle.approve(migrated, SPEC, cycle.assess_and_plan(migrated, SPEC).plan_id)
    uncounted(migrated, "DELETE FROM upload_pipeline.document_chunks WHERE document_id = %(id)s", id=gone)
    uncounted(migrated, "DELETE FROM upload_pipeline.documents WHERE document_id = %(id)s", id=gone)
    cycle.migrate_all(migrated, SPEC, execution)

    cycle.assert_green([whole(migrated)])


def test_deletes_that_go_on_keep_no_gate_waiting_for_those_that_it_saw(
    migrated: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session tells the server of its deletes with a later statement; there is always one that has not yet."""
    monkeypatch.setattr("uuid_pipeline.engine.batches.deletions.STATISTICS_SECONDS", 2.5)
    delete = "DELETE FROM upload_pipeline.documents WHERE document_id = %s"
    one, another = with_chunks(migrated, 2)
    with cycle.session(migrated) as first, cycle.session(migrated) as second:
        for writer in (first, second):
            writer.autocommit = True
            writer.execute("SET session_replication_role = replica")
        first.execute(delete, [one])
        later = [
            threading.Timer(0.3, lambda: second.execute(delete, [another])),
            threading.Timer(1.4, lambda: first.execute("SELECT 1")),
        ]
        for timer in later:
            timer.start()
        found = whole(migrated)
        for timer in later:
            timer.join()
    cycle.assert_green([found])


def test_what_the_application_deletes_changes_and_adds_is_counted_and_green(migrated: Engine) -> None:
    gone, less, empty, moved, added = with_chunks(migrated, 5)
    for statement in REMOVE:
        cycle.run_sql(migrated, statement, id=gone)
    cycle.run_sql(
        migrated, "DELETE FROM upload_pipeline.document_chunks WHERE document_id = %(i)s AND chunk_ord = 0", i=less
    )
    cycle.run_sql(migrated, "DELETE FROM upload_pipeline.document_chunks WHERE document_id = %(i)s", i=empty)
    cycle.run_sql(
        migrated, "UPDATE upload_pipeline.documents SET user_id = gen_random_uuid() WHERE document_id = %(i)s", i=moved
    )
    # A nearer neighbour than any before: the answer changes, and nobody is to blame.
    cycle.run_sql(
        migrated,
        """INSERT INTO upload_pipeline.document_chunks
           SELECT gen_random_uuid(), document_id, 'other', '9', g, text, chunk_sha, embed_model, embed_version,
                  vector_dim, embedding FROM upload_pipeline.document_chunks CROSS JOIN generate_series(1, 30) g
           WHERE document_id = %(i)s AND chunk_ord = 0""",
        i=added,
    )
    found = whole(migrated)
    cycle.assert_green([found])
    after = measured(migrated)["after"]
    assert after["excluded"] == {"deleted or changed by the application since": 3}
    assert (after["measured"], after["found"]) == (35, 26)
    assert "3 left out: deleted or changed by the application since" in found.finding
    assert 0 < measured(migrated)["neighbours"]["compared"] < 26


@pytest.mark.usefixtures("impatient")
def test_a_chunk_that_our_own_batch_deleted_is_red_though_deletes_are_seen(incident: Engine) -> None:
    # A trigger that the spec wants to fire loses a chunk in our own transaction: its row counts come out right.
    cycle.run_sql(
        incident,
        """CREATE FUNCTION upload_pipeline.lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               DELETE FROM upload_pipeline.document_chunks WHERE document_id = NEW.document_id AND chunk_ord = 2;
               RETURN NULL; END $$;
           CREATE TRIGGER lose AFTER UPDATE ON upload_pipeline.documents FOR EACH ROW
               EXECUTE FUNCTION upload_pipeline.lose();
           ALTER TABLE upload_pipeline.documents ENABLE ALWAYS TRIGGER lose""",
    )
    spec = cycle.spec_with(triggers={"lose": "fire"})
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    wave = cycle.waves_of(incident, execution)[0]
    cycle.migrate(incident, spec, wave)
    lost = cycle.run_sql(
        incident, "SELECT sum((moved->'deleted'->>'upload_pipeline.document_chunks')::int) FROM uuid_pipeline.batches"
    )
    found = {result.gate: result for result in cycle.check_wave(incident, spec, wave)}
    assert lost[0][0] > 0
    assert not found["documents_retrievable"].passed
    assert f"{lost[0][0]} documents: " in found["documents_retrievable"].finding


def test_each_wave_measures_its_own_documents_and_leaves_out_those_set_aside(incident: Engine) -> None:
    [busy] = with_chunks(incident, 1)
    document = SPEC.entities["document"].model_copy(update={"busy": f"document_id = '{busy}'"})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    for wave in cycle.waves_of(incident, execution):
        cycle.migrate(incident, spec, wave)
        cycle.assert_green(cycle.check_wave(incident, spec, wave))
    rows = cycle.run_sql(
        incident,
        """SELECT (figures->>'measured')::int + coalesce((figures->'excluded'->>'set aside: busy')::int, 0),
                  coalesce((figures->'excluded'->>'set aside: busy')::int, 0)
           FROM uuid_pipeline.retrieval_measurements WHERE phase = 'after' ORDER BY measurement_no""",
    )
    assert [row[0] for row in rows] == [5, 15, 18]
    assert sum(row[1] for row in rows) == 1


def looked(store: Engine, sampled: list[Sampled]) -> dict[str, Any]:
    with snapshot(store) as view:
        return retrieval.figures(sights.look(view, cycle.bound(view, SPEC), sampled))


def test_after_a_rollback_the_same_is_measured_under_the_ids_of_then(migrated: Engine) -> None:
    cycle.roll_back(migrated, SPEC)
    rows = cycle.run_sql(migrated, "SELECT old_id::text, new_id::text, ordinal FROM uuid_pipeline.id_map_document")
    found = looked(migrated, [Sampled(*row) for row in rows])
    assert (found["measured"], found["found"], found["rows_by_target"], found["by_query"]) == (38, 0, 0, 29)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": None}, "without row-level security: the spec names no retrieval.role"),
        ({"role": "nobody there"}, 'without row-level security: role "nobody there" does not exist'),
    ],
)
def test_a_role_that_cannot_be_taken_is_said_and_the_rest_is_measured(
    incident: Engine, changes: dict[str, Any], words: str
) -> None:
    spec = asking(**changes)
    cycle.run_all(incident, spec)
    found = measured(incident)
    assert words in found["before"]["how"]
    assert (found["before"]["found"], found["after"]["found"]) == (0, 29)


def test_a_login_that_may_not_become_the_role_measures_without_policies(
    migrated: Engine, new_role: NewRole, server: EmbeddedServer
) -> None:
    login = new_role("BYPASSRLS")
    for grant in (
        f"GRANT SELECT ON ALL TABLES IN SCHEMA upload_pipeline, uuid_pipeline TO {login}",
        f"GRANT USAGE ON SCHEMA upload_pipeline, uuid_pipeline TO {login}",
    ):
        cycle.run_sql(migrated, grant)
    url = migrated.url.set(drivername="postgresql").render_as_string(hide_password=False)
    engine = open_store(as_role(url.replace("postgres@", "@"), login))
    rows = cycle.run_sql(migrated, "SELECT old_id::text, new_id::text, ordinal FROM uuid_pipeline.id_map_document")
    try:
        found = looked(engine, [Sampled(*row) for row in rows])
    finally:
        engine.dispose()
        cycle.run_sql(migrated, f"DROP OWNED BY {login}")
    assert "without row-level security: permission denied to set role" in found["how"]
    assert (found["found"], found["by_query"]) == (29, 29)


def test_without_a_similarity_query_in_the_spec_only_the_look_up_is_measured_and_said(incident: Engine) -> None:
    cycle.run_all(incident, cycle.spec_with(retrieval=None))
    found = measured(incident)
    assert found["before"]["how"] == "look-up by target id only: the spec has no `retrieval`"
    assert (found["before"]["found"], found["after"]["found"], found["after"]["by_query"]) == (0, 29, None)
    assert found["after"]["p50_ms"] is None


def test_a_vector_column_that_the_store_lacks_is_named_with_the_nearest(incident: Engine) -> None:
    cycle.run_all(incident, asking(vector="embeding"))
    how = measured(incident)["after"]["how"]
    assert how == (
        "look-up by target id only: table document_chunks has no column embeding; the nearest it has is embedding"
    )


def test_what_no_time_is_left_for_is_said_not_to_be_measured_and_blocks_nobody(migrated: Engine) -> None:
    found = whole(migrated, asking(seconds=1e-9))
    cycle.assert_green([found])
    assert "29 NOT MEASURED within the time allowed" in found.finding
    after = measured(migrated)["after"]
    assert (after["measured"], after["found"], after["not_measured"]) == (9, 0, 29)


def test_what_only_an_approximate_index_misses_is_counted_and_not_red(migrated: Engine) -> None:
    cycle.run_sql(
        migrated,
        """DROP INDEX upload_pipeline.ix_document_chunks_embedding;
           CREATE INDEX ON upload_pipeline.document_chunks
               USING ivfflat (embedding vector_cosine_ops) WITH (lists = 40);
           ANALYZE upload_pipeline.document_chunks""",
    )
    # So that the small store's plans are those of a large one: neighbours by the index, then the owner's of them.
    database = cycle.run_sql(migrated, "SELECT current_database()")[0][0]
    for setting in ("enable_sort", "enable_bitmapscan"):
        cycle.run_sql(migrated, f"ALTER DATABASE {database} SET {setting} = off")
    migrated.dispose()
    found = whole(migrated)
    cycle.assert_green([found])
    after = measured(migrated)["after"]
    assert after["by_query"] + after["missed_by_index"] == 29


def test_many_equally_near_rows_neither_hide_a_document_nor_differ(incident: Engine) -> None:
    # One vector for everything: each of an owner's rows is as near as the own one, and k cuts anywhere.
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.document_chunks SET embedding = (SELECT embedding FROM upload_pipeline.document_chunks
               ORDER BY chunk_id LIMIT 1);
           UPDATE upload_pipeline.documents SET user_id =
               (SELECT min(user_id::text)::uuid FROM upload_pipeline.documents) WHERE processing_status = 'complete'""",
    )
    spec = asking(k=2)
    cycle.run_all(incident, spec)
    found = measured(incident)
    assert (found["after"]["found"], found["after"]["by_query"]) == (29, 29)
    assert found["neighbours"] == {"compared": 29, "same": 29}


def test_a_second_measurement_of_one_execution_keeps_the_first_baseline(migrated: Engine) -> None:
    before = cycle.run_sql(migrated, "SELECT * FROM uuid_pipeline.retrieval_baseline ORDER BY document")
    with migrated.begin() as connection:
        execution = ledger.executions(connection)[0]
        retrieval.take_baseline(connection, cycle.bound(connection, SPEC), execution)
    assert cycle.run_sql(migrated, "SELECT * FROM uuid_pipeline.retrieval_baseline ORDER BY document") == before
    assert uuid.UUID(before[0][1])


def test_twins_that_merge_are_left_out_and_their_survivors_are_found(twins: Engine) -> None:
    losers = """SELECT count(*) FROM uuid_pipeline.id_map_document WHERE role = 'merge'"""
    cycle.run_all(twins, SPEC)
    found = measured(twins)
    [(merged,)] = cycle.run_sql(twins, losers)
    with_chunks_now = cycle.run_sql(twins, "SELECT count(DISTINCT document_id) FROM upload_pipeline.document_chunks")
    assert merged == 12
    assert found["before"]["measured"] == 50
    # Twelve rows were deterministic before; the look-up by target id finds them for their twins too.
    assert found["before"]["rows_by_target"] == 24
    excluded = dict(found["after"]["excluded"])
    assert excluded.pop("merged into another") == 12
    assert sum(excluded.values()) + found["after"]["measured"] == 38
    assert found["after"]["found"] >= with_chunks_now[0][0] - sum(excluded.values())
    assert found["faults"] == []


def test_what_was_to_be_merged_and_was_set_aside_is_not_called_merged(twins: Engine) -> None:
    plan = cycle.assess_and_plan(twins, SPEC)
    execution = cycle.approve(twins, SPEC, plan.plan_id)
    [(survivor,)] = cycle.run_sql(
        twins,
        """SELECT s.old_id::text FROM uuid_pipeline.id_map_document s JOIN uuid_pipeline.id_map_document l
               ON l.ordinal = s.ordinal AND l.role = 'merge' WHERE s.role <> 'merge' LIMIT 1""",
    )
    change = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('a', 64) WHERE document_id = %(id)s"
    cycle.run_sql(twins, change, id=survivor)
    cycle.finish(twins, SPEC, execution)
    excluded = measured(twins)["after"]["excluded"]
    assert (excluded["merged into another"], excluded["set aside: changed"]) == (11, 2)
