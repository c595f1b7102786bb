"""Texts and JSON with one user's ids taken out of them."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

ERASED = "[erased]"
# Text and JSON are searched for ids that cannot be there by chance; a shorter one is found only where it is a value.
SEARCHED_LENGTH = 8
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
TOKEN = r"[\w@.+-]*\w"
# A short id as a value of these is one; as a value of others it may be any number or word.
_OF_IDS = frozenset({"user", "owner", "id", "document", "document_id", "key", "old_id", "new_id", "target_id"})


@dataclass(frozen=True)
class Wanted:
    """What texts are searched for, made once for all of them: ids that are a word, and other ones by a part of each.

    An id shorter than SEARCHED_LENGTH is in neither.
    """

    words: frozenset[str]
    phrases: dict[str, list[str]]


def wanted(ids: frozenset[str]) -> Wanted:
    """Sort the ids by how they are found. Of a phrase, a natural key, its end or its beginning tells it from others."""
    searched = [one for one in ids if len(one) >= SEARCHED_LENGTH]
    ends: dict[str, list[str]] = defaultdict(list)
    beginnings: dict[str, list[str]] = defaultdict(list)
    for one in searched:
        if not re.fullmatch(TOKEN, one):
            ends[one[-SEARCHED_LENGTH:]].append(one)
            beginnings[one[:SEARCHED_LENGTH]].append(one)
    return Wanted(frozenset(searched), ends if len(ends) > len(beginnings) else beginnings)


def mentions(text: str, sought: Wanted) -> bool:
    """Whether a text holds one of the ids as a word."""
    return scrubbed(text, sought) != text


def scrubbed(text: str, sought: Wanted) -> str:
    """The text with each of the ids in it replaced; ids shorter than SEARCHED_LENGTH are left."""

    def replace(found: re.Match[str]) -> str:
        return ERASED if found[0] in sought.words or found[0].lower() in sought.words else found[0]

    # A natural key first, since others of them may be a part of it.
    for phrase in _phrases_in(text, sought):
        text = text.replace(phrase, ERASED)
    return re.sub(TOKEN, replace, re.sub(UUID, replace, text))


def _phrases_in(text: str, sought: Wanted) -> list[str]:
    """The phrases that stand in the text, the longest first: in one pass, however many are sought."""
    if not sought.phrases:
        return []
    parts = {text[at : at + SEARCHED_LENGTH] for at in range(len(text) - SEARCHED_LENGTH + 1)}
    found = [phrase for part in parts & sought.phrases.keys() for phrase in sought.phrases[part] if phrase in text]
    return sorted(found, key=lambda phrase: (-len(phrase), phrase))


def pruned(text: str, ids: frozenset[str]) -> str:
    """JSON without the records of lists that name one of the ids: what else they say is of the same user."""
    if "[" not in text:
        return text

    def prune(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: prune(part) for name, part in value.items()}
        if isinstance(value, list):
            return [prune(part) for part in value if not (isinstance(part, dict) and names(part))]
        return value

    def names(record: dict[str, Any]) -> bool:
        return any(
            isinstance(part, str) and part in ids and (len(part) >= SEARCHED_LENGTH or name in _OF_IDS)
            for name, part in record.items()
        )

    found = json.loads(text)
    left = prune(found)
    return text if left == found else json.dumps(left, ensure_ascii=False)
