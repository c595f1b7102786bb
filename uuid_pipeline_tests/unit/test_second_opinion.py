"""The second implementation: right by the standard library, and independent of the first by what it imports."""

import ast
import hashlib
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uuid_pipeline.engine.proofs import second_opinion
from uuid_pipeline.identity import normalize, parse_template

NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
FIELD = st.text(st.characters(codec="utf-8", exclude_characters="{}[].!:\0"), min_size=1).filter(
    lambda text: text == text.strip() and not text.isdigit()
)
LITERAL = st.text(st.characters(codec="utf-8"), max_size=8)


def test_it_imports_nothing_that_the_first_implementation_is_made_of() -> None:
    tree = ast.parse(Path(second_opinion.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"collections.abc", "numpy", "numpy.typing"}


@given(st.lists(st.binary(max_size=300), max_size=12))
def test_sha1_is_the_standard_librarys(messages: list[bytes]) -> None:
    digests = [row.astype(">u4").tobytes() for row in second_opinion.sha1(messages)]
    assert digests == [hashlib.sha1(message, usedforsecurity=False).digest() for message in messages]


@pytest.mark.parametrize("length", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_sha1_at_the_edges_of_a_block(length: int) -> None:
    [row] = second_opinion.sha1([b"x" * length])
    assert row.astype(">u4").tobytes().hex() == hashlib.sha1(b"x" * length, usedforsecurity=False).hexdigest()


@given(st.lists(st.none() | st.text(st.characters(codec="utf-8")), max_size=8))
def test_ids_are_the_standard_librarys_and_no_key_has_none(texts: list[str | None]) -> None:
    found = second_opinion.targets(str(NAMESPACE), [None if text is None else text.encode() for text in texts])
    assert found == [None if text is None else str(uuid.uuid5(NAMESPACE, text)) for text in texts]


@given(st.text(st.characters(codec="utf-8")), st.lists(st.sampled_from(["strip", "lower"]), max_size=3))
def test_normalising_bytes_does_what_normalising_text_does(value: str, rules: list[str]) -> None:
    assert second_opinion.normalized(value, rules) == normalize(value, rules).encode()  # type: ignore[arg-type]


@given(st.lists(st.tuples(LITERAL, FIELD), min_size=1, max_size=4), LITERAL)
def test_templates_are_read_alike(pieces: list[tuple[str, str]], last: str) -> None:
    def doubled(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    text = "".join(f"{doubled(literal)}{{{field}}}" for literal, field in pieces) + doubled(last)
    read = second_opinion.read_template(text)
    template = parse_template(text)
    assert [piece for is_field, piece in read if is_field] == list(template.fields)
    values = {field: f"<{field}>" for field in template.fields}
    [key] = second_opinion.keys(read, {}, template.fields, [[values[field] for field in template.fields]])
    assert key == template.fill(values).encode()


def test_a_null_part_gives_no_key() -> None:
    pieces = second_opinion.read_template("{a}:{b}")
    assert second_opinion.keys(pieces, {}, ("a", "b"), [["x", None], ["x", "y"]]) == [None, b"x:y"]


def test_parts_are_normalised_and_put_where_the_template_has_them() -> None:
    pieces = second_opinion.read_template("{b}%-{a}{b}")
    rows: list[list[str | None]] = [["X ", "Y"], [None, "Z"], ["ä", " "]]
    assert second_opinion.keys(pieces, {"a": ["strip", "lower"]}, ("a", "b"), rows) == [
        b"Y%-xY",
        None,
        " %-ä ".encode(),
    ]
