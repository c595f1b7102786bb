"""Unmistakable secrets in the environment, and a search for them in all that a run leaves behind."""

import os
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from uuid_pipeline.operations.instance import open_instance
from uuid_pipeline.operations.runs import run_job
from uuid_pipeline.settings import read_settings
from uuid_pipeline_tests.acceptance.conftest import CommandLine, CommandLineFor, Said, with_password

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]

STORE, DAGSTER = "pl4nted-st0re-p%40ss", "pl4nted-d4gster-p%40ss"
# What else a deployment keeps in the environment: each holds the word that is searched for.
OTHERS = {
    "UUID_PIPELINE_NOTIFY_URLS": "slack://pl4nted/notify/url json://user:pl4nted-webhook@127.0.0.1:9/",
    "UUID_PIPELINE_ALERT_URLS": "mailtos://user:pl4nted-mail@127.0.0.1:9/",
    "UUID_PIPELINE_WEBHOOK_SECRET": "pl4nted-webhook-secret",
    "UUID_PIPELINE_CELERY_BROKER": "redis://:pl4nted-broker@127.0.0.1:9/0",
    "UUID_PIPELINE_REDACT_KEY": "pl4nted-redaction-key",
    "PGPASSWORD": "pl4nted-pgpassword",
    "SLACK_WEBHOOK_URL": "https://hooks.slack.example/pl4nted",
}
PLANTED = "pl4nted"


def everything_in(url: str, schemas: str) -> dict[str, str]:
    """Every row of every table as text, by table."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY(string_to_array(%s, ','))", [schemas]
        ).fetchall()
        statement = sql.SQL("SELECT coalesce(string_agg(t::text, chr(10)), '') FROM {} t")
        return {
            f"{schema}.{table}": str(
                connection.execute(statement.format(sql.Identifier(schema, table))).fetchall()[0][0]
            )
            for schema, table in tables
        }


def everything_below(directory: Path) -> dict[str, str]:
    return {str(path): path.read_bytes().decode(errors="replace") for path in directory.rglob("*") if path.is_file()}


def traces(command_line: CommandLine, said: list[Said]) -> dict[str, str]:
    """All that was left anywhere: the home, Dagster's database, the ledger, what was printed."""
    environment = command_line.environment
    return {
        **everything_below(Path(environment["UUID_PIPELINE_HOME"])),
        **everything_in(environment["UUID_PIPELINE_DAGSTER_URL"], "public"),
        **everything_in(environment["UUID_PIPELINE_DATABASE_URL"], "uuid_pipeline"),
        **{f"output {number}": one.out + one.err for number, one in enumerate(said)},
    }


@pytest.fixture
def loaded(command_line_for: CommandLineFor, incident_url: str) -> CommandLine:
    """The command line with a secret in every place that takes one; the server asks for none."""
    plain = command_line_for(incident_url)
    dagster = with_password(plain.environment["UUID_PIPELINE_DAGSTER_URL"], DAGSTER)
    return plain.but(
        UUID_PIPELINE_DATABASE_URL=with_password(incident_url, STORE), UUID_PIPELINE_DAGSTER_URL=dagster, **OTHERS
    )


def failing_run(command_line: CommandLine, url: str) -> str:
    """A run in Dagster whose store cannot be reached; its error."""
    from uuid_pipeline.definitions import defs

    with pytest.MonkeyPatch.context() as patch:
        command_line.apply(patch)
        with open_instance(read_settings()) as instance:
            patch.setenv("UUID_PIPELINE_DATABASE_URL", url)
            outcome = run_job(defs, instance, "profile", say=print)
    assert outcome.error is not None
    return outcome.error.message


def test_no_secret_is_in_any_file_log_metadata_table_or_output(loaded: CommandLine, incident_url: str) -> None:
    store = loaded.environment["UUID_PIPELINE_DATABASE_URL"]
    unreachable = [
        store.replace("postgres:", "nobody:", 1),
        store.replace("?host=", "x?host=", 1),
        f"postgresql://me:{STORE}@127.0.0.1:9/app",
        f"postgresql://me@127.0.0.1:9/app?password={STORE}",
        f"postgresql://me:{STORE}@/x@127.0.0.1:9/app",
        f"mysql://me:{STORE}@127.0.0.1/app",
    ]
    said = [
        loaded.process("run", "--approve", "--json"),
        loaded.process("status"),
        loaded.process("profile", "--json"),
        loaded.process("rollback", "--all"),
        loaded.process("approve", "nothing"),
        *(loaded.but(UUID_PIPELINE_DATABASE_URL=url).process("plan", "--json") for url in unreachable),
        loaded.but(UUID_PIPELINE_DAGSTER_URL=f"postgresql://me:{DAGSTER}@127.0.0.1:9/d").process("plan"),
        loaded.but(UUID_PIPELINE_EXECUTOR="nonsense").process("plan"),
    ]
    assert [one.code for one in said] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2], [one.err for one in said]
    errors = [failing_run(loaded, url) for url in unreachable[:3]]
    assert all("cannot be reached" in error for error in errors)

    left = traces(loaded, said)

    assert {place for place, text in left.items() if PLANTED in text or "p@ss" in text} == set()
    # The search reaches where it says: what was done is found in each of the places.
    plan_id = said[0].data["plan_id"]
    found = {place for place, text in left.items() if plan_id in text}
    assert {"public.event_logs", "uuid_pipeline.plans", "output 0", "output 1"} <= found
    assert any(place.endswith("dagster.yaml") for place in left)
    assert any("cannot be reached" in left[place] for place in ("public.event_logs",))


def test_the_search_finds_a_secret_that_is_there(loaded: CommandLine, tmp_path: Path) -> None:
    home = Path(loaded.environment["UUID_PIPELINE_HOME"])
    (home / "logs").mkdir(parents=True)
    (home / "logs/run.log").write_text(f"password={STORE}")
    assert [place for place, text in everything_below(home).items() if PLANTED in text] == [
        os.fspath(home / "logs/run.log")
    ]
