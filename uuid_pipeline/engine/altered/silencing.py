"""Keeping single triggers out of our batches by a condition of ours in their own WHEN, and putting them back.

The condition is false only in a transaction that set uuid_pipeline.batch, so the application's own writes fire them
all the while. The original stands in the ledger from the change until it is put back, also by a later run.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import patience, sql
from uuid_pipeline.engine.altered.triggers import UserTrigger
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import RefusedError

Done = TypeVar("Done")

CONDITION = "current_setting('uuid_pipeline.batch', true) IS DISTINCT FROM 'on'"
# As the server writes it back.
DEPARSED = "current_setting('uuid_pipeline.batch'::text, true) IS DISTINCT FROM 'on'::text"

LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Altered:
    """What the ledger keeps of a trigger with our condition: ``definition`` as it was, ``guarded`` as we left it."""

    schema: str
    table: str
    trigger: str
    enabled: str
    definition: str
    guarded: str


_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()]|[A-Z]+""")


def with_condition(definition: str) -> str:
    """A trigger's definition, as pg_get_triggerdef writes it, with our condition before its own.

    Outside quotes and brackets the server writes only keywords in capitals, whatever names and arguments hold.
    """
    depth, when = 0, None
    for token in _TOKEN.finditer(definition):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "WHEN":
            when = token.end()
        if depth == 0 and token[0] == "EXECUTE":
            head, tail = definition[: when or token.start()], definition[token.start() :]
            if when is None:
                return f"{head}WHEN ({CONDITION}) {tail}"
            return f"{head} (({CONDITION}) AND {definition[when : token.start()].strip()}) {tail}"
    raise ValueError(f"not a trigger definition: {definition}")


_STATE = """
SELECT g.tgenabled::text AS enabled, pg_get_triggerdef(g.oid) AS definition,
       array(SELECT quote_ident(e.extname) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
             WHERE d.classid = 'pg_trigger'::regclass AND d.objid = g.oid AND d.deptype = 'x') AS extensions
FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND g.tgname = %(trigger)s AND NOT g.tgisinternal
"""


def _state(connection: Connection, schema: str, table: str, trigger: str) -> Any | None:
    found = sql.rows(connection, _STATE, {"schema": schema, "table": table, "trigger": trigger})
    return found[0] if found else None


def guard(connection: Connection, lease: Lease, guarded: Sequence[UserTrigger]) -> list[str]:
    """Give these triggers our condition, one table a transaction; those that have it already keep it.

    Raises RefusedError when a table's lock is not to be had for LOCK_SECONDS; what was guarded until then stays
    recorded.
    """
    done: list[str] = []
    for (schema, table), of_table in groupby(guarded, key=lambda trigger: (trigger.schema, trigger.table)):
        work = partial(_guard_table, connection, schema, table, [trigger.name for trigger in of_table])
        done += _locked(connection, lease, schema, table, work)
        reach("guarding")
    return done


def _guard_table(connection: Connection, schema: str, table: str, names: list[str]) -> list[str]:
    return [f"{name} on {schema}.{table}" for name in names if _guard_one(connection, schema, table, name)]


def _guard_one(connection: Connection, schema: str, table: str, name: str) -> bool:
    state = _state(connection, schema, table, name)
    if state is None or state.enabled == "D":
        return False  # dropped or disabled by the application since the tier was chosen
    if DEPARSED in state.definition:
        return True
    guarded = _replace(connection, schema, table, name, state, with_condition(state.definition))
    record = Altered(schema, table, name, state.enabled, state.definition, guarded)
    # In the transaction of the change: a crash leaves both or neither.
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.altered (kind, object, definition)
           VALUES ('trigger', format('%%I.%%I.%%I', %(schema)s::text, %(table)s::text, %(trigger)s::text), %(text)s)
           ON CONFLICT (kind, object) DO UPDATE SET definition = excluded.definition, altered_at = clock_timestamp()""",
        {"schema": schema, "table": table, "trigger": name, "text": json.dumps(asdict(record))},
    )
    return True


def _replace(connection: Connection, schema: str, table: str, name: str, state: Any, definition: str) -> str:
    """Replace a trigger's definition, keep all else of it, and return the definition as the server has it now.

    Its comment stays by itself; its mark (ENABLE …) and dependencies on extensions do not.
    """
    sql.execute(connection, sql.as_written(definition.replace("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER", 1)))
    place = {"table": sql.table(schema, table), "trigger": sql.name(name)}
    marks = {"A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "D": "DISABLE"}
    if state.enabled in marks:
        mark = sql.as_written(marks[state.enabled])
        sql.execute(connection, sql.compose("ALTER TABLE {table} {mark} TRIGGER {trigger}", mark=mark, **place))
    for extension in state.extensions:
        depends = sql.compose(
            "ALTER TRIGGER {trigger} ON {table} DEPENDS ON EXTENSION {extension}",
            extension=sql.as_written(extension),
            **place,
        )
        sql.execute(connection, depends)
    replaced = _state(connection, schema, table, name)
    return str(replaced.definition) if replaced else ""


def put_back(connection: Connection, lease: Lease) -> list[str]:
    """Put back every trigger that has our condition, also one that a crashed run left; a sentence for each.

    A trigger or table that the application dropped stays dropped, one that it defined anew stays as it is.
    Raises RefusedError when this role may not put one back.
    """
    with connection.begin():
        waiting = [Altered(**record) for record in catalogs.altered_triggers(connection).values()]
    outcomes = []
    for altered in waiting:
        work = partial(_put_back_one, connection, altered)
        outcomes.append(_locked(connection, lease, altered.schema, altered.table, work))
        reach("putting back")
    return outcomes


def _put_back_one(connection: Connection, altered: Altered) -> str:
    where = f"trigger {altered.trigger} on {altered.schema}.{altered.table}"
    state = _state(connection, altered.schema, altered.table, altered.trigger)
    if state is None:
        outcome = f"{where} is gone: the application dropped or renamed it meanwhile, and it is not made again"
    elif state.definition == altered.guarded:
        # Marks are kept as they are now: one that was disabled meanwhile stays disabled.
        now = _replace(connection, altered.schema, altered.table, altered.trigger, state, altered.definition)
        if now != altered.definition:
            _note_rewritten(connection, altered, now)
        outcome = f"{where} is as it was"
    else:
        outcome = f"{where} was defined anew meanwhile and stays as it is"
        if DEPARSED in state.definition:
            outcome += f"; it still holds our condition ({DEPARSED}), harmless outside our batches: replace it"
    sql.execute(
        connection,
        """DELETE FROM uuid_pipeline.altered WHERE kind = 'trigger'
           AND object = format('%%I.%%I.%%I', %(schema)s::text, %(table)s::text, %(trigger)s::text)""",
        {"schema": altered.schema, "table": altered.table, "trigger": altered.trigger},
    )
    return outcome


def _note_rewritten(connection: Connection, altered: Altered, now: str) -> None:
    """Keep how the application had made a trigger that reads otherwise now: `IN` over varchar, BETWEEN in AND.

    If what was put back had been rewritten itself, what was before that.
    """
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.rewritten AS r ("schema", "table", trigger, definition, rewritten)
           VALUES (%(schema)s, %(table)s, %(trigger)s, %(definition)s, %(now)s)
           ON CONFLICT ("schema", "table", trigger) DO UPDATE SET rewritten = excluded.rewritten,
               definition = CASE WHEN r.rewritten = excluded.definition THEN r.definition ELSE excluded.definition END
        """,
        {
            "schema": altered.schema,
            "table": altered.table,
            "trigger": altered.trigger,
            "definition": altered.definition,
            "now": now,
        },
    )


def _locked(connection: Connection, lease: Lease, schema: str, table: str, work: Callable[[], Done]) -> Done:
    """Do the work in a transaction that holds the table's lock; tried again, with growing pauses, for LOCK_SECONDS.

    The lock keeps the application's own releases out between reading a definition and replacing it.
    """
    try:
        return patience.with_table(connection, lease, (schema, table), "SHARE ROW EXCLUSIVE", work, LOCK_SECONDS)
    except patience.OutOfPatienceError as error:
        raise RefusedError(_held(connection, schema, table)) from error
    except DBAPIError as error:
        if sql.sqlstate(error) != sql.INSUFFICIENT_PRIVILEGE:
            raise
        raise RefusedError(
            f"This role may not change the triggers of {schema}.{table}: {error.orig}. "
            "Run again as the role that the plan was made with, or as the table's owner."
        ) from error


def _held(connection: Connection, schema: str, table: str) -> str:
    with connection.begin():
        oid = catalogs.table_oid(connection, schema, table)
        who = patience.who_holds(connection, [] if oid is None else [oid], patience.LOCKING_ROWS)
    return (
        f"The triggers of {schema}.{table} could not be changed: other transactions held its lock for "
        f"{LOCK_SECONDS:.0f} s; now {who}. {patience.END_THEM}, or wait for a quieter moment; run again."
    )
