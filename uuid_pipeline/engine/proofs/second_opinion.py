"""Target ids by a second implementation, which shares no code with the first: no identity.py, no hashlib, no uuid.

Its own reading of the template, its own normalisation (of bytes), and SHA-1 as FIPS 180-4 writes it, over many keys at
once. It is given raw column values and the specification's text, and nothing that the first one has made of them. The
gate of the id map and the certificate ask it.
"""

from collections.abc import Iterable, Mapping, Sequence

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
            raw = raw.strip(_SPACE)
        elif rule == "lower":
            # Of bytes, not of text: this knows no letters beyond ASCII.
            raw = raw.lower()
        else:
            raise ValueError(f"there is no rule {rule!r}")
    return raw


def keys(
    pieces: Sequence[tuple[bool, str]],
    rules: Mapping[str, Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[Sequence[str | None]],
) -> list[bytes | None]:
    """The natural key of each row, None where a part is NULL; ``rows`` hold values in the order of ``columns``."""
    wanted = [text for is_column, text in pieces if is_column]
    parts: Iterable[Sequence[str | None]] = rows
    # Most rows are all that there is to fill in, as they come.
    if wanted != list(columns) or any(rules.get(column) for column in wanted):
        place = {column: index for index, column in enumerate(columns)}
        by_column = [_part([row[place[column]] for row in rows], rules.get(column, ())) for column in wanted]
        parts = zip(*by_column, strict=True)
    form = "".join("%s" if is_column else text.replace("%", "%%") for is_column, text in pieces)
    return [None if None in row else (form % tuple(row)).encode() for row in parts]


def _part(values: list[str | None], rules: Sequence[str]) -> list[str | None]:
    if not rules:
        return values
    return [None if value is None else normalized(value, rules).decode() for value in values]


def targets(namespace: str, natural_keys: Sequence[bytes | None]) -> list[str | None]:
    """Version 5 ids (RFC 9562, section 5.5) of natural keys, None for None; ``namespace`` is a UUID's text."""
    prefix = bytes.fromhex(namespace.replace("-", ""))
    made: list[str | None] = [*_as_text(sha1([prefix + key for key in natural_keys if key is not None]))]
    if len(made) == len(natural_keys):
        return made
    present = iter(made)
    return [None if key is None else next(present) for key in natural_keys]


# Where the digits of an id stand in its text, and how many go before each hyphen.
_PLACES = [place for place in range(36) if place not in (8, 13, 18, 23)]


def _as_text(digests: Words) -> list[str]:
    words = digests[:, :4].copy()
    words[:, 1] = (words[:, 1] & np.uint32(0xFFFF0FFF)) | np.uint32(0x5000)
    words[:, 2] = (words[:, 2] & np.uint32(0x3FFFFFFF)) | np.uint32(0x80000000)
    digits = np.frombuffer(words.astype(">u4").tobytes().hex().encode(), dtype=np.uint8)
    text = np.full((len(words), 37), ord("-"), dtype=np.uint8)
    text[:, _PLACES] = digits.reshape(len(words), 32)
    text[:, 36] = ord(" ")
    return text.tobytes().decode().split()


def sha1(messages: Sequence[bytes]) -> Words:
    """SHA-1 of each message, as rows of five 32-bit words; messages of equal length in blocks go together."""
    result = np.empty((len(messages), 5), dtype=np.uint32)
    in_blocks = [(len(message) + 8) // 64 + 1 for message in messages]
    for blocks in set(in_blocks):
        indexes = [index for index, of_message in enumerate(in_blocks) if of_message == blocks]
        words = _padded([messages[index] for index in indexes], blocks)
        state = [np.full(len(indexes), value, dtype=np.uint32) for value in _INITIAL]
        for first in range(0, 16 * blocks, 16):
            _compress(state, words[:, first : first + 16])
        result[indexes] = np.stack(state, axis=1)
    return result


def _padded(messages: Sequence[bytes], blocks: int) -> Words:
    """The messages' words: a one bit behind each, zeros, and its length in bits at the end of the last block."""
    padded = b"".join([(message + b"\x80").ljust(64 * blocks, b"\x00") for message in messages])
    words = np.frombuffer(padded, dtype=">u4").reshape(len(messages), 16 * blocks).astype(np.uint32)
    bits = np.array([8 * len(message) for message in messages], dtype=np.uint64)
    words[:, -2], words[:, -1] = bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)
    return words


def _compress(state: list[Words], block: Words) -> None:
    """Take one block of each message into the state.

    In place wherever it can be: making an array for each of some 1,400 steps takes as long as the steps.
    """
    schedule, spare, mixed = _schedule(block), np.empty_like(state[0]), np.empty_like(state[0])
    a, b, c, d, e = (words.copy() for words in state)
    for index in range(80):
        _mix(index, (b, c, d), mixed, spare)
        e += mixed
        e += schedule[index]
        _turn(a, 5, mixed, spare)
        e += mixed
        _turn(b, 30, b, spare)
        a, b, c, d, e = e, a, b, c, d
    for index, change in enumerate((a, b, c, d, e)):
        state[index] += change


def _schedule(block: Words) -> Words:
    """The word of each of the 80 rounds, with the round's constant added."""
    schedule = np.empty((80, len(block)), dtype=np.uint32)
    schedule[:16] = block.T
    spare = np.empty_like(schedule[0])
    for index in range(16, 80):
        word = schedule[index]
        np.bitwise_xor(schedule[index - 3], schedule[index - 8], out=word)
        word ^= schedule[index - 14]
        word ^= schedule[index - 16]
        _turn(word, 1, word, spare)
    for index, constant in enumerate(_ROUND):
        schedule[20 * index : 20 * index + 20] += np.uint32(constant)
    return schedule


def _mix(index: int, words: tuple[Words, Words, Words], into: Words, spare: Words) -> None:
    """The round's function of three words: the one's choice between the others, their parity, or their majority."""
    b, c, d = words
    if index < 20:
        # (b & c) | (~b & d), as one choice.
        np.bitwise_xor(c, d, out=into)
        into &= b
        into ^= d
    elif 40 <= index < 60:
        # (b & c) | (b & d) | (c & d), the first two as one.
        np.bitwise_or(c, d, out=into)
        into &= b
        np.bitwise_and(c, d, out=spare)
        into |= spare
    else:
        np.bitwise_xor(b, c, out=into)
        into ^= d


def _turn(words: Words, bits: int, into: Words, spare: Words) -> None:
    np.right_shift(words, np.uint32(32 - bits), out=spare)
    np.left_shift(words, np.uint32(bits), out=into)
    into |= spare
