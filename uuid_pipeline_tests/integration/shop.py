"""A store with triggers, and what tests ask of it."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.altered import silencing, triggers
from uuid_pipeline.engine.altered.triggers import Tier
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC_TEXT = """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: shop
    entities:
      thing: {table: things, key: id, identity: "{code}"}
    soft_references:
      - {table: parts, column: thing_id, entity: thing}
    """
SPEC = parse_spec(SPEC_TEXT, "test")

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

WRITES = """
UPDATE shop.things SET id = gen_random_uuid(); UPDATE shop.parts SET thing_id = gen_random_uuid();
INSERT INTO shop.things (code) VALUES ('new'); DELETE FROM shop.things WHERE code = 'new';
DELETE FROM shop.parts WHERE part = 1
"""


IN_BATCH = "SET LOCAL uuid_pipeline.batch = 'on'"
OUTSIDE = "SELECT"

PLAIN = "CREATE TRIGGER plain BEFORE UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();"
ALWAYS = "ALTER TABLE shop.things ENABLE ALWAYS TRIGGER plain;"


def build(engine: Engine) -> Engine:
    """A store whose ledger exists, as it does before any wave."""
    cycle.run_sql(engine, STORE)
    with engine.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    return engine


def wishing(**wishes: Literal["fire", "silence"]) -> Any:
    return SPEC.model_copy(update={"triggers": wishes})


def tier_of(engine: Engine, spec: Any = SPEC) -> Tier:
    with engine.begin() as connection:
        return triggers.choose(connection, cycle.bound(connection, spec))


def guard(engine: Engine, tier: Tier) -> list[str]:
    with leases.held(engine, "guarding run") as (connection, lease):
        return silencing.guard(connection, lease, tier.guarded)


def guard_all(engine: Engine) -> list[str]:
    with leases.held(engine, "guarding run") as (connection, lease):
        with connection.begin():
            found = triggers.read(connection, cycle.bound(connection, SPEC))
        return silencing.guard(connection, lease, found)


def put_back(engine: Engine) -> list[str]:
    with leases.held(engine, "another run") as (connection, lease):
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
