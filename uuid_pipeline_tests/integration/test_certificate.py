"""The determinism certificate counts every row of the store, and two implementations that differ would show."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import export, ledger
from uuid_pipeline.engine.evidence import certificate
from uuid_pipeline.engine.proofs import second_opinion
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_second_schema import LIBRARY, LIBRARY_SPEC

SPEC = cycle.spec_with()


def certify(engine: Engine, spec: Spec = SPEC) -> dict[str, object]:
    with engine.begin() as connection:
        execution = ledger.executions(connection)[0]
    with export.reading(engine) as connection:
        return certificate.make(connection, cycle.bound(connection, spec), execution)


def counted(made: dict[str, object], entity: str) -> dict[str, int]:
    entities = made["entities"]
    assert isinstance(entities, dict)
    return {outcome: count for outcome, count in entities[entity].items() if outcome != "examples" and count}


@pytest.mark.begins("migrated")
def test_after_the_migration_every_id_agrees_and_the_certificate_says_with_what(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    made = certify(incident)
    assert counted(made, "document") == {"rows": 38, "agreeing": 38}
    assert counted(made, "chunk") == {"rows": 87, "agreeing": 87}
    assert made["implementations_agree"]
    assert made["every_id_deterministic"]
    assert (made["execution_id"], made["plan_id"]) == (execution.execution_id, execution.plan_id)
    assert made["namespace"] == str(cycle.NAMESPACE)
    assert [(made["spec_digest"],)] == cycle.run_sql(
        incident, "SELECT DISTINCT spec_digest FROM uuid_pipeline.assessments"
    )
    assert made["digest"] == certificate.digest(made)
    assert made["digest"] != certificate.digest(made | {"plan_id": "another"})
    assert len({str(one) for one in made["implementations"]}) == 2  # type: ignore[attr-defined]


@pytest.mark.begins("approved")
def test_before_it_none_does_and_chunks_are_told_to_hang_below_another_id(incident: Engine) -> None:
    made = certify(incident)
    assert counted(made, "document") == {"rows": 38, "under_another_id": 38}
    # Their ids are version 5 of the random document ids: what the row holds gives them, what it should hold does not.
    assert counted(made, "chunk") == {"rows": 87, "below_another_id": 87}
    assert made["implementations_agree"]
    assert not made["every_id_deterministic"]


@pytest.mark.begins("migrated")
def test_rows_that_came_since_and_those_without_a_key_are_counted_apart_and_named(incident: Engine) -> None:
    late, blank = str(uuid.uuid4()), str(uuid.uuid4())
    for key, digest in ((late, "a" * 64), (blank, "no hash")):
        cycle.run_sql(
            incident,
            """INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256,
                   raw_path) VALUES (%(key)s, gen_random_uuid(), 'f', 'm', 1, %(digest)s, 'r')""",
            key=key,
            digest=digest,
        )
    made = certify(incident)
    assert counted(made, "document") == {"rows": 40, "agreeing": 38, "under_another_id": 1, "quarantined": 1}
    entities = made["entities"]
    assert isinstance(entities, dict)
    assert {(one["id"], one["outcome"]) for one in entities["document"]["examples"]} == {
        (late, "under_another_id"), (blank, "quarantined"),
    }  # fmt: skip
    assert made["implementations_agree"]


@pytest.mark.begins("migrated")
def test_implementations_that_differ_are_counted_and_shown(incident: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = second_opinion.normalized
    monkeypatch.setattr(second_opinion, "normalized", lambda value, rules: real(value, rules).replace(b"a", b"A"))
    made = certify(incident)
    assert not made["implementations_agree"]
    assert not made["every_id_deterministic"]
    assert counted(made, "document")["implementations_differ"] > 30


def test_another_schema_with_three_levels_and_names_in_quotes(empty_store: Engine) -> None:
    with empty_store.begin() as connection:
        connection.connection.driver_connection.execute(LIBRARY)  # type: ignore[union-attr]
    spec = parse_spec(LIBRARY_SPEC, "library")
    cycle.run_all(empty_store, spec)
    made = certify(empty_store, spec)
    assert made["implementations_agree"]
    assert counted(made, "paragraph")["agreeing"] > 10
    assert counted(made, "book")["agreeing"] > 5
    assert set(counted(made, "section")) <= {"rows", "agreeing", "quarantined", "below_another_id"}


@pytest.mark.begins("migrated")
def test_the_ledger_keeps_a_certificate_until_the_next_batch(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    made = certify(incident)
    with incident.begin() as connection:
        certificate.record(connection, made)
        assert certificate.newest(connection, execution.execution_id) == made
    cycle.roll_back(incident, SPEC)
    with incident.begin() as connection:
        assert certificate.newest(connection, execution.execution_id) is None
