"""The approach: thresholds of the spec, its own choice, and what a plan then covers."""

import pytest

from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.plans import approach
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import StrategySettings, parse_spec

AUTO = StrategySettings()


def counted(documents: int, random: int, stray: int, with_children: int | None = None) -> Summary:
    """A summary of a store whose spec describes nothing."""
    return Summary(
        documents=documents, deterministic=documents - random - stray, random=random, stray=stray, quarantined=0,
        users=None, affected_users=None, changing_users=None, high_impact_users=None, bytes=None, recent=None,
        failed=None, with_children=with_children, children=None, orphans=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("random", "stray", "expected"),
    [
        (81, 0, "full migration"),
        (0, 81, "full migration"),
        (80, 0, "hybrid"),
        (30, 21, "hybrid"),
        (50, 0, "forward-only"),
        (0, 0, "forward-only"),
    ],
)
def test_the_advice_follows_the_reports_thresholds(random: int, stray: int, expected: str) -> None:
    assert approach.choose(counted(100, random, stray), AUTO).shown == expected


def test_the_spec_moves_the_thresholds() -> None:
    settings = StrategySettings(full_above=0.3, hybrid_above=0.1)

    assert [approach.advise(counted(100, n, 0), settings) for n in (31, 30, 11, 10)] == [
        "full", "hybrid", "hybrid", "forward-only",
    ]  # fmt: skip


@pytest.mark.parametrize("random", [100, 60, 30, 1])
def test_advice_restricts_nothing(random: int) -> None:
    chosen = approach.choose(counted(100, random, 0), AUTO)

    assert chosen.covers == "everything due"
    assert approach.wave_kinds(AUTO) == ("canary", "recent", "remaining")
    assert any("covers every document" in reason for reason in chosen.reasons) == (random <= 80)


@pytest.mark.parametrize(
    ("wanted", "kinds", "covers"),
    [
        ("full", ("canary", "recent", "remaining"), "everything due"),
        ("hybrid", ("canary", "recent"), "the first waves"),
        ("forward-only", (), "nothing"),
        ("regenerate", (), "nothing"),
    ],
)
def test_a_choice_of_the_spec_binds_and_says_what_was_advised(wanted: str, kinds: tuple[str, ...], covers: str) -> None:
    settings = StrategySettings.model_validate({"approach": wanted})
    chosen = approach.choose(counted(100, 30, 0), settings)

    assert (chosen.name, chosen.by_spec, chosen.covers) == (wanted, True, covers)
    assert approach.wave_kinds(settings) == kinds
    agreed = "which is also the advice" if wanted == "forward-only" else "where the advice would be forward-only"
    assert any(agreed in reason for reason in chosen.reasons)


def test_figures_and_what_no_id_can_mend_are_among_the_reasons() -> None:
    reasons = approach.choose(counted(38, 38, 0, with_children=29), AUTO).reasons

    assert "38 of 38 documents (100.0 %)" in reasons[0]
    assert "above 80 %" in reasons[0]
    assert any(reason.startswith("9 of 38 documents have no chunks") for reason in reasons)


def test_an_empty_store_needs_no_approach_whatever_the_spec_says() -> None:
    for settings in (AUTO, StrategySettings(approach="full")):
        assert approach.choose(counted(0, 0, 0), settings).shown == "nothing to migrate"


SPEC = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: public
entities: {document: {table: d, key: id, identity: "{a}"}}
"""


def test_thresholds_out_of_order_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="hybrid_above is greater than full_above"):
        parse_spec(SPEC + "strategy: {full_above: 0.4, hybrid_above: 0.5}", "a.yaml")


def test_a_notice_is_no_part_of_what_is_approved_and_the_approach_is() -> None:
    plain = parse_spec(SPEC, "a.yaml").digest

    assert parse_spec(SPEC + "notices: {contact: help@example.org}", "b.yaml").digest == plain
    assert parse_spec(SPEC + "strategy: {approach: hybrid}", "c.yaml").digest != plain
