"""Quarantine of documents below which ids change places: one row's target id is the id that another has now.

Chunks of a document that were numbered anew after a migration are such. While an id is one row's old and another's new
one, nobody could tell which of them a writer or a reference means; so the document is left as it is, and the rest goes
on. An id that a row outside the document holds turns the gate ``no_collision`` red, unless the spec says
``on_collision: wait``: then the document is left until that row has moved away, by this plan or a later one.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Entity, Store


def changing_places(connection: Connection, store: Store, assessment: int) -> None:
    """Quarantine, in this assessment's inventory, documents whose rows are to get ids that others have.

    All below such a document is, and the document with its whole cluster if any of it is to move or to merge: its batch
    would derive these rows anew.
    """
    for root in store.roots:
        family = _family(store, root)
        anywhere = root.spec.on_collision == "wait"
        chained = [_find_chained(connection, entity, assessment, anywhere) for entity in family]
        if any(chained):
            _add_above(connection, store, family, assessment)
            _add_below(connection, store, family, assessment)
            for entity in family:
                _quarantine(connection, entity, assessment)
        for entity in family:
            sql.execute(connection, sql.compose("DROP TABLE {blocked}", blocked=_blocked(entity)))


def _family(store: Store, root: Entity) -> list[Entity]:
    """A root and all below it, parents first."""
    family = [root]
    for entity in store.entities:
        if any(entity.parent == above.name for above in family):
            family.append(entity)
    return family


def _blocked(entity: Entity) -> sql.Composable:
    """The temporary table of the keys that are to be quarantined."""
    return sql.table("pg_temp", f"blocked_{entity.name}")


def _find_chained(connection: Connection, entity: Entity, assessment: int, anywhere: bool) -> bool:
    """Note the rows whose target id is a sibling's id, or ``anywhere`` another row's; whether there are any."""
    # A holder that is right already is a twin, and merging takes it out of the way; a random id is no target id.
    statement = sql.compose(
        """CREATE TEMPORARY TABLE {blocked} ON COMMIT DROP AS
           SELECT i.key FROM {inventory} i JOIN {inventory} holder ON holder.key = i.target_id
           WHERE {possible} AND i.assessment_no = {no} AND holder.assessment_no = {no} AND i.key <> i.target_id
             AND holder.id_class = 'stray' AND ({anywhere} OR holder.parent_key = i.parent_key)""",
        blocked=_blocked(entity),
        inventory=ledger.inventory_table(entity),
        possible=sql.literal(anywhere or entity.parent is not None),
        anywhere=sql.literal(anywhere),
        no=sql.literal(assessment),
    )
    return sql.execute(connection, statement).rowcount > 0


def _add_above(connection: Connection, store: Store, family: list[Entity], assessment: int) -> None:
    """The ancestors of what is blocked, up to the documents and what is to be merged with these."""
    for entity in reversed(family[1:]):
        above = sql.compose(
            """INSERT INTO {above} SELECT DISTINCT i.parent_key FROM {blocked} b JOIN {inventory} i ON i.key = b.key
               WHERE i.assessment_no = %(no)s""",
            above=_blocked(store.entity(entity.parent or "")),
            blocked=_blocked(entity),
            inventory=ledger.inventory_table(entity),
        )
        sql.execute(connection, above, {"no": assessment})
    root = family[0]
    cluster = sql.compose(
        """INSERT INTO {blocked} SELECT twin.key FROM {inventory} twin WHERE twin.assessment_no = %(no)s
           AND twin.target_id IN (SELECT i.target_id FROM {blocked} b JOIN {inventory} i ON i.key = b.key
                                  WHERE i.assessment_no = %(no)s)""",
        blocked=_blocked(root),
        inventory=ledger.inventory_table(root),
    )
    sql.execute(connection, cluster, {"no": assessment})


def _add_below(connection: Connection, store: Store, family: list[Entity], assessment: int) -> None:
    for entity in family[1:]:
        below = sql.compose(
            """INSERT INTO {blocked} SELECT i.key FROM {inventory} i
               WHERE i.assessment_no = %(no)s AND i.parent_key IN (SELECT key FROM {above})""",
            blocked=_blocked(entity),
            inventory=ledger.inventory_table(entity),
            above=_blocked(store.entity(entity.parent or "")),
        )
        sql.execute(connection, below, {"no": assessment})


def _quarantine(connection: Connection, entity: Entity, assessment: int) -> None:
    is_document = entity.parent is None
    statement = sql.compose(
        """UPDATE {inventory} i SET quarantined = %(reason)s, target_id = NULL
           WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL AND i.key IN (SELECT key FROM {blocked}) {due}""",
        inventory=ledger.inventory_table(entity),
        blocked=_blocked(entity),
        due=_in_a_due_cluster(entity) if is_document else sql.Text(""),
    )
    reason = (
        "another row has its id, or one below it" if is_document else "another row has an id of its document's rows"
    )
    sql.execute(connection, statement, {"no": assessment, "reason": f"{reason} (docs/traps.md)"})


def _in_a_due_cluster(entity: Entity) -> sql.Composable:
    """A document that has its target id, and no twin, keeps it: nothing below it is due, so no batch comes to it."""
    return sql.compose(
        """AND EXISTS (SELECT FROM {inventory} c WHERE c.assessment_no = %(no)s AND c.target_id = i.target_id
                       AND c.id_class <> 'deterministic')""",
        inventory=ledger.inventory_table(entity),
    )
