"""Target ids by a second implementation, which shares no code with the first: no identity.py, no hashlib, no uuid.

Its own reading of the template, its own normalisation (of bytes), and SHA-1 as FIPS 180-4 writes it, over many keys at
once. It is given raw column values and the specification's text, and nothing that the first one has made of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_SPACE = bytes((9, 10, 11, 12, 13, 32))
_INITIAL = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0)
_ROUND = (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6)


def read_template(text: str) -> list[tuple[bool, str]]:
    """Pieces in order: (True, a column) or (False, a literal); doubled braces stand for one.

    Raises ValueError for a brace that is neither.
    """
    pieces: list[tuple[bool, str]] = []
    literal, at = "", 0
    while at < len(text):
        here = text[at]
        if here in "{}" and text[at : at + 2] == here * 2:
            literal, at = literal + here, at + 2
        elif here == "{":
            end = text.index("}", at)
            pieces += [(False, literal), (True, text[at + 1 : end])]
            literal, at = "", end + 1
        elif here == "}":
            raise ValueError(f"a brace closes nothing at character {at} of {text!r}")
        else:
            literal, at = literal + here, at + 1
    return [*pieces, (False, literal)]


def normalized(value: str, rules: Sequence[str]) -> bytes:
    """UTF-8 of a value, normalised; only ASCII bytes are touched, and no other byte of UTF-8 looks like one."""
    raw = value.encode()
    for rule in rules:
        if rule == "strip":
            first, last = 0, len(raw)
            while first < last and raw[first] in _SPACE:
                first += 1
            while last > first and raw[last - 1] in _SPACE:
                last -= 1
            raw = raw[first:last]
        elif rule == "lower":
            raw = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in raw) if _has_upper(raw) else raw
        else:
            raise ValueError(f"there is no rule {rule!r}")
    return raw


def _has_upper(raw: bytes) -> bool:
    return any(65 <= byte <= 90 for byte in raw)


def keys(
    pieces: Sequence[tuple[bool, str]],
    rules: Mapping[str, Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[Sequence[str | None]],
) -> list[bytes | None]:
    """The natural key of each row, None where a part is NULL; ``rows`` hold values in the order of ``columns``."""
    place = {column: index for index, column in enumerate(columns)}
    plan = [(place[text], tuple(rules.get(text, ()))) if is_column else text.encode() for is_column, text in pieces]
    found: list[bytes | None] = []
    for row in rows:
        made: bytes | None = b""
        for step in plan:
            if isinstance(step, bytes):
                part: bytes | None = step
            else:
                value = row[step[0]]
                part = None if value is None else normalized(value, step[1])
            made = None if made is None or part is None else made + part
        found.append(made)
    return found


def targets(namespace: str, natural_keys: Sequence[bytes | None]) -> list[str | None]:
    """Version 5 ids (RFC 9562, section 5.5) of natural keys, None for None; ``namespace`` is a UUID's text."""
    prefix = bytes.fromhex(namespace.replace("-", ""))
    present = [key for key in natural_keys if key is not None]
    made = iter(_as_text(sha1([prefix + key for key in present])))
    return [None if key is None else next(made) for key in natural_keys]


def _as_text(digests: Words) -> list[str]:
    words = digests[:, :4].copy()
    words[:, 1] = (words[:, 1] & np.uint32(0xFFFF0FFF)) | np.uint32(0x5000)
    words[:, 2] = (words[:, 2] & np.uint32(0x3FFFFFFF)) | np.uint32(0x80000000)
    digits = words.astype(">u4").tobytes().hex()
    return [
        f"{digits[i : i + 8]}-{digits[i + 8 : i + 12]}-{digits[i + 12 : i + 16]}-{digits[i + 16 : i + 20]}"
        f"-{digits[i + 20 : i + 32]}"
        for i in range(0, len(digits), 32)
    ]


def sha1(messages: Sequence[bytes]) -> Words:
    """SHA-1 of each message, as rows of five 32-bit words; messages of equal length in blocks go together."""
    result = np.empty((len(messages), 5), dtype=np.uint32)
    by_blocks: dict[int, list[int]] = {}
    for index, message in enumerate(messages):
        by_blocks.setdefault((len(message) + 8) // 64 + 1, []).append(index)
    for blocks, indexes in by_blocks.items():
        padded = b"".join(_padded(messages[index], blocks) for index in indexes)
        words = np.frombuffer(padded, dtype=">u4").reshape(len(indexes), blocks, 16).astype(np.uint32)
        state = tuple(np.full(len(indexes), value, dtype=np.uint32) for value in _INITIAL)
        for block in range(blocks):
            state = _compress(state, words[:, block, :])
        result[indexes] = np.stack(state, axis=1)
    return result


def _padded(message: bytes, blocks: int) -> bytes:
    zeros = blocks * 64 - len(message) - 9
    return message + b"\x80" + b"\x00" * zeros + (8 * len(message)).to_bytes(8, "big")


def _compress(state: tuple[Words, ...], block: Words) -> tuple[Words, ...]:
    schedule = [np.ascontiguousarray(block[:, index]) for index in range(16)]
    for _ in range(16, 80):
        schedule.append(_turned(schedule[-3] ^ schedule[-8] ^ schedule[-14] ^ schedule[-16], 1))
    a, b, c, d, e = state
    for index, word in enumerate(schedule):
        mixed = _mix(index, b, c, d) + e + np.uint32(_ROUND[index // 20]) + word
        a, b, c, d, e = _turned(a, 5) + mixed, a, _turned(b, 30), c, d
    return tuple(old + new for old, new in zip(state, (a, b, c, d, e), strict=True))


def _mix(index: int, b: Words, c: Words, d: Words) -> Words:
    mixed: Words = b ^ c ^ d
    if index < 20:
        mixed = (b & c) | (~b & d)
    elif 40 <= index < 60:
        mixed = (b & c) | (b & d) | (c & d)
    return mixed


def _turned(words: Words, bits: int) -> Words:
    turned: Words = (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))
    return turned
