"""References in `json`, which keeps its text: also what the server's own operators stop at, or see only a part of."""

import re
import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

NAMESPACE = "6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42"
FIRST, SECOND = "3b241101-e2bb-4255-8caf-4136c566a962", "4b241101-e2bb-4255-8caf-4136c566a962"
STORE = """
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY, code text NOT NULL UNIQUE);
INSERT INTO shop.things VALUES ('3b241101-e2bb-4255-8caf-4136c566a962', 'first'),
    ('4b241101-e2bb-4255-8caf-4136c566a962', 'second');
CREATE TABLE shop.notes (note int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, said json);
"""
SPEC = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
batch_rows: 1
entities:
  thing: {{table: things, key: id, identity: "{{code}}"}}
soft_references:
  - {{table: notes, column: said, entity: thing, path: '{path}'}}
"""
TEXTS = {
    "a zero": '{"a": "FIRST", "n": "\\u0000"}',
    "half a surrogate pair": '{"n": "\\ud800", "a": "FIRST"}',
    "a zero in a name": '{"\\u0000": 1, "a": "FIRST"}',
    "a zero and no id": '{"a": "no id", "n": "\\u0000"}',
    "another value under the name": '{"a": "FIRST", "a": "no id"}',
    "two ids under one name": '{"a":"FIRST",  "a" : "SECOND"}',
    "the name in the text": '{"a": "FIRST", "n": "\\"a\\" a \\\\", "b": "a"}',
    "the name spelled otherwise": '{"\\u0061": "FIRST"}',
    "plain": '{"n": [1, {"b": "FIRST "}], "a": "SECOND"}',
}


def new(text: str) -> str:
    """The text with the ids of after the migration where it has an `a` at its top, by the standard uuid5."""
    for old, code in ((FIRST, "first"), (SECOND, "second")):
        target = str(uuid.uuid5(uuid.UUID(NAMESPACE), code))
        text = re.sub(rf'("(?:a|\\u0061)" ?: ?)"{old}"', rf'\g<1>"{target}"', text)
    return text


def written(text: str) -> str:
    return text.replace("FIRST", FIRST).replace("SECOND", SECOND)


@pytest.mark.parametrize("kind", TEXTS)
def test_it_moves_at_its_path_and_comes_back_byte_for_byte(empty_store: Engine, kind: str) -> None:
    """Whether it was there before or is written since, in either direction."""
    text = written(TEXTS[kind])
    spec = parse_spec(SPEC.format(path="a"), "test")
    insert = "INSERT INTO shop.notes (said) VALUES (%(text)s::json)"
    texts = "SELECT said::text FROM shop.notes"
    cycle.run_sql(empty_store, STORE)
    cycle.run_sql(empty_store, insert, text=text)

    cycle.run_all(empty_store, spec)
    assert cycle.run_sql(empty_store, texts) == [(new(text),)]
    cycle.run_sql(empty_store, insert, text=text)
    assert cycle.run_sql(empty_store, texts) == [(new(text),)] * 2

    cycle.roll_back(empty_store, spec)
    assert cycle.run_sql(empty_store, texts) == [(text,)] * 2


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a/b", '{"a\\/b": "FIRST"}'),
        ("a.b", '{"a": {"b": "FIRST", "b": "no id"}}'),
        ("a.b", '{"a": {"b": "FIRST"}, "a": {"b": "no id"}}'),
        ("a.b", '{"a": {"b": "FIRST"}, "c": {"b": 1}}'),
    ],
)
def test_it_moves_below_other_names_too(empty_store: Engine, path: str, text: str) -> None:
    spec = parse_spec(SPEC.format(path=path), "test")
    cycle.run_sql(empty_store, STORE)
    cycle.run_sql(empty_store, "INSERT INTO shop.notes (said) VALUES (%(text)s::json)", text=written(text))

    cycle.run_all(empty_store, spec)

    target = str(uuid.uuid5(uuid.UUID(NAMESPACE), "first"))
    assert cycle.run_sql(empty_store, "SELECT said::text FROM shop.notes") == [(text.replace("FIRST", target),)]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a", '{"a": "FIRST", "b": 1}'),
        ("a.b", '{"a": {"b": "FIRST", "c": [1]}}'),
        ("a.0", '{"a": {"0": "FIRST"}}'),
        ("0", '{"0": "FIRST"}'),
        ("a.*", '{"a": ["FIRST", 1, "no id"]}'),
    ],
)
def test_a_number_in_a_path_is_a_name_in_jsonb_too(empty_store: Engine, path: str, text: str) -> None:
    """The server's own operators would take it for a place in an array."""
    spec = parse_spec(SPEC.format(path=path), "test")
    cycle.run_sql(empty_store, STORE.replace("said json", "said jsonb"))
    insert = "INSERT INTO shop.notes (said) VALUES (%(text)s::jsonb)"
    for said in (text, text.replace("FIRST", "no id"), '{"a": 1}', '["no id"]', '"no id"', "null"):
        cycle.run_sql(empty_store, insert, text=written(said))
    before = cycle.rows_of(empty_store, "shop")["notes"]

    cycle.run_all(empty_store, spec)
    target = str(uuid.uuid5(uuid.UUID(NAMESPACE), "first"))
    moved = [{**row, "said": str(row["said"]).replace(FIRST, target)} for row in before]
    assert cycle.rows_of(empty_store, "shop")["notes"] == moved

    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "shop")["notes"] == before
