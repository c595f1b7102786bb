"""The inventory: every row with its target id, its class, or the reason why it is left alone."""

import string
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import inventory, ledger, sql
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.identity import normalize
from uuid_pipeline.spec import Spec, load_spec, parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)


def quarantined(engine: Engine, assessed: cycle.Assessed) -> dict[str, str]:
    with engine.begin() as connection:
        found = inventory.quarantined(connection, assessed.store, assessed.number)
    return {f"{row['entity']} {row['id']}": row["reason"] for row in found}


def classes(engine: Engine, assessed: cycle.Assessed) -> dict[str, dict[str, int]]:
    with engine.begin() as connection:
        return inventory.id_classes(connection, assessed.store, assessed.number)


def document_with_chunks(engine: Engine) -> tuple[str, list[str]]:
    rows = cycle.run_sql(
        engine,
        """SELECT document_id::text, array_agg(chunk_id::text ORDER BY 1) FROM upload_pipeline.document_chunks
           GROUP BY 1 ORDER BY 1 LIMIT 1""",
    )
    return rows[0][0], rows[0][1]


def test_the_figures_are_the_reports(incident: Engine) -> None:
    found = cycle.assess(incident, SPEC).summary

    assert found == inventory.Summary(
        documents=38, deterministic=0, random=38, stray=0, quarantined=0, users=27, affected_users=27,
        changing_users=27, high_impact_users=1, bytes=3_520_000, recent=38, failed=1, with_children=29, children=87,
        orphans=0,
    )  # fmt: skip
    assert found.consistency == pytest.approx(0.763, abs=0.0005)


def test_chunk_ids_are_version_5_and_stray_all_the_same(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)

    versions = cycle.run_sql(
        incident, "SELECT DISTINCT uuid_extract_version(chunk_id) FROM upload_pipeline.document_chunks"
    )
    assert versions == [(5,)]
    assert classes(incident, assessed) == {"document": {"random": 38}, "chunk": {"stray": 87}}


def test_every_target_id_is_that_of_the_standard_uuid5(incident: Engine) -> None:
    before = cycle.rows_of(incident)

    cycle.assess(incident, SPEC)

    found = cycle.run_sql(
        incident,
        """SELECT key::text, target_id::text FROM uuid_pipeline.inventory_document
           UNION ALL SELECT key::text, target_id::text FROM uuid_pipeline.inventory_chunk""",
    )
    assert dict(found) == cycle.targets(before)


@pytest.mark.parametrize(
    ("namespace", "version", "expected"),
    [(uuid.NAMESPACE_DNS, 5, "stray"), (cycle.NAMESPACE, 3, "stray"), (cycle.NAMESPACE, 5, "deterministic")],
)
def test_only_the_recomputed_id_is_deterministic(
    incident: Engine, namespace: uuid.UUID, version: int, expected: str
) -> None:
    [(document, user, sha)] = cycle.run_sql(
        incident,
        """SELECT document_id, user_id, file_sha256 FROM upload_pipeline.documents
           WHERE processing_status = 'complete' LIMIT 1""",
    )
    made = (uuid.uuid5 if version == 5 else uuid.uuid3)(namespace, f"{user}:{sha}")
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in ("documents", "document_chunks", "upload_jobs", "events"):
            connection.exec_driver_sql(
                f"UPDATE upload_pipeline.{table} SET document_id = %(new)s WHERE document_id = %(old)s",  # noqa: S608
                {"new": str(made), "old": document},
            )

    assert classes(incident, cycle.assess(incident, SPEC))["document"] == {expected: 1, "random": 37}


def test_a_hash_that_is_none_is_quarantined_with_its_chunks_and_stays(incident: Engine) -> None:
    document, chunks = document_with_chunks(incident)
    cycle.run_sql(
        incident, "UPDATE upload_pipeline.documents SET file_sha256 = 'none' WHERE document_id = %(id)s", id=document
    )
    before = cycle.rows_of(incident)

    assessed = cycle.assess(incident, SPEC)

    cycle.assert_green(assessed.gates.values())
    assert assessed.summary.quarantined == 1
    assert quarantined(incident, assessed) == {
        f"document {document}": "file_sha256 does not match ^[0-9a-f]{64}$",
        **{f"chunk {chunk}": "its document is quarantined" for chunk in chunks},
    }
    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[document])


def with_hashes(engine: Engine, *values: str) -> set[str]:
    """Give each of these hashes to a document of its own; their names in findings."""
    keys = cycle.run_sql(
        engine,
        "SELECT min(document_id::text) FROM upload_pipeline.documents GROUP BY user_id ORDER BY 1 LIMIT %(n)s",
        n=len(values),
    )
    change = "UPDATE upload_pipeline.documents SET file_sha256 = %(sha)s WHERE document_id = %(id)s"
    for (key,), value in zip(keys, values, strict=True):
        cycle.run_sql(engine, change, id=key, sha=value)
    return {f"document {key}" for (key,) in keys}


def test_what_the_pattern_does_not_match_after_normalising_is_quarantined(incident: Engine) -> None:
    wrong = ("a" * 63, "a" * 65, "g" * 64, "", "a" * 64 + "\n\nx", "\u00a0" + "a" * 64, "\uff41" * 64)
    documents = with_hashes(incident, *wrong)

    found = quarantined(incident, cycle.assess(incident, SPEC))

    assert {name for name in found if name.startswith("document ")} == documents


def test_what_the_pattern_matches_after_normalising_is_derived(incident: Engine) -> None:
    with_hashes(incident, "A" * 64, " \t\n\r\f\v" + "a" * 64 + "\n", "aB" * 32)

    assert quarantined(incident, cycle.assess(incident, SPEC)) == {}


def test_users_of_quarantined_documents_alone_are_affected_and_see_no_id_change(incident: Engine) -> None:
    [(user,)] = cycle.run_sql(
        incident, "SELECT user_id::text FROM upload_pipeline.documents GROUP BY 1 HAVING count(*) = 1 LIMIT 1"
    )
    blank = "UPDATE upload_pipeline.documents SET file_sha256 = 'none' WHERE user_id = %(user)s::uuid"
    cycle.run_sql(incident, blank, user=user)

    plan = cycle.assess_and_plan(incident, SPEC)

    [risk] = [one for one in plan.content["risk_register"] if one["rule"] == "remembered_id"]
    assert risk["finding"].startswith("26 of 27 users have documents whose id changes")
    assert plan.content["figures"]["affected_users"] == 27


@pytest.mark.parametrize(
    ("kind", "beyond"),
    [("bigint", "9223372036854775807"), ("numeric", "'NaN'"), ("numeric", "1e30"), ("double precision", "'-Infinity'")],
)
def test_sizes_beyond_all_bounds_stop_nothing(incident: Engine, kind: str, beyond: str) -> None:
    cycle.run_sql(
        incident,
        f"ALTER TABLE upload_pipeline.documents ALTER bytes_len TYPE {kind}, ALTER bytes_len SET DEFAULT {beyond}",
    )
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET bytes_len = DEFAULT
           WHERE document_id IN (SELECT document_id FROM upload_pipeline.documents ORDER BY 1 LIMIT 2)""",
    )

    found = cycle.assess(incident, SPEC).summary

    assert 0 < (found.bytes or 0) <= 9 * 10**18


def test_a_natural_key_with_a_null_part_is_quarantined_with_its_chunks(incident: Engine) -> None:
    document, chunks = document_with_chunks(incident)
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents ALTER file_sha256 DROP NOT NULL")
    cycle.run_sql(
        incident, "UPDATE upload_pipeline.documents SET file_sha256 = NULL WHERE document_id = %(id)s", id=document
    )
    before = cycle.rows_of(incident)

    found = quarantined(incident, cycle.assess(incident, SPEC))

    assert found == {
        f"document {document}": "a part of the natural key is NULL or blank",
        **{f"chunk {chunk}": "its document is quarantined" for chunk in chunks},
    }
    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[document])


# Three documents of one user whose hash is blank, each of them another's text.
BLANK = """
WITH blank AS (SELECT user_id FROM upload_pipeline.documents GROUP BY user_id HAVING count(*) > 2 LIMIT 1)
UPDATE upload_pipeline.documents d SET file_sha256 = v.value
FROM (SELECT document_id, (ARRAY['', '   ', E'\\t\\n'])[row_number() OVER (ORDER BY document_id)] AS value
      FROM upload_pipeline.documents JOIN blank USING (user_id) ORDER BY document_id LIMIT 3) v
WHERE v.document_id = d.document_id RETURNING d.document_id::text
"""


def without_a_pattern(normalize: list[str]) -> Spec:
    document = SPEC.entities["document"].model_copy(update={"valid": {}, "normalize": {"file_sha256": normalize}})
    return cycle.spec_with(entities={**SPEC.entities, "document": document})


@pytest.mark.parametrize("normalize", [[], ["lower"], ["strip", "lower"]], ids=["as it is", "lower", "stripped"])
def test_blank_natural_keys_are_quarantined_and_no_cluster_though_the_spec_gives_no_pattern(
    incident: Engine, normalize: list[str]
) -> None:
    spec = without_a_pattern(normalize)
    blank = {row[0] for row in cycle.run_sql(incident, BLANK)}
    before = cycle.rows_of(incident)

    found = quarantined(incident, cycle.assess(incident, spec))

    assert {name: why for name, why in found.items() if name.startswith("document ")} == {
        f"document {document}": "a part of the natural key is NULL or blank" for document in blank
    }
    cycle.run_all(incident, spec)
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=blank)


def test_where_the_spec_says_by_a_pattern_that_blanks_are_values_they_are(incident: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"valid": {"file_sha256": "^([0-9a-f]{64})?$"}})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})
    [(blank, user)] = cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET file_sha256 = '' WHERE document_id = (
               SELECT min(document_id::text)::uuid FROM upload_pipeline.documents)
           RETURNING document_id::text, user_id""",
    )

    assert quarantined(incident, cycle.assess(incident, spec)) == {}
    cycle.run_all(incident, spec)

    ids = {row[0] for row in cycle.run_sql(incident, "SELECT document_id::text FROM upload_pipeline.documents")}
    assert str(uuid.uuid5(cycle.NAMESPACE, f"{user}:")) in ids
    assert blank not in ids


def test_orphans_turn_their_gate_red_by_name(incident: Engine) -> None:
    document, _ = document_with_chunks(incident)
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("DELETE FROM upload_pipeline.documents WHERE document_id = %(id)s", {"id": document})

    assessed = cycle.assess(incident, SPEC)

    assert not assessed.gates["no_orphans"].passed
    assert "document_chunks.document_id 3" in assessed.gates["no_orphans"].finding
    assert "events.document_id" in assessed.gates["no_orphans"].finding
    assert assessed.summary.orphans > 3


def test_what_the_spec_does_not_describe_is_unknown_and_works_without(incident: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"describe": type(SPEC.entities["document"].describe)()})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})
    before = cycle.rows_of(incident)

    summary = cycle.assess(incident, spec).summary

    assert (summary.documents, summary.users, summary.bytes, summary.recent, summary.failed) == (
        38,
        None,
        None,
        None,
        None,
    )
    cycle.run_all(incident, spec)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_the_first_documents_shown_are_those_of_the_highest_priority(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    with incident.begin() as connection:
        found = inventory.documents(connection, assessed.store, assessed.number, 38)

    priorities = [row["priority"] for row in found]
    assert priorities == sorted(priorities, reverse=True)
    assert set(priorities) == {0.73, 0.4}  # ≤ 7 days 0.4, complete 0.3, three chunks 0.03


def test_dates_that_no_calendar_of_ours_has_are_shown_as_the_store_writes_them(incident: Engine) -> None:
    odd = ["infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "294276-01-01 00:00:00+00"]
    for place, date in enumerate(odd):
        cycle.run_sql(
            incident,
            """UPDATE upload_pipeline.documents SET created_at = %(date)s WHERE document_id =
               (SELECT document_id FROM upload_pipeline.documents ORDER BY document_id OFFSET %(place)s LIMIT 1)""",
            date=date, place=place,
        )  # fmt: skip

    assessed = cycle.assess(incident, SPEC)

    with incident.begin() as connection:
        found = inventory.documents(connection, assessed.store, assessed.number, 38)
    assert set(odd) <= {row["created_at"] for row in found}


def test_old_inventories_are_dropped_and_the_newest_three_kept(incident: Engine) -> None:
    for _ in range(6):
        cycle.assess(incident, SPEC)

    parts = cycle.run_sql(
        incident, "SELECT relname FROM pg_class WHERE relname ~ '^inventory_document_[0-9]+$' ORDER BY 1"
    )
    assert [name for (name,) in parts][-3:] == [f"inventory_document_{n}" for n in (4, 5, 6)]
    assert ("inventory_document_1",) not in parts


ODD_TEXT = st.text(
    alphabet=st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
        st.sampled_from(" \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\u00a0\u2003\u3000\ufeffİ\u0131ẞßÀÉΣςǅ\u212aK%{}:'\"\\$"),
    ),
    max_size=12,
)


@pytest.fixture
def odd_table(empty_store: Engine) -> Iterator[Connection]:
    with empty_store.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA s")
        # The server's own default folds ASCII only; pg_unicode_fast would fold İ and ẞ as well.
        connection.exec_driver_sql(
            "CREATE TABLE s.t (id text PRIMARY KEY, a text, b text, c text COLLATE pg_unicode_fast)"
        )
    with empty_store.connect() as connection:
        yield connection


@given(rows=st.lists(st.tuples(ODD_TEXT, ODD_TEXT, ODD_TEXT), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_natural_keys_in_sql_equal_those_in_python_for_any_text(
    odd_table: Connection, rows: list[tuple[str, str, str]]
) -> None:
    spec = parse_spec(
        "namespace: 11111111-2222-3333-4444-555555555555\nschema: s\nentities:\n  e: {table: t, key: id, "
        'identity: "{a}:{b}|{c}", normalize: {a: [strip, lower], b: [lower], c: [lower, strip]}}',
        "s.yaml",
    )
    with odd_table.begin() as transaction:
        store = cycle.bound(odd_table, spec)
        values: list[dict[str, Any]] = [{"id": str(n), "a": a, "b": b, "c": c} for n, (a, b, c) in enumerate(rows)]
        for value in values:
            odd_table.exec_driver_sql("INSERT INTO s.t VALUES (%(id)s, %(a)s, %(b)s, %(c)s)", value)
        statement = sql.compose("SELECT {key} FROM s.t t ORDER BY id::int", key=natural_key(store.main, None))
        found = [row[0] for row in sql.rows(odd_table, statement)]
        transaction.rollback()

    assert found == [
        f"{normalize(a, ['strip', 'lower'])}:{normalize(b, ['lower'])}|{normalize(c, ['lower', 'strip'])}"
        if all(text.strip(string.whitespace) for text in (a, b, c))
        else None
        for a, b, c in rows
    ]


def test_nothing_assessed_yet_is_refused_with_what_to_run(incident: Engine) -> None:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
        with pytest.raises(RefusedError, match="uuid-pipeline plan"):
            ledger.newest_assessment(connection)
