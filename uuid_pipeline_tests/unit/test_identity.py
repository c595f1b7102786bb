"""Identity: the application's own ids, the standard's arithmetic, and normalisation that knows ASCII only."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uuid_pipeline.identity import Normalization, hasher, normalize, parse_template, recomputer
from uuid_pipeline.spec import load_spec

NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
DOCUMENT = "{user_id}:{file_sha256}"
CHUNK = "{document_id}:{chunker_name}:{chunker_version}:{chunk_ord}"
WITNESSES = [
    (
        "0b2f7c1e-8f1d-4c58-9a0e-3d5f6a7b8c9d",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "30fcb08c-cac3-58fd-b162-52e5a9478104",
        "461b5c8d-6fea-552a-852a-7a09774379d4",
    ),
    (
        "c56a4180-65aa-42ec-a945-5fd21dec0538",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "32daa262-1cac-545f-ba1e-e3a007b04d27",
        "e5495bf4-5ef2-5be9-8d47-07c94be8e7fb",
    ),
]


@pytest.mark.parametrize(("user", "sha", "document", "chunk"), WITNESSES)
def test_the_rule_makes_the_ids_that_the_application_printed(user: str, sha: str, document: str, chunk: str) -> None:
    target = hasher(NAMESPACE)
    parts = {"document_id": document, "chunker_name": "markdown-simple", "chunker_version": "1", "chunk_ord": "0"}

    assert target(parse_template(DOCUMENT).fill({"user_id": user, "file_sha256": sha})) == document
    assert target(parse_template(CHUNK).fill(parts)) == chunk
    assert recomputer(NAMESPACE, DOCUMENT, ("user_id", "file_sha256"), {})([user, sha]) == document
    assert recomputer(NAMESPACE, CHUNK, tuple(parts), {})(list(parts.values())) == chunk


def test_the_default_spec_gives_the_rule_and_its_four_witnesses() -> None:
    spec = load_spec(None)

    assert spec.namespace == NAMESPACE
    assert spec.entities["document"].identity == DOCUMENT
    assert spec.entities["chunk"].identity == CHUNK
    assert [w["id"] for e in spec.entities.values() for w in e.witnesses] == [
        *[document for _, _, document, _ in WITNESSES],
        *[chunk for _, _, _, chunk in WITNESSES],
    ]


@given(namespace=st.uuids(), text=st.text())
def test_the_hasher_equals_the_standard_uuid5_for_any_namespace_and_text(namespace: uuid.UUID, text: str) -> None:
    target = hasher(namespace)

    assert target(text) == target(text) == str(uuid.uuid5(namespace, text))


@given(namespace=st.uuids(), user=st.text(), sha=st.text())
def test_the_second_path_agrees_with_the_first(namespace: uuid.UUID, user: str, sha: str) -> None:
    rules: dict[str, list[Normalization]] = {"file_sha256": ["strip", "lower"]}
    filled = parse_template(DOCUMENT).fill({"user_id": user, "file_sha256": normalize(sha, rules["file_sha256"])})

    second = recomputer(namespace, DOCUMENT, ("user_id", "file_sha256"), rules)
    assert second([user, sha]) == hasher(namespace)(filled)


@given(text=st.text())
def test_lower_touches_the_26_ascii_capitals_and_nothing_else(text: str) -> None:
    expected = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)

    assert normalize(text, ["lower"]) == expected


@given(text=st.text(alphabet=st.sampled_from(" \t\n\r\f\v\x1c\x85\u00a0\u2003\ufeffab")))
def test_strip_takes_ascii_space_off_both_ends_and_nothing_else(text: str) -> None:
    found = normalize(text, ["strip"])

    start = text.find(found)
    taken = text[:start] + text[start + len(found) :]
    assert set(taken) <= set(" \t\n\r\f\v")
    assert not found or (found[0] not in " \t\n\r\f\v" and found[-1] not in " \t\n\r\f\v")


@pytest.mark.parametrize(
    "text", ["İ", "ẞ", "É", "Σ", "\u212a", "\u00a0a\u00a0", "\u2003a", "\ufeffa", "\x1ca", "\x85a"]
)
def test_letters_and_spaces_beyond_ascii_are_untouched(text: str) -> None:
    assert normalize(text, ["strip", "lower"]) == text


def test_rules_apply_in_their_order_and_without_rules_nothing_changes() -> None:
    assert normalize(" AbC ", ["strip", "lower"]) == "abc"
    assert normalize(" AbC ", ["lower"]) == " abc "
    assert normalize(" AbC ", []) == " AbC "


@pytest.mark.parametrize(
    ("text", "literals", "fields"),
    [
        ("{a}", ("", ""), ("a",)),
        ("{a}:{b}", ("", ":", ""), ("a", "b")),
        ("x{a}{b}y", ("x", "", "y"), ("a", "b")),
        ("{{{a}}}", ("{", "}"), ("a",)),
        ("{a}{{}}{a}", ("", "{}", ""), ("a", "a")),
        ("%s'\"\\{a}", ("%s'\"\\", ""), ("a",)),
    ],
)
def test_a_template_is_split_into_literals_and_fields(
    text: str, literals: tuple[str, ...], fields: tuple[str, ...]
) -> None:
    template = parse_template(text)

    assert (template.literals, template.fields) == (literals, fields)
    values = {field: f"<{field}>" for field in fields}
    assert template.fill(values) == text.format(**values)


@pytest.mark.parametrize(
    "text", ["", "abc", "{{a}}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>8}", "{ a}", "{a", "a}"]
)
def test_a_template_without_plain_fields_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"identity|'}'|'{'|brace"):
        parse_template(text)
