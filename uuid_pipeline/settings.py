"""The environment, read once: which store, which spec, which home, which Dagster database."""

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict

DEFAULT_HOME = ".uuid_pipeline"


class Settings(BaseModel):
    """What UUID_PIPELINE_* say; ``None`` means the embedded server or the default spec."""

    model_config = ConfigDict(frozen=True)

    database_url: str | None = None
    spec: Path | None = None
    home: Path
    dagster_url: str | None = None


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
    )


def without_secrets(text: str, *urls: str | None) -> str:
    """``text`` with the passwords of ``urls`` (userinfo or query parameter) replaced by ``***``."""
    for url in urls:
        for secret in _secrets(url or ""):
            text = text.replace(secret, "***")
    return text


def _secrets(url: str) -> list[str]:
    from urllib.parse import unquote

    found = []
    try:
        parts = urlsplit(url)
        raw = parts.password
        query = parse_qs(parts.query)
    except ValueError:
        return [url]
    for secret in [raw, *query.get("password", []), *query.get("sslpassword", [])]:
        if secret:
            found += [secret, unquote(secret)]
    return sorted(found, key=len, reverse=True)
