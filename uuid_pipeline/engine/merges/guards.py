"""What nobody has approved is not merged: each guard raises UnmergeableError, and the batch leaves the cluster be."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import held_of
from uuid_pipeline.engine.merges.folding import folds, left_behind
from uuid_pipeline.engine.merges.working_tables import merged
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import UnmergeableError


def require_planned(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when more would be archived, or fewer ids turned, than the plan foresaw."""
    _require_documents_planned(connection, store)
    _require_own_children(connection, store)
    _require_none_left_behind(connection, store)


def _require_documents_planned(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when documents would be archived that the plan does not merge into others.

    They refer by a foreign key that they may not lose to what goes, or would meet in a unique key: that they go along
    was approved by nobody.
    """
    for root in store.roots:
        unplanned = sql.compose(
            "LEFT JOIN {merged} m ON m.loser = t.{key} WHERE m.survivor IS NULL",
            merged=merged(store, root.name),
            key=sql.name(root.key),
        )
        words = (
            "is to be merged into no other, and would go to the archive along with one that is: by a foreign key of "
            "its row that may not be NULL or is ON DELETE CASCADE, or by a unique key that two rows would share"
        )
        _require_none_displaced(connection, root, unplanned, words)


def _require_own_children(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when a row below a document would be archived that the cluster does not merge.

    It refers by a key of its own to what goes; its document would lose it, and nobody has approved that.
    """
    for entity in store.entities:
        if entity.parent is None:
            continue
        of_others = sql.compose(
            "LEFT JOIN {held} h ON h.at = d.at WHERE h.ordinal IS DISTINCT FROM d.ordinal",
            held=held_of(store, entity.name).relation,
        )
        words = (
            "is below a document that is not merged, and would go to the archive along with a row that is, to which it "
            "refers"
        )
        _require_none_displaced(connection, entity, of_others, words)


def _require_none_displaced(connection: Connection, entity: Entity, which: sql.Composable, words: str) -> None:
    """``which``: joins and condition over the displaced rows ``d`` of the entity's table ``t``."""
    statement = sql.compose(
        """SELECT t.{key}::text AS key, d.ordinal FROM pg_temp.displaced d JOIN {table} t ON t.ctid = d.at {which}
             AND d.relation = %(oid)s ORDER BY 1""",
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
        which=which,
    )
    found = sql.rows(connection, statement, {"oid": entity.table.oid})
    if found:
        raise UnmergeableError(
            f"{entity.name} {found[0].key} of {entity.table.schema}.{entity.table.name} {words}; change what it refers "
            "to",
            sorted({int(row.ordinal) for row in found}),
        )


def _require_none_left_behind(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when text, an array or JSON that stays holds the id of a row that goes with nothing in its
    place, unless the spec lets such ids stay: where nobody could foresee it."""
    for fold in folds(store):
        for reference in fold.held.moved.embedded:
            if reference.keeps_orphans:
                continue
            found = left_behind(connection, fold, reference, merged(store, reference.entity))
            if found:
                raise UnmergeableError(
                    f"{reference.name} holds ids of {reference.entity} rows that would be archived with nothing in "
                    "their place, and the spec does not say `orphans: keep` of it",
                    found,
                )
