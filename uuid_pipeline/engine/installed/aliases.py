"""Aliases: stale ids that the application writes or asks for are taken for the ids that their rows have now."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import patience, sql
from uuid_pipeline.engine.installed import functions, resolving
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.engine.ledger import SCHEMA
from uuid_pipeline.engine.store import Entity, MovedTable, Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import RefusedError

# Sorts before the application's own triggers, which then see the id that will be stored.
TRIGGER = "00_uuid_pipeline_alias_ids"

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class AliasUse:
    """How often a stale id of an entity was translated, and when last (None: never)."""

    entity: str
    uses: int
    last_used: datetime | None


def create_functions(connection: Connection) -> None:
    """Make the functions that read and rewrite embedded ids in the ledger schema, where they do not stand yet."""
    functions.put_embedded(connection)


def install(engine: Engine, lease: Lease, store: Store, assessments: Sequence[int]) -> None:
    """Let stale ids of these assessments' id maps resolve, in every table of the store that holds ids.

    What stands as wanted is not touched. Where the id maps are others than before, each trigger is replaced too: that
    waits for the statements that began with the functions of before, and would go on with them (a COPY, say). Raises
    RefusedError when a table is not to be had for PATIENCE_SECONDS, naming who holds it, or when the lease is lost;
    what was installed before stays, and a repetition goes on from there.
    """
    with engine.begin() as connection:
        parts = {entity.name: _parts(connection, entity, assessments) for entity in store.entities}
    entities = [entity for entity in store.entities if parts[entity.name]]
    wanted = _wanted(entities, parts)
    views = [sql.shown(sql.table(SCHEMA, found.name)) for found in wanted if found.arguments is None]

    def in_ledger(connection: Connection) -> None:
        create_functions(connection)
        for entity in entities:
            _create_sequences(connection, entity)
        for found in wanted:
            functions.put(connection, found)
        for entity in entities:
            _open_to_readers(connection, entity)

    patiently(engine, lease, views, in_ledger, "ACCESS EXCLUSIVE")
    maps = ",".join(map(str, sorted({number for numbers in parts.values() for number in numbers})))
    for moved in store.tables:
        _install_on(engine, lease, store, moved, entities, maps)
        reach("aliasing")


def _wanted(entities: Sequence[Entity], parts: Mapping[str, Sequence[int]]) -> list[functions.Definition]:
    """What has to stand beside the triggers and their functions."""
    return [
        *resolving.journal(),
        *[found for entity in entities for found in resolving.of_entity(entity, parts[entity.name])],
    ]


def missing(connection: Connection, store: Store, assessments: Sequence[int]) -> list[str]:
    """Tables where stale ids of these assessments should resolve, and where somebody has dropped or disabled that."""
    entities = [entity for entity in store.entities if _parts(connection, entity, assessments)]
    found = []
    for moved in store.tables:
        wanted = resolving.on_table(store, moved, entities)
        if wanted is not None and _fires_on(connection, moved, wanted) != sorted(resolving.id_columns(moved, entities)):
            found.append(f"{moved.table.schema}.{moved.table.name}")
    return sorted(found)


def _parts(connection: Connection, entity: Entity, assessments: Sequence[int]) -> list[int]:
    """Those of the assessments that have an id map of this entity; an older plan may not have known it."""
    return [
        number
        for number in sorted(set(assessments))
        if sql.scalar(
            connection,
            "SELECT to_regclass(%(name)s)",
            {"name": sql.shown(sql.table(SCHEMA, resolving.map_part(entity, number)))},
        )
    ]


def _create_sequences(connection: Connection, entity: Entity) -> None:
    for prefix in (resolving.USES, resolving.LAST_USE):
        sequence = sql.table(SCHEMA, prefix + entity.name)
        # Asked first: who only rolls back may not create, and need not.
        if sql.scalar(connection, "SELECT to_regclass(%(name)s)", {"name": sql.shown(sequence)}):
            continue
        sql.execute(connection, sql.compose("CREATE SEQUENCE IF NOT EXISTS {sequence}", sequence=sequence))


# Who may read the entity's keys may ask what a stale one stands for. PUBLIC (0) and owners of ours are left out.
_READERS = """
SELECT DISTINCT pg_get_userbyid(acl.grantee) AS role
FROM pg_class c CROSS JOIN aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) acl
WHERE c.oid = %(oid)s AND acl.privilege_type = 'SELECT' AND acl.grantee <> 0
  AND pg_get_userbyid(acl.grantee) <> current_user
  -- Who was granted what a rollback writes in the ledger is to keep it (deploy/roles.sql).
  AND NOT has_table_privilege(acl.grantee, 'uuid_pipeline.repointed', 'DELETE')
ORDER BY 1
"""

# What a default privilege gave these roles on the ledger's tables: USAGE of the schema would open it to them.
_OPENED = """
SELECT DISTINCT c.relname FROM pg_class c CROSS JOIN aclexplode(c.relacl) acl
WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
  AND (c.relkind <> 'v' OR NOT has_schema_privilege(%(role)s::regrole, c.relnamespace, 'USAGE'))
  AND acl.grantee IN (0, %(role)s::regrole)
"""


def _open_to_readers(connection: Connection, entity: Entity) -> None:
    resolve = sql.compose(
        "{name}({type})",
        name=sql.table(SCHEMA, resolving.RESOLVE + entity.name),
        type=sql.Text(entity.key_type),
    )
    for row in sql.rows(connection, _READERS, {"oid": entity.table.oid}):
        role = sql.name(row.role)
        for found in sql.rows(connection, _OPENED, {"role": sql.shown(role)}):
            revoke = "REVOKE ALL ON {relation} FROM PUBLIC, {role}"
            sql.execute(connection, sql.compose(revoke, relation=sql.table(SCHEMA, found.relname), role=role))
        granted = sql.scalar(
            connection,
            "SELECT has_function_privilege(%(role)s, %(name)s, 'EXECUTE') "
            "AND has_schema_privilege(%(role)s, 'uuid_pipeline', 'USAGE')",
            {"role": row.role, "name": sql.shown(resolve)},
        )
        if not granted:
            sql.execute(connection, sql.compose("GRANT USAGE ON SCHEMA uuid_pipeline TO {role}", role=role))
            grant = sql.compose("GRANT EXECUTE ON FUNCTION {resolve} TO {role}", resolve=resolve, role=role)
            sql.execute(connection, grant)


def _install_on(
    engine: Engine, lease: Lease, store: Store, moved: MovedTable, entities: Sequence[Entity], maps: str
) -> None:
    wanted = resolving.on_table(store, moved, entities)
    if wanted is None:
        return
    columns = resolving.id_columns(moved, entities)

    def in_table(connection: Connection) -> None:
        functions.put(connection, wanted)
        if _fires_on(connection, moved, wanted) != sorted(columns) or not _knows(connection, moved, maps):
            sql.execute(connection, _trigger(moved, wanted, columns, maps))

    where = sql.shown(sql.table(moved.table.schema, moved.table.name))
    patiently(engine, lease, [where], in_table, "SHARE ROW EXCLUSIVE")


def _trigger(moved: MovedTable, wanted: functions.Definition, columns: Sequence[str], maps: str) -> sql.Composable:
    # A batch writes the ids that it means; in replica role the trigger does not fire, elsewhere the setting says so.
    # The argument only says which id maps the functions knew when every statement had begun to use them.
    return sql.compose(
        """CREATE OR REPLACE TRIGGER {name} BEFORE INSERT OR UPDATE OF {columns} ON {table} FOR EACH ROW
           WHEN (current_setting('uuid_pipeline.batch', true) IS DISTINCT FROM 'on')
           EXECUTE FUNCTION {function}({maps})""",
        name=sql.name(TRIGGER),
        maps=sql.literal(maps),
        columns=sql.join(", ", [sql.name(column) for column in columns]),
        table=sql.table(moved.table.schema, moved.table.name),
        function=sql.table(SCHEMA, wanted.name),
    )


def _knows(connection: Connection, moved: MovedTable, maps: str) -> bool:
    """Whether the table's trigger was made, or replaced, for these id maps, or is not this role's to replace.

    Who may make no trigger only rolls back: that moves nothing by a map that is new.
    """
    found = """SELECT NOT has_table_privilege(%(oid)s::oid, 'TRIGGER')
                      OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = %(oid)s AND g.tgname = %(trigger)s
                                 AND g.tgargs = convert_to(%(maps)s, 'UTF8') || decode('00', 'hex'))"""
    return bool(sql.scalar(connection, found, {"oid": moved.table.oid, "trigger": TRIGGER, "maps": maps}))


# The columns that a trigger of ours stands for. 23: BEFORE, FOR EACH ROW, on INSERT and UPDATE.
FIRES_ON = """
SELECT array(SELECT a.attname::text FROM unnest(g.tgattr::int2[]) k (n)
             JOIN pg_attribute a ON a.attrelid = g.tgrelid AND a.attnum = k.n) AS columns
FROM pg_trigger g WHERE g.tgrelid = %(oid)s AND g.tgname = %(trigger)s AND g.tgfoid = to_regprocedure(%(function)s)
  AND g.tgtype = 23 AND g.tgqual IS NOT NULL AND g.tgenabled = 'O'
"""


def _fires_on(connection: Connection, moved: MovedTable, wanted: functions.Definition) -> list[str]:
    """The columns that the table's trigger stands for; none when it is missing or another one."""
    asked = {"oid": moved.table.oid, "trigger": TRIGGER, "function": sql.shown(wanted.signature)}
    return sorted(sql.scalar(connection, FIRES_ON, asked) or [])


_INSTALLED = r"""
SELECT DISTINCT f.proname, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM pg_proc f LEFT JOIN pg_trigger g ON g.tgfoid = f.oid LEFT JOIN pg_class c ON c.oid = g.tgrelid
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE f.pronamespace = to_regnamespace('uuid_pipeline') AND f.proname LIKE 'alias\_on\_%%'
  AND f.prorettype = 'trigger'::regtype
ORDER BY 1, 2
"""


def installed(connection: Connection) -> list[str]:
    """The tables with our alias trigger, as ``schema.table``."""
    return sorted(row.name for row in sql.rows(connection, _INSTALLED) if row.name is not None)


# Which id maps a trigger was made for is its argument: text that ends in a zero byte.
_SERVES_OTHERS = r"""
SELECT EXISTS (
    SELECT FROM pg_trigger g JOIN pg_proc f ON f.oid = g.tgfoid
    CROSS JOIN LATERAL (
        SELECT convert_from(substring(g.tgargs FOR greatest(octet_length(g.tgargs) - 1, 0)), 'UTF8')) a (maps)
    WHERE f.pronamespace = to_regnamespace('uuid_pipeline') AND f.proname LIKE 'alias\_on\_%%'
      AND NOT string_to_array(a.maps, ',') <@ %(maps)s::text[])
"""


def serve_others(connection: Connection, assessments: Sequence[int]) -> bool:
    """Whether some alias trigger stands for other id maps than those of these assessments."""
    return bool(sql.scalar(connection, _SERVES_OTHERS, {"maps": [str(number) for number in assessments]}))


_COUNTED = """
SELECT substr(relname, length(%(prefix)s) + 1) AS entity FROM pg_class
WHERE relnamespace = to_regnamespace('uuid_pipeline') AND relkind = 'S' AND starts_with(relname, %(prefix)s)
ORDER BY oid
"""


def uses(connection: Connection) -> list[AliasUse]:
    """Translations counted by entity, since the first installation; a query may translate an id more than once.

    Of every entity with aliases, whatever the spec of now says.
    """
    found = []
    for counted in sql.rows(connection, _COUNTED, {"prefix": resolving.USES}):
        count, last = (sql.table(SCHEMA, prefix + counted.entity) for prefix in (resolving.USES, resolving.LAST_USE))
        statement = sql.compose(
            """SELECT CASE WHEN c.is_called THEN c.last_value ELSE 0 END AS uses,
                      CASE WHEN l.is_called THEN to_timestamp(l.last_value) END AS last_used
               FROM {count} c, {last} l""",
            count=count,
            last=last,
        )
        row = sql.rows(connection, statement)[0]
        found.append(AliasUse(counted.entity, int(row.uses), row.last_used))
    return found


def replace(engine: Engine, lease: Lease, store: Store, assessments: Sequence[int]) -> None:
    """As :func:`install`, and take away what served other id maps: what stays wanted is there all the while."""
    install(engine, lease, store, assessments)
    with engine.begin() as connection:
        kept = _names(connection, store, assessments)
    _remove_but(engine, lease, kept)


def _names(connection: Connection, store: Store, assessments: Sequence[int]) -> frozenset[str]:
    """The names of all that :func:`install` wants to stand."""
    parts = {entity.name: _parts(connection, entity, assessments) for entity in store.entities}
    entities = [entity for entity in store.entities if parts[entity.name]]
    on_tables = [resolving.on_table(store, moved, entities) for moved in store.tables]
    return frozenset(
        [found.name for found in [*_wanted(entities, parts), *on_tables] if found is not None]
        + [prefix + entity.name for prefix in (resolving.USES, resolving.LAST_USE) for entity in entities]
    )


def remove(engine: Engine, lease: Lease) -> None:
    """Take every alias away: triggers, functions, views, counts, and what was granted to readers.

    Raises RefusedError as :func:`install` does. Ids inside JSON can still be rewritten by a batch.
    """
    _remove_but(engine, lease, frozenset())


def _remove_but(engine: Engine, lease: Lease, kept: Collection[str]) -> None:
    with engine.begin() as connection:
        on_tables = [row for row in sql.rows(connection, _INSTALLED) if row.proname not in kept]
    for row in on_tables:
        # Dropping our own function drops its trigger, which asks for no right on the table.
        drop = sql.compose("DROP FUNCTION IF EXISTS {name}() CASCADE", name=sql.table(SCHEMA, row.proname))
        relations = [row.name] if row.name else []
        patiently(engine, lease, relations, partial(sql.execute, statement=drop), "ACCESS EXCLUSIVE")
        reach("removing")
    with engine.begin() as connection:
        found = sql.rows(connection, _REST, {"kept": list(kept)})
        rest = [row.name for row in found if row.kind != "FUNCTION"]
    patiently(engine, lease, rest, partial(_drop_rest, kept=kept), "ACCESS EXCLUSIVE")


_REST = r"""
SELECT 'VIEW' AS kind, c.oid::regclass::text AS name FROM pg_class c
WHERE c.relnamespace = to_regnamespace('uuid_pipeline') AND c.relkind = 'v' AND c.relname LIKE 'alias\_%%'
  AND c.relname <> ALL(%(kept)s)
UNION ALL
SELECT 'FUNCTION', f.oid::regprocedure::text FROM pg_proc f
WHERE f.pronamespace = to_regnamespace('uuid_pipeline') AND f.proname ~ '^((held|place|resolve)_|(in_force|stood)$)'
  AND f.proname <> ALL(%(kept)s)
UNION ALL
SELECT 'SEQUENCE', c.oid::regclass::text FROM pg_class c
WHERE c.relnamespace = to_regnamespace('uuid_pipeline') AND c.relkind = 'S' AND c.relname ~ '^alias_(uses|last)_'
  AND c.relname <> ALL(%(kept)s)
"""

# Who may use no table of the ledger's has USAGE from us (_open_to_readers); others keep theirs (deploy/roles.sql).
_GRANTED = """
SELECT DISTINCT pg_get_userbyid(acl.grantee) AS role FROM pg_proc f CROSS JOIN aclexplode(f.proacl) acl
WHERE f.pronamespace = to_regnamespace('uuid_pipeline') AND f.proname LIKE 'resolve\\_%%'
  AND f.proname <> ALL(%(kept)s) AND acl.grantee NOT IN (0, f.proowner)
  AND NOT EXISTS (SELECT FROM pg_proc k CROSS JOIN aclexplode(k.proacl) a
                  WHERE k.pronamespace = f.pronamespace AND k.proname = ANY(%(kept)s) AND k.proname LIKE 'resolve\\_%%'
                    AND a.grantee = acl.grantee)
  AND NOT EXISTS (SELECT FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
                  WHERE c.relnamespace = f.pronamespace AND c.relkind IN ('r', 'p') AND a.grantee = acl.grantee)
"""


def _drop_rest(connection: Connection, kept: Collection[str]) -> None:
    values = {"kept": list(kept)}
    for row in sql.rows(connection, _GRANTED, values):
        revoke = sql.compose("REVOKE USAGE ON SCHEMA uuid_pipeline FROM {role}", role=sql.name(row.role))
        sql.execute(connection, revoke)
    for row in sql.rows(connection, _REST, values):
        # The server wrote these names, quoted where they must be.
        name = sql.as_written(row.name)
        sql.execute(connection, sql.compose("DROP {kind} {name}", kind=sql.Text(row.kind), name=name))


def patiently(
    engine: Engine, lease: Lease, relations: Sequence[str], work: Callable[[Connection], object], mode: patience.Mode
) -> None:
    """One short transaction that makes or drops triggers of ours, tried again while locks are not to be had.

    ``mode``: what the work asks of the relations. Raises RefusedError when patience runs out, naming who holds them,
    and when the lease is lost.
    """

    def once(wait: float) -> None:
        with engine.begin() as connection:
            patience.set_up(connection, wait)
            # Who was overtaken would take away, or put up again, what another run relies on.
            leases.prove(connection, lease)
            # Two installations at once would replace the same functions, which the server takes for an error.
            sql.execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('uuid_pipeline.aliases', 0))")
            work(connection)

    def in_the_way() -> frozenset[str]:
        with engine.begin() as connection:
            named = "SELECT to_regclass(name)::oid AS oid FROM unnest(%(names)s::text[]) name"
            found = sql.rows(connection, named, {"names": list(relations)})
            return patience.holders(connection, [row.oid for row in found if row.oid is not None], mode)

    try:
        patience.patiently(once, PATIENCE_SECONDS, in_the_way)
    except patience.OutOfPatienceError as error:
        raise RefusedError(_who_holds(engine, relations, mode)) from error


# Whoever holds a lock there for long; other sessions' times are shown to those only who may see their statistics.
_HOLDERS = """
SELECT l.pid, quote_literal(p.gid) AS gid, string_agg(DISTINCT l.mode, ', ') AS mode, a.usename,
       coalesce(a.state, 'state not shown') AS state,
       round(extract(epoch FROM clock_timestamp() - a.xact_start))::bigint AS seconds
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid {prepared}
WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.database = (SELECT oid FROM pg_database
          WHERE datname = current_database())
  AND ((l.relation = ANY(%(relations)s::regclass[])
        AND (%(mode)s = 'ACCESS EXCLUSIVE' OR l.mode NOT IN ('AccessShareLock', 'RowShareLock')))
       OR (l.locktype = 'advisory' AND (l.classid::bigint << 32 | l.objid::bigint)
           = hashtextextended('uuid_pipeline.aliases', 0)))
GROUP BY l.pid, p.gid, a.usename, a.state, a.xact_start ORDER BY 1, 2
"""


def _who_holds(engine: Engine, relations: Sequence[str], mode: patience.Mode) -> str:
    with engine.begin() as connection:
        sql.execute(connection, "SELECT set_config('search_path', 'pg_catalog', true)")
        holding = sql.compose(_HOLDERS, prepared=sql.Text(patience.PREPARED))
        found = sql.rows(connection, holding, {"relations": list(relations), "mode": mode})
        named = sql.rows(connection, "SELECT unnest(%(names)s::regclass[])::text AS name", {"names": list(relations)})
    holders = [
        f"prepared transaction {row.gid} ({row.mode})"
        if row.pid is None
        else f"pid {row.pid} ({row.usename or 'unknown'}, {row.mode}, {row.state}, "
        + (f"for {row.seconds} s)" if row.seconds is not None else "for how long is not shown)")
        for row in found
    ]
    where = ", ".join(row.name for row in named) or "the ledger"
    return (
        f"Our triggers need a short lock on {where}, which was not to be had for {PATIENCE_SECONDS:.0f} s. "
        f"Held by: {', '.join(holders) or 'transactions that have just ended'}. "
        f"{patience.END_THEM}, or wait until they end, and run again."
    )
