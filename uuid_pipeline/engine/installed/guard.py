"""The guard: triggers that keep new ids out which their natural key does not give; installed, reported, removed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, LiteralString, cast, get_args

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, ledger_rights, sql
from uuid_pipeline.engine.altered.silencing import CONDITION
from uuid_pipeline.engine.installed import aliases, dependents, functions
from uuid_pipeline.engine.installed import guard_functions as texts
from uuid_pipeline.engine.installed.guard_functions import Hashing, Mode
from uuid_pipeline.engine.installed.resolving import GUARD, GUARDED
from uuid_pipeline.engine.ledger import SCHEMA
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import RefusedError, UsageError

# Sorts after the application's own triggers: what they set belongs to what will be stored.
TRIGGER = "zz_uuid_pipeline_guard_ids"
KEPT_SAMPLES = 1_000


@dataclass(frozen=True)
class Guarded:
    """One entity's guard: what it does, and what it has caught since it was installed.

    ``unjudged``: rows without a target id (a part is NULL or not valid, or the parent is not there), which pass.
    ``current``: whether it stands, as this spec wants it. ``last_caught``: UTC, None when nothing was caught.
    """

    entity: str
    table: str
    mode: str
    hashing: str
    current: bool
    installed_at: datetime
    removed_at: datetime | None
    caught: int
    unjudged: int
    last_caught: datetime | None


def mode_of(text: str) -> Mode:
    """The mode of this name. Raises UsageError for any other."""
    for mode in get_args(Mode):
        if text == mode:
            return cast(Mode, mode)
    raise UsageError(f"The guard has no mode {text!r}; it has {', '.join(get_args(Mode))}.")


def install(engine: Engine, store: Store, mode: Mode, names: Sequence[str], run_id: str) -> list[str]:
    """Guard these entities (all, when none is named) in this mode; returns their names.

    What stands as wanted is not touched. Raises UsageError for an unknown entity, and RefusedError when one cannot be
    judged inside the server, when a right is missing, or when another run writes.
    """
    chosen = _chosen(store, names)
    with engine.begin() as connection:
        how = texts.hashing(connection)
        _require_judgeable(connection, chosen)
        _require_rights(connection, store, chosen, mode)
    with leases.held(engine, run_id) as (connection, lease):
        with connection.begin():
            leases.hold(connection, lease)
            _prepare(connection, store, chosen, mode, how)
            in_force = ledger.assessments_in_force(connection)
        if mode == "rewrite":
            # First what finds rewritten rows by the ids that their writers know, then what rewrites.
            aliases.install(engine, lease, store, sorted({GUARD, *in_force}))
        for entity in chosen:
            relation = sql.shown(sql.table(entity.table.schema, entity.table.name))
            work = partial(_guard, store=store, entity=entity, mode=mode, how=how)
            aliases.patiently(engine, lease, [relation], work, "SHARE ROW EXCLUSIVE")
        with connection.begin():
            leases.hold(connection, lease)
            ledger.audit(connection, "guard installed", {"mode": mode, "entities": [one.name for one in chosen]})
    return [entity.name for entity in chosen]


def _chosen(store: Store, names: Sequence[str]) -> list[Entity]:
    known = {entity.name for entity in store.entities}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"The spec has no entity {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    return [entity for entity in store.entities if not names or entity.name in names]


def _with_parents(store: Store, chosen: Collection[Entity]) -> list[Entity]:
    """The parents that target ids of the chosen entities are made of, topmost first."""
    wanted: dict[str, Entity] = {}
    for entity in chosen:
        at = entity
        while at.parent is not None:
            at = store.entity(at.parent)
            wanted[at.name] = at
    return sorted(wanted.values(), key=lambda entity: entity.level)


def _with_targets(store: Store, chosen: Sequence[Entity], mode: Mode) -> list[Entity]:
    """The entities whose rows' target ids are asked for: the parents, and who has an id that a rewrite would give."""
    parents = _with_parents(store, chosen)
    return parents + [entity for entity in chosen if mode == "rewrite" and entity not in parents]


def _require_judgeable(connection: Connection, chosen: Sequence[Entity]) -> None:
    """Refuse what a trigger would judge otherwise than the inventory does."""
    for entity in chosen:
        generated = [f for f in entity.spec.template.fields if entity.table.columns[f].generated]
        if generated:
            raise RefusedError(
                f"{entity.name} cannot be guarded: {entity.table.name}.{', '.join(generated)} is generated, and a "
                "trigger sees no value of it before the row is stored. Guard the other entities with --entity."
            )
        for field, pattern in entity.spec.valid.items():
            if not _reads(connection, pattern):
                raise RefusedError(
                    f"{entity.name} cannot be guarded: PostgreSQL and Python may read the pattern of {field} in the "
                    f"spec's `valid` differently ({pattern}). Write it with literals, [classes], counts, groups and "
                    r"^ $ only: [0-9] for \d, [^,] for a dot."
                )


def _reads(connection: Connection, pattern: str) -> bool:
    if not texts.same_in_both(pattern):
        return False
    savepoint = connection.begin_nested()
    try:
        sql.scalar(connection, "SELECT '' ~ %(pattern)s", {"pattern": pattern})
    except DBAPIError as error:
        if not (sql.sqlstate(error) or "").startswith("22"):
            raise
        return False
    else:
        return True
    finally:
        savepoint.rollback()


def _require_rights(connection: Connection, store: Store, chosen: Sequence[Entity], mode: Mode) -> None:
    # A rewrite also needs the aliases, on every table that holds ids.
    tables = [moved.table for moved in store.tables] if mode == "rewrite" else [entity.table for entity in chosen]
    missing = [
        sql.shown(sql.table(table.schema, table.name))
        for table in tables
        if not sql.scalar(connection, "SELECT has_table_privilege(%(oid)s, 'TRIGGER')", {"oid": table.oid})
    ]
    if missing:
        role = sql.scalar(connection, "SELECT quote_ident(current_user)")
        raise RefusedError(
            f"This role may not create triggers on {', '.join(missing)}. "
            f"As the owner: GRANT TRIGGER ON {', '.join(missing)} TO {role};"
        )


def _prepare(connection: Connection, store: Store, chosen: Sequence[Entity], mode: Mode, how: Hashing) -> None:
    """What the trigger functions need: counts, the map of rewritten ids, the parents' target ids, SHA-1."""
    if how.extension is None:
        functions.put(connection, texts.sha1())
    for entity in _with_targets(store, chosen, mode):
        _put(connection, texts.target_of(store, entity, how), how)
    for entity in chosen:
        for prefix in (texts.CAUGHT, texts.UNJUDGED, texts.LAST):
            sequence = sql.table(SCHEMA, prefix + entity.name)
            sql.execute(connection, sql.compose("CREATE SEQUENCE IF NOT EXISTS {sequence}", sequence=sequence))
        if mode == "rewrite":
            _create_map(connection, entity)
        sql.execute(connection, _RECORD, {"entity": entity.name, "mode": mode, "hashing": how.name})


# It counts anew after a removal; a change of mode goes on counting. What was rewritten resolves until it is removed.
_RECORD = """
INSERT INTO uuid_pipeline.guards AS g (entity, mode, hashing, rewrites)
VALUES (%(entity)s, %(mode)s, %(hashing)s, %(mode)s = 'rewrite')
ON CONFLICT (entity) DO UPDATE SET mode = excluded.mode, hashing = excluded.hashing,
    rewrites = excluded.rewrites OR (g.rewrites AND g.removed_at IS NULL),
    installed_at = CASE WHEN g.removed_at IS NULL THEN g.installed_at ELSE clock_timestamp() END,
    removed_at = NULL, caught = NULL, unjudged = NULL
"""


def _create_map(connection: Connection, entity: Entity) -> None:
    table = sql.table(SCHEMA, GUARDED + entity.name)
    new = not ledger.is_table(connection, table)
    like = "CREATE TABLE IF NOT EXISTS {table} (LIKE {map} INCLUDING DEFAULTS, UNIQUE (old_id))"
    sql.execute(connection, sql.compose(like, table=table, map=ledger.map_table(entity)))
    if new:
        ledger_rights.keep_ours(connection, table)
    index = "CREATE INDEX IF NOT EXISTS {name} ON {table} (new_id)"
    sql.execute(connection, sql.compose(index, name=sql.name(f"{GUARDED}new_{entity.name}"), table=table))


def _put(connection: Connection, wanted: functions.Definition, how: Hashing) -> None:
    """Make a function, and let the extension that it calls not be dropped from under it."""
    functions.put(connection, wanted)
    marked = sql.rows(connection, _DEPENDS, {"function": sql.shown(wanted.signature)})
    for row in marked:
        if row.extname != how.extension:
            _depend(connection, wanted, "NO DEPENDS", row.extname)
    if how.extension is not None and how.extension not in [row.extname for row in marked]:
        _depend(connection, wanted, "DEPENDS", how.extension)


_DEPENDS = """
SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_proc'::regclass AND d.objid = %(function)s::regprocedure AND d.deptype = 'x'
"""


def _depend(connection: Connection, wanted: functions.Definition, verb: LiteralString, extension: str) -> None:
    statement = sql.compose(
        "ALTER FUNCTION {function} {verb} ON EXTENSION {extension}",
        function=wanted.signature,
        verb=sql.Text(verb),
        extension=sql.name(extension),
    )
    sql.execute(connection, statement)


def _guard(connection: Connection, store: Store, entity: Entity, mode: Mode, how: Hashing) -> None:
    wanted = texts.on_table(store, entity, mode, how)
    _put(connection, wanted, how)
    if _fires_on(connection, entity, wanted) == [entity.key]:
        return
    # A batch writes the ids that it means, and so does a rollback: in replica role the trigger does not fire,
    # elsewhere the setting says so.
    trigger = sql.compose(
        """CREATE OR REPLACE TRIGGER {name} BEFORE INSERT OR UPDATE OF {key} ON {table} FOR EACH ROW
           WHEN ({condition}) EXECUTE FUNCTION {function}""",
        name=sql.name(TRIGGER),
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
        condition=sql.Text(CONDITION),
        function=wanted.signature,
    )
    sql.execute(connection, trigger)


def _fires_on(connection: Connection, entity: Entity, wanted: functions.Definition) -> list[str]:
    asked = {"oid": entity.table.oid, "trigger": TRIGGER, "function": sql.shown(wanted.signature)}
    return list(sql.scalar(connection, aliases.FIRES_ON, asked) or [])


def remove(engine: Engine, store: Store, run_id: str) -> list[str]:
    """Take every guard away, with its functions and counts; returns the entities that were guarded.

    What they counted and sampled stays in the ledger. Ids that a guard rewrote no longer resolve.
    Raises RefusedError when a table is not to be had, when another run writes, or when the application has made
    something with what would be dropped.
    """
    with leases.held(engine, run_id) as (connection, lease):
        with connection.begin():
            leases.hold(connection, lease)
            found = sql.rows(connection, _INSTALLED)
            rewrote = GUARD in ledger.assessments_in_force(connection)
            names = installed(connection)
            dependents.require_none(connection, dependents.ALIASES)
        for row in found:
            # Dropping our own function drops its trigger, which asks for no right on the table.
            drop = sql.compose("DROP FUNCTION IF EXISTS {name}() CASCADE", name=sql.table(SCHEMA, row.proname))
            relations = [row.name] if row.name else []
            aliases.patiently(engine, lease, relations, partial(sql.execute, statement=drop), "ACCESS EXCLUSIVE")
        with connection.begin():
            leases.hold(connection, lease)
            _close(connection, names)
            in_force = ledger.assessments_in_force(connection)
        if rewrote and in_force:
            # Ids of before a migration resolve all the while.
            aliases.replace(engine, lease, store, in_force)
        elif rewrote:
            aliases.remove(engine, lease)
    return names


def _close(connection: Connection, names: Sequence[str]) -> None:
    """Keep the last counts, and drop what was only for the triggers."""
    for name in names:
        caught, unjudged, last = _counts(connection, name)
        sql.execute(
            connection,
            """UPDATE uuid_pipeline.guards SET removed_at = clock_timestamp(), caught = %(caught)s,
                      unjudged = %(unjudged)s, last_caught = %(last)s WHERE entity = %(entity)s""",
            {"entity": name, "caught": caught, "unjudged": unjudged, "last": last},
        )
    for row in sql.rows(connection, _REST):
        # The server wrote these names, quoted where they must be.
        drop = sql.compose("DROP {kind} {name}", kind=sql.Text(row.kind), name=sql.as_written(row.name))
        sql.execute(connection, drop)
    if names:
        ledger.audit(connection, "guard removed", {"entities": list(names)})


_INSTALLED = r"""
SELECT DISTINCT f.proname, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM pg_proc f LEFT JOIN pg_trigger g ON g.tgfoid = f.oid LEFT JOIN pg_class c ON c.oid = g.tgrelid
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE f.pronamespace = to_regnamespace('uuid_pipeline') AND f.proname LIKE 'guard\_on\_%%'
  AND f.prorettype = 'trigger'::regtype
ORDER BY 1, 2
"""

_REST = r"""
SELECT 'FUNCTION' AS kind, f.oid::regprocedure::text AS name FROM pg_proc f
WHERE f.pronamespace = to_regnamespace('uuid_pipeline') AND f.proname ~ '^guard_(target_|sha1$)'
UNION ALL
SELECT 'SEQUENCE', c.oid::regclass::text FROM pg_class c
WHERE c.relnamespace = to_regnamespace('uuid_pipeline') AND c.relkind = 'S'
  AND c.relname ~ '^guard_(caught|unjudged|last)_'
"""


def consequences(connection: Connection) -> list[str]:
    """What a removal makes impossible, a sentence each."""
    if GUARD not in ledger.assessments_in_force(connection):
        return []
    return ["ids that the guard rewrote no longer resolve: a writer that still uses one gets an error, or an orphan"]


def installed(connection: Connection) -> list[str]:
    """The entities that the ledger says are guarded."""
    if not sql.scalar(connection, "SELECT to_regclass('uuid_pipeline.guards') IS NOT NULL"):
        return []
    found = sql.rows(connection, "SELECT entity FROM uuid_pipeline.guards WHERE removed_at IS NULL ORDER BY 1")
    return [row.entity for row in found]


_COUNTS = """
SELECT CASE WHEN c.is_called THEN c.last_value ELSE 0 END AS caught,
       CASE WHEN u.is_called THEN u.last_value ELSE 0 END AS unjudged,
       CASE WHEN l.is_called THEN to_timestamp(l.last_value) END AS last_caught
FROM {caught} c, {unjudged} u, {last} l
"""


def _counts(connection: Connection, name: str) -> tuple[int, int, datetime | None]:
    caught, unjudged, last = (sql.table(SCHEMA, p + name) for p in (texts.CAUGHT, texts.UNJUDGED, texts.LAST))
    row = sql.rows(connection, sql.compose(_COUNTS, caught=caught, unjudged=unjudged, last=last))[0]
    return int(row.caught), int(row.unjudged), row.last_caught


def report(connection: Connection, store: Store) -> list[Guarded]:
    """Every guard that stands or stood, by entity."""
    how = texts.hashing(connection)
    found = []
    for row in sql.rows(connection, "SELECT * FROM uuid_pipeline.guards ORDER BY installed_at, entity"):
        standing = row.removed_at is None
        caught, unjudged, last = (
            _counts(connection, row.entity) if standing else (int(row.caught), int(row.unjudged), row.last_caught)
        )
        entity = next((one for one in store.entities if one.name == row.entity), None)
        found.append(
            Guarded(
                row.entity,
                f"{entity.table.schema}.{entity.table.name}" if entity else "not in this spec",
                row.mode,
                row.hashing,
                standing and entity is not None and _current(connection, store, entity, row.mode, how),
                row.installed_at,
                row.removed_at,
                caught,
                unjudged,
                last,
            )
        )
    return found


def _current(connection: Connection, store: Store, entity: Entity, mode: Mode, how: Hashing) -> bool:
    wanted = [texts.on_table(store, entity, mode, how)]
    wanted += [texts.target_of(store, judged, how) for judged in _with_targets(store, [entity], mode)]
    return all(functions.stands(connection, one) for one in wanted) and _fires_on(connection, entity, wanted[0]) == [
        entity.key
    ]


def counts(connection: Connection) -> list[tuple[str, str, int, int]]:
    """Of each guard that stands: entity, mode, rows caught, rows without a target id."""
    found = sql.rows(connection, "SELECT entity, mode FROM uuid_pipeline.guards WHERE removed_at IS NULL ORDER BY 1")
    return [(row.entity, row.mode, *_counts(connection, row.entity)[:2]) for row in found]


def samples(connection: Connection, limit: int = 20) -> list[dict[str, Any]]:
    """The newest of what was caught and stored, with who wrote it."""
    found = sql.rows(
        connection,
        """SELECT at, entity, mode, given_id, target_id, role, application FROM uuid_pipeline.guard_samples
           ORDER BY sample_no DESC LIMIT %(limit)s""",
        {"limit": limit},
    )
    return [dict(row._mapping) for row in found]


def forget_old_samples(connection: Connection) -> None:
    """Keep the newest KEPT_SAMPLES."""
    sql.execute(
        connection,
        """DELETE FROM uuid_pipeline.guard_samples
           WHERE sample_no <= (SELECT max(sample_no) - %(kept)s FROM uuid_pipeline.guard_samples)""",
        {"kept": KEPT_SAMPLES},
    )
