"""Planning's pure rules: waves, batches."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uuid_pipeline.engine.batches import batch
from uuid_pipeline.engine.batches.tries import halve
from uuid_pipeline.engine.derivation import id_class
from uuid_pipeline.engine.ledger import TRANSITIONS
from uuid_pipeline.engine.planning import split_waves

SIZES = st.integers(min_value=0, max_value=60)


def spans(canary: int, recent: int, remaining: int) -> list[tuple[str, int, int]]:
    found, first = [], 1
    for kind, size in (("canary", canary), ("recent", recent), ("remaining", remaining)):
        if size:
            found.append((kind, first, first + size - 1))
        first += size
    return found


@given(canary=SIZES, recent=SIZES, remaining=SIZES, size=st.integers(min_value=1, max_value=70))
def test_waves_cover_every_ordinal_exactly_once_in_order(canary: int, recent: int, remaining: int, size: int) -> None:
    waves = split_waves(spans(canary, recent, remaining), size)

    covered = [n for wave in waves for n in range(wave.first_ordinal, wave.last_ordinal + 1)]
    assert covered == list(range(1, canary + recent + remaining + 1))
    assert all(wave.documents == wave.last_ordinal - wave.first_ordinal + 1 for wave in waves)
    assert all(wave.documents <= size for wave in waves if wave.kind == "remaining")


@given(canary=SIZES, recent=SIZES, remaining=SIZES, size=st.integers(min_value=1, max_value=70))
def test_no_two_waves_have_one_name_and_names_sort_in_their_order(
    canary: int, recent: int, remaining: int, size: int
) -> None:
    names = [wave.name for wave in split_waves(spans(canary, recent, remaining), size)]

    assert all(a < b for a, b in pairwise(names))


@given(first=st.integers(0, 10**9), length=st.integers(1, 10**6))
def test_half_a_span_is_smaller_keeps_the_end_that_comes_first_and_never_is_empty(first: int, length: int) -> None:
    last = first + length - 1

    forward, back = halve(first, last, batch.FORWARD), halve(first, last, batch.BACK)

    assert forward[0] == first
    assert back[1] == last
    for low, high in (forward, back):
        assert first <= low <= high <= last
        assert high - low + 1 == max(1, (length + 1) // 2)


def test_one_document_stays_one_when_halved() -> None:
    assert halve(7, 7, batch.FORWARD) == halve(7, 7, batch.BACK) == (7, 7)


@pytest.mark.parametrize(
    ("key", "target", "expected"),
    [
        ("30fcb08c-cac3-58fd-b162-52e5a9478104", "30fcb08c-cac3-58fd-b162-52e5a9478104", "deterministic"),
        ("30fcb08c-cac3-58fd-b162-52e5a9478104", "32daa262-1cac-545f-ba1e-e3a007b04d27", "stray"),
        ("30fcb08c-cac3-58fd-b162-52e5a9478104", None, "stray"),
        ("c56a4180-65aa-42ec-a945-5fd21dec0538", "32daa262-1cac-545f-ba1e-e3a007b04d27", "random"),
        ("c56a4180-65aa-42ec-a945-5fd21dec0538", None, "random"),
        ("c56a4180-65aa-42ec-c945-5fd21dec0538", None, "stray"),
        ("C56A4180-65AA-42EC-A945-5FD21DEC0538", None, "random"),
        ("c56a4180-65aa-42ec-a945-5fd21dec0538\n", None, "stray"),
        ("c56a418065aa42eca9455fd21dec0538", None, "stray"),
        ("", None, "stray"),
    ],
)
def test_an_id_is_deterministic_by_equality_random_by_version_4_and_else_stray(
    key: str, target: str | None, expected: str
) -> None:
    assert id_class(key, target) == expected


def test_every_status_can_reach_a_rollback_and_its_end() -> None:
    for status in ("approved", "running", "completed", "superseded", "cancelled", "partly_rolled_back"):
        assert "rolling_back" in TRANSITIONS[status]
    assert TRANSITIONS["rolled_back"] == {"finalized"}
    assert "finalized" not in TRANSITIONS
    assert TRANSITIONS["rolling_back"] == {"rolled_back", "partly_rolled_back"}
