"""Settings come from the environment; passwords never come out again."""

from pathlib import Path

import pytest

from uuid_pipeline.engine.connection import open_store, store_url
from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations.instance import shares_the_stores_database
from uuid_pipeline.settings import Settings, read_settings, without_secrets

URLS = [
    ("postgresql://me:hunter22@db.example/app", "hunter22"),
    ("postgresql://me:p%40ss%2Fword@db.example/app", "p@ss/word"),
    ("postgresql://me:p%40ss%2Fword@db.example/app", "p%40ss%2Fword"),
    ("postgresql://me@db.example/app?password=hunter22", "hunter22"),
    ("postgresql://me@db.example/app?password=p%40ss%2Fword", "p@ss/word"),
    ("postgresql://me@db.example/app?password=p%40ss%2Fword", "p%40ss%2Fword"),
    ("postgresql://me@db.example/app?sslmode=require&sslpassword=k%65y22", "key22"),
    ("postgresql://me@db.example/app?password=one+two+three", "one+two+three"),
    ("postgresql://me:pass#word/with?all@db.example/app", "pass#word/with?all"),
    ("postgresql://me:pa:ss:word@db.example/app", "pa:ss:word"),
    ("postgresql://me:hunter22@[::1/app", "hunter22"),
]


@pytest.mark.parametrize(("url", "secret"), URLS)
def test_no_password_survives_in_any_of_its_spellings(url: str, secret: str) -> None:
    text = f'connection to "{url}" failed: password "{secret}" was wrong'

    assert secret not in without_secrets(text, url)


@pytest.mark.parametrize(("url", "secret"), [(url, secret) for url, secret in URLS if "[" not in url])
def test_the_refusal_of_a_store_that_cannot_be_reached_holds_no_password(url: str, secret: str) -> None:
    nobody = url.replace("db.example", "127.0.0.1:1")

    with pytest.raises(UsageError) as fault:
        open_store(nobody)

    assert secret not in fault.value.message
    assert "cannot be reached" in fault.value.message


def test_several_urls_are_cleaned_at_once_and_none_is_no_url() -> None:
    found = without_secrets("a:first b:second", "postgresql://u:first@h/d", None, "postgresql://u:second@h/d")

    assert found == "a:*** b:***"


@pytest.mark.parametrize("secret", ["b", "us"])
def test_a_short_password_is_taken_out_where_it_stands_by_itself_and_leaves_words_readable(secret: str) -> None:
    found = without_secrets(f"must be postgresql://me:{secret}@h/d", f"mysql://me:{secret}@h/d")

    assert found == "must be postgresql://me:***@h/d"


def test_a_path_below_a_directory_that_is_gone_is_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for name, absolute in (("HOME", "SPEC"), ("SPEC", "HOME")):
        monkeypatch.setenv(f"UUID_PIPELINE_{name}", "relative")
        monkeypatch.setenv(f"UUID_PIPELINE_{absolute}", str(tmp_path / "there"))
        with pytest.raises(UsageError, match="current directory is gone"):
            read_settings()
    monkeypatch.setenv("UUID_PIPELINE_SPEC", str(tmp_path / "spec.yaml"))
    assert read_settings().home == tmp_path / "there"


def test_text_without_a_secret_stays_as_it_is() -> None:
    assert without_secrets("nothing here", "postgresql://me@db.example/app", None) == "nothing here"


@pytest.mark.parametrize(
    "text", ["", "app", "mysql://me@h/app", "http://h", "sqlite:///x", "postgresql:/me", "postgresql://h:port/x"]
)
def test_what_is_no_postgresql_url_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="UUID_PIPELINE_DATABASE_URL"):
        store_url(text)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_gets_our_driver(scheme: str) -> None:
    assert store_url(f"{scheme}://me@h/app").drivername == "postgresql+psycopg"


def test_an_unset_or_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "SPEC", "HOME", "DAGSTER_URL"):
        monkeypatch.setenv(f"UUID_PIPELINE_{name}", " ")

    found = read_settings()

    assert (found.database_url, found.spec, found.dagster_url) == (None, None, None)
    assert found.home == tmp_path / ".uuid_pipeline"


def test_paths_are_absolute_whatever_directory_comes_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UUID_PIPELINE_SPEC", "my.yaml")
    monkeypatch.setenv("UUID_PIPELINE_HOME", "home")

    assert read_settings().spec == tmp_path / "my.yaml"
    assert read_settings().home == tmp_path / "home"


@pytest.mark.parametrize(
    ("dagster", "shared"),
    [
        ("postgresql://other:x@db/app", True),
        ("postgresql://app:y@db:5432/app?sslmode=require", True),
        ("postgresql://app:y@db:5433/app", False),
        ("postgresql://app:y@db/dagster", False),
        (None, False),
    ],
)
def test_a_database_that_dagster_and_the_store_share_is_told(dagster: str | None, shared: bool, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://app:x@db/app", dagster_url=dagster)
    assert shares_the_stores_database(settings) is shared
