"""What must come of a random store: ids by the standard uuid5 over rows as text; what no merge may break."""

import uuid
from collections import Counter
from collections.abc import Mapping

from uuid_pipeline_tests.integration.cycle import Row, Rows, ordered
from uuid_pipeline_tests.properties.stores import NAMESPACE, RandomStore

Targets = list[dict[str | None, str]]


def targets(store: RandomStore, before: Rows) -> Targets:
    """Old id -> target id by level; rows in quarantine have none, nor has what hangs on them."""
    found: Targets = []
    for number, level in enumerate(store.levels):
        made: dict[str | None, str] = {}
        for row in before[level.table]:
            parts = [found[-1].get(row["parent"])] if number else []
            parts += [_name(store, row["na%me"])] if level.named else []
            if None not in parts:
                text = level.separator.join([*[str(part) for part in parts], str(row["nr"])])
                made[row[level.key]] = str(uuid.uuid5(uuid.UUID(NAMESPACE), text))
        found.append(made)
    return found


def _name(store: RandomStore, value: str | None) -> str | None:
    """Normalised; None for what the spec calls invalid."""
    if value is None:
        return None
    if "strip" in store.normalize:
        value = value.strip(" \t\n\r\f\v")
    if "lower" in store.normalize:
        value = "".join(chr(ord(sign) + 32) if "A" <= sign <= "Z" else sign for sign in value)
    return None if "!" in value or value.endswith("\n") else value


def expected_rows(store: RandomStore, before: Rows) -> Rows:
    """Every row after the migration, where no two share a natural key."""
    return renamed(store, targets(store, before), before)


def renamed(store: RandomStore, new: Targets, rows: Rows) -> Rows:
    """The rows with every id that has a target under it."""
    ids = store.ids()

    def moved(table: str, row: Row) -> Row:
        return {c: new[ids[table][c]].get(v, v) if c in ids[table] else v for c, v in row.items()}

    return {table: ordered([moved(table, row) for row in found]) for table, found in rows.items()}


def broken_by_merging(store: RandomStore, before: Rows, after: Rows, archived: Mapping[str, list[Row]]) -> list[str]:
    """What a merge did that none may; ``archived`` has each table's archived rows, in the table's columns, old ids.

    Whichever row survives: one row a natural key is left, under its target id; before = after + archived in every
    table; each row that is left is one that was there, with ids as mapped, references to a loser pointing at the
    survivor; nothing dangles.
    """
    new = targets(store, before)
    wrong = []
    for table, rows in renamed(store, new, before).items():
        gone = [_frozen(row) for row in renamed(store, new, {table: archived.get(table, [])})[table]]
        left = [_frozen(row) for row in after[table]]
        if Counter(map(_frozen, rows)) != Counter(gone) + Counter(left):
            wrong.append(f"{table}: before is not after and archived: {rows} {after[table]} {archived.get(table)}")
    for number, level in enumerate(store.levels):
        keys = [row[level.key] for row in after[level.table]]
        untouched = {row[level.key] for row in before[level.table]} - new[number].keys()
        if sorted(map(str, keys)) != sorted(map(str, untouched | set(new[number].values()))):
            wrong.append(f"{level.table}: the ids are not each target once and what is in quarantine: {keys}")
        for table, columns in store.ids().items():
            for column in (c for c, of in columns.items() if of == number):
                dangling = {row[column] for row in after[table]} - {None, *keys}
                wrong += [f"{table}.{column}: {dangling} dangles"] if dangling else []
    return wrong


def _frozen(row: Row) -> tuple[tuple[str, str | None], ...]:
    return tuple(sorted(row.items()))
