"""Documents as they are now: every id recomputed from its own row; of the main entity users, chunks, orphans too."""

from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import derivation, orphans, sql
from uuid_pipeline.engine.natural_keys import first_invalid, natural_key, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import hasher


@dataclass(frozen=True)
class RootNow:
    """Rows of one entity without a parent."""

    documents: int
    deterministic: int
    quarantined: int

    @property
    def due(self) -> int:
        """Rows whose id is not the one that their natural key gives, or would give if it were valid."""
        return self.documents - self.deterministic


@dataclass(frozen=True)
class Present:
    """As :class:`inventory.Summary`, of this moment; ``new`` are rows created after the moment that was asked about."""

    documents: int
    deterministic: int
    random: int
    stray: int
    quarantined: int
    users: int | None
    affected_users: int | None
    high_impact_users: int | None
    with_children: int | None
    orphans: dict[str, int]
    new: int | None
    new_deterministic: int | None
    other_roots: dict[str, "RootNow"]

    @property
    def every_root(self) -> "RootNow":
        """The main entity's rows and those of all other roots together."""
        roots = [RootNow(self.documents, self.deterministic, self.quarantined), *self.other_roots.values()]
        return RootNow(*(sum(counts) for counts in zip(*map(astuple, roots), strict=True)))

    @property
    def due(self) -> int:
        """Rows whose id is not the one that their natural key gives, and could be."""
        return self.documents - self.deterministic

    @property
    def consistency(self) -> float | None:
        """Share of documents that have chunks."""
        if self.with_children is None or not self.documents:
            return None
        return self.with_children / self.documents

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "consistency": self.consistency}


def count(connection: Connection, store: Store, since: datetime | None = None) -> Present:
    """Recompute the main entity now; ``since`` says from when on a row counts as new.

    Reads each row once, ordered by its owner, so that memory does not grow with rows or users. Wants an open
    transaction.
    """
    known = store.main.spec.describe
    counted = {"documents": 0, "quarantined": 0, "new": 0, "new_deterministic": 0}
    classes = {"deterministic": 0, "random": 0, "stray": 0}
    users = affected = high = 0
    for owner, rows in groupby(_rows(connection, store, store.main, since), key=itemgetter(0)):
        due = 0
        for _, id_class, is_quarantined, is_new in rows:
            classes[id_class] += 1
            counted["documents"] += 1
            counted["quarantined"] += is_quarantined
            counted["new"] += is_new
            counted["new_deterministic"] += is_new and id_class == "deterministic"
            due += id_class != "deterministic"
        if owner is not None:
            users, affected = users + 1, affected + bool(due)
            high += due >= store.spec.high_impact_documents
    dated = known.created_at is not None and since is not None
    return Present(
        documents=counted["documents"], quarantined=counted["quarantined"], **classes,
        users=users if known.owner else None,
        affected_users=affected if known.owner else None,
        high_impact_users=high if known.owner else None,
        with_children=_with_children(connection, store),
        orphans=orphans.count(connection, store),
        new=counted["new"] if dated else None,
        new_deterministic=counted["new_deterministic"] if dated else None,
        other_roots={root.name: _root(connection, store, root) for root in store.roots if root != store.main},
    )  # fmt: skip


def _root(connection: Connection, store: Store, root: Entity) -> RootNow:
    documents = deterministic = quarantined = 0
    for _, id_class, is_quarantined, _ in _rows(connection, store, root, None):
        documents += 1
        deterministic += id_class == "deterministic"
        quarantined += is_quarantined
    return RootNow(documents, deterministic, quarantined)


def _rows(
    connection: Connection, store: Store, root: Entity, since: datetime | None
) -> Iterator[tuple[str | None, str, bool, bool]]:
    """(owner, id class, whether quarantined, whether new) of every row of an entity without a parent."""
    known = root.spec.describe
    target_of = hasher(store.spec.namespace)
    statement = sql.compose(
        """SELECT {owner} AS owner, t.{key}::text, {natural_key}, ARRAY[{valid}]::text[], coalesce({new}, false)
           FROM {table} t {order}""",
        owner=sql.compose("t.{c}::text", c=sql.name(known.owner)) if known.owner else sql.Text("NULL::text"),
        key=sql.name(root.key),
        natural_key=natural_key(root, None),
        valid=sql.join(", ", [part(root, field, None) for field in root.spec.valid]),
        new=sql.compose("t.{c} > %(since)s", c=sql.name(known.created_at)) if known.created_at else sql.Text("false"),
        table=sql.table(root.table.schema, root.table.name),
        order=sql.Text("ORDER BY 1") if known.owner else sql.Text(""),
    )
    for chunk in sql.stream(connection, statement, {"since": since}):
        for owner, key, text, valid, is_new in chunk:
            is_quarantined = text is None or first_invalid(root, valid) is not None
            target = None if is_quarantined else target_of(text)
            yield owner, derivation.id_class(key, target), is_quarantined, is_new


def _with_children(connection: Connection, store: Store) -> int | None:
    main = store.main
    holders = [
        sql.compose(
            "EXISTS (SELECT FROM {table} c WHERE c.{parent} = t.{key})",
            table=sql.table(child.table.schema, child.table.name),
            parent=sql.name(child.parent_column or ""),
            key=sql.name(main.key),
        )
        for child in store.children(main)
    ]
    if not holders:
        return None
    statement = sql.compose(
        "SELECT count(*) FROM {table} t WHERE {any}",
        table=sql.table(main.table.schema, main.table.name),
        any=sql.join(" OR ", holders),
    )
    return int(sql.scalar(connection, statement))
