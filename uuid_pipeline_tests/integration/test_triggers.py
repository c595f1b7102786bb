"""Triggers of the application: the tier that keeps them out, and that each is put back as it was."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import catalog, ledger, migration, silencing, triggers
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.triggers import Tier
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle

SPEC = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: shop
    entities:
      thing: {table: things, key: id, identity: "{code}"}
    soft_references:
      - {table: parts, column: thing_id, entity: thing}
    """,
    "test",
)

STORE = """
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL, n int);
CREATE TABLE shop.parts (part int PRIMARY KEY, thing_id uuid NOT NULL, n int);
CREATE TABLE shop.fired (name text, op text);
CREATE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shop.fired VALUES (TG_NAME, TG_OP);
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END$$;
INSERT INTO shop.things (code, n) SELECT 'c' || i, i FROM generate_series(1, 3) i;
INSERT INTO shop.parts SELECT n, id, n FROM shop.things;
"""

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
WRITES = """
UPDATE shop.things SET id = gen_random_uuid(); UPDATE shop.parts SET thing_id = gen_random_uuid();
INSERT INTO shop.things (code) VALUES ('new'); DELETE FROM shop.things WHERE code = 'new';
DELETE FROM shop.parts WHERE part = 1
"""


def build(engine: Engine) -> Engine:
    """A store whose ledger exists, as it does before any wave."""
    cycle.run_sql(engine, STORE)
    with engine.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    return engine


@pytest.fixture
def shop(empty_store: Engine) -> Engine:
    """A store of the test's own."""
    return build(empty_store)


@pytest.fixture(scope="module")
def common_shop(server: EmbeddedServer) -> Iterator[Engine]:
    name = f"t_{uuid.uuid4().hex}"
    embedded.ensure_database(server, name)
    engine = open_store(server.url(name))
    yield build(engine)
    engine.dispose()


@pytest.fixture
def bare_shop(common_shop: Engine) -> Iterator[Engine]:
    """A store for tests that only make triggers; it has none before, and none after."""
    yield common_shop
    for name, table in cycle.run_sql(
        common_shop, "SELECT quote_ident(tgname), tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal"
    ):
        cycle.run_sql(common_shop, f"DROP TRIGGER {name} ON {table}")
    put_back(common_shop)


def wishing(**wishes: Literal["fire", "silence"]) -> Any:
    return SPEC.model_copy(update={"triggers": wishes})


def tier_of(engine: Engine, spec: Any = SPEC) -> Tier:
    with engine.begin() as connection:
        return triggers.choose(connection, cycle.bound(connection, spec))


def guard(engine: Engine, tier: Tier) -> list[str]:
    with migration.writer(engine, "guarding run") as (connection, lease):
        return silencing.guard(connection, lease, tier.guarded)


def guard_all(engine: Engine) -> list[str]:
    with migration.writer(engine, "guarding run") as (connection, lease):
        with connection.begin():
            found = triggers.read(connection, cycle.bound(connection, SPEC))
        return silencing.guard(connection, lease, found)


def put_back(engine: Engine) -> list[str]:
    with migration.writer(engine, "another run") as (connection, lease):
        return silencing.put_back(connection, lease)


def definitions(engine: Engine) -> list[tuple[Any, ...]]:
    """All that the server knows of each trigger, but the place of its row."""
    with cycle.session(engine) as connection:
        return connection.execute(
            """SELECT tgrelid::regclass::text, tgname::text, pg_get_triggerdef(t.oid), tgenabled, tgtype, tgattr::text,
                      tgargs, tgdeferrable, obj_description(t.oid, 'pg_trigger'),
                      array(SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                            WHERE d.objid = t.oid AND d.deptype = 'x')
               FROM pg_trigger t WHERE NOT tgisinternal ORDER BY 1, 2"""
        ).fetchall()


def altered(engine: Engine) -> Mapping[str, Any]:
    found = cycle.run_sql(engine, "SELECT object, definition FROM uuid_pipeline.altered WHERE kind = 'trigger'")
    return {name: json.loads(text) for name, text in found}


def fired_by(engine: Engine, first: str) -> set[str]:
    """Names of the triggers that the writes fire after a first statement, all of it undone."""
    with cycle.session(engine) as connection:
        connection.execute(first)
        connection.execute(WRITES)
        names = {name for (name,) in connection.execute("SELECT name FROM shop.fired")}
        connection.rollback()
    return names


IN_BATCH = "SET LOCAL uuid_pipeline.batch = 'on'"
OUTSIDE = "SELECT"


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


PLAIN = "CREATE TRIGGER plain BEFORE UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();"


def test_a_table_that_others_hold_is_waited_for_then_refused_by_name_and_pid(
    bare_shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silencing, "LOCK_SECONDS", 0.5)
    cycle.run_sql(bare_shop, PLAIN)
    before = definitions(bare_shop)
    with cycle.session(bare_shop) as writer:
        writer.execute("UPDATE shop.things SET n = n")

        with pytest.raises(RefusedError) as refusal:
            guard_all(bare_shop)

        assert "shop.things could not be changed" in refusal.value.message
        assert f"now pid {writer.info.backend_pid}." in refusal.value.message
        assert (definitions(bare_shop), altered(bare_shop)) == (before, {})
        writer.rollback()
    assert guard_all(bare_shop) == ["plain on shop.things"]


def test_a_run_that_lost_its_lease_alters_nothing(shop: Engine) -> None:
    cycle.run_sql(shop, PLAIN)
    before = definitions(shop)
    with migration.writer(shop, "first") as (connection, lease):
        with connection.begin():
            found = triggers.read(connection, cycle.bound(connection, SPEC))
        cycle.run_sql(shop, "UPDATE uuid_pipeline.lease SET epoch = epoch + 1")

        with pytest.raises(RefusedError, match="lost its lease"):
            silencing.guard(connection, lease, found)

    assert definitions(shop) == before


ALWAYS = "ALTER TABLE shop.things ENABLE ALWAYS TRIGGER plain;"
REPLICA = "ALTER TABLE shop.things ENABLE REPLICA TRIGGER plain;"
CONSTRAINT = "CREATE CONSTRAINT TRIGGER plain AFTER UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();"
OTHER = "CREATE TRIGGER other BEFORE UPDATE ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();"


@pytest.mark.parametrize(
    ("made", "wishes", "tier", "guarded", "fired"),
    [
        ("", {}, "R", [], []),
        (PLAIN, {}, "R", [], []),
        (PLAIN, {"plain": "silence"}, "R", [], []),
        (PLAIN + OTHER, {"plain": "fire"}, "O", ["other"], ["plain"]),
        (PLAIN + ALWAYS + OTHER, {}, "R", ["plain"], []),
        (PLAIN + ALWAYS + OTHER, {"plain": "fire"}, "R", [], ["plain"]),
        (PLAIN + REPLICA + OTHER, {}, "O", ["other"], []),
        (PLAIN + REPLICA + OTHER, {"plain": "fire"}, "R", [], ["plain"]),
        (CONSTRAINT, {}, "R", [], []),
        (CONSTRAINT + OTHER, {"plain": "fire"}, "O", ["other"], ["plain"]),
        ("CREATE TRIGGER plain AFTER TRUNCATE ON shop.things EXECUTE FUNCTION shop.note()", {}, "R", [], []),
    ],
)
def test_the_tier_follows_from_what_is_to_fire(
    bare_shop: Engine, made: str, wishes: dict[str, Any], tier: str, guarded: list[str], fired: list[str]
) -> None:
    cycle.run_sql(bare_shop, made or OUTSIDE)

    found = tier_of(bare_shop, wishing(**wishes))

    assert (found.name, [t.name for t in found.guarded], [t.name for t in found.fired]) == (tier, guarded, fired)
    assert (found.refusals, found.missing) == ((), ())
    guard(bare_shop, found)
    # By hand what a batch does: only what is to fire does.
    role = "SET LOCAL session_replication_role = replica; " if tier == "R" else ""
    assert fired_by(bare_shop, role + IN_BATCH) == set(fired)


@pytest.mark.parametrize(
    ("made", "wishes", "why"),
    [
        (
            CONSTRAINT + OTHER,
            {"other": "fire"},
            r"constraint trigger plain on shop\.things .* `triggers: {plain: fire}`",
        ),
        (CONSTRAINT + ALWAYS, {}, r"constraint trigger plain .* tier R.*ENABLE TRIGGER instead of ALWAYS"),
        (PLAIN + REPLICA + OTHER, {"plain": "fire", "other": "fire"}, "plain .* does not fire in tier O"),
        (PLAIN, {"plane": "fire"}, "name plane, which no table that moves has"),
    ],
)
def test_what_cannot_be_as_the_spec_says_is_refused_with_the_way_out(
    bare_shop: Engine, made: str, wishes: dict[str, Any], why: str
) -> None:
    cycle.run_sql(bare_shop, made)

    (refusal,) = tier_of(bare_shop, wishing(**wishes)).refusals

    assert re.search(why, refusal)


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


@pytest.mark.parametrize(
    ("source", "does"),
    [
        ("BEGIN NEW.updated_at := now(); RETURN NEW; END", ["sets updated_at of the row itself"]),
        ("BEGIN IF NEW.a = OLD.a THEN NEW.b = 1; END IF; RETURN NEW; END", ["sets b of the row itself"]),
        (
            "BEGIN -- DELETE FROM nothing\n INSERT INTO audit.log VALUES (OLD.id); UPDATE ONLY totals t SET n = 1; END",
            ["writes to audit.log, totals (audit or outbox?)"],
        ),
        ("BEGIN PERFORM pg_notify('x', NEW.id::text); RETURN NULL; END", ["notifies listeners"]),
        ("BEGIN RAISE NOTICE 'x'; RAISE EXCEPTION 'keys never change'; END", ["raises errors"]),
        ("BEGIN EXECUTE format('DELETE FROM %I', TG_ARGV[0]); END", ["runs SQL that it builds itself"]),
        ("BEGIN SELECT 1 FROM t FOR UPDATE; RETURN NEW; END", ["writes nothing that its source shows"]),
    ],
)
def test_what_a_trigger_does_is_read_off_its_source(source: str, does: list[str]) -> None:
    assert triggers.deeds("plpgsql", source) == does
