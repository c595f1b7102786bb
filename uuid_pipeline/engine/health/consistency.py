"""Pipeline consistency: the share of documents that have chunks, or whatever the spec puts below them."""

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.figure import Figure, share, unknown
from uuid_pipeline.engine.health.look import Look

NAME = "consistency"


def measure(look: Look) -> list[Figure]:
    """Reads whole tables."""
    main = look.store.main
    children = look.store.children(main)
    if not children:
        return [unknown(NAME, "share", f"the spec has no entity below {main.name}")]
    has_one = [
        sql.compose(
            "EXISTS (SELECT FROM {table} c WHERE c.{parent} = t.{key})",
            table=sql.table(child.table.schema, child.table.name),
            parent=sql.name(child.parent_column or ""),
            key=sql.name(main.key),
        )
        for child in children
    ]
    row = sql.rows(
        look.connection,
        sql.compose(
            "SELECT count(*) AS documents, count(*) FILTER (WHERE {has_one}) AS complete FROM {table} t",
            has_one=sql.join(" OR ", has_one),
            table=sql.table(main.table.schema, main.table.name),
        ),
    )[0]
    return [
        share(NAME, int(row.complete), int(row.documents), f"documents have {' or '.join(c.name for c in children)}")
    ]
