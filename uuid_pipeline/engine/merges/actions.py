"""What the server does of itself where foreign keys are checked: an action that finds rows which are none of its own.

Merging whole sets gives the place of a row, (document, name, number), to the one that stays instead, in one statement
with the delete. What names the place means the new row then; but at the end of the statement the server looks for
rows that name what was deleted, and finds these: it would delete or empty them, or refuse. A rollback gives the place
back by an UPDATE, to which the same applies. NO ACTION alone looks whether another row has the place.
"""

from collections.abc import Collection

from uuid_pipeline.engine.altered.triggers import Tier
from uuid_pipeline.engine.catalog import ForeignKey
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import RefusedError

NO_ACTION = "a"
_WORDS = {"r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}


def misled(store: Store, tier: Tier) -> list[str]:
    """Foreign keys whose actions merging or its rollback would mislead, a sentence each; in tier R none acts."""
    if tier.name == "R":
        return []
    return [
        f"foreign key {_name(key)} is {_said(key)} and names rows of {key.target_schema}.{key.target} by a column that "
        "merging whole sets turns: the server would take the row that gets an archived one's place for that one. In "
        f"tier O ({tier.reason}) it acts: migrate as a role with tier R (docs/roles.md), take merge_as_set out of the "
        "spec, or make the key NO ACTION"
        for key in store.catalog.foreign_keys
        if _said(key) and _may_be_retaken(store, key)
    ]


def require_way_back(store: Store, tier: Tier, archived: Collection[str]) -> None:
    """Raise RefusedError where archived rows would get their places back while such an action is on.

    ``archived``: tables, as "schema.table", of which rows were archived. A merge in tier R may have to go back in tier
    O, and a key may have got its action since.
    """
    found = [
        _name(key)
        for key in store.catalog.foreign_keys
        if tier.name == "O"
        and key.on_update != NO_ACTION
        and f"{key.target_schema}.{key.target}" in archived
        and _may_be_retaken(store, key)
    ]
    if found:
        raise RefusedError(
            f"Refused: archived rows get back places that others hold, and {', '.join(found)} would act on that (ON "
            f"UPDATE other than NO ACTION). In tier O ({tier.reason}) it would: roll back as a role with tier R "
            "(docs/roles.md), or make the key NO ACTION for as long as the rollback takes."
        )


def _name(key: ForeignKey) -> str:
    return f"{key.name} of {key.table_schema}.{key.table}"


def _said(key: ForeignKey) -> str:
    said = [("ON DELETE", key.on_delete), ("ON UPDATE", key.on_update)]
    return " ".join(f"{when} {_WORDS[action]}" for when, action in said if action != NO_ACTION)


def _may_be_retaken(store: Store, key: ForeignKey) -> bool:
    """Whether a row that stays may get what this key names of one that goes."""
    for moved in store.tables:
        entity = moved.entity
        if entity is not None and (moved.table.schema, moved.table.name) == (key.target_schema, key.target):
            turned = {column for column, _ in moved.columns if column != entity.key}
            return _goes_as_set(store, entity) and bool(turned & set(key.target_columns))
    return False


def _goes_as_set(store: Store, entity: Entity) -> bool:
    """Whether rows of the survivor's own may go: where they, or what they are below, are merged as sets."""
    if entity.parent is None:
        return False
    return bool(entity.spec.merge_as_set) or _goes_as_set(store, store.entity(entity.parent))
