"""Named parameters of a spec's own SQL: found where they are parameters, and nowhere else."""

import pytest

from uuid_pipeline.named_parameters import for_driver, names, unknown

QUOTED = "SELECT ':id', \":id\", E'\\':id', $$ :id $$, $a$ :id $$ $a$"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("WHERE id = :id", "WHERE id = %(id)s"),
        ("WHERE id = :id::uuid AND x::text = 'a'", "WHERE id = %(id)s::uuid AND x::text = 'a'"),
        (QUOTED, QUOTED),
        ("SELECT 1 -- :id\n, :id", "SELECT 1 -- :id\n, %(id)s"),
        ("SELECT 1 /* :id */, '50 %', 5 % 2, 'it''s :id'", "SELECT 1 /* :id */, '50 %%', 5 %% 2, 'it''s :id'"),
        ("SELECT a[1:2], a[:n], f(x := :id)", "SELECT a[1:2], a[%(n)s], f(x := %(id)s)"),
    ],
)  # fmt: skip
def test_only_parameters_become_placeholders_and_percent_signs_are_doubled(written: str, sent: str) -> None:
    assert for_driver(written) == sent


def test_parameters_are_named_once_and_the_unknown_ones_in_order() -> None:
    text = "SELECT :b, :a, :b, ':c'"
    assert names(text) == {"a", "b"}
    assert unknown(text, ["a"]) == ["b"]
