"""Each risk is found by what makes it one, and by nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from uuid_pipeline.engine.plans import risks
from uuid_pipeline.engine.plans.risk_findings import Findings, Rebuilt, Trigger, Unindexed

# A migration of which nothing is to be said.
CALM = Findings(
    documents=100, moves=300, users=None, changing_users=None, failed=0, with_children=100, quarantined=0,
    unindexed=(), witnesses=2, tier="R", tier_reason="it may", fired=(), silenced=(), merges=(),
    without_counterpart=(), rebuilt=(), row_security=(), policies=(), others_at_work=False, unreadable=(),
    throttled=True, long_transaction=None, derived=(), unsearched=(), kept_ids=(), backup="dump",
    speed_measured=True, sweep_passes=2, left=0,
    covers="everything due", stated=(),
)  # fmt: skip
TOUCH = Trigger("touch", "s.t", "sets updated_at of the row itself")
AUDIT = Trigger("audit", "s.t", "writes to s.log (audit or outbox?)")
BIG = 20_000


def found(**changes: Any) -> dict[str, risks.Risk]:
    return {risk.rule: risk for risk in risks.register(replace(CALM, **changes))}


TRIGGERED: dict[str, dict[str, Any]] = {
    "no_backup": {"backup": "none"},
    "attested_backup": {"backup": "attested"},
    "unwitnessed": {"witnesses": 0},
    "archived_without_counterpart": {"without_counterpart": (("chunk", 3),)},
    "merged_rows": {"merges": (("document", 12),)},
    "unindexed_reference": {"unindexed": (Unindexed("s.events", ("document_id",), 8192),)},
    "index_rebuilt": {"rebuilt": (Rebuilt("vectors", "s.chunks", ("010-canary",), 50_000),)},
    "fired_trigger": {"fired": (AUDIT,)},
    "silenced_trigger": {"silenced": (AUDIT,)},
    "long_transaction": {"long_transaction": "the oldest transaction of others is 75.0 s old"},
    "remembered_id": {"users": 30, "changing_users": 27},
    "without_chunks": {"with_children": 91},
    "quarantined_row": {"quarantined": 4},
    "left_behind": {"left": 18, "covers": "the first waves"},
    "no_sweep": {"sweep_passes": 0},
    "unmeasured_speed": {"speed_measured": False, "moves": BIG},
    "unthrottled": {"throttled": False, "moves": BIG},
    "unreadable_signal": {"unreadable": (("lock_waits", "the role may not look"),)},
    "origin_tier": {"tier": "O", "silenced": (TOUCH,)},
    "row_security": {"row_security": ("s.t",)},
    "policy_by_id": {"policies": (("own", "s.t"),)},
    "statement_under_way": {"others_at_work": True},
    "derived_value": {"derived": (("s.path", 7, "md5 of the id"),)},
    "unsearched_column": {"unsearched": ("s.t.blob",)},
    "kept_id": {"kept_ids": (("events.payload", "history"),)},
}


def test_a_calm_migration_has_no_risk() -> None:
    assert found() == {}


def test_every_rule_is_tried_here() -> None:
    assert set(TRIGGERED) == {rule.__name__ for rule in risks.RULES}


@pytest.mark.parametrize("rule", TRIGGERED)
def test_a_rule_finds_its_risk_and_no_other_does(rule: str) -> None:
    register = found(**TRIGGERED[rule])

    assert list(register) == [rule]
    risk = register[rule]
    assert risk.probability in ("low", "medium", "high")
    assert risk.impact in ("low", "medium", "high")
    assert risk.finding
    assert risk.mitigation
    assert risk.contingency


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("no_backup", {"backup": "none", "moves": 0}),
        ("silenced_trigger", {"silenced": (TOUCH,)}),
        ("origin_tier", {"tier": "O"}),
        ("unmeasured_speed", {"speed_measured": False}),
        ("unthrottled", {"throttled": False}),
        ("without_chunks", {"with_children": None}),
        ("remembered_id", {"users": 3, "changing_users": 0}),
        ("remembered_id", {"changing_users": None}),
        ("no_sweep", {"sweep_passes": 0, "moves": 0}),
    ],
)
def test_a_rule_is_silent_where_its_condition_is_only_half_there(rule: str, changes: dict[str, Any]) -> None:
    assert rule not in found(**changes)


def test_levels_follow_the_figures() -> None:
    def scan(size: int) -> str:
        return found(unindexed=(Unindexed("s.t", ("c",), size),))["unindexed_reference"].impact

    assert [scan(size) for size in (9_999_999, 10_000_000, 99_999_999, 100_000_000)] == [
        "low",
        "medium",
        "medium",
        "high",
    ]
    assert found(with_children=90)["without_chunks"].impact == "medium"
    assert found(with_children=89)["without_chunks"].impact == "high"
    assert found(users=10, changing_users=5)["remembered_id"].impact == "medium"
    assert found(users=10, changing_users=6)["remembered_id"].impact == "high"


def test_findings_hold_the_figures_they_come_from() -> None:
    merged = found(without_counterpart=(("chunk", 3),))["archived_without_counterpart"].finding
    assert merged.startswith("3 chunk rows")
    assert "foreign key error or a unique error" in merged
    assert "9 of 100 documents" in found(with_children=91)["without_chunks"].finding
    assert "27 of 30 users" in found(users=30, changing_users=27)["remembered_id"].finding
    assert "18 documents" in found(left=18)["left_behind"].finding


def test_what_the_plan_states_is_there_once_and_the_heaviest_risk_comes_first() -> None:
    table = Unindexed("s.t", ("c",), 8192)
    known = "s.t: no index on c; every batch scans the table"
    register = risks.register(
        replace(CALM, unindexed=(table,), witnesses=0, stated=(known, "something that no rule knows"))
    )

    assert sorted(risk.finding for risk in register).count(known) == 1
    assert [risk.rule for risk in register if risk.finding == "something that no rule knows"] == ["stated"]
    weights = [risk.weight for risk in register]
    assert weights == sorted(weights, reverse=True)
    assert register[0].rule == "unwitnessed"
