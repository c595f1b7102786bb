"""Erasure: all that the ledger holds of one user's documents, found by their ids wherever they stand, and removed.

Which tables there are is read from the catalogs, not known here: what another part of the ledger comes to keep is
covered from its first day.
"""

import hashlib
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, planning, sql
from uuid_pipeline.engine.privacy.erased_ids import find_ids
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError, UsageError

ERASED = "[erased]"
# Text and JSON are searched for ids that cannot be there by chance; a shorter one is found only where it is a value.
SEARCHED_LENGTH = 8
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
TOKEN = r"[\w@.+-]*\w"
# Rows of these are what was done, not whom it was done to; they stay, without the id.
_STAYS = (
    "ledger", "assessments", "plans", "executions", "waves", "batches", "gates", "audit", "lease", "altered",
    "rewritten",
)  # fmt: skip


@dataclass(frozen=True)
class Erasure:
    """What an erasure removes: rows deleted and values replaced by table of ours, documents, and what is lost by it.

    ``digest`` is of exactly this; it is what a person approves.
    """

    documents: int
    ids: frozenset[str]
    deleted: dict[str, int]
    replaced: dict[str, int]
    consequences: tuple[str, ...]

    @property
    def digest(self) -> str:
        content = [sorted(self.ids), self.deleted, self.replaced]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def look(engine: Engine, store: Store, user: str) -> Erasure:
    """What erasing this user would remove; changes nothing.

    Raises UsageError when the spec names no owner, RefusedError while an execution is open.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        found = _erase(connection, store, user)
        transaction.rollback()
    return found


def erase(engine: Engine, store: Store, user: str, digest: str, run_id: str) -> Erasure:
    """Remove what :func:`look` found, in one transaction, and say so in the audit without the user's id.

    Raises RefusedError when it is not what was approved any more, or another run writes.
    """
    with leases.held(engine, run_id) as (connection, lease), connection.begin():
        leases.hold(connection, lease)
        found = _erase(connection, store, user)
        if found.digest != digest:
            raise RefusedError(
                f"Refused: what would be erased is not what was approved ({digest}); it is {found.digest} now. "
                "Look again: uuid-pipeline erase --user ID"
            )
        detail = {"documents": found.documents, "deleted": found.deleted, "replaced": found.replaced}
        ledger.audit(connection, ledger.ERASED_A_USER, detail)
    return found


@dataclass(frozen=True)
class Wanted:
    """What texts are searched for, made once for all of them: ids that are a word, and other ones by a part of each.

    An id shorter than SEARCHED_LENGTH is in neither.
    """

    words: frozenset[str]
    phrases: dict[str, list[str]]


def wanted(ids: frozenset[str]) -> Wanted:
    """Sort the ids by how they are found. Of a phrase, a natural key, its end or its beginning tells it from others."""
    searched = [one for one in ids if len(one) >= SEARCHED_LENGTH]
    ends: dict[str, list[str]] = defaultdict(list)
    beginnings: dict[str, list[str]] = defaultdict(list)
    for one in searched:
        if not re.fullmatch(TOKEN, one):
            ends[one[-SEARCHED_LENGTH:]].append(one)
            beginnings[one[:SEARCHED_LENGTH]].append(one)
    return Wanted(frozenset(searched), ends if len(ends) > len(beginnings) else beginnings)


def mentions(text: str, sought: Wanted) -> bool:
    """Whether a text holds one of the ids as a word."""
    return scrubbed(text, sought) != text


def scrubbed(text: str, sought: Wanted) -> str:
    """The text with each of the ids in it replaced; ids shorter than SEARCHED_LENGTH are left."""

    def replace(found: re.Match[str]) -> str:
        return ERASED if found[0] in sought.words or found[0].lower() in sought.words else found[0]

    # A natural key first, since others of them may be a part of it.
    for phrase in _phrases_in(text, sought):
        text = text.replace(phrase, ERASED)
    return re.sub(TOKEN, replace, re.sub(UUID, replace, text))


def _phrases_in(text: str, sought: Wanted) -> list[str]:
    """The phrases that stand in the text, the longest first: in one pass, however many are sought."""
    if not sought.phrases:
        return []
    parts = {text[at : at + SEARCHED_LENGTH] for at in range(len(text) - SEARCHED_LENGTH + 1)}
    found = [phrase for part in parts & sought.phrases.keys() for phrase in sought.phrases[part] if phrase in text]
    return sorted(found, key=lambda phrase: (-len(phrase), phrase))


def _erase(connection: Connection, store: Store, user: str) -> Erasure:
    if store.main.spec.describe.owner is None:
        raise UsageError("The spec names no owner (describe.owner), so nobody's documents can be told from another's.")
    for execution in [*ledger.rolling_back(connection), *filter(None, [ledger.unfinished(connection)])]:
        raise RefusedError(
            f"Refused: execution {execution.execution_id} is {execution.status}, and needs every row of its map. "
            "Finish it (uuid-pipeline run) or undo it (uuid-pipeline rollback --all) first."
        )
    documents = find_ids(connection, store, user)
    consequences = tuple(_consequences(connection, store))
    ids = frozenset(row.id for row in sql.rows(connection, "SELECT id FROM pg_temp.erased_ids"))
    deleted: dict[str, int] = {}
    replaced: dict[str, int] = {}
    for table in list(_tables(connection)):
        if not table.stays and (gone := _delete_rows(connection, table, ids)):
            deleted[table.name] = gone
        if changed := _replace_values(connection, table, ids):
            replaced[table.name] = changed
    if any(name.startswith("archive_") for name in deleted):
        consequences += ("rows of this user that merging archived can then no longer be brought back",)
    return Erasure(documents, ids, deleted, replaced, consequences)


def _consequences(connection: Connection, store: Store) -> Iterator[str]:
    """What cannot be done any more once these rows are gone, a sentence each."""
    plan = planning.newest(connection)
    executions = ledger.executions(connection)
    waits = plan is not None and all(one.assessment_no != plan.assessment_no for one in executions)
    if plan is not None and waits and _mapped(connection, store, plan.assessment_no):
        yield f"plan {plan.plan_id}, which waits for approval, must be made again: uuid-pipeline plan"
    for execution in executions:
        if execution.status in ("finalized", "rolled_back"):
            continue
        lost = _mapped(connection, store, execution.assessment_no)
        if lost:
            yield (
                f"{lost} documents of execution {execution.execution_id} ({execution.status}) can then no longer be "
                "rolled back, and their old ids no longer resolve; its validation cannot be repeated"
            )


def _mapped(connection: Connection, store: Store, assessment: int) -> int:
    """Documents of the user in an assessment's id map."""
    count = """SELECT count(*) FROM {map} m JOIN pg_temp.erased_ids e ON e.id = m.old_id::text
               WHERE m.assessment_no = %(no)s"""
    counts = [sql.compose(count, map=ledger.map_table(root)) for root in store.roots]
    return sum(int(sql.scalar(connection, statement, {"no": assessment})) for statement in counts)


@dataclass(frozen=True)
class _Table:
    """A table of the ledger; ``exact`` are columns that may be an id, ``loose`` those that may hold one somewhere."""

    name: str
    exact: tuple[str, ...]
    loose: dict[str, tuple[str, bool]]  # its type, and whether NULL is allowed
    stays: bool

    @property
    def relation(self) -> sql.Composable:
        return sql.table(ledger.SCHEMA, self.name)


_TABLES = """
SELECT c.relname AS name,
       EXISTS (SELECT FROM pg_constraint k WHERE k.confrelid = c.oid AND k.contype = 'f') AS referenced,
       json_agg(json_build_array(a.attname, format_type(a.atttypid, NULL), NOT a.attnotnull) ORDER BY a.attnum)
           AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r' AND a.attgenerated = ''
GROUP BY c.oid ORDER BY 1
"""
_EXACT = ("uuid", "text", "character varying", "character")
_LOOSE = ("text", "character varying", "json", "jsonb", "text[]", "uuid[]")


def _tables(connection: Connection) -> Iterator[_Table]:
    for row in sql.rows(connection, _TABLES):
        exact = tuple(name for name, kind, _ in row.columns if kind in _EXACT)
        loose = {name: (kind, nullable) for name, kind, nullable in row.columns if kind in _LOOSE}
        yield _Table(row.name, exact, loose, row.name in _STAYS or row.referenced)


def _delete_rows(connection: Connection, table: _Table, ids: frozenset[str]) -> int:
    """Rows with an id of the user's as a value of a column, or inside JSON that keeps a row as it was."""
    conditions = [
        sql.compose("t.{c}::text IN (SELECT id FROM pg_temp.erased_ids)", c=sql.name(column)) for column in table.exact
    ]
    if table.name == "repointed":
        places = _rows_as_they_were(connection, table, ids)
        conditions.append(sql.compose("t.ctid = ANY(%(places)s::text[]::tid[])"))
    else:
        places = []
    if not conditions:
        return 0
    statement = sql.compose("DELETE FROM {table} t WHERE {any}", table=table.relation, any=sql.join(" OR ", conditions))
    return int(sql.execute(connection, statement, {"places": places}).rowcount)


def _rows_as_they_were(connection: Connection, table: _Table, ids: frozenset[str]) -> list[str]:
    """Places of the rows whose JSON names one of the ids; each text is read once, however many ids there are."""
    sought = wanted(ids)

    def names(text: str) -> bool:
        values = [value if isinstance(value, str) else json.dumps(value) for value in json.loads(text).values()]
        return any(value in ids or mentions(value, sought) for value in values)

    read = sql.compose("SELECT t.ctid::text, t.row_key::text, t.before::text, t.after::text FROM {table} t",
                       table=table.relation)  # fmt: skip
    return [
        at for rows in sql.stream(connection, read, {}) for at, *texts in rows
        if any(text is not None and names(text) for text in texts)
    ]  # fmt: skip


def _pruned(text: str, ids: frozenset[str]) -> str:
    """JSON without the records of lists that name one of the ids: what else they say is of the same user."""
    if "[" not in text:
        return text

    def prune(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: prune(part) for name, part in value.items()}
        if isinstance(value, list):
            return [prune(part) for part in value if not (isinstance(part, dict) and names(part))]
        return value

    def names(record: dict[str, Any]) -> bool:
        return any(isinstance(part, str) and part in ids for part in record.values())

    found = json.loads(text)
    pruned = prune(found)
    return text if pruned == found else json.dumps(pruned, ensure_ascii=False)


def _replace_values(connection: Connection, table: _Table, ids: frozenset[str]) -> int:
    """Ids inside text and JSON of rows that stay; counts the values that changed."""
    changed = 0
    sought = wanted(ids)
    for column, (kind, nullable) in table.loose.items():
        read = sql.compose(
            "SELECT t.ctid::text, t.{c}::text FROM {table} t WHERE t.{c} IS NOT NULL", c=sql.name(column),
            table=table.relation,
        )  # fmt: skip
        write = sql.compose(
            "UPDATE {table} SET {c} = %(value)s::text::{type} WHERE ctid = %(at)s::text::tid", table=table.relation,
            c=sql.name(column), type=sql.Text(kind),
        )  # fmt: skip
        found = [
            (at, new) for rows in sql.stream(connection, read, {}) for at, old in rows
            if (new := scrubbed(_pruned(old, ids) if kind in ("json", "jsonb") else old, sought)) != old
        ]  # fmt: skip
        for at, new in found:
            value = None if nullable and new == ERASED else new
            if kind == "uuid[]":
                value = new.replace(ERASED, str(uuid.UUID(int=0)))
            sql.execute(connection, write, {"at": at, "value": value})
        changed += len(found)
    return changed
