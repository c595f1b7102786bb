"""Derivation: from what the server says of a row, its target id, its class or its fault, in COPY's binary form.

Binary, since the server takes longer to read three ids as text than for all the rest of a row; and no value has
anything to escape.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from uuid_pipeline.engine.natural_keys import first_invalid
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import digester, hasher

NO_NATURAL_KEY = "a part of the natural key is NULL or blank"

# The columns of the inventory that come of it, in the order of what `row_maker` makes.
DERIVED = ("position", "key", "natural_key", "target_id", "id_class", "quarantined")

_RANDOM = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")


def id_class(key: str, target: str | None) -> str:
    """``deterministic`` when the id equals its target id, else ``random`` (version 4) or ``stray``."""
    if target is not None and key == target:
        return "deterministic"
    return "random" if key[14:15] == "4" and _RANDOM.fullmatch(key) else "stray"


@dataclass(frozen=True)
class Ids:
    """How an entity's target ids are made and its ids classed, as the server sends and receives their type."""

    targets: Callable[[Iterable[bytes]], list[bytes]]
    classed: Callable[[bytes, bytes | None], bytes]


def ids_of(store: Store, entity: Entity) -> Ids:
    """For keys of type uuid, or of text."""
    if entity.key_type == "uuid":
        return Ids(digester(store.spec.namespace), _class_of_uuid)
    text_of = hasher(store.spec.namespace)
    return Ids(lambda natural_keys: [text_of(key.decode()).encode() for key in natural_keys], _class_of_text)


def _class_of_uuid(key: bytes, target: bytes | None) -> bytes:
    if key == target:
        return b"deterministic"
    # Version 4 of the variant 10, as the pattern above has it.
    return b"random" if key[6] >> 4 == 4 and key[8] >> 6 == 2 else b"stray"


def _class_of_text(key: bytes, target: bytes | None) -> bytes:
    return id_class(key.decode(), None if target is None else target.decode()).encode()


def row_maker(store: Store, entity: Entity, kept: int) -> Callable[[int, Sequence[Any]], bytes]:
    """A function from the first one's position and source rows to the inventory's rows as COPY reads them.

    A source row: key and natural key; what is wrong with its parent; ``kept`` columns that are passed on as they come;
    the checked parts. All but the fault and the parts as the server sends them in binary. By columns: what is done once
    a column costs a row nothing.
    """
    ids = ids_of(store, entity)

    def made(first: int, rows: Sequence[Any]) -> bytes:
        # Not zip(*rows): thousands of iterators take longer than all the columns.
        keys, natural_keys, faults, *others = [[row[place] for row in rows] for place in range(len(rows[0]))]
        quarantined = _faults(entity, natural_keys, faults, others[kept:])
        due = iter(ids.targets(key for key, fault in zip(natural_keys, quarantined, strict=True) if fault is None))
        targets = [next(due) if fault is None else None for fault in quarantined]
        positions = [position.to_bytes(8, "big") for position in range(first, first + len(rows))]
        classes = list(map(ids.classed, keys, targets))
        return copied([positions, keys, natural_keys, targets, classes, quarantined, *others[:kept]])

    return made


def _faults(
    entity: Entity, natural_keys: list[bytes | None], of_parents: list[str | None], valid: list[list[str]]
) -> list[bytes | None]:
    """Why a row is quarantined, None where it is not; ``valid`` holds the checked parts, by column."""
    faults = [
        fault or (NO_NATURAL_KEY if natural_key is None else None)
        for fault, natural_key in zip(of_parents, natural_keys, strict=True)
    ]
    if valid:
        parts = zip(*valid, strict=True)
        faults = [fault or _invalid(entity, values) for fault, values in zip(faults, parts, strict=True)]
    return [None if fault is None else fault.encode() for fault in faults]


def _invalid(entity: Entity, values: Sequence[str]) -> str | None:
    field = first_invalid(entity, values)
    return None if field is None else f"{field} does not match {entity.spec.valid[field]}"


_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = (-1).to_bytes(2, "big", signed=True)
_NULL = (-1).to_bytes(4, "big", signed=True)


def copied(columns: Sequence[Sequence[bytes | None]]) -> bytes:
    """Columns as rows in COPY's binary form, each value as its type is sent; None is NULL."""
    pieces: list[Iterable[bytes]] = [itertools.repeat(len(columns).to_bytes(2, "big"))]
    for values in columns:
        pieces += _fields(values)
    return _SIGNATURE + b"".join(itertools.chain.from_iterable(zip(*pieces, strict=False))) + _END


def _fields(values: Sequence[bytes | None]) -> list[Iterable[bytes]]:
    """Each value with its length before it; of ids and numbers, and most columns, one length is that of all."""
    present = [value for value in values if value is not None]
    lengths = set(map(len, present))
    if len(lengths) == 1 and len(present) == len(values):
        return [itertools.repeat(lengths.pop().to_bytes(4, "big")), present]
    return [[_NULL if value is None else len(value).to_bytes(4, "big") + value for value in values]]
