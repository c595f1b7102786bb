"""The evidence bundle's file: any one byte changed, added or taken is found, and said where."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports import bundle_file

FILES = {"plan.json": b'{"plan": 1}\n', "gates.json": b"[]\n", "journal.json": b"{}\n"}
BUNDLE, DIGEST = bundle_file.bundle("2026-01-01-000000", FILES)


def problems(data: bytes) -> tuple[str, ...]:
    return bundle_file.check_bytes(data).problems


def test_an_unchanged_bundle_is_intact_and_any_zip_reader_reads_it() -> None:
    checked = bundle_file.check_bytes(BUNDLE)
    assert (checked.problems, checked.digest) == ((), DIGEST)
    with zipfile.ZipFile(io.BytesIO(BUNDLE)) as read:
        assert read.testzip() is None
        assert read.namelist() == ["manifest.json", "gates.json", "journal.json", "plan.json"]
        assert {name: read.read(name) for name in FILES} == FILES
    assert bundle_file.bundle("2026-01-01-000000", {name: FILES[name] for name in reversed(list(FILES))}) == (
        BUNDLE,
        DIGEST,
    )


def test_each_byte_changed_to_any_neighbouring_value_is_found() -> None:
    for place in range(len(BUNDLE)):
        for change in (1, 0x20, 0x80, 0xFF):
            data = bytearray(BUNDLE)
            data[place] ^= change
            assert problems(bytes(data)), (place, change)


@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_a_byte_changed_in_any_way_is_found(place: int, change: int) -> None:
    data = bytearray(BUNDLE)
    data[place] ^= change
    assert problems(bytes(data))


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_the_file_that_was_changed_is_named(name: str) -> None:
    content = bundle_file.check_bytes(BUNDLE).files[name]
    data = bytearray(BUNDLE)
    data[BUNDLE.index(content)] ^= 1
    assert any(name in problem for problem in problems(bytes(data)))


@given(st.binary(min_size=1, max_size=40))
def test_bytes_before_after_or_cut_off_are_found(more: bytes) -> None:
    assert problems(BUNDLE + more)
    assert problems(BUNDLE[: -len(more)])
    assert problems(more + BUNDLE)


def repacked(**changes: bytes | None) -> bytes:
    """As somebody would who knows zips: a file changed, added or taken away, and packed anew."""
    files = dict(bundle_file.check_bytes(BUNDLE).files)
    for name, content in changes.items():
        if content is None:
            del files[f"{name}.json"]
        else:
            files[f"{name}.json"] = content
    first = {"manifest.json": files.pop("manifest.json")} if "manifest.json" in files else {}
    return bundle_file.pack(first | dict(sorted(files.items())))


def test_a_file_changed_added_or_removed_in_a_well_formed_zip_is_named() -> None:
    assert problems(repacked(plan=b'{"plan": 2}\n')) == ("plan.json has another content than the manifest says",)
    assert problems(repacked(more=b"1\n")) == ("more.json is not in the manifest",)
    assert problems(repacked(gates=None)) == ("gates.json is missing",)
    assert problems(repacked(manifest=None))[-1].startswith("manifest.json is missing")


def test_a_comment_or_another_order_is_found() -> None:
    commented = io.BytesIO(BUNDLE)
    with zipfile.ZipFile(commented, "a") as changed:
        changed.comment = b"looks the same"
    assert problems(commented.getvalue()) == (
        f"the zip's own directory was changed (byte {len(BUNDLE) - 2} of the bundle)",
    )
    files = bundle_file.check_bytes(BUNDLE).files
    assert problems(bundle_file.pack({name: files[name] for name in reversed(list(files))})) == (
        "its files stand in another order",
    )


def test_a_manifest_with_other_words_or_its_own_digest_wrong_is_found() -> None:
    manifest = json.loads(bundle_file.check_bytes(BUNDLE).files["manifest.json"])
    for change in ({"digest": "0" * 64}, {"note": "all is well"}, {"format": "another"}):
        text = bundle_file.canonical(manifest | change)
        assert problems(repacked(manifest=text)) == ("manifest.json is not what its files give",)


def test_what_is_rewritten_as_a_whole_has_another_digest() -> None:
    data, digest = bundle_file.bundle("2026-01-01-000000", {**FILES, "plan.json": b'{"plan": 2}\n'})
    assert problems(data) == ()
    assert digest != DIGEST


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bundle.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bundle\.zip"):
        bundle_file.check(path)
