"""Redaction: owners, titles and natural keys shown as marks, wherever people read; the ledger keeps what it needs.

A mark is a keyed hash: the same value has the same mark, so that rows can still be told apart and counted, and without
the key nobody finds the value by trying.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from uuid_pipeline.settings import read_settings
from uuid_pipeline.spec import PERSONAL, Spec

EVERYTHING = "UUID_PIPELINE_REDACT"
KEY = "UUID_PIPELINE_REDACT_KEY"
KEY_FILE = "redaction.key"
MARK = "hidden-"

# Names under which tables for people hold what the spec calls owner, title or natural key.
_FIELDS = {"owner": "owner", "user": "owner", "user_id": "owner", "title": "title", "natural_key": "natural_key",
           "natural key": "natural_key"}  # fmt: skip


def hidden(spec: Spec) -> frozenset[str]:
    """What is not to be shown, of ``owner``, ``title``, ``natural_key``: by the environment all, else by the spec."""
    if os.environ.get(EVERYTHING, "").strip() not in ("", "0"):
        return frozenset(PERSONAL)
    return frozenset(spec.privacy.redact)


def shown(spec: Spec, kind: str, value: Any) -> Any:
    """A value as people may see it: itself, or its mark when its kind is hidden."""
    return mark(value) if kind in hidden(spec) else value


def records(spec: Spec, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table for people, with what is hidden as marks; a column's name tells what it holds."""
    kinds = hidden(spec)
    return [{name: mark(value) if _FIELDS.get(name) in kinds else value for name, value in row.items()} for row in rows]


def nested(spec: Spec, value: Any) -> Any:
    """The same at any depth of figures as JSON has them; a title is personal where the record has an id."""
    if isinstance(value, Mapping):
        kept = {name: nested(spec, part) for name, part in value.items()}
        named = {name for name in kept if name in _FIELDS and not isinstance(kept[name], (dict, list))}
        personal = named if "id" in kept else named - {"title"}
        return kept | records(spec, [{name: kept[name] for name in personal}])[0]
    if isinstance(value, list):
        return [nested(spec, part) for part in value]
    return value


def mark(value: Any) -> Any:
    """The mark of a value; None stays None."""
    if value is None:
        return None
    digest = hmac.new(_key(read_settings().home), str(value).encode(), hashlib.sha256)
    return MARK + digest.hexdigest()[:12]


def _key(home: Path) -> bytes:
    """The environment's key, else the home's own: several machines with the same marks need the former."""
    given = os.environ.get(KEY, "").strip()
    return given.encode() if given else _key_of_home(home)


@lru_cache
def _key_of_home(home: Path) -> bytes:
    place = home / KEY_FILE
    home.mkdir(parents=True, exist_ok=True)
    try:
        # Created with its mode, so that no other user reads it in between; who comes second reads the first one's.
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return place.read_bytes()
