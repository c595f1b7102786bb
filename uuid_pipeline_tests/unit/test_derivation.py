"""Derivation: the binary form of an id is made and classed as its text is."""

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uuid_pipeline.engine.derivation import copied, id_class, ids_of

NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
VERSIONS = st.uuids() | st.uuids(version=4) | st.uuids(version=5)


def ids(key_type: str) -> Any:
    store: Any = SimpleNamespace(spec=SimpleNamespace(namespace=NAMESPACE))
    entity: Any = SimpleNamespace(key_type=key_type)
    return ids_of(store, entity)


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_target_ids_are_the_standard_uuid5_in_the_form_of_their_keys_type(natural_keys: list[str]) -> None:
    expected = [uuid.uuid5(NAMESPACE, natural_key) for natural_key in natural_keys]
    encoded = [natural_key.encode() for natural_key in natural_keys]

    assert ids("uuid").targets(encoded) == [target.bytes for target in expected]
    assert ids("text").targets(encoded) == [str(target).encode() for target in expected]


@given(VERSIONS, st.none() | VERSIONS)
def test_an_id_has_one_class_as_bytes_and_as_text(key: uuid.UUID, other: uuid.UUID | None) -> None:
    for target in (key, other):
        as_text = None if target is None else str(target)
        expected = id_class(str(key), as_text).encode()
        assert ids("uuid").classed(key.bytes, None if target is None else target.bytes) == expected
        assert ids("text").classed(str(key).encode(), None if as_text is None else as_text.encode()) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("c56a4180-65aa-42ec-a945-5fd21dec0538", b"random"),
        ("c56a4180-65aa-42ec-c945-5fd21dec0538", b"stray"),  # version 4 of no variant that has versions
        ("c56a4180-65aa-42ec-2945-5fd21dec0538", b"stray"),
        ("c56a4180-65aa-52ec-a945-5fd21dec0538", b"stray"),
    ],
)
def test_only_version_4_of_the_common_variant_is_random(key: str, expected: bytes) -> None:
    assert ids("uuid").classed(uuid.UUID(key).bytes, None) == expected


def test_rows_are_copied_as_the_manual_has_them() -> None:
    signature = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"

    assert copied([[b"ab", None], [b"", b"\xff"]]) == (
        signature
        + b"\0\x02" + b"\0\0\0\x02ab" + b"\0\0\0\0"
        + b"\0\x02" + b"\xff\xff\xff\xff" + b"\0\0\0\x01\xff"
        + b"\xff\xff"
    )  # fmt: skip
