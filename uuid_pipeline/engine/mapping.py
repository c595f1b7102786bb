"""The id map: old id -> target id for every row that must move, with the order in which it will."""

from collections.abc import Sequence
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import early, inventory, ledger, ledger_parts, sql
from uuid_pipeline.engine.installed import functions
from uuid_pipeline.engine.plans.approach import WAVE_KINDS
from uuid_pipeline.engine.priorities import PRIORITY, complete_statuses
from uuid_pipeline.engine.store import Entity, Store


def build(connection: Connection, store: Store, assessment: int, kinds: Sequence[str] = WAVE_KINDS) -> None:
    """Write the id map of every entity as :func:`write`, with a mark where references hold target ids already."""
    write(connection, store, assessment, kinds=kinds)
    functions.put_embedded(connection)
    early.mark(connection, store, assessment)


def write(
    connection: Connection, store: Store, assessment: int, first: int = 0, kinds: Sequence[str] = WAVE_KINDS
) -> None:
    """Write the id map of every entity, with ordinals after ``first``.

    Only documents of these ``kinds`` of waves are mapped; rows of other roots all belong to the last kind. A root that
    is right but has a descendant that is not takes part with the role ``keep``, so that each descendant belongs to
    exactly one batch.
    """
    for root in store.roots:
        taken = kinds if root == store.main or WAVE_KINDS[-1] in kinds else ()
        first += _build_root(connection, store, root, assessment, first, taken)
        for entity in store.entities:
            if entity.parent is not None and _root_of(store, entity) == root:
                _build_child(connection, store, entity, assessment)


def _root_of(store: Store, entity: Entity) -> Entity:
    while entity.parent is not None:
        entity = store.entity(entity.parent)
    return entity


# Rows of one target id are a cluster: they share the survivor's ordinal and wave, so that one batch has them all.
# canary: the highest priority; recent: the newest of the rest; remaining: heap order, so each page is touched once.
_ROOT = """
INSERT INTO {part} (assessment_no, ordinal, wave, role, natural_key, old_id, new_id)
WITH {below}
members AS (
    SELECT i.*, {priority} AS priority, {turn} AS turn, i.id_class <> 'deterministic' OR {due_below} AS due
    FROM {inventory} i {joined} WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL),
due AS (SELECT m.*, {taken} AS taken FROM members m),
survivors AS (SELECT * FROM due WHERE turn = 1 AND taken),
ranked AS (SELECT s.*, row_number() OVER (ORDER BY priority DESC, created_at DESC NULLS LAST, position) AS rank
           FROM survivors s),
rest AS (SELECT ranked.*, row_number() OVER (
             PARTITION BY rank <= %(canary)s ORDER BY created_at DESC NULLS LAST, position) AS newness FROM ranked),
waved AS (SELECT rest.*, CASE WHEN rank <= %(canary)s THEN 'canary'
              WHEN newness <= %(recent)s AND created_at > now() - make_interval(days => %(days)s) THEN 'recent'
              ELSE 'remaining' END AS wave_kind FROM rest),
numbered AS (SELECT waved.*, %(first)s + row_number() OVER (
                 ORDER BY array_position(ARRAY['canary', 'recent', 'remaining'], wave_kind), position) AS ordinal
             FROM waved)
SELECT %(no)s, n.ordinal, n.wave_kind,
       CASE WHEN m.turn > 1 THEN 'merge' WHEN m.id_class = 'deterministic' THEN 'keep' ELSE 'move' END,
       m.natural_key, m.key, m.target_id
FROM numbered n JOIN due m ON m.target_id = n.target_id WHERE n.wave_kind = ANY(%(kinds)s) ORDER BY n.ordinal
"""

# A row's turn in its cluster, and whether the cluster takes part: when a member is due, and always when it has two.
_TURN = "row_number() OVER (PARTITION BY i.target_id ORDER BY {survivor}, i.key)"
_TAKEN = "bool_or(m.due OR m.turn > 1) OVER (PARTITION BY m.target_id)"

# How the survivor of a cluster is chosen; what is unknown decides nothing.
_SURVIVOR: dict[str, LiteralString] = {
    "complete": "coalesce(i.status = ANY(%(complete)s), false) DESC",
    "children": "i.children DESC NULLS LAST",
    "oldest": "i.created_at ASC NULLS LAST",
    "newest": "i.created_at DESC NULLS LAST",
}


SURVIVOR_LOOKS_AT: dict[str, LiteralString] = {
    "complete": "coalesce(i.status = ANY(%(complete)s), false)",
    "children": "i.children",
    "oldest": "i.created_at",
    "newest": "i.created_at",
}


def survivor_order(entity: Entity) -> sql.Composable:
    """The spec's rules for the survivor as an ORDER BY over the inventory ``i``; wants ``complete`` bound."""
    return sql.join(", ", [sql.Text(_SURVIVOR[rule]) for rule in entity.spec.survivor])


def _build_root(
    connection: Connection, store: Store, root: Entity, assessment: int, first: int, kinds: Sequence[str]
) -> int:
    part = ledger_parts.fresh_part(connection, "id_map", root, assessment)
    waves = store.spec.waves
    # Where no two rows share a target id, each is a cluster of its own, and nothing need be sorted to see it.
    clusters = inventory.may_share_targets(connection, root, assessment)
    statement = sql.Text(_ROOT).format(
        part=part,
        inventory=ledger.inventory_table(root),
        priority=sql.Text(PRIORITY),
        turn=sql.Text(_TURN).format(survivor=survivor_order(root)) if clusters else sql.literal(1),
        taken=sql.Text(_TAKEN if clusters else "m.due"),
        **_due_below(store, root),
    )
    written = sql.execute(
        connection,
        statement,
        {
            "no": assessment,
            "first": first,
            "canary": waves.canary,
            "recent": waves.recent,
            "days": waves.recent_days,
            "complete": complete_statuses(store),
            "kinds": list(kinds),
        },
    ).rowcount
    _attach(connection, root, assessment)
    return written


# Keys that are right themselves and have a child that must move, or that has such a descendant. From the bottom up,
# each level once: nested in one another, the planner weighs every level in several ways, and doubles its work with
# each. DISTINCT and joins, not IN, which for more rows than fit into memory reads them all for each row.
_DUE_BELOW = """
{name} AS (
    SELECT DISTINCT i.parent_key AS key FROM {inventory} i {joined}
    JOIN {parents} p ON p.assessment_no = %(no)s AND p.key = i.parent_key AND p.id_class = 'deterministic'
    WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL AND (i.id_class <> 'deterministic' OR {due_below})),
"""


def _due_below(store: Store, entity: Entity) -> dict[str, sql.Composable]:
    """Parts of a statement over the inventory ``i``: whether a descendant is due, the joins and subqueries for it."""
    children = store.children(entity)
    named = [sql.name(f"due_{child.name}") for child in children]
    below = [
        piece
        for child, name in zip(children, named, strict=True)
        for parts in [_due_below(store, child)]
        for piece in (
            parts["below"],
            sql.Text(_DUE_BELOW).format(
                name=name,
                inventory=ledger.inventory_table(child),
                parents=ledger.inventory_table(entity),
                joined=parts["joined"],
                due_below=parts["due_below"],
            ),
        )
    ]
    joins = [sql.compose("LEFT JOIN {name} ON {name}.key = i.key", name=name) for name in named]
    found = [sql.compose("{name}.key IS NOT NULL", name=name) for name in named]
    return {
        "below": sql.join(" ", below),
        "joined": sql.join(" ", joins),
        "due_below": sql.compose("({any})", any=sql.join(" OR ", found)) if found else sql.Text("false"),
    }


def _build_child(connection: Connection, store: Store, entity: Entity, assessment: int) -> None:
    """Rows below the mapped parents. Which of several with one target id stays is the batch's to decide."""
    part = ledger_parts.fresh_part(connection, "id_map", entity, assessment)
    sql.execute(
        connection,
        sql.compose(
            """INSERT INTO {part} (assessment_no, ordinal, wave, role, natural_key, old_id, new_id)
               WITH shared AS (SELECT target_id FROM {inventory} WHERE assessment_no = %(no)s AND target_id IS NOT NULL
                               AND %(may_share)s GROUP BY target_id HAVING count(*) > 1),
               losers AS (
                   SELECT key FROM (
                       SELECT i.key,
                              row_number() OVER (PARTITION BY i.target_id ORDER BY p.role = 'merge', i.key) AS turn
                       FROM {inventory} i JOIN shared USING (target_id)
                       JOIN {parents} p ON p.assessment_no = %(no)s AND p.old_id = i.parent_key
                       WHERE i.assessment_no = %(no)s) turns WHERE turn > 1)
               SELECT %(no)s, p.ordinal, p.wave,
                      CASE WHEN l.key IS NOT NULL THEN 'merge' WHEN i.id_class = 'deterministic' THEN 'keep'
                           ELSE 'move' END, i.natural_key, i.key, i.target_id
               FROM {inventory} i JOIN {parents} p ON p.assessment_no = %(no)s AND p.old_id = i.parent_key
               LEFT JOIN losers l ON l.key = i.key
               WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL ORDER BY p.ordinal""",
            part=part,
            inventory=ledger.inventory_table(entity),
            parents=ledger.map_table(store.entity(entity.parent or "")),
        ),
        # Known to be false, it takes the grouping and the joins with its result out of the plan.
        {"no": assessment, "may_share": inventory.may_share_targets(connection, entity, assessment)},
    )
    _attach(connection, entity, assessment)


def _attach(connection: Connection, entity: Entity, assessment: int) -> None:
    ledger_parts.attach_part(connection, "id_map", entity, assessment, ["UNIQUE old_id", "new_id", "ordinal"])


def moves(connection: Connection, store: Store, assessment: int) -> dict[str, int]:
    """Ids that would change, by entity."""
    return of_role(connection, store, assessment, "move")


def merges(connection: Connection, store: Store, assessment: int) -> dict[str, int]:
    """Rows that would be merged into another, by entity."""
    return of_role(connection, store, assessment, "merge")


def of_role(connection: Connection, store: Store, assessment: int, role: str) -> dict[str, int]:
    """Rows of the id map by entity that have this role."""
    return {
        entity.name: int(
            sql.scalar(
                connection,
                sql.compose(
                    "SELECT count(*) FROM {map} WHERE assessment_no = %(no)s AND role = %(role)s",
                    map=ledger.map_table(entity),
                ),
                {"no": assessment, "role": role},
            )
        )
        for entity in store.entities
    }


def preview(connection: Connection, store: Store, assessment: int, limit: int) -> list[dict[str, Any]]:
    """The first rows of the main entity's id map."""
    statement = sql.compose(
        """SELECT ordinal, wave, role, old_id::text AS old_id, new_id::text AS new_id, natural_key
           FROM {map} WHERE assessment_no = %(no)s ORDER BY ordinal LIMIT %(limit)s""",
        map=ledger.map_table(store.main),
    )
    return [dict(row._mapping) for row in sql.rows(connection, statement, {"no": assessment, "limit": limit})]
