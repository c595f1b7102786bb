"""Who uploaded what is hidden on request: in what verbs say, in Dagster's pages and in its event log."""

import re
from pathlib import Path

import psycopg
import pytest

from uuid_pipeline.demo.twins import build_twins
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.acceptance.conftest import ROOT, CommandLine, CommandLineFor
from uuid_pipeline_tests.acceptance.test_command_line import ask
from uuid_pipeline_tests.conftest import NewDatabase

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")


@pytest.fixture
def store_url(new_database: NewDatabase) -> str:
    url = new_database(None)
    engine = open_store(url)
    with engine.begin() as connection:
        build_twins(connection)
    engine.dispose()
    return url


def everything_said(command_line: CommandLine) -> str:
    """What a plan and its report say on the command line and in files, and all that Dagster keeps of it."""
    verbs = (("profile", "--json"), ("plan", "--json"), ("plan",), ("report", "--json"), ("regenerate", "--json"))
    said = [command_line(*verb) for verb in verbs]
    assert [one.code for one in said] == [0] * len(verbs), [one.err for one in said]
    home = Path(command_line.environment["UUID_PIPELINE_HOME"])
    files = [path.read_text(encoding="utf-8") for kind in ("*.html", "*.md") for path in home.rglob(kind)]
    assert len(files) >= 3
    with psycopg.connect(command_line.environment["UUID_PIPELINE_DAGSTER_URL"]) as connection:
        events = connection.execute("SELECT event FROM event_logs").fetchall()
        assets = connection.execute("SELECT row_to_json(a)::text FROM asset_keys a").fetchall()
    return "\n".join([*files, *(one.out + one.err for one in said), *(str(row[0]) for row in [*events, *assets])])


def personal(url: str) -> dict[str, set[str]]:
    """Users, titles and hashes of the store's own rows."""
    rows = ask(url, "SELECT user_id::text, filename, lower(file_sha256) FROM upload_pipeline.documents")
    return dict(
        zip(("owner", "title", "natural_key"), (set(column) for column in zip(*rows, strict=True)), strict=True)
    )


def found(text: str, values: set[str]) -> set[str]:
    return {value for value in values if value and value in text.lower()} | {v for v in values if v and v in text}


@pytest.mark.system
def test_without_it_they_are_shown_and_with_it_nowhere(command_line_for: CommandLineFor, store_url: str) -> None:
    values = personal(store_url)
    open_text = everything_said(command_line_for(store_url))
    assert all(found(open_text, values[kind]) for kind in values)

    hidden_text = everything_said(command_line_for(store_url).but(UUID_PIPELINE_REDACT="1"))

    assert {kind: found(hidden_text, values[kind]) for kind in values} == {
        "owner": set(), "title": set(), "natural_key": set()
    }  # fmt: skip
    assert len(set(re.findall(r"hidden-[0-9a-f]{12}", hidden_text))) > 10


@pytest.mark.system
def test_the_spec_hides_what_it_names_and_no_plan_goes_stale_by_it(
    command_line_for: CommandLineFor, store_url: str, tmp_path: Path
) -> None:
    text = (ROOT / "uuid_pipeline/specs/upload_pipeline.yaml").read_text(encoding="utf-8")
    spec = tmp_path / "spec.yaml"
    spec.write_text(text + "\nprivacy: {redact: [title]}\n", encoding="utf-8")
    command_line = command_line_for(store_url).but(UUID_PIPELINE_SPEC=str(spec))
    values = personal(store_url)

    said = everything_said(command_line)

    assert found(said, values["title"]) == set()
    assert found(said, values["owner"])
    assert load_spec(spec).digest == load_spec(None).digest
    assert command_line.but(UUID_PIPELINE_REDACT="1")(
        "export", "--plan", "--natural-keys", "--output", str(tmp_path)
    ).code == 2  # fmt: skip


def test_a_mark_tells_rows_apart_and_depends_on_a_key_that_others_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UUID_PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UUID_PIPELINE_REDACT", "1")
    spec = load_spec(None)

    rows = redaction.records(spec, [{"owner": "ann", "n": 1}, {"owner": "bob", "n": 2}, {"owner": "ann", "n": None}])

    assert rows[0]["owner"] == rows[2]["owner"] != rows[1]["owner"]
    assert [row["n"] for row in rows] == [1, 2, None]
    assert redaction.records(spec, [{"title": None}]) == [{"title": None}]
    assert (tmp_path / "home/redaction.key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("UUID_PIPELINE_REDACT_KEY", "another")
    assert redaction.mark("ann") != rows[0]["owner"]
