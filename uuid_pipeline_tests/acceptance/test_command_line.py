"""The verbs as a user meets them: what they say, how they end, and what the store holds afterwards."""

import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from sqlalchemy import Engine

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.engine import lease
from uuid_pipeline_tests.acceptance.conftest import CommandLine, CommandLineFor, ended, with_password
from uuid_pipeline_tests.conftest import NewDatabase, NewRole, as_role, fill
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")

SPEC = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"
SEED = 20260102


def ask(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """One statement of plain SQL."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


def has_ledger(url: str) -> bool:
    return ask(url, "SELECT to_regnamespace('uuid_pipeline') IS NOT NULL") == [(True,)]


def deterministic(url: str) -> tuple[int, int, int, int]:
    """Documents, those of them that equal an independent uuid5, and the same of chunks (of the target parent)."""
    documents = ask(url, "SELECT document_id, user_id, file_sha256 FROM upload_pipeline.documents")
    target = {key: uuid.uuid5(cycle.NAMESPACE, f"{user}:{sha.strip(' ').lower()}") for key, user, sha in documents}
    chunks = ask(
        url,
        "SELECT chunk_id, document_id, chunker_name, chunker_version, chunk_ord FROM upload_pipeline.document_chunks",
    )
    exact = sum(
        key == uuid.uuid5(cycle.NAMESPACE, ":".join(map(str, (target[parent], *parts))))
        for key, parent, *parts in chunks
    )
    return len(documents), sum(key == new for key, new in target.items()), len(chunks), exact


def test_run_moves_nothing_before_approval_and_everything_exactly_once_after_it(
    command_line: CommandLine, incident: Engine, incident_url: str
) -> None:
    before, catalog = cycle.rows_of(incident), cycle.catalog_of(incident)
    assert deterministic(incident_url) == (38, 0, 87, 0)

    planned = command_line("run", "--json")
    assert planned.code == 3
    assert planned.data["exit_code"] == 3
    assert planned.data["approve_with"] == f"uuid-pipeline approve {planned.data['plan_id']}"
    assert all(gate["passed"] for gate in planned.data["gates"])
    assert cycle.rows_of(incident) == before

    unasked = command_line("migrate", "--json")
    assert (unasked.code, planned.data["approve_with"] in unasked.data["error"]) == (1, True)
    approved = command_line("approve", planned.data["plan_id"], "--json")
    assert (approved.code, approved.data["plan_id"]) == (0, planned.data["plan_id"])
    assert cycle.rows_of(incident) == before
    # Nothing has moved that could be finalized, and yet there is something to end first.
    for verb in ("finalize", "drop-ledger"):
        early = command_line(verb, "--yes", "--json")
        assert (early.code, "uuid-pipeline cancel" in early.data["error"]) == (1, True), verb

    done = command_line("run", "--json")
    assert (done.code, done.data["status"]) == (0, "completed")
    assert done.data["plan_id"] == planned.data["plan_id"]
    assert [(wave["kind"], wave["documents"], wave["status"]) for wave in done.data["waves"]] == [
        ("canary", 5, "moved"),
        ("recent", 15, "moved"),
        ("remaining", 18, "moved"),
        # Nothing had arrived, so the second pass had nothing to look for.
        ("sweep", 0, "moved"),
    ]
    assert "15 of 15 documents" in done.err
    assert deterministic(incident_url) == (38, 38, 87, 87)
    after = cycle.rows_of(incident)
    assert after == cycle.expected_rows(before)
    assert cycle.catalog_of(incident) == catalog

    more = command_line("migrate", "--json")
    assert (more.code, "is completed" in more.data["message"]) == (0, True)
    again = command_line("run", "--json")
    assert (again.code, again.data["nothing_to_do"]) == (0, True)
    assert "38 of 38" in again.data["message"]
    more = command_line("migrate", "--json")
    assert (more.code, "moves nothing" in more.data["message"]) == (0, True)
    assert cycle.rows_of(incident) == after


@pytest.mark.system
def test_rollback_asks_the_execution_for_its_specification_and_not_the_file(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    before = cycle.rows_of(incident)
    assert command_line("run", "--approve").code == 0
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.events DROP CONSTRAINT events_document_id_fkey")
    elsewhere = command_line.but(UUID_PIPELINE_SPEC=str(tmp_path / "lost.yaml"))
    assert elsewhere("validate").code == 2

    back = elsewhere("rollback", "--all", "--json")

    assert (back.code, len(back.data["rolled_back"])) == (0, 3), back.err
    assert cycle.rows_of(incident) == before


@pytest.mark.system
def test_rollback_of_one_wave_and_of_all_gives_exact_rows_back_and_a_new_run_moves_them_again(
    command_line: CommandLine, incident: Engine, incident_url: str
) -> None:
    before = cycle.rows_of(incident)
    assert command_line("run", "--approve").code == 0

    one = command_line("rollback", "--wave", "remaining", "--json")
    assert one.code == 0
    assert [wave.split("-", 4)[-1] for wave in one.data["rolled_back"]] == ["030-remaining-001"]
    old = {str(row["document_id"]) for row in before["documents"]}
    left = old & {str(row["document_id"]) for row in cycle.rows_of(incident)["documents"]}
    assert len(left) == 18
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left)

    status = command_line("status", "--json")
    assert (status.code, status.data["ledger"], status.data["writer"]) == (0, True, None)
    assert [execution["status"] for execution in status.data["executions"]] == ["partly_rolled_back"]
    assert [(wave["kind"], wave["status"], wave["moved"]) for wave in status.data["waves"]] == [
        ("canary", "moved", 5),
        ("recent", "moved", 15),
        ("remaining", "rolled_back", 0),
        ("sweep", "moved", 0),
        ("sweep", "unneeded", 0),
    ]

    everything = command_line("rollback", "--all", "--json")
    assert (everything.code, len(everything.data["rolled_back"])) == (0, 2)
    assert cycle.rows_of(incident) == before

    nothing = command_line("rollback", "--all", "--json")
    assert (nothing.code, nothing.data["rolled_back"]) == (0, [])
    for wave in ("canary", "sweep"):
        again = command_line("rollback", "--wave", wave, "--json")
        assert (again.code, again.data["rolled_back"]) == (0, [])
        assert again.data["message"] == f"Nothing to roll back: no row is under a new id of wave {wave}."
    missing = command_line("rollback", "--wave", "canaries", "--json")
    assert missing.code == 1
    assert "No moved wave is called canaries" in missing.data["error"]

    assert command_line("run", "--approve").code == 0
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_json_is_one_object_on_stdout_of_a_process_and_logs_are_on_stderr(
    command_line: CommandLine, incident_url: str
) -> None:
    said = command_line.process("run", "--approve", "--json")
    assert said.code == 0, said.err
    assert said.out.count("\n") == 1
    assert json.loads(said.out)["status"] == "completed"
    assert "5 of 5 documents" in said.err
    assert "Warning" not in said.err
    assert deterministic(incident_url) == (38, 38, 87, 87)


def test_verbs_that_only_look_leave_every_row_and_say_what_they_saw(
    command_line: CommandLine, incident: Engine
) -> None:
    before = cycle.rows_of(incident)
    unknown = command_line("status", "--json")
    assert (unknown.code, unknown.data["ledger"]) == (0, False)
    profile = command_line("profile", "--json")
    assert profile.code == 0
    assert {"upload_pipeline.documents", "upload_pipeline.document_chunks"} <= {
        table["table"] for table in profile.data["profile"]["tables"]
    }
    figures = command_line("inventory", "--json").data["inventory"]
    assert {name: figures[name] for name in ("documents", "random", "deterministic", "users", "bytes", "recent")} == {
        "documents": 38, "random": 38, "deterministic": 0, "users": 27, "bytes": 3520000, "recent": 38
    }  # fmt: skip
    assert (figures["failed"], figures["orphans"]) == (1, 0)
    assert figures["consistency"] == pytest.approx(0.763, abs=0.0005)
    plan = command_line("plan", "--json")
    assert (plan.code, len(plan.data["plan"]["waves"])) == (0, 3)
    assert cycle.rows_of(incident) == before


def test_migrating_without_an_approved_plan_is_refused_with_the_command_that_approves(
    command_line: CommandLine, incident: Engine
) -> None:
    before = cycle.rows_of(incident)
    nothing = command_line("migrate", "--json")
    assert nothing.code == 1
    assert "uuid-pipeline plan" in nothing.data["error"]
    plan_id = command_line("plan", "--json").data["plan_id"]
    waiting = command_line("migrate", "--json")
    assert waiting.code == 1
    assert f"uuid-pipeline approve {plan_id}" in waiting.data["error"]
    unknown = command_line("approve", "0123456789abcdef", "--json")
    assert unknown.code == 1
    assert plan_id in unknown.data["error"]
    assert cycle.rows_of(incident) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("rollback",),
        ("rollback", "--all", "--wave", "canary"),
        ("approve",),
        ("finalise",),
        ("run", "--nonsense"),
        ("plan", "--spec", "/nowhere/spec.yaml"),
    ],
)
def test_wrong_use_exits_with_2_and_makes_no_ledger(
    command_line: CommandLine, incident_url: str, arguments: tuple[str, ...]
) -> None:
    said = command_line(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.strip()
    assert not has_ledger(incident_url)


UNREACHABLE = {
    "refused port": "postgresql://app:{raw}@127.0.0.1:1/docs",
    "unknown host": "postgresql://app:{raw}@no-such-host.invalid/docs",
    "query parameter": "postgresql://app@127.0.0.1:1/docs?password={raw}",
    "other database": "mysql://app:{raw}@127.0.0.1/docs",
    "driver of another": "sqlite:///{raw}?password={raw}",
    "port is no number": "postgresql://app:{raw}@127.0.0.1:port/docs",
    "no URL at all": "host=127.0.0.1 password={raw}",
    "unknown parameter": "postgresql://app:{raw}@127.0.0.1:1/docs?nonsense=1",
    "missing socket": "postgresql://app:{raw}@/docs?host=/no/such/directory",
}
PASSWORDS = {
    "plain": ("s3cretWord", "s3cretWord"),
    "percent-encoded": ("s3%63ret%40Word%2F%25%20x", "s3cret@Word/% x"),
    "plus": ("s3cret+Word", "s3cret Word"),
    "at sign": ("s3cret@tailWord", "s3cret@tailWord"),
    "bracket": ("s3cret[tailWord", "s3cret[tailWord"),
}


def fragments(password: str) -> set[str]:
    """Each run of letters of a password long enough to be told from other words."""
    return {part for part in re.split(r"[^A-Za-z0-9]+", password) if len(part) > 4}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["approve", "--json"], "Missing argument 'plan_id'."),
        (["run", "--json", "--aprove"], "No such option: --aprove"),
        (["rum", "--json"], "No such command 'rum'"),
    ],
)
def test_a_misspelt_command_is_one_json_object_too(command_line: CommandLine, arguments: list[str], said: str) -> None:
    refused = command_line.process(*arguments)

    assert (refused.code, refused.data["exit_code"]) == (2, 2)
    assert said in refused.data["error"]
    assert said in refused.err


def test_a_misspelt_command_of_a_person_says_nothing_on_stdout(command_line: CommandLine) -> None:
    refused = command_line.process("rum")

    assert (refused.code, refused.out) == (2, "")
    assert "No such command 'rum'" in refused.err


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("case", UNREACHABLE)
def test_a_store_that_cannot_be_reached_exits_with_2_and_shows_no_password(
    tmp_path: Path, case: str, password: str
) -> None:
    raw, plain = PASSWORDS[password]
    url = UNREACHABLE[case].format(raw=raw)
    command_line = CommandLine({"UUID_PIPELINE_DATABASE_URL": url, "UUID_PIPELINE_HOME": str(tmp_path / "home")})
    for verb in (("run", "--json"), ("status",)):
        said = command_line(*verb)
        assert said.code == 2
        assert "UUID_PIPELINE_DATABASE_URL" in said.err
        shown = said.out + said.err
        assert not [secret for secret in {raw, plain} | fragments(raw) | fragments(plain) if secret in shown], shown
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("password", ["percent-encoded", "at sign"])
@pytest.mark.parametrize("case", ["refused port", "query parameter", "other database", "no URL at all"])
def test_a_dagster_database_that_cannot_be_reached_exits_with_2_and_leaves_the_store_alone(
    command_line: CommandLine, incident_url: str, case: str, password: str
) -> None:
    raw, plain = PASSWORDS[password]
    said = command_line.but(UUID_PIPELINE_DAGSTER_URL=UNREACHABLE[case].format(raw=raw))("run", "--json")
    assert said.code == 2
    shown = said.out + said.err
    assert "UUID_PIPELINE_DAGSTER_URL" in shown or "Dagster's database" in shown
    if "Dagster's database cannot be reached" in shown:
        assert "Check UUID_PIPELINE_DAGSTER_URL. Where the database is lost, an empty one does" in shown
    assert not [secret for secret in {raw, plain} | fragments(raw) | fragments(plain) if secret in shown], shown
    assert not has_ledger(incident_url)


@pytest.mark.parametrize(
    ("written", "instead", "named"),
    [
        ("key: document_id", "key: [document_id", "line 9"),
        ("on_duplicate: merge", "on_duplicate: perhaps", "line 13"),
        ("table: documents", "table: document_s", "documents"),
        ("describe: {owner: user_id", "describe: {owner: user_idd", "user_id"),
        ("key: chunk_id", "key: chunkid", "chunk_id"),
    ],
)
def test_a_wrong_spec_exits_with_2_names_line_or_nearest_and_makes_no_ledger(
    command_line: CommandLine, incident: Engine, incident_url: str, tmp_path: Path, written: str, instead: str,
    named: str,
) -> None:  # fmt: skip
    before = cycle.rows_of(incident)
    text = SPEC.read_text(encoding="utf-8")
    assert text.count(written) == 1
    path = tmp_path / "spec.yaml"
    path.write_text(text.replace(written, instead), encoding="utf-8")
    for arguments in (("run", "--spec", str(path)), ("status", "--json"), ("plan", "--spec", str(path), "--json")):
        said = command_line(*arguments)
        if arguments[0] != "status":
            assert said.code == 2
            assert named in said.err.replace(instead, "")
    assert not has_ledger(incident_url)
    assert cycle.rows_of(incident) == before


@pytest.mark.system
def test_a_role_without_rights_is_told_each_grant_and_after_just_those_the_run_succeeds(
    command_line_for: CommandLineFor, incident: Engine, incident_url: str, new_role: NewRole
) -> None:
    before = cycle.rows_of(incident)
    role = new_role("BYPASSRLS")
    command_line = command_line_for(as_role(incident_url, role))
    refused = command_line("run", "--approve", "--json")
    assert refused.code == 1
    assert "SELECT on table upload_pipeline.documents" in refused.data["error"]
    assert "UPDATE on table upload_pipeline.document_chunks" in refused.data["error"]
    assert not has_ledger(incident_url)
    assert cycle.rows_of(incident) == before

    grants = re.findall(r"GRANT [^;]+;", refused.data["error"])
    assert grants
    assert all("SUPERUSER" not in grant and "ALL" not in grant for grant in grants)
    for grant in grants:
        ask(incident_url, grant)
    done = command_line("run", "--approve", "--json")
    assert done.code == 0, done.err
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_a_role_from_whom_policies_hide_rows_is_refused_and_makes_no_ledger(
    command_line_for: CommandLineFor, incident: Engine, incident_url: str, new_role: NewRole
) -> None:
    before = cycle.rows_of(incident)
    role = new_role()
    database = ask(incident_url, "SELECT quote_ident(current_database())")[0][0]
    for grant in (
        f"GRANT CREATE ON DATABASE {database} TO {role}",
        f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}",
        f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA upload_pipeline TO {role}",
        f"GRANT SET ON PARAMETER session_replication_role TO {role}",
    ):
        ask(incident_url, grant)
    url = as_role(incident_url, role)
    assert ask(url, "SELECT count(*) FROM upload_pipeline.documents") == [(0,)]
    for verb in ("run", "inventory"):
        said = command_line_for(url)(verb, "--json")
        assert said.code == 1
        assert "Row-level security hides rows of upload_pipeline.documents" in said.data["error"]
        assert f"ALTER ROLE {role} BYPASSRLS" in said.data["error"]
    assert not has_ledger(incident_url)
    assert cycle.rows_of(incident) == before


def test_of_several_kinds_of_documents_all_are_counted_before_a_store_is_called_empty_or_done(
    command_line_for: CommandLineFor, empty_url: str, tmp_path: Path
) -> None:
    ask(empty_url, "CREATE TABLE public.albums (id uuid PRIMARY KEY, name text NOT NULL)")
    ask(empty_url, "CREATE TABLE public.books (id uuid PRIMARY KEY, name text NOT NULL)")
    ask(empty_url, "INSERT INTO public.books SELECT gen_random_uuid(), n::text FROM generate_series(1, 2) n")
    spec = tmp_path / "two.yaml"
    spec.write_text(
        "namespace: 11111111-2222-3333-4444-555555555555\nschema: public\nbackup: none\nentities:\n"
        + "".join(f'  {n}: {{table: {n}s, key: id, identity: "{{name}}"}}\n' for n in ("album", "book"))
    )
    uuid_pipeline, of_spec = command_line_for(empty_url), ("--spec", str(spec), "--json")

    said = uuid_pipeline("inventory", *of_spec).data
    assert "message" not in said
    assert {name: said["inventory"][name] for name in ("documents", "random", "deterministic", "quarantined")} == {
        "documents": 2, "random": 2, "deterministic": 0, "quarantined": 0,
    }  # fmt: skip
    assert uuid_pipeline("run", "--approve", *of_spec).code == 0
    assert "Nothing to do: 2 of 2 ids are deterministic." in uuid_pipeline("run", *of_spec).data["message"]
    ask(empty_url, "DELETE FROM public.books")
    assert "public.albums, public.books have no rows" in uuid_pipeline("inventory", *of_spec).data["message"]


def test_an_empty_store_says_so_with_exit_0_and_a_database_without_the_tables_exits_with_2(
    command_line: CommandLine, command_line_for: CommandLineFor, incident_url: str, empty_url: str
) -> None:
    ask(incident_url, "TRUNCATE upload_pipeline.documents CASCADE")
    for arguments in (("run", "--json"), ("run", "--approve", "--json"), ("inventory", "--json")):
        said = command_line(*arguments)
        assert said.code == 0
        assert "The store is empty: upload_pipeline.documents has no rows" in said.data["message"]
    bare = command_line_for(empty_url)("run", "--json")
    assert bare.code == 2
    assert "upload_pipeline" in bare.data["error"]
    assert not has_ledger(empty_url)


def test_a_home_or_a_dagster_database_of_one_store_refuses_another(
    command_line: CommandLine, command_line_for: CommandLineFor, new_database: NewDatabase, incident_template: str
) -> None:
    assert command_line("profile").code == 0
    url = new_database(incident_template)
    other = command_line_for(url)
    own = command_line.environment
    for borrowed in ("UUID_PIPELINE_HOME", "UUID_PIPELINE_DAGSTER_URL"):
        said = other.but(**{borrowed: own[borrowed]})("run", "--approve", "--json")
        assert said.code == 2
        assert "belongs to another store" in said.data["error"]
        assert not has_ledger(url)
    assert command_line("profile").code == 0
    assert other("profile").code == 0


@pytest.fixture
def slow_spec(tmp_path: Path) -> Path:
    """The default spec with batches of one document: as many moments to die as there can be."""
    path = tmp_path / "slow.yaml"
    path.write_text(SPEC.read_text(encoding="utf-8") + "\nbatch_rows: 1\n", encoding="utf-8")
    return path


def batches(url: str) -> tuple[int, bool]:
    """Committed batches, and whether somebody holds the lease."""
    if ask(url, "SELECT to_regclass('uuid_pipeline.lease') IS NULL") == [(True,)]:
        return 0, False
    found = ask(url, "SELECT (SELECT count(*) FROM uuid_pipeline.batches), holder IS NOT NULL FROM uuid_pipeline.lease")
    return int(found[0][0]), bool(found[0][1])


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    _, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL, err


def kill_while_writing(process: "subprocess.Popen[str]", url: str, wanted: int) -> int:
    """Kill a process that holds the lease and has come to so many batches; returns how many it committed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if batches(url)[0] >= wanted:
            process.send_signal(signal.SIGSTOP)
            done, held = batches(url)
            if held:
                kill(process)
                return done
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError(f"no batch {wanted} in 60 s")


def runs(command_line: CommandLine) -> dict[str, str]:
    """Status of every run in Dagster's database."""
    url = command_line.environment["UUID_PIPELINE_DAGSTER_URL"]
    return dict(ask(url, "SELECT run_id, status FROM runs"))


@pytest.mark.system
def test_a_run_killed_while_it_writes_is_finished_by_the_next_and_shown_as_failed(
    command_line: CommandLine, incident: Engine, incident_url: str, slow_spec: Path
) -> None:
    before, catalog = cycle.rows_of(incident), cycle.catalog_of(incident)
    chance = random.Random(SEED)
    arguments = ("run", "--approve", "--json", "--spec", str(slow_spec))
    dead: set[str] = set()
    for wanted in sorted(chance.sample(range(1, 34), 2)):
        done = kill_while_writing(command_line.start(*arguments), incident_url, wanted)
        assert wanted <= done < 38
        started = {run_id for run_id, status in runs(command_line).items() if status == "STARTED"}
        assert len(started - dead) == 1
        dead |= started
    finished = command_line(*arguments)
    assert (finished.code, finished.data["status"]) == (0, "completed")
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert cycle.catalog_of(incident) == catalog
    assert ask(incident_url, "SELECT count(*), count(DISTINCT first_ordinal) FROM uuid_pipeline.batches") == [(38, 38)]
    assert {runs(command_line)[run_id] for run_id in dead} == {"FAILURE"}


@pytest.mark.system
def test_a_run_killed_at_any_moment_is_finished_by_the_next_and_none_is_left_shown_as_running(
    command_line: CommandLine, incident: Engine, slow_spec: Path
) -> None:
    before = cycle.rows_of(incident)
    chance = random.Random(SEED)
    arguments = ("run", "--approve", "--json", "--spec", str(slow_spec))
    dead: set[str] = set()
    # However slow the machine: a moment from the first run on, which plans and holds no lease yet, then later ones.
    for moment in (0.0, chance.uniform(0.5, 3.0)):
        process = command_line.start(*arguments)
        known = runs(command_line)
        while process.poll() is None and not [
            run for run in runs(command_line).items() if run[1] == "STARTED" and run[0] not in known
        ]:
            time.sleep(0.01)
        time.sleep(moment)
        if process.poll() is None:
            kill(process)
        dead |= {run_id for run_id, status in runs(command_line).items() if status == "STARTED"}
    assert dead
    finished = command_line(*arguments)
    assert finished.code == 0
    assert {runs(command_line)[run_id] for run_id in dead} == {"FAILURE"}
    assert set(runs(command_line).values()) == {"FAILURE", "SUCCESS"}
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.system
def test_of_two_runs_at_once_one_completes_and_the_other_is_refused_or_finds_nothing_to_do(
    command_line: CommandLine, incident: Engine, slow_spec: Path
) -> None:
    before = cycle.rows_of(incident)
    arguments = ("run", "--approve", "--json", "--spec", str(slow_spec))
    both = [command_line.start(*arguments) for _ in range(2)]
    said = sorted((ended(process) for process in both), key=lambda one: one.code)
    assert said[0].code == 0, [one.data.get("error") for one in said]
    assert said[1].code in (0, 1), said[1].err
    if said[1].code == 1:
        assert said[1].data["error"]
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert os.linesep not in said[0].out.strip()


@pytest.mark.parametrize(("only", "status"), [((), "moved"), (("--wave", "recent"), "planned")])
def test_a_run_that_another_keeps_out_calls_no_wave_failed(
    command_line: CommandLine, incident: Engine, only: tuple[str, ...], status: str
) -> None:
    command_line("approve", command_line("plan", "--json").data["plan_id"])
    assert command_line("migrate", "--wave", "canary").code == 0

    with lease.held(incident, "another run"):
        said = command_line("migrate", *only, "--json")

    assert said.code == 1
    assert [wave["status"] for wave in said.data["waves"]] == [status]


def test_a_profile_with_a_red_gate_shows_what_it_found_all_the_same(
    command_line: CommandLine, incident: Engine
) -> None:
    cycle.run_sql(incident, "CREATE RULE quiet AS ON UPDATE TO upload_pipeline.events DO INSTEAD NOTHING")

    said = command_line("profile", "--json")

    assert said.code == 1
    assert "rewrite rules" in said.data["error"]
    assert any("rewrite rules" in line for line in said.data["profile"]["unsupported"])
    assert [gate["gate"] for gate in said.data["gates"] if not gate["passed"]] == ["nothing_unsupported"]


def test_a_wrong_rule_is_red_before_what_it_makes_of_clusters(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    """By the hash alone rows of several users are one cluster, which would be said in its place."""
    same = """UPDATE upload_pipeline.documents SET file_sha256 = repeat('ab', 32) WHERE document_id IN (
                  SELECT DISTINCT ON (user_id) document_id FROM upload_pipeline.documents)"""
    cycle.run_sql(incident, same)
    spec = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    document = spec["entities"]["document"]
    document["identity"] = "{file_sha256}"
    document["witnesses"] = [{name: w[name] for name in ("file_sha256", "id")} for w in document["witnesses"]]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(spec))

    said = command_line("inventory", "--spec", str(tmp_path / "wrong.yaml"), "--json")

    assert said.code == 1
    assert [gate["gate"] for gate in said.data["gates"] if not gate["passed"]] == ["witnesses_agree"]


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_an_execution_is_steered_though_somebody_has_a_table_whole(
    command_line: CommandLine, incident: Engine, verb: str
) -> None:
    command_line("approve", command_line("plan", "--json").data["plan_id"])
    with cycle.session(incident) as holder:
        holder.execute("LOCK TABLE upload_pipeline.documents, upload_pipeline.document_chunks IN ACCESS EXCLUSIVE MODE")
        holder.execute("REINDEX INDEX upload_pipeline.documents_pkey")

        said = ended(command_line.start(verb, "--json"))

    assert said.code == 0, said.err


@pytest.fixture
def demo_home() -> Iterator[Path]:
    """A home that does not exist yet; the server that a demo starts in it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="up_demo_", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "home"
        embedded.destroy(Path(directory) / "home")


@pytest.mark.system
def test_the_demo_goes_on_with_what_it_left_starts_over_with_fresh_and_stops_its_server(demo_home: Path) -> None:
    demo = CommandLine({"UUID_PIPELINE_HOME": str(demo_home)})
    first = demo("demo", "--json")
    assert (first.code, first.data["status"]) == (0, "completed")
    running = embedded.find(demo_home)
    assert running is not None
    store = running.url("incident")
    assert deterministic(store) == (38, 38, 87, 87)
    # All that the incident's report asks for is shown within the demo, and holds.
    assert first.data["rehearsal"]["passed"]
    assert first.data["plan"]["estimate"]["basis"].startswith("rehearsal 1 ")
    assert "there is no duplicate content" in first.data["verdict"]
    assert first.data["regeneration"] == {"waiting": 9, "queued": 0, "reasons": {"no_chunks": 9, "failed": 1}}
    assert (first.data["notices"]["kind"], first.data["notices"]["users"]) == ("after", 27)
    assert all(Path(path).exists() for paths in first.data["notices"]["files"].values() for path in paths)
    assert first.data["evidence"] == {"intact": True, "rows": 125, "agreeing": 125}
    assert demo("verify-bundle", first.data["report"]["bundle"]["path"], "--against-store").code == 0
    ask(running.url("postgres"), "CREATE DATABASE of_somebody_else")

    second = demo("demo", "--json")
    assert (second.code, second.data["nothing_to_do"]) == (0, True)
    assert ask(store, "SELECT count(*) FROM uuid_pipeline.executions") == [(1,)]

    ask(store, "TRUNCATE upload_pipeline.documents CASCADE")
    fresh = demo("demo", "--fresh")
    assert fresh.code == 0
    for figure in ("38", "27", "3.52 MB", "76.3 %", "uuid-pipeline ui", "uuid-pipeline rollback --all",
                   "rehearsal 1 ", "To be processed again: 9", "support.md", "intact to the byte"):  # fmt: skip
        assert figure in fresh.out
    assert deterministic(store) == (38, 38, 87, 87)
    assert ask(store, "SELECT count(*) FROM uuid_pipeline.executions") == [(1,)]
    assert ask(running.url("postgres"), "SELECT count(*) FROM pg_database WHERE datname = 'of_somebody_else'") == [(1,)]

    assert demo("demo", "--stop").code == 0
    assert embedded.find(demo_home) is None
    assert "was not running" in demo("demo", "--stop").out


@pytest.mark.parametrize("options", [(), ("--fresh",), ("--stop",)])
def test_the_demo_is_refused_while_a_store_is_set_and_touches_nothing(
    command_line: CommandLine, incident: Engine, incident_url: str, options: tuple[str, ...]
) -> None:
    before = cycle.rows_of(incident)
    said = command_line("demo", *options)
    assert (said.code, said.out) == (2, "")
    assert "UUID_PIPELINE_DATABASE_URL" in said.err
    assert not has_ledger(incident_url)
    assert cycle.rows_of(incident) == before
    assert not Path(command_line.environment["UUID_PIPELINE_HOME"]).exists()


def test_the_password_of_a_store_that_is_reached_is_never_shown(command_line: CommandLine, incident_url: str) -> None:
    secret = "pl4nted secret"
    with_secret = command_line.but(UUID_PIPELINE_DATABASE_URL=with_password(incident_url, secret))
    for arguments in (("profile",), ("plan", "--json"), ("status",), ("rollback", "--wave", "none")):
        said = with_secret(*arguments)
        assert "pl4nted" not in said.out + said.err


def test_a_home_that_cannot_be_written_is_named_without_a_traceback(command_line: CommandLine, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster").write_text("no directory")

    said = command_line.but(UUID_PIPELINE_HOME=str(home))("plan", "--json")

    assert said.code == 2
    assert str(home / "dagster") in said.data["error"]
    assert "Traceback" not in said.err


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small filesystem")
def test_a_home_that_is_full_is_named_with_what_to_do_and_nothing_is_lost(
    command_line: CommandLine, incident: Engine, small_disk: Path, tmp_path: Path
) -> None:
    before, spec = cycle.rows_of(incident), tmp_path / "spec.yaml"
    spec.write_text(SPEC.read_text(encoding="utf-8").replace("\nbackup: dump", "\nbackup: none"), encoding="utf-8")
    of_home = command_line.but(UUID_PIPELINE_HOME=str(small_disk / "home"))
    assert of_home("inventory", "--json").code == 0
    fill(small_disk)

    said = of_home("plan", "--json", "--spec", str(spec))

    assert said.code == 1
    assert "Make room on the disk of the home (UUID_PIPELINE_HOME), and run again" in said.data["error"]
    (small_disk / "filler").unlink()
    assert of_home("run", "--approve", "--json", "--spec", str(spec)).code == 0
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
