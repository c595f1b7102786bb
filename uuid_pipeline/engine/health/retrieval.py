"""Retrieval success: look-ups by the target id, for a rotating sample of the documents that have something to find."""

from collections.abc import Collection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.figure import Figure, share, unknown
from uuid_pipeline.engine.health.look import Look
from uuid_pipeline.engine.store import Entity

NAME = "retrieval"


def measure(look: Look) -> list[Figure]:
    """Of the sampled documents with chunks, those whose row and chunks are found under the target id.

    What has no chunks under any id cannot be retrieved by re-keying, and is counted by consistency.
    """
    children = look.store.children(look.store.main)
    unindexed = [c.table.name for c in children if c.parent_column not in c.table.indexed_first]
    if unindexed and not look.whole:
        return [unknown(NAME, "share", f"no index of {', '.join(unindexed)} begins with the document's id")]
    judged = [row for row in look.sample if row.target is not None]
    keys, targets = [row.key for row in judged], [str(row.target) for row in judged]
    stored, found = _with_children(look, children, keys), _with_children(look, children, targets)
    wanted = [row for row in judged if row.key in stored]
    good = sum(row.target in found for row in wanted)
    return [share(NAME, good, len(wanted), "sampled documents with chunks are found by their target id")]


def _with_children(look: Look, children: Collection[Entity], keys: list[str]) -> set[str]:
    """Those of the keys under which there are a document, and chunks where the spec knows of any."""
    main = look.store.main
    has_one = [
        sql.compose(
            "EXISTS (SELECT FROM {table} c WHERE c.{parent} = t.{key})",
            table=sql.table(child.table.schema, child.table.name),
            parent=sql.name(child.parent_column or ""),
            key=sql.name(main.key),
        )
        for child in children
    ]
    statement = sql.compose(
        "SELECT t.{key}::text AS key FROM {table} t WHERE t.{key} = ANY(%(keys)s::{type}[]) AND ({has_one})",
        key=sql.name(main.key),
        table=sql.table(main.table.schema, main.table.name),
        type=sql.Text(main.key_type),
        has_one=sql.join(" OR ", has_one) if has_one else sql.Text("true"),
    )
    return {row.key for row in sql.rows(look.connection, statement, {"keys": keys})}
