"""The determinism certificate: every id of the store made again by two implementations that share no code.

The first is the one that migrates: the server builds and normalises the natural key, OpenSSL hashes it. The second
(second_opinion.py) is given raw columns. The first takes a parent's id as the row holds it, the second makes it anew up
to the root: where both agree with the id, the row hangs on the right parent too.
"""

import hashlib
import json
import platform
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.connection import store_identity
from uuid_pipeline.engine.natural_keys import first_invalid, natural_key, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import hasher

FORMAT = "uuid-pipeline determinism certificate, 1"
EXAMPLES = 10

# What can be said of a row. Only `implementations_differ` is a fault of ours.
AGREEING = "agreeing"  # the id equals what both make of the row
OTHER_ID = "under_another_id"  # both make the same, the row has another id: not migrated, or it came since
BELOW_OTHER = "below_another_id"  # its parent is under another id, so they read different parents
QUARANTINED = "quarantined"  # no natural key, or no valid one
DIFFER = "implementations_differ"
OUTCOMES = (AGREEING, OTHER_ID, BELOW_OTHER, QUARANTINED, DIFFER)


@dataclass
class Count:
    """Rows of one entity by outcome, with the first of those that do not agree."""

    rows: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: str, key: str, first: str | None, second: str | None) -> None:
        self.rows[outcome] += 1
        if outcome != AGREEING and len(self.examples) < EXAMPLES:
            self.examples.append({"id": key, "outcome": outcome, "first": first, "second": second})


def make(connection: Connection, store: Store, execution: ledger.Execution) -> dict[str, Any]:
    """The certificate as plain data, with the SHA-256 of all else under ``digest``. Streams; wants one snapshot."""
    entities: dict[str, dict[str, Any]] = {}
    for entity in store.entities:
        count = _entity(connection, store, entity)
        entities[entity.name] = {
            "rows": count.rows.total(),
            **{outcome: count.rows[outcome] for outcome in OUTCOMES},
            "examples": count.examples,
        }
    differ = sum(one[DIFFER] for one in entities.values())
    content: dict[str, Any] = {
        "format": FORMAT,
        "store": store_identity(connection),
        "execution_id": execution.execution_id,
        "plan_id": execution.plan_id,
        "spec_digest": store.spec.digest,
        "namespace": str(store.spec.namespace),
        "made_at": str(sql.scalar(connection, "SELECT now()")),
        "implementations": _implementations(connection),
        "entities": entities,
        "implementations_agree": differ == 0,
        "every_id_deterministic": all(one["rows"] == one[AGREEING] for one in entities.values()),
    }
    return content | {"digest": digest(content)}


def digest(certificate: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a certificate without its own digest."""
    content = {name: value for name, value in certificate.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def record(connection: Connection, certificate: dict[str, Any]) -> None:
    """Keep a certificate in the ledger."""
    sql.execute(
        connection,
        "INSERT INTO uuid_pipeline.certificates (execution_id, content) VALUES (%(id)s, %(content)s::jsonb)",
        {"id": certificate["execution_id"], "content": json.dumps(certificate)},
    )


def newest(connection: Connection, execution_id: str) -> dict[str, Any] | None:
    """The certificate made last of an execution, unless a batch came after it."""
    found: dict[str, Any] | None = sql.scalar(
        connection,
        """SELECT content FROM uuid_pipeline.certificates c WHERE execution_id = %(id)s AND NOT EXISTS (
               SELECT FROM uuid_pipeline.batches b WHERE b.committed_at > (c.content->>'made_at')::timestamptz)
           ORDER BY certificate_no DESC LIMIT 1""",
        {"id": execution_id},
    )
    return found


def _implementations(connection: Connection) -> list[dict[str, str]]:
    import numpy as np  # here and below, since few commands make a certificate and all would wait for it

    server = str(sql.scalar(connection, "SELECT current_setting('server_version')"))
    return [
        {
            "name": "engine",
            "natural_key": f'SQL under COLLATE "C", PostgreSQL {server}',
            "sha1": f"hashlib of Python {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        },
        {
            "name": "second opinion",
            "natural_key": f"bytes in Python {platform.python_version()}, from raw columns",
            "sha1": f"FIPS 180-4 written out, numpy {np.__version__}",
        },
    ]


def _entity(connection: Connection, store: Store, entity: Entity) -> Count:
    lineage = _lineage(store, entity)
    target_of = hasher(store.spec.namespace)
    widths = [len(one.spec.template.fields) for one in lineage]
    count = Count()
    for rows in _rows(connection, entity, lineage):
        raw = [list(row[3:]) for row in rows]
        seconds, parents = _second(store, lineage, widths, raw)
        for row, own, second, parent in zip(rows, raw, seconds, parents, strict=True):
            key, text, valid = row[:3]
            if text is None or first_invalid(entity, valid) is not None:
                count.add(QUARANTINED, key, None, second)
                continue
            first = target_of(text)
            held = own[_parent_place(entity)] if len(lineage) > 1 else None
            count.add(_outcome(key, first, second, parent == held), key, first, second)
    return count


def _outcome(key: str, first: str, second: str | None, below_right: bool) -> str:
    if first == second:
        return AGREEING if key == first else OTHER_ID
    return DIFFER if below_right else BELOW_OTHER


def _lineage(store: Store, entity: Entity) -> list[Entity]:
    """The entity and, as far up as identities use a parent's id, its ancestors."""
    found = [entity]
    while found[-1].parent is not None and found[-1].parent_column in found[-1].spec.template.fields:
        found.append(store.entity(found[-1].parent or ""))
    return found


def _parent_place(entity: Entity) -> int:
    return list(entity.spec.template.fields).index(entity.parent_column or "")


def _second(
    store: Store, lineage: list[Entity], widths: list[int], raw: list[list[str | None]]
) -> tuple[list[str | None], list[str | None]]:
    """By the second implementation: each row's target, and its parent's; ancestors first, each of them once."""
    from uuid_pipeline.engine.proofs import second_opinion

    above: list[str | None] = [None] * len(raw)
    targets: list[str | None] = above
    for level in range(len(lineage) - 1, -1, -1):
        entity, first = lineage[level], sum(widths[:level])
        above = targets
        own = [tuple(row[first : first + widths[level]]) for row in raw]
        if level < len(lineage) - 1:
            place = _parent_place(entity)
            own = [(*row[:place], parent, *row[place + 1 :]) for row, parent in zip(own, above, strict=True)]
        distinct = list(dict.fromkeys(own))
        made = second_opinion.targets(
            str(store.spec.namespace),
            second_opinion.keys(
                second_opinion.read_template(entity.spec.identity),
                entity.spec.normalize,
                entity.spec.template.fields,
                distinct,
            ),
        )
        by_row = dict(zip(distinct, made, strict=True))
        targets = [by_row[row] for row in own]
    return targets, above


def _rows(connection: Connection, entity: Entity, lineage: list[Entity]) -> Iterator[list[Any]]:
    """Id, natural key as the server builds it, its checked parts; then the raw columns, up the lineage."""
    parent = sql.compose("t.{c}", c=sql.name(entity.parent_column)) if entity.parent_column else None
    aliases = ["t", *[f"p{index}" for index in range(1, len(lineage))]]
    columns: list[sql.Composable] = []
    joins: list[sql.Composable] = []
    for index, one in enumerate(lineage):
        alias = sql.name(aliases[index])
        columns += [sql.compose("{t}.{c}::text", t=alias, c=sql.name(f)) for f in one.spec.template.fields]
        if index:
            joins.append(
                sql.compose(
                    "LEFT JOIN {table} {t} ON {t}.{key} = {below}.{column}",
                    table=sql.table(one.table.schema, one.table.name),
                    t=alias,
                    key=sql.name(one.key),
                    below=sql.name(aliases[index - 1]),
                    column=sql.name(lineage[index - 1].parent_column or ""),
                )
            )
    statement = sql.compose(
        "SELECT t.{key}::text, {natural_key}, ARRAY[{valid}]::text[], {columns} FROM {table} t {joins}",
        key=sql.name(entity.key),
        natural_key=natural_key(entity, parent),
        valid=sql.join(", ", [part(entity, name, parent) for name in entity.spec.valid]),
        columns=sql.join(", ", columns),
        table=sql.table(entity.table.schema, entity.table.name),
        joins=sql.join(" ", joins),
    )
    return sql.stream(connection, statement, {})
