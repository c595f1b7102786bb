"""The application's triggers: which of them a batch keeps out, in which tier, and with what rights.

Tier R silences by session_replication_role. Tier O, and R for triggers marked ALWAYS, by a condition of ours in the
trigger itself (``silencing``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.merges import emptying
from uuid_pipeline.engine.store import MovedTable, Store

TierName = Literal["R", "O"]


@dataclass(frozen=True)
class MissingRight:
    right: str
    object: str
    remedy: str


@dataclass(frozen=True)
class UserTrigger:
    """A trigger that an UPDATE, INSERT or DELETE of ours would fire, with what this role may do about it."""

    schema: str
    table: str
    name: str
    enabled: str  # O origin, R replica, A always
    definition: str
    events: str
    function: str
    language: str
    source: str
    constraint: bool
    owner: str
    needs_owner: bool
    is_owner: bool
    may_update: bool
    may_trigger: bool
    may_execute: bool

    @property
    def place(self) -> str:
        return f"{self.name} on {self.schema}.{self.table}"


@dataclass(frozen=True)
class Tier:
    """How a batch keeps triggers out: ``silenced`` are all of them, ``guarded`` those that need our condition.

    ``refusals`` and ``missing`` stand in the way of every batch, ``of_merging`` of those that merge.
    """

    name: TierName
    reason: str
    silenced: tuple[UserTrigger, ...]
    guarded: tuple[UserTrigger, ...]
    fired: tuple[UserTrigger, ...]
    refusals: tuple[str, ...]
    missing: tuple[MissingRight, ...]
    of_merging: tuple[str, ...]


# Replacing a trigger loses its mark (ALWAYS) and its dependencies on extensions; only the owner may renew them.
_READ = """
SELECT n.nspname, c.relname, g.tgname, g.tgenabled::text, pg_get_triggerdef(g.oid) AS definition,
       concat_ws(' ', CASE WHEN g.tgtype & 2 <> 0 THEN 'BEFORE' ELSE 'AFTER' END,
                 concat_ws(' OR ', CASE WHEN g.tgtype & 4 <> 0 THEN 'INSERT' END,
                           CASE WHEN g.tgtype & 16 <> 0 THEN concat_ws(' OF ', 'UPDATE', l.listed) END,
                           CASE WHEN g.tgtype & 8 <> 0 THEN 'DELETE' END),
                 CASE WHEN g.tgtype & 1 <> 0 THEN 'for each row' ELSE 'for each statement' END) AS events,
       quote_ident(fn.nspname) || '.' || quote_ident(p.proname) AS function, pl.lanname, p.prosrc,
       g.tgconstraint <> 0, quote_ident(pg_get_userbyid(c.relowner)) AS owner,
       g.tgenabled = 'A' OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_trigger'::regclass
                                    AND d.objid = g.oid AND d.deptype = 'x') AS needs_owner,
       pg_has_role(c.relowner, 'USAGE'), has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'TRIGGER'),
       has_function_privilege(p.oid, 'EXECUTE'),
       c.oid AS table_oid, g.tgtype & 12 <> 0 AS not_only_update, l.names
FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace fn ON fn.oid = p.pronamespace
JOIN pg_language pl ON pl.oid = p.prolang
CROSS JOIN LATERAL (
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS listed, array_agg(a.attname::text) AS names
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (g.tgattr::int2[])) l
WHERE g.tgrelid = ANY(%(oids)s) AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype & 28 <> 0
  AND fn.nspname <> 'uuid_pipeline'
ORDER BY n.nspname, c.relname, g.tgname
"""


def read(connection: Connection, store: Store) -> tuple[UserTrigger, ...]:
    """Every enabled trigger of the application that writes of ours to the moved tables can fire, as it was made."""
    return _read(connection, {moved.table.oid: _written(moved) for moved in store.tables})


def read_hanging(connection: Connection, store: Store) -> tuple[UserTrigger, ...]:
    """The same of tables without ids of which merging may archive rows, or empty a foreign key to one that goes."""
    if all(root.spec.on_duplicate == "block" for root in store.roots):
        return ()
    displaced, emptied = emptying.touched_by_merging(store)
    written: dict[int, set[str]] = {table.oid: set() for table in displaced}
    for table, columns in emptied:
        written.setdefault(table.oid, set()).update(columns)
    return _read(connection, {o: w for o, w in written.items() if all(o != m.table.oid for m in store.tables)})


def _read(connection: Connection, written: Mapping[int, set[str]]) -> tuple[UserTrigger, ...]:
    """``written``: by table the columns that an UPDATE of ours may write."""
    catalogs.pin_names(connection)
    as_made = catalogs.triggers_as_made(connection)
    found = []
    for row in sql.rows(connection, _READ, {"oids": list(written)}):
        if row.not_only_update or row.names is None or written[row.table_oid] & set(row.names):
            *facts, _, _, _ = row
            facts[4] = as_made.get((row.nspname, row.relname, row.tgname), {}).get(row.definition, row.definition)
            found.append(UserTrigger(*facts))
    return tuple(found)


def _written(moved: MovedTable) -> set[str]:
    """Columns of a table that a batch writes, or that the server computes anew from them."""
    generated = {column.name for column in moved.table.columns.values() if column.generated}
    return {column for column, _ in moved.columns} | {held.column for held in moved.embedded} | generated


_TRIED = "uuid_pipeline.may_silence_triggers"


def may_silence_triggers(connection: Connection) -> bool:
    """Whether the role may set session_replication_role: tried, as hosted services allow it by hooks.

    Once a connection: each try that is refused is an ERROR in the server's log.
    """
    if _TRIED not in connection.info:
        connection.info[_TRIED] = _try_to_silence(connection)
    return bool(connection.info[_TRIED])


def _try_to_silence(connection: Connection) -> bool:
    savepoint = connection.begin_nested()
    try:
        sql.execute(connection, "SET LOCAL session_replication_role = replica")
    except DBAPIError as error:
        if sql.sqlstate(error) != sql.INSUFFICIENT_PRIVILEGE:
            raise
        return False
    else:
        return True
    finally:
        savepoint.rollback()


def choose(connection: Connection, store: Store) -> Tier:
    """The tier for this role, store and spec, with the triggers of each kind and what stands in its way."""
    found, hanging = read(connection, store), read_hanging(connection, store)
    wished = {name for name, wish in store.spec.triggers.items() if wish == "fire"}
    allowed = may_silence_triggers(connection)
    hindrance = _why_not_r([*found, *hanging], wished, allowed)
    name: TierName = "O" if hindrance else "R"
    role = str(sql.scalar(connection, "SELECT quote_ident(current_user)"))
    fired, silenced = _fired_and_silenced(found, name, wished)
    fired_too, silenced_too = _fired_and_silenced(hanging, name, wished)
    guarded = _guarded(silenced, name)
    # Nothing need be kept out of a table without ids unless something merges: what cannot be is asked for only then.
    in_the_way = [trigger for trigger in _guarded(silenced_too, name) if trigger.constraint or _missing(trigger, role)]
    silenced_too = tuple(trigger for trigger in silenced_too if trigger not in in_the_way)
    return Tier(
        name,
        hindrance or "this role may set session_replication_role, and no trigger is to fire that it would silence",
        (*silenced, *silenced_too),
        (*guarded, *_guarded(silenced_too, name)),
        (*fired, *fired_too),
        tuple(_refusals(connection, store, [*found, *hanging], name, guarded)),
        tuple(dict.fromkeys(right for trigger in guarded for right in _missing(trigger, role))),
        tuple(_in_the_way_of_merging(in_the_way, name, role)),
    )


def _fired_and_silenced(
    found: Sequence[UserTrigger], tier: TierName, wished: set[str]
) -> tuple[tuple[UserTrigger, ...], tuple[UserTrigger, ...]]:
    # In origin role (tier O) a trigger marked REPLICA does not fire; in tier R it is here only when it is to fire.
    live = [trigger for trigger in found if tier == "R" or trigger.enabled != "R"]
    fired = tuple(trigger for trigger in live if trigger.name in wished)
    return fired, tuple(trigger for trigger in live if trigger.name not in wished)


def _guarded(silenced: Sequence[UserTrigger], tier: TierName) -> tuple[UserTrigger, ...]:
    """Those that no setting keeps out."""
    return tuple(trigger for trigger in silenced if tier == "O" or trigger.enabled == "A")


def _in_the_way_of_merging(found: Sequence[UserTrigger], tier: TierName, role: str) -> list[str]:
    """What a merge must keep out and cannot: asked for only where there is something to merge."""
    constraints = [_no_way_out(trigger, tier) for trigger in found if trigger.constraint]
    rights = [right for trigger in found if not trigger.constraint for right in _missing(trigger, role)]
    return constraints + [f"{r.right} on {r.object} is missing: {r.remedy}" for r in dict.fromkeys(rights)]


def _why_not_r(found: Sequence[UserTrigger], wished: set[str], allowed: bool) -> str | None:
    if not allowed:
        return "this role may not set session_replication_role"
    for trigger in found:
        if trigger.enabled == "O" and trigger.name in wished:
            return f"the spec lets trigger {trigger.place} fire, which tier R would silence"
        if trigger.enabled == "R" and trigger.name not in wished:
            return f"trigger {trigger.place} is marked ENABLE REPLICA and would fire in tier R alone"
    return None


def _refusals(
    connection: Connection, store: Store, found: Sequence[UserTrigger], tier: TierName, guarded: Sequence[UserTrigger]
) -> list[str]:
    constraints = [_no_way_out(trigger, tier) for trigger in guarded if trigger.constraint]
    replica = [
        f"the spec lets trigger {trigger.place} fire, which is marked ENABLE REPLICA and does not fire in tier O; "
        f"take `{trigger.name}` out of the spec's triggers"
        for trigger in found
        if tier == "O" and trigger.enabled == "R" and store.spec.triggers.get(trigger.name) == "fire"
    ]
    oids = [moved.table.oid for moved in store.tables]
    there = sql.rows(connection, "SELECT tgname FROM pg_trigger WHERE tgrelid = ANY(%(oids)s)", {"oids": oids})
    known = {row.tgname for row in there} | {trigger.name for trigger in found}
    unknown = [
        f"the spec's triggers name {name}, which no table that moves has"
        for name in sorted(store.spec.triggers.keys() - known)
    ]
    return constraints + replica + unknown


def _no_way_out(trigger: UserTrigger, tier: TierName) -> str:
    other = (
        "mark it ENABLE TRIGGER instead of ALWAYS" if tier == "R" else "migrate as a role and spec that allow tier R"
    )
    return (
        f"constraint trigger {trigger.place} cannot be kept out in tier {tier}: PostgreSQL replaces no constraint "
        f"trigger. Let it fire (spec: `triggers: {{{trigger.name}: fire}}`), or {other}"
    )


def _missing(trigger: UserTrigger, role: str) -> list[MissingRight]:
    """What a role without the right lacks to replace this trigger, and to lock its table while it does."""
    table, quoted = f"table {trigger.schema}.{trigger.table}", sql.shown(sql.table(trigger.schema, trigger.table))
    asked = [
        (trigger.may_update, "UPDATE", table, f"GRANT UPDATE ON {quoted} TO {role};"),
        (trigger.may_trigger, "TRIGGER", table, f"GRANT TRIGGER ON {quoted} TO {role};"),
        (
            trigger.may_execute,
            "EXECUTE",
            f"function {trigger.function}() (to keep trigger {trigger.name} out)",
            f"GRANT EXECUTE ON FUNCTION {trigger.function}() TO {role};",
        ),
        (
            trigger.is_owner or not trigger.needs_owner,
            "ownership",
            f"{table} (to keep trigger {trigger.name} out, which is marked ALWAYS or depends on an extension)",
            f"GRANT {trigger.owner} TO {role};",
        ),
    ]
    return [MissingRight(right, thing, remedy) for granted, right, thing, remedy in asked if not granted]


_MARKED = "SELECT set_config('uuid_pipeline.batch', 'on', true)"


def silence(connection: Connection, tier: TierName) -> None:
    """Keep the silenced triggers out of this transaction, which is a batch's."""
    replica = ", set_config('session_replication_role', 'replica', true)"
    sql.execute(connection, _MARKED + replica if tier == "R" else _MARKED)


ROW_DEED = "sets "
_NAME = r'((?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))?)'
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
# An assignment stands where a statement begins; elsewhere NEW.column = … is a comparison.
_ASSIGNED = re.compile(rf"(?:^|;|\b(?:BEGIN|THEN|ELSE|LOOP|INTO))\s*NEW\.{_NAME}(?:\s*:?=|\s+FROM\b)", re.IGNORECASE)
_WRITES = (
    re.compile(rf"\b(?:INSERT|MERGE)\s+INTO\s+{_NAME}", re.IGNORECASE),
    re.compile(rf"\bDELETE\s+FROM\s+(?:ONLY\s+)?{_NAME}", re.IGNORECASE),
    re.compile(rf"\bUPDATE\s+(?:ONLY\s+)?{_NAME}(?:\s+(?:AS\s+)?\w+)?\s+SET\b", re.IGNORECASE),
)
_OTHER_DEEDS = (
    (re.compile(r"\bpg_notify\s*\(|\bNOTIFY\b", re.IGNORECASE), "notifies listeners"),
    (re.compile(r"\bRAISE\b(?!\s+(?:NOTICE|WARNING|INFO|LOG|DEBUG)\b)", re.IGNORECASE), "raises errors"),
    (re.compile(r"\bEXECUTE\b", re.IGNORECASE), "runs SQL that it builds itself"),
    (re.compile(r"\bPERFORM\b(?!\s+pg_notify\b)", re.IGNORECASE), "calls other functions"),
)


def deeds(language: str, source: str) -> list[str]:
    """What a trigger's function seems to do, read off its source: a guess to look at, not a proof."""
    if language not in ("plpgsql", "sql"):
        return [f"is written in {language}, whose source says nothing here ({source.strip()[:60]})"]
    text = _COMMENT.sub(" ", source)
    columns = sorted(set(_ASSIGNED.findall(text)))
    tables = sorted({table for write in _WRITES for table in write.findall(text)})
    found = [f"{ROW_DEED}{', '.join(columns)} of the row itself"] if columns else []
    found += [f"writes to {', '.join(tables)} (audit or outbox?)"] if tables else []
    found += [deed for pattern, deed in _OTHER_DEEDS if pattern.search(text)]
    return found or ["writes nothing that its source shows"]
