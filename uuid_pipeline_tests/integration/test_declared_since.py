"""A rollback takes along what was declared after the plan, and tells what it could not reach."""

import hashlib
import uuid
from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import rollback
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.settings import Settings
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline.stages import session
from uuid_pipeline_tests.integration import cycle

DOCS = """
CREATE SCHEMA app;
CREATE TABLE app.docs (id uuid PRIMARY KEY, owner text NOT NULL, sha text NOT NULL);
INSERT INTO app.docs SELECT md5(n::text)::uuid, 'ann', 's' || n FROM generate_series(1, 5) n
"""
PINS = """
CREATE TABLE app.pins (
    n int PRIMARY KEY, label text, doc uuid, written text, several uuid[], payload jsonb, raw json);
INSERT INTO app.pins SELECT row_number() OVER (ORDER BY sha), sha, id, id::text, ARRAY[id, id],
    jsonb_build_object('doc', id), json_build_object('docs', ARRAY[id]) FROM app.docs
"""
TEXT = """
namespace: 11111111-2222-3333-4444-55555555555{digit}
schema: app
backup: none
waves: {{canary: 2}}
entities:
  document: {{table: docs, key: id, identity: "{{owner}}:{{sha}}"}}
"""
DECLARED = """
soft_references:
  - {table: pins, column: doc, entity: document}
  - {table: pins, column: written, entity: document}
  - {table: pins, column: several, entity: document}
  - {table: pins, column: payload, entity: document, path: doc}
  - {table: pins, column: raw, entity: document, path: "docs.*"}
"""


def spec_of(digit: int, declared: str = "") -> Spec:
    return parse_spec(TEXT.format(digit=digit) + declared, "app.yaml")


ONE, TWO = spec_of(1), spec_of(2, DECLARED)
LEFT = "columns that the plan did not know hold new ids of rows that have their old ones again"


@pytest.fixture
def docs(empty_store: Engine) -> Engine:
    """Five documents, moved by a plan that knew no pins."""
    cycle.run_sql(empty_store, DOCS)
    cycle.run_all(empty_store, ONE)
    return empty_store


def assert_pins_mean(engine: Engine, *ids: str) -> None:
    """Each pin holds, in every form, the id of the document by whose hash it was labelled: one of these."""
    names = {row["sha"]: row["id"] for row in cycle.rows_of(engine, "app")["docs"]}
    assert set(names.values()) == set(ids)
    for pin in cycle.rows_of(engine, "app")["pins"]:
        doc = names[pin["label"]]
        held = {"doc": doc, "written": doc, "several": f"{{{doc},{doc}}}", "payload": f'{{"doc": "{doc}"}}'}
        held["raw"] = f'{{"docs" : ["{doc}"]}}'
        assert {column: value for column, value in pin.items() if column not in ("n", "label")} == held


def old_ids() -> list[str]:
    return [str(uuid.UUID(hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest())) for n in range(1, 6)]


def new_ids(digit: int) -> list[str]:
    namespace = uuid.UUID(f"11111111-2222-3333-4444-55555555555{digit}")
    return [str(uuid.uuid5(namespace, f"ann:s{n}")) for n in range(1, 6)]


def undo(engine: Engine, spec: Path) -> None:
    """Roll everything back as the command line does it with this file for a spec."""
    with engine.begin() as connection:
        store = session.bound_to_undo(connection, Settings(spec=spec, home=spec.parent))
        waves = rollback.choose(connection, None)
    rollback.roll_back(engine, store, waves, cycle.RUN, lambda _: None)


def written(directory: Path, text: str) -> Path:
    path = directory / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_later_execution_declares_goes_back_with_the_earlier_one_too(docs: Engine) -> None:
    cycle.run_sql(docs, PINS)
    cycle.run_all(docs, TWO)
    assert_pins_mean(docs, *new_ids(2))

    cycle.undo(docs)

    assert_pins_mean(docs, *old_ids())


def test_what_an_execution_that_is_back_already_declared_goes_back_too(docs: Engine) -> None:
    cycle.run_sql(docs, PINS)
    cycle.run_all(docs, TWO)
    for wave in reversed(cycle.waves_of(docs, cycle.newest_execution(docs))):
        cycle.undo(docs, wave.wave)
    assert_pins_mean(docs, *new_ids(1))

    cycle.undo(docs)

    assert_pins_mean(docs, *old_ids())


def test_what_only_the_spec_of_now_declares_goes_back_too(docs: Engine, tmp_path: Path) -> None:
    cycle.run_sql(docs, PINS)

    undo(docs, written(tmp_path, (TEXT.format(digit=2) + DECLARED).replace("document", "paper")))

    assert_pins_mean(docs, *old_ids())


def test_waves_that_go_back_one_by_one_take_it_along(docs: Engine) -> None:
    cycle.run_sql(docs, PINS)
    first, second = cycle.waves_of(docs, cycle.newest_execution(docs))

    cycle.roll_back(docs, TWO, first.wave)

    assert_pins_mean(docs, *{row["id"] or "" for row in cycle.rows_of(docs, "app")["docs"]})
    cycle.roll_back(docs, TWO, second.wave)
    assert_pins_mean(docs, *old_ids())


def test_a_foreign_key_made_since_is_followed(docs: Engine) -> None:
    cycle.run_sql(docs, "CREATE TABLE app.keys (doc uuid REFERENCES app.docs)")
    cycle.run_sql(docs, "INSERT INTO app.keys SELECT id FROM app.docs")

    cycle.undo(docs)

    assert {row["doc"] for row in cycle.rows_of(docs, "app")["keys"]} == set(old_ids())


def test_a_column_that_a_later_execution_knew_by_a_foreign_key_that_is_gone_goes_back_too(docs: Engine) -> None:
    cycle.run_sql(docs, "CREATE TABLE app.keys (doc uuid CONSTRAINT held REFERENCES app.docs)")
    cycle.run_sql(docs, "INSERT INTO app.keys SELECT id FROM app.docs")
    cycle.run_all(docs, spec_of(2))
    cycle.run_sql(docs, "ALTER TABLE app.keys DROP CONSTRAINT held")

    cycle.undo(docs)

    assert {row["doc"] for row in cycle.rows_of(docs, "app")["keys"]} == set(old_ids())


def test_ids_of_waves_that_were_back_before_anybody_declared_their_place_are_told_with_the_way_out(
    docs: Engine,
) -> None:
    cycle.run_sql(docs, PINS)
    cycle.roll_back(docs, ONE, "canary")

    with pytest.raises(RefusedError, match=LEFT) as refused:
        cycle.roll_back(docs, TWO)

    for column in ("doc", "written", "several", "payload.doc", r"raw.docs.*"):
        assert f"2 rows of app.pins.{column}: " in refused.value.message
    [remedy] = [line.split(": ", 1)[1] for line in refused.value.message.splitlines() if "pins.doc: " in line]
    cycle.run_sql(docs, remedy)
    assert {row["doc"] for row in cycle.rows_of(docs, "app")["pins"]} == set(old_ids())
    assert cycle.newest_execution(docs).status == "rolled_back"


def test_ids_in_a_table_that_no_batch_can_write_are_told(docs: Engine) -> None:
    cycle.run_sql(docs, "CREATE TABLE app.parts (doc uuid) PARTITION BY HASH (doc)")
    cycle.run_sql(docs, "CREATE TABLE app.part PARTITION OF app.parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    cycle.run_sql(docs, "INSERT INTO app.parts SELECT id FROM app.docs UNION ALL SELECT id FROM app.docs")
    declared = spec_of(2, "soft_references: [{table: parts, column: doc, entity: document}]")

    with pytest.raises(RefusedError, match=r'10 rows of app\.parts\.doc: UPDATE "app"\."parts" SET "doc" = '):
        cycle.roll_back(docs, declared)

    assert {row["id"] for row in cycle.rows_of(docs, "app")["docs"]} == set(old_ids())


def test_ids_of_documents_that_were_deleted_since_and_ids_of_none_are_not_told(docs: Engine) -> None:
    cycle.run_sql(docs, PINS)
    cycle.roll_back(docs, ONE, "canary")
    cycle.run_sql(docs, "DELETE FROM app.docs WHERE id::text <> ALL(%(ids)s)", ids=new_ids(1))
    cycle.run_sql(docs, "INSERT INTO app.pins (n, doc) VALUES (9, gen_random_uuid())")

    cycle.roll_back(docs, TWO)

    docs_left = {row["id"] for row in cycle.rows_of(docs, "app")["docs"]}
    assert docs_left < {row["doc"] for row in cycle.rows_of(docs, "app")["pins"]}


@pytest.mark.parametrize(
    "text",
    [
        TEXT.format(digit=1) + "soft_references: [{table: pins, column: gone, entity: document}]",
        TEXT.format(digit=1) + "soft_references: [{table: pins, column: n, entity: document}]",
        TEXT.format(digit=1) + "soft_references: [{table: pins, column: payload, entity: document}]",
        TEXT.format(digit=1).replace("schema: app", "schema: other") + DECLARED,
        TEXT.format(digit=1).replace("table: docs", "table: pins") + DECLARED,
        "entities: [",
    ],
    ids=["no such column", "of another type", "no path", "another schema", "another table", "no spec"],
)
def test_a_spec_of_now_that_does_not_fit_stops_no_rollback(docs: Engine, tmp_path: Path, text: str) -> None:
    cycle.run_sql(docs, PINS)
    pins = cycle.rows_of(docs, "app")["pins"]

    undo(docs, written(tmp_path, text))

    after = cycle.rows_of(docs, "app")
    assert {row["id"] for row in after["docs"]} == set(old_ids())
    assert after["pins"] == pins


PARTS = """
UPDATE app.docs SET sha = 's1' WHERE sha = 's2';
CREATE TABLE app.parts (id uuid PRIMARY KEY, doc uuid NOT NULL REFERENCES app.docs, n int NOT NULL);
INSERT INTO app.parts SELECT md5(id::text || n)::uuid, id, n FROM app.docs, generate_series(1, 2) n
"""
PART = '  part: {table: parts, key: id, parent: document, identity: "{doc}:{n}"}\n'
ABOUT = "soft_references: [{table: parts, column: about, entity: document}]"


@pytest.mark.parametrize("key", ["", "REFERENCES app.docs"], ids=["declared", "a foreign key"])
def test_archived_rows_come_back_though_they_lack_a_reference_that_came_since(empty_store: Engine, key: str) -> None:
    cycle.run_sql(empty_store, DOCS)
    cycle.run_sql(empty_store, PARTS)
    before = cycle.rows_of(empty_store, "app")
    cycle.run_all(empty_store, spec_of(1, PART))
    cycle.run_sql(empty_store, f"ALTER TABLE app.parts ADD about uuid {key}")
    cycle.run_sql(empty_store, "UPDATE app.parts SET about = doc")

    cycle.roll_back(empty_store, spec_of(2, PART + ABOUT))

    after = cycle.rows_of(empty_store, "app")
    assert sum(row.pop("about") == row["doc"] for row in after["parts"]) == 8
    assert after == before
