"""Clusters merge: 50 rows become 38, nothing is lost, and all of it comes back."""

import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import sync_points
from uuid_pipeline.engine.merges import archive
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle, shop

SPEC = load_spec(None)
KEYS = {"documents": "document_id", "document_chunks": "chunk_id", "upload_jobs": "job_id", "events": "event_id",
        "document_vector_buffer": "buffer_id", "webhook_log": "webhook_id"}  # fmt: skip
IDS = ("document_id", "chunk_id")


def content(row: cycle.Row) -> tuple[tuple[str, str | None], ...]:
    """A row without its ids: what no migration may change."""
    return tuple((column, value) for column, value in row.items() if column not in IDS)


def archived(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Every archived row by table, as text."""
    found: dict[str, list[dict[str, Any]]] = {table: [] for table in KEYS}
    for name, rows in cycle.rows_of(engine, "uuid_pipeline").items():
        for table in KEYS:
            if name.startswith(f"archive_upload_pipeline_{table}_"):
                found[table] += [{c: v for c, v in row.items() if not c.startswith("uuid_pipeline_")} for row in rows]
    return found


def target(row: cycle.Row) -> str:
    return str(uuid.uuid5(cycle.NAMESPACE, f"{row['user_id']}:{str(row['file_sha256']).strip().lower()}"))


def test_fifty_rows_become_thirty_eight_and_every_row_is_in_its_table_or_archived_as_it_was(twins: Engine) -> None:
    before = cycle.rows_of(twins)
    assert len(before["documents"]) == 50

    cycle.run_all(twins, SPEC)

    after, kept = cycle.rows_of(twins), archived(twins)
    assert len(after["documents"]) == 38
    assert len(kept["documents"]) == 12
    for table, rows in before.items():
        assert Counter(map(content, rows)) == Counter(map(content, after[table] + kept[table])), table
        assert all(row in rows for row in kept[table]), table
    assert {row["document_id"] for row in after["documents"]} == {target(row) for row in before["documents"]}
    for row in after["documents"]:
        assert row["document_id"] == target(row)


@pytest.mark.begins("migrated")
def test_what_referred_to_a_loser_refers_to_the_survivor(twins: Engine, before: cycle.Rows) -> None:
    after = cycle.rows_of(twins)
    targets = {row["document_id"]: target(row) for row in before["documents"]}
    for table in ("upload_jobs", "events"):
        was = {row[KEYS[table]]: row["document_id"] for row in before[table]}
        for row in after[table]:
            assert row["document_id"] == targets[was[row[KEYS[table]]]]
    chunks = {row["chunk_id"]: row["document_id"] for row in after["document_chunks"]}
    for row in after["document_vector_buffer"]:
        assert chunks[row["chunk_id"]] == row["document_id"]


@pytest.mark.begins("migrated")
def test_of_two_chunk_sets_the_more_complete_one_stays_whole_and_other_versions_stay_beside_it(
    twins: Engine, before: cycle.Rows
) -> None:
    targets = {row["document_id"]: target(row) for row in before["documents"]}
    sizes: dict[tuple[object, ...], Counter[str | None]] = {}
    for row in before["document_chunks"]:
        place = (targets[row["document_id"]], row["chunker_name"], row["chunker_version"])
        sizes.setdefault(place, Counter())[row["document_id"]] += 1
    left = Counter(
        (row["document_id"], row["chunker_name"], row["chunker_version"])
        for row in cycle.rows_of(twins)["document_chunks"]
    )
    assert left == Counter({place: max(counts.values()) for place, counts in sizes.items()})
    for row in cycle.rows_of(twins)["document_chunks"]:
        name = f"{row['document_id']}:{row['chunker_name']}:{row['chunker_version']}:{row['chunk_ord']}"
        assert row["chunk_id"] == str(uuid.uuid5(cycle.NAMESPACE, name))


# A trigger that is to fire keeps the batches in origin role: foreign keys are checked, actions cascade.
CHECKED = """
CREATE FUNCTION upload_pipeline.look() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
CREATE TRIGGER look AFTER UPDATE ON upload_pipeline.documents FOR EACH ROW EXECUTE FUNCTION upload_pipeline.look();
"""
CASCADING = """
ALTER TABLE upload_pipeline.document_chunks DROP CONSTRAINT document_chunks_document_id_fkey,
    ADD FOREIGN KEY (document_id) REFERENCES upload_pipeline.documents ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE upload_pipeline.document_vector_buffer DROP CONSTRAINT document_vector_buffer_chunk_id_fkey,
    ADD FOREIGN KEY (chunk_id) REFERENCES upload_pipeline.document_chunks ON DELETE CASCADE ON UPDATE RESTRICT;
"""


@pytest.mark.parametrize("actions", ["", CASCADING], ids=["no action", "cascading"])
def test_with_foreign_keys_checked_nothing_cascades_that_was_not_archived(twins: Engine, actions: str) -> None:
    cycle.run_sql(twins, CHECKED + actions)
    spec = cycle.spec_with(triggers={"look": "fire"})
    before = cycle.rows_of(twins)

    cycle.run_all(twins, spec)

    after, kept = cycle.rows_of(twins), archived(twins)
    for table, rows in before.items():
        assert Counter(map(content, rows)) == Counter(map(content, after[table] + kept[table])), table
    cycle.roll_back(twins, spec)
    assert cycle.rows_of(twins) == before


@pytest.mark.parametrize("rows_a_batch", [5000, 1], ids=["one batch a wave", "one cluster a batch"])
def test_rollback_gives_every_row_back_as_it_was_and_empties_the_archives(twins: Engine, rows_a_batch: int) -> None:
    spec = cycle.spec_with(batch_rows=rows_a_batch)
    before, catalog = cycle.rows_of(twins), cycle.catalog_of(twins)
    cycle.run_all(twins, spec)

    cycle.roll_back(twins, spec)

    assert cycle.rows_of(twins) == before
    assert cycle.catalog_of(twins) == catalog
    assert not any(archived(twins).values())
    cycle.run_all(twins, spec)
    assert len(cycle.rows_of(twins)["documents"]) == 38


SCENE = """
INSERT INTO upload_pipeline.events (event_id, job_id, document_id, type, severity, code)
SELECT gen_random_uuid(), job_id, document_id, 'late', 'info', 'LATE' FROM upload_pipeline.upload_jobs
"""


@pytest.mark.begins("migrated")
def test_rollback_keeps_what_the_application_wrote_since_and_leaves_archived_what_it_deleted(
    twins: Engine, before: cycle.Rows
) -> None:
    kept = archived(twins)["documents"]
    loser = kept[0]
    gone = target(loser)
    for table in ("events", "document_vector_buffer", "document_chunks", "upload_jobs", "documents"):
        if table == "upload_jobs":
            cycle.run_sql(
                twins,
                """DELETE FROM upload_pipeline.webhook_log WHERE job_id IN
                   (SELECT job_id FROM upload_pipeline.upload_jobs WHERE document_id = %(id)s)""",
                id=gone,
            )
        cycle.run_sql(twins, f"DELETE FROM upload_pipeline.{table} WHERE document_id = %(id)s", id=gone)  # noqa: S608
    cycle.run_sql(twins, SCENE)

    cycle.roll_back(twins, SPEC)

    after = cycle.rows_of(twins)
    merged = {row["document_id"] for row in before["documents"] if target(row) == gone}
    assert {row["document_id"] for row in after["documents"]} == {
        row["document_id"] for row in before["documents"]
    } - merged
    assert [row["document_id"] for row in archived(twins)["documents"]] == [loser["document_id"]]
    jobs = {row["job_id"]: row["document_id"] for row in after["upload_jobs"]}
    late = [row for row in after["events"] if row["code"] == "LATE"]
    assert len(late) == len(jobs)
    documents = {row["document_id"] for row in after["documents"]}
    assert all(row["document_id"] in documents for row in after["events"])


def test_a_unique_key_that_takes_null_for_a_value_displaces_rows_too(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, shop.STORE)
    cycle.run_sql(empty_store, "ALTER TABLE shop.parts ADD UNIQUE NULLS NOT DISTINCT (thing_id, n)")
    cycle.run_sql(empty_store, "UPDATE shop.parts SET n = NULL; UPDATE shop.things SET code = 'same'")
    before = cycle.rows_of(empty_store, "shop")

    cycle.run_all(empty_store, shop.SPEC)

    target = str(uuid.uuid5(shop.SPEC.namespace, "same"))
    after = cycle.rows_of(empty_store, "shop")
    assert [row["id"] for row in after["things"]] == [target]
    assert [(row["thing_id"], row["n"]) for row in after["parts"]] == [(target, None)]
    cycle.roll_back(empty_store, shop.SPEC)
    assert cycle.rows_of(empty_store, "shop") == before


def test_archives_of_tables_with_long_names_in_any_script_are_told_apart(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, shop.STORE)
    with empty_store.begin() as connection:
        tables = cycle.bound(connection, shop.SPEC).catalog.tables
    things, parts = (replace(tables["shop", "things"], schema="ж" * 31, name="t" * 62 + last) for last in "ab")

    names = [str(archive.shelf(table, 1234567).relation.as_string(None)) for table in (things, parts)]

    assert len({name.encode()[: len('"uuid_pipeline"."') + 63] for name in names}) == 2
    assert all(name.endswith('_1234567"') and len(name.split('"')[3].encode()) <= 63 for name in names)


@pytest.mark.begins("migrated")
def test_rollback_restores_rows_into_tables_whose_columns_were_changed_since(twins: Engine, before: cycle.Rows) -> None:
    """A column added has its default, one dropped is gone, one of another type holds the value as that type."""
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.documents ADD COLUMN extra int NOT NULL DEFAULT 5")
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.documents DROP COLUMN mime")
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.document_chunks ALTER COLUMN chunk_ord TYPE bigint")

    cycle.roll_back(twins, SPEC)

    expected = {**before, "documents": cycle.ordered([changed(row) for row in before["documents"]])}
    after = cycle.rows_of(twins)
    assert {**after, "documents": cycle.ordered([dict(sorted(row.items())) for row in after["documents"]])} == expected
    assert archived(twins) == {table: [] for table in KEYS}


def changed(row: cycle.Row) -> cycle.Row:
    return dict(sorted({**{c: v for c, v in row.items() if c != "mime"}, "extra": "5"}.items()))


@pytest.mark.begins("migrated")
def test_rollback_names_a_new_column_that_no_archived_row_has_a_value_for(twins: Engine, before: cycle.Rows) -> None:
    documents = "ALTER TABLE upload_pipeline.documents"
    cycle.run_sql(twins, f"{documents} ADD COLUMN extra int NOT NULL DEFAULT 5")
    cycle.run_sql(twins, f"{documents} ALTER COLUMN extra DROP DEFAULT")

    with pytest.raises(RefusedError, match=r"documents has columns .* cannot come back: extra\. Give them a default"):
        cycle.roll_back(twins, SPEC)

    cycle.run_sql(twins, f"{documents} ALTER COLUMN extra SET DEFAULT 5")
    cycle.roll_back(twins, SPEC)
    assert len(cycle.rows_of(twins)["documents"]) == len(before["documents"])
    assert archived(twins) == {table: [] for table in KEYS}


def test_a_column_added_while_a_wave_merges_ends_it_before_a_row_is_archived_without(twins: Engine) -> None:
    before = cycle.rows_of(twins)
    spec = SPEC.model_copy(update={"batch_rows": 1})
    execution = cycle.approve(twins, spec, cycle.assess_and_plan(twins, spec).plan_id)
    column = "ALTER TABLE upload_pipeline.documents ADD COLUMN IF NOT EXISTS extra text DEFAULT 'kept'"

    def add_column() -> None:
        cycle.run_sql(twins, column)

    sync_points.on("committed", add_column)
    try:
        with pytest.raises(RefusedError, match=r"Columns of documents were changed .* plan again"):
            cycle.migrate_all(twins, spec, execution)
    finally:
        sync_points.clear()

    cycle.run_all(twins, spec)

    kept, after = archived(twins), cycle.rows_of(twins)
    assert len(after["documents"]) + len(kept["documents"]) == len(before["documents"])
    assert {row.get("extra", "kept") for row in kept["documents"] + after["documents"]} == {"kept"}


def test_a_cluster_of_which_a_row_was_given_to_another_owner_since_the_plan_is_left_whole(twins: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"identity": "{file_sha256}", "witnesses": []})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})
    execution = cycle.approve(twins, spec, cycle.assess_and_plan(twins, spec).plan_id)
    [(loser, ordinal)] = cycle.run_sql(
        twins, "SELECT old_id::text, ordinal FROM uuid_pipeline.id_map_document WHERE role = 'merge' LIMIT 1"
    )
    cluster = cycle.run_sql(
        twins, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = %(o)s ORDER BY 1", o=ordinal
    )
    cycle.run_sql(
        twins,
        """UPDATE upload_pipeline.documents SET user_id = (
               SELECT o.user_id FROM upload_pipeline.documents o JOIN upload_pipeline.documents l
                   ON l.document_id = %(id)s AND l.user_id <> o.user_id LIMIT 1) WHERE document_id = %(id)s""",
        id=loser,
    )
    before = cycle.rows_of(twins)["documents"]

    cycle.migrate_all(twins, spec, execution)

    left = cycle.run_sql(twins, "SELECT old_id, reason FROM uuid_pipeline.unmoved ORDER BY 1")
    assert len(cluster) > 1
    assert left == [(document_id, "changed") for (document_id,) in cluster]
    after = cycle.rows_of(twins)["documents"]
    assert [row for row in after if (row["document_id"],) in cluster] == [
        row for row in before if (row["document_id"],) in cluster
    ]
    assert len(archived(twins)["documents"]) == 12 - (len(cluster) - 1)
