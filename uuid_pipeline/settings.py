"""The environment, read once: which store, which spec, which home, which Dagster database."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_plus

from pydantic import BaseModel, ConfigDict

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
    """Settings from the environment; an empty variable counts as unset. ``home`` is absolute."""

    def variable(name: str) -> str | None:
        return os.environ.get(f"UUID_PIPELINE_{name}", "").strip() or None

    spec = variable("SPEC")
    return Settings(
        database_url=variable("DATABASE_URL"),
        spec=Path(spec).absolute() if spec else None,
        home=Path(variable("HOME") or DEFAULT_HOME).expanduser().absolute(),
        dagster_url=variable("DAGSTER_URL"),
        direct_url=variable("DIRECT_URL"),
    )


def without_secrets(text: str, *urls: str | None) -> str:
    """``text`` with the passwords of ``urls`` (userinfo or query parameter) replaced by ``***``."""
    for url in urls:
        for secret in _secrets(url or ""):
            text = text.replace(secret, "***")
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
