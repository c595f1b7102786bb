"""Triggers with our condition: out of our batches, in everybody else's, and put back as they were."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import catalog, ledger
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.altered import silencing, triggers
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.shop import (
    ALWAYS,
    IN_BATCH,
    OUTSIDE,
    PLAIN,
    SPEC,
    altered,
    build,
    definitions,
    fired_by,
    guard,
    guard_all,
    put_back,
    tier_of,
    wishing,
)

# What replacing could lose: columns, conditions, transition tables, arguments, names, marks, comments.
ODD = """
CREATE TRIGGER plain BEFORE UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();
COMMENT ON TRIGGER plain ON shop.things IS 'sets nothing';
CREATE TRIGGER many AFTER INSERT OR DELETE OR UPDATE OF id, n ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();
CREATE TRIGGER statement AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE ON shop.things EXECUTE FUNCTION shop.note();
CREATE TRIGGER pairs AFTER UPDATE ON shop.things REFERENCING OLD TABLE AS "old ones" NEW TABLE AS news
    FOR EACH STATEMENT EXECUTE FUNCTION shop.note();
CREATE TRIGGER conditional BEFORE UPDATE ON shop.things FOR EACH ROW
    WHEN (OLD.n > 0 OR NEW.code LIKE '100%%) EXECUTE FUNCTION x()') EXECUTE FUNCTION shop.note();
CREATE TRIGGER arguments BEFORE UPDATE ON shop.things FOR EACH ROW
    EXECUTE FUNCTION shop.note('it''s', E'a\\\\b', '%%s', ' WHEN (true) EXECUTE FUNCTION no()');
CREATE TRIGGER "Say WHEN (x) ""EXECUTE"" %%" BEFORE INSERT ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();
CREATE TRIGGER execute BEFORE DELETE ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();
CREATE TRIGGER always BEFORE UPDATE ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();
ALTER TABLE shop.parts ENABLE ALWAYS TRIGGER always;
CREATE TRIGGER owned BEFORE UPDATE ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();
ALTER TRIGGER owned ON shop.parts DEPENDS ON EXTENSION plpgsql;
CREATE TRIGGER asleep BEFORE UPDATE ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();
ALTER TABLE shop.parts DISABLE TRIGGER asleep;
CREATE TRIGGER elsewhere BEFORE UPDATE OF n ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();
"""
KEPT_OUT = {
    *(f"{name} on shop.things" for name in ("plain", "many", "statement", "pairs", "conditional", "arguments")),
    'Say WHEN (x) "EXECUTE" % on shop.things',
    *(f"{name} on shop.parts" for name in ("execute", "always", "owned")),
}


@pytest.fixture
def shop(empty_store: Engine) -> Engine:
    """A store of the test's own."""
    return build(empty_store)


def test_a_guarded_trigger_stays_out_of_our_batches_and_fires_for_everybody_else(shop: Engine) -> None:
    cycle.run_sql(shop, ODD)
    usual = fired_by(shop, OUTSIDE)
    tier = tier_of(shop, wishing(many="fire"))
    assert tier.name == "O"

    assert set(guard(shop, tier)) == KEPT_OUT - {"many on shop.things"}

    assert fired_by(shop, IN_BATCH) == {"many"}
    assert fired_by(shop, OUTSIDE) == usual == {name.rpartition(" on ")[0] for name in KEPT_OUT}


def test_a_run_that_was_killed_leaves_what_another_puts_back_to_the_letter(shop: Engine, empty_url: str) -> None:
    cycle.run_sql(shop, ODD)
    before = definitions(shop)
    tier = tier_of(shop, wishing(conditional="silence", many="fire"))
    assert guard(shop, tier) == guard(shop, tier)
    assert len(altered(shop)) == len(KEPT_OUT) - 1
    assert [a[3:] for a in definitions(shop)] == [b[3:] for b in before]

    other = open_store(empty_url)
    said = put_back(other)
    other.dispose()

    assert definitions(shop) == before
    assert altered(shop) == {}
    assert len(said) == len(KEPT_OUT) - 1
    assert all(line.endswith("is as it was") for line in said)
    assert put_back(shop) == []


def test_change_and_record_come_together_or_not_at_all(shop: Engine) -> None:
    cycle.run_sql(shop, ODD)
    before = definitions(shop)
    cycle.run_sql(shop, "ALTER TABLE uuid_pipeline.altered ADD CHECK (object NOT LIKE '%%pairs')")

    with pytest.raises(Exception, match="altered_object_check"):
        guard(shop, tier_of(shop, wishing(many="fire")))

    changed = {tuple(row[:2]) for row in definitions(shop) if row not in before}
    recorded = {(f"{r['schema']}.{r['table']}", r["trigger"]) for r in altered(shop).values()}
    assert changed == recorded == {("shop.parts", "always"), ("shop.parts", "execute"), ("shop.parts", "owned")}


def test_a_plan_stays_fresh_and_the_schema_unchanged_while_the_condition_is_in(shop: Engine) -> None:
    cycle.run_sql(shop, ODD)

    def snapshot() -> dict[str, str]:
        with shop.begin() as connection:
            return catalog.snapshot(connection, cycle.bound(connection, SPEC).catalog)

    before, facts = snapshot(), tier_of(shop, wishing(many="fire"))
    guard(shop, facts)

    assert snapshot() == before
    assert tier_of(shop, wishing(many="fire")) == facts
    cycle.run_sql(shop, "ALTER TABLE shop.things DISABLE TRIGGER pairs")
    cycle.run_sql(shop, "DROP TRIGGER plain ON shop.things")
    assert [line.split(" changed")[0] for line in catalog.differences(before, snapshot())] == [
        "trigger shop.things.pairs",
        "trigger shop.things.plain is gone",
    ]


# Conditions that the server parses from its own words into others with the same meaning.
REWORDED = """
ALTER TABLE shop.things ADD status varchar(20);
CREATE TRIGGER listed BEFORE UPDATE ON shop.things FOR EACH ROW
    WHEN (NEW.status IN ('paid', 'sent')) EXECUTE FUNCTION shop.note();
CREATE TRIGGER between_two BEFORE UPDATE ON shop.things FOR EACH ROW
    WHEN (NEW.n BETWEEN 1 AND 3 AND OLD.n > 0) EXECUTE FUNCTION shop.note();
ALTER TABLE shop.things ENABLE ALWAYS TRIGGER between_two;
"""


def test_a_condition_that_the_server_writes_in_other_words_when_it_is_back_is_no_change(shop: Engine) -> None:
    cycle.run_sql(shop, REWORDED)
    given = [row[2] for row in definitions(shop)]

    def seen() -> tuple[dict[str, str], object]:
        with shop.begin() as connection:
            objects = catalog.snapshot(connection, cycle.bound(connection, SPEC).catalog)
        return objects, tier_of(shop, wishing(listed="silence", between_two="silence"))

    before = seen()

    for _ in range(2):
        guard_all(shop)
        assert seen() == before
        put_back(shop)
        assert seen() == before
    reworded = [row[2] for row in definitions(shop)]
    assert all(was != now for was, now in zip(given, reworded, strict=True))
    cycle.run_sql(shop, "DROP TRIGGER listed ON shop.things")
    cycle.run_sql(
        shop,
        """CREATE TRIGGER listed BEFORE UPDATE ON shop.things FOR EACH ROW
           WHEN (NEW.status IN ('paid', 'lost')) EXECUTE FUNCTION shop.note()""",
    )
    assert len(catalog.differences(before[0], seen()[0])) == 1


@pytest.mark.parametrize(
    ("release", "said", "left"),
    [
        ("DROP TRIGGER plain ON shop.things", "is gone", None),
        ("DROP TABLE shop.things CASCADE", "is gone", None),
        (
            "CREATE OR REPLACE TRIGGER plain AFTER INSERT ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note()",
            "was defined anew meanwhile and stays as it is",
            ("CREATE TRIGGER plain AFTER INSERT ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note()", "O"),
        ),
        (
            "ALTER TABLE shop.things DISABLE TRIGGER plain",
            "is as it was",
            ("CREATE TRIGGER plain BEFORE UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note()", "D"),
        ),
        (
            "ALTER TABLE shop.things RENAME TO goods",
            "is gone: the application dropped or renamed it",
            (
                "CREATE TRIGGER plain BEFORE UPDATE ON shop.goods FOR EACH ROW WHEN "
                f"(({silencing.DEPARSED})) EXECUTE FUNCTION shop.note()",
                "O",
            ),
        ),
    ],
)
def test_what_another_release_did_meanwhile_is_neither_undone_nor_overwritten(
    shop: Engine, release: str, said: str, left: tuple[str, str] | None
) -> None:
    cycle.run_sql(shop, "CREATE TRIGGER plain BEFORE UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note()")
    guard_all(shop)
    cycle.run_sql(shop, release)

    (line,) = put_back(shop)

    assert said in line
    assert [tuple(row[2:4]) for row in definitions(shop)] == ([left] if left else [])
    assert altered(shop) == {}


def test_a_table_that_others_hold_is_waited_for_then_refused_by_name_and_pid(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silencing, "LOCK_SECONDS", 0.5)
    cycle.run_sql(shop, PLAIN)
    before = definitions(shop)
    with cycle.session(shop) as writer:
        writer.execute("UPDATE shop.things SET n = n")

        with pytest.raises(RefusedError) as refusal:
            guard_all(shop)

        assert "shop.things could not be changed" in refusal.value.message
        assert f"now pid {writer.info.backend_pid}." in refusal.value.message
        assert (definitions(shop), altered(shop)) == (before, {})
        writer.rollback()
    assert guard_all(shop) == ["plain on shop.things"]


def test_a_run_that_lost_its_lease_alters_nothing(shop: Engine) -> None:
    cycle.run_sql(shop, PLAIN)
    before = definitions(shop)
    with leases.held(shop, "first") as (connection, lease):
        with connection.begin():
            found = triggers.read(connection, cycle.bound(connection, SPEC))
        cycle.run_sql(shop, "UPDATE uuid_pipeline.lease SET epoch = epoch + 1")

        with pytest.raises(RefusedError, match="lost its lease"):
            silencing.guard(connection, lease, found)

    assert definitions(shop) == before


def test_a_role_that_owns_nothing_gets_by_with_the_rights_that_are_named(
    shop: Engine, empty_url: str, new_role: NewRole
) -> None:
    role = new_role()
    cycle.run_sql(shop, PLAIN + "REVOKE EXECUTE ON FUNCTION shop.note() FROM PUBLIC")
    cycle.run_sql(shop, f"GRANT USAGE ON SCHEMA shop TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA shop TO {role}")
    cycle.run_sql(shop, f"DROP SCHEMA uuid_pipeline CASCADE; GRANT CREATE ON DATABASE {shop.url.database} TO {role}")
    before = definitions(shop)
    poor = open_store(as_role(empty_url, role))
    with poor.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    tier = tier_of(poor)
    assert (tier.name, [t.name for t in tier.guarded]) == ("O", ["plain"])
    assert [(right.right, right.object) for right in tier.missing] == [
        ("UPDATE", "table shop.things"),
        ("TRIGGER", "table shop.things"),
        ("EXECUTE", "function shop.note() (to keep trigger plain out)"),
    ]

    for right in tier.missing:
        with pytest.raises(RefusedError, match=r"may not change the triggers of shop\.things"):
            guard(poor, tier)
        cycle.run_sql(shop, right.remedy)

    assert guard(poor, tier_of(poor)) == ["plain on shop.things"]
    assert fired_by(shop, IN_BATCH) == set()
    put_back(poor)
    assert definitions(shop) == before
    cycle.run_sql(shop, ALWAYS)
    assert [right.right for right in tier_of(poor).missing] == ["ownership"]
    poor.dispose()
