"""The environment, read once: which store, which spec, which home, which Dagster database."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_plus

from pydantic import BaseModel, ConfigDict

from uuid_pipeline.errors import UsageError

DEFAULT_HOME = ".uuid_pipeline"


class Settings(BaseModel):
    """What UUID_PIPELINE_* say; ``None`` means the embedded server or the default spec.

    ``direct_url`` leads to the store past a pooler, for the backup alone.
    """

    model_config = ConfigDict(frozen=True)

    database_url: str | None = None
    spec: Path | None = None
    home: Path
    dagster_url: str | None = None
    direct_url: str | None = None


def read_settings() -> Settings:
    """Settings from the environment; an empty variable counts as unset. ``home`` is absolute.

    Raises UsageError when a path is relative to a directory that is gone.
    """
    spec = _variable("SPEC")
    return Settings(
        database_url=_variable("DATABASE_URL"),
        spec=absolute(Path(spec)) if spec else None,
        home=absolute(Path(_variable("HOME") or DEFAULT_HOME).expanduser()),
        dagster_url=_variable("DAGSTER_URL"),
        direct_url=_variable("DIRECT_URL"),
    )


def _variable(name: str) -> str | None:
    return os.environ.get(f"UUID_PIPELINE_{name}", "").strip() or None


def absolute(path: Path) -> Path:
    """The path from the root. Raises UsageError when it is relative to a directory that is gone."""
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise UsageError(
            f"The current directory is gone, so that nobody can tell where {path} is. Change to one that exists, or "
            "set UUID_PIPELINE_HOME and UUID_PIPELINE_SPEC to absolute paths."
        ) from error


def without_own_secrets(text: str) -> str:
    """``text`` with the passwords of every URL in the environment replaced by ``***``."""
    return without_secrets(text, *[_variable(name) for name in ("DATABASE_URL", "DAGSTER_URL", "DIRECT_URL")])


# A shorter one is part of many a word: it is replaced where it stands by itself, as it does in a URL.
_TOLD_FROM_WORDS = 4


def without_secrets(text: str, *urls: str | None) -> str:
    """``text`` with the passwords of ``urls`` (userinfo or query parameter) replaced by ``***``."""
    for url in urls:
        for secret in _secrets(url or ""):
            pattern = re.escape(secret)
            if len(secret) < _TOLD_FROM_WORDS and secret.isalnum():
                pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
            text = re.sub(pattern, "***", text)
    return text


# Read from the text, not from a parsed URL: each library cuts an odd URL elsewhere, and a password must be found
# however the one that complains has read it.
_USERINFO = re.compile(r"^[^:/]+://[^:@/]*:(?P<password>[^@]*)@")
_USERINFO_TO_LAST_AT = re.compile(r"^[^:/]+://[^:@/]*:(?P<password>.*)@")
_PARAMETER = re.compile(r"(?:^|[?&\s])(?:password|sslpassword)\s*=\s*(?P<password>[^&\s]*)")


def _secrets(url: str) -> list[str]:
    """Each spelling of each password in a URL or connection string, the longest first."""
    raw = [
        match["password"]
        for pattern in (_USERINFO, _USERINFO_TO_LAST_AT, _PARAMETER)
        for match in pattern.finditer(url)
    ]
    found = {spelling for secret in raw if secret for spelling in (secret, unquote(secret), unquote_plus(secret))}
    return sorted(found, key=len, reverse=True)
