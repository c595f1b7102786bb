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


def hasher(namespace: uuid.UUID) -> Callable[[str], str]:
    """A function from natural key text to target id, as text; the namespace is hashed once for millions of keys."""
    seeded = hashlib.sha1(namespace.bytes, usedforsecurity=False)
    # The two upper bits of this digit are the variant: 10.
    variant = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

    def target(natural_key: str) -> str:
        digest = seeded.copy()
        digest.update(natural_key.encode())
        h = digest.hexdigest()
        return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{variant[h[16]]}{h[17:20]}-{h[20:32]}"

    return target


def digester(namespace: uuid.UUID) -> Callable[[Iterable[bytes]], list[bytes]]:
    """As :func:`hasher`, from the UTF-8 of many natural keys to the 16 bytes of each one's target id."""
    seeded = hashlib.sha1(namespace.bytes, usedforsecurity=False)
    size = seeded.digest_size
    version = bytes(0x50 | byte & 0x0F for byte in range(256))
    variant = bytes(0x80 | byte & 0x3F for byte in range(256))

    def digest(natural_key: bytes) -> bytes:
        hashed = seeded.copy()
        hashed.update(natural_key)
        return hashed.digest()

    def targets(natural_keys: Iterable[bytes]) -> list[bytes]:
        made = bytearray(b"".join(map(digest, natural_keys)))
        # The upper half of byte 6 and the two upper bits of byte 8, of all of them at once.
        made[6::size] = made[6::size].translate(version)
        made[8::size] = made[8::size].translate(variant)
        ids = bytes(made)
        return [ids[at : at + 16] for at in range(0, len(ids), size)]

    return targets


def recomputer(
    namespace: uuid.UUID,
    template: str,
    fields: Sequence[str],
    normalization: Mapping[str, Sequence[Normalization]],
) -> Callable[[Sequence[str]], str]:
    """The target id of raw values, given in the order of ``fields``, by a second path.

    Python's normalisation, ``str.format``, the standard ``uuid5``: it shares with :func:`hasher` neither the SQL that
    builds natural keys nor the making of the id, so a fault in one shows as a disagreement.
    """
    rules = {field: rules for field, rules in normalization.items() if rules}

    def target(raw: Sequence[str]) -> str:
        values = dict(zip(fields, raw, strict=True))
        for field, of_field in rules.items():
            values[field] = normalize(values[field], of_field)
        return str(uuid.uuid5(namespace, template.format_map(values)))

    return target
