"""Identity rules: natural key text -> target id. Pure; no database.

The rule is RFC 9562 (section 5.5) version 5: SHA-1 over the namespace's 16 bytes and the UTF-8 text.
Normalisation knows ASCII only, so that Python and SQL under COLLATE "C" cannot disagree.
"""

import hashlib
import string
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Normalization = Literal["strip", "lower"]
ASCII_SPACE = " \t\n\r\f\v"
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True)
class Template:
    """An identity such as ``{user_id}:{file_sha256}``, split into literals and fields.

    ``literals`` has one item more than ``fields``: text before, between and after them.
    """

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> str:
        """The natural key's text; ``values`` holds every field, already normalised."""
        parts = [self.literals[0]]
        for field, literal in zip(self.fields, self.literals[1:], strict=True):
            parts += [values[field], literal]
        return "".join(parts)


def parse_template(text: str) -> Template:
    """Split an identity template.

    Raises ValueError when it has no field, or a field with an index, attribute, conversion or format.
    """
    literals, fields, literal = [], [], ""
    for before, field, spec, conversion in string.Formatter().parse(text):
        literal += before
        if field is None:
            continue
        if not field or field != field.strip() or set(field) & set(".[]") or field.isdigit() or spec or conversion:
            raise ValueError(f"identity {text!r}: {{{field}}} must be a plain column name")
        literals.append(literal)
        fields.append(field)
        literal = ""
    if not fields:
        raise ValueError(f"identity {text!r} names no column, so every row would get the same id")
    return Template((*literals, literal), tuple(fields))


def normalize(value: str, rules: Iterable[Normalization]) -> str:
    """Apply the spec's rules to one value, in order; ASCII only."""
    for rule in rules:
        value = value.strip(ASCII_SPACE) if rule == "strip" else value.translate(_ASCII_LOWER)
    return value


def hasher(namespace: uuid.UUID) -> Callable[[str], uuid.UUID]:
    """A function from natural key text to target id, with the namespace hashed once for millions of keys."""
    seeded = hashlib.sha1(namespace.bytes, usedforsecurity=False)

    def target(natural_key: str) -> uuid.UUID:
        digest = seeded.copy()
        digest.update(natural_key.encode())
        number = int.from_bytes(digest.digest()[:16], "big")
        number &= ~(0xF000 << 64) & ~(0xC000 << 48)
        return uuid.UUID(int=number | (5 << 76) | (0x8000 << 48))

    return target


def recomputed(
    namespace: uuid.UUID,
    template: str,
    raw: Mapping[str, str],
    normalization: Mapping[str, Sequence[Normalization]],
) -> uuid.UUID:
    """The target id by a second path: raw values, Python's normalisation, ``str.format``, the standard ``uuid5``.

    It shares with :func:`hasher` neither the SQL that builds natural keys nor the bit arithmetic,
    so a fault in one shows as a disagreement.
    """
    values = {field: normalize(value, normalization.get(field, ())) for field, value in raw.items()}
    return uuid.uuid5(namespace, template.format(**values))
