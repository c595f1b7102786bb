"""The embedded server, on homes of its own: how it starts, who may find it, and what it survives."""

import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

import uuid_pipeline
from uuid_pipeline.demo import installation
from uuid_pipeline.demo import server as embedded
from uuid_pipeline.errors import PipelineError, UsageError
from uuid_pipeline_tests.conftest import opened

CODE_DIR = Path(uuid_pipeline.__file__).parents[1]
IS_ROOT = os.geteuid() == 0
as_root_only = pytest.mark.skipif(not IS_ROOT, reason="only root runs the server as another user")


def in_another_process(code: str, home: Path) -> subprocess.Popen[str]:
    """Run code, which finds the module as `embedded` and the home as `home`, in a process of its own."""
    prelude = (
        "import sys; from pathlib import Path; from uuid_pipeline.demo import server as embedded; "
        "home = Path(sys.argv[1]); "
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CODE_DIR), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, str(home)], stdout=subprocess.PIPE, text=True, env=environment
    )


def as_nobody(work: Callable[[], str]) -> str:
    """Run work in a fork of this process that gives up root; returns what it gave, or its error."""
    nobody = pwd.getpwnam("nobody")
    account = installation.Account(nobody.pw_uid, nobody.pw_gid, other=True)
    if not account.finds('-x "$1"', installation.locate_binaries(18, installation.Account(0, 0, other=False))):
        pytest.skip("nobody cannot run what this venv holds")
    reader, writer = os.pipe()
    # A fork, because the interpreter itself may be in /root, where nobody may not enter.
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
            os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
            try:
                said = work()
            except PipelineError as error:
                said = error.message
            os.write(writer, said.encode())
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def output_of(process: subprocess.Popen[str]) -> str:
    with process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.strip()


def postmaster_pid(server: embedded.EmbeddedServer) -> int:
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cwd").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def modes_upwards(directory: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.parents)}


def one(server: embedded.EmbeddedServer, query: str, database: str = "postgres") -> object:
    with psycopg.connect(server.url(database)) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own are not; no server outlives it."""
    path = Path(tempfile.mkdtemp(prefix="embedded-"))
    path.chmod(0o755)
    try:
        yield path
        for home in path.iterdir():
            embedded.destroy(home)
    finally:
        shutil.rmtree(path)


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
def home(directory: Path) -> Path:
    return directory / "home"


@pytest.fixture(scope="module")
def running() -> Iterator[embedded.EmbeddedServer]:
    """A server that a test may look at, and leaves running; its path is none of the plainest."""
    with open_directory() as path:
        yield embedded.start(path / "größe with space")


@pytest.fixture(scope="module")
def hurt_home() -> Iterator[Path]:
    """A home on a long path that tests hurt in turn, each leaving it so that its server starts again."""
    with open_directory() as path:
        yield path / ("x" * 120)


def test_what_the_environment_says_of_somebodys_store_does_not_reach_it(
    running: embedded.EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "9999")
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=on -c search_path=nowhere")

    assert one(running, "SHOW default_transaction_read_only") == "off"
    assert "public" in str(one(running, "SHOW search_path"))
    with opened(running.url("postgres")) as engine, engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW search_path").scalar_one() != "nowhere"


def test_first_start_makes_the_home_and_a_server_of_the_version_asked_for(
    running: embedded.EmbeddedServer,
) -> None:
    home = running.home

    assert running == embedded.EmbeddedServer(home, home / "postgresql", home / "postgresql", 5432)
    assert str(one(running, "SHOW server_version")).startswith("18.")
    assert one(running, "SHOW server_encoding") == "UTF8"
    assert one(running, "SELECT lower('ÄÖ')") == "äö"
    assert one(running, "SHOW fsync") == one(running, "SHOW synchronous_commit") == "on"


def test_starting_again_gives_the_running_server_at_once(running: embedded.EmbeddedServer) -> None:
    pid = postmaster_pid(running)

    began = time.perf_counter()
    again = embedded.start(running.home)
    elapsed = time.perf_counter() - began

    assert (again, postmaster_pid(again)) == (running, pid)
    assert elapsed < 0.05


def test_stop_ends_the_process_and_keeps_the_data_which_destroy_deletes(home: Path) -> None:
    server = embedded.start(home)
    embedded.ensure_database(server, "kept")
    pid = postmaster_pid(server)

    assert embedded.stop(home) is True
    wait_until_gone(pid)
    assert embedded.find(home) is None
    assert embedded.stop(home) is False
    assert one(embedded.start(home), "SELECT current_database()", "kept") == "kept"

    embedded.destroy(home)
    assert embedded.find(home) is None
    assert not server.data.exists()


def test_find_and_stop_of_a_home_that_is_not_there_leave_nothing_behind(home: Path) -> None:
    assert embedded.find(home) is None
    assert embedded.stop(home) is False
    assert not home.exists()


def test_the_server_outlives_the_process_that_started_it_and_another_one_finds_it(hurt_home: Path) -> None:
    embedded.stop(hurt_home)
    started = output_of(in_another_process("print(embedded.start(home))", hurt_home))

    server = embedded.find(hurt_home)

    assert server is not None
    assert str(server) == started
    assert output_of(in_another_process("print(embedded.find(home))", hurt_home)) == started


def test_the_server_is_in_a_session_of_its_own_out_of_reach_of_our_ctrl_c(
    running: embedded.EmbeddedServer,
) -> None:
    pid = postmaster_pid(running)

    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_no_tcp_port_is_open_and_the_socket_is_private(running: embedded.EmbeddedServer) -> None:
    assert one(running, "SHOW listen_addresses") == ""
    assert stat.S_IMODE(running.socket_dir.stat().st_mode) == 0o700
    inodes = set()
    for handle in Path(f"/proc/{postmaster_pid(running)}/fd").iterdir():
        inodes.add(str(handle.readlink()).removeprefix("socket:[").removesuffix("]"))
    internet = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in internet if table.exists() for line in table.read_text().splitlines()]
    assert not [line for line in lines if line[9] in inodes]


@pytest.mark.system
def test_four_processes_that_start_at_once_get_one_server(home: Path) -> None:
    code = "server = embedded.start(home); embedded.ensure_database(server, 'shared'); print(server)"
    processes = [in_another_process(code, home) for _ in range(4)]

    outputs = {output_of(process) for process in processes}

    assert outputs == {str(embedded.find(home))}
    assert (home / "postgresql.log").read_text().count("starting PostgreSQL") == 1


@pytest.mark.system
def test_a_committed_row_survives_kill_9_of_the_postmaster_under_a_long_query(hurt_home: Path) -> None:
    server = embedded.start(hurt_home)
    with psycopg.connect(server.url("postgres")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    pid = postmaster_pid(server)
    busy = psycopg.connect(server.url("postgres"))
    # Such a backend outlives its postmaster, and PostgreSQL does not start while it does.
    busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")

    os.kill(pid, signal.SIGKILL)
    busy.close()
    restarted = embedded.start(hurt_home)

    assert postmaster_pid(restarted) != pid
    assert one(restarted, "SELECT one FROM kept") == 1


def test_a_stale_pid_that_a_foreign_process_has_by_now_is_no_server_and_is_left_alive(
    hurt_home: Path,
) -> None:
    server = embedded.start(hurt_home)
    crashed = postmaster_pid(server)
    os.kill(crashed, signal.SIGKILL)
    wait_until_gone(crashed)
    # Of the server's own user: only such a process does PostgreSQL itself mistake for a postmaster.
    with subprocess.Popen(["sleep", "60"], user=server.data.stat().st_uid, cwd="/") as foreign:
        try:
            for lock_file in (server.data / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
                lines = lock_file.read_text().splitlines(keepends=True)
                lock_file.write_text("".join([f"{foreign.pid}\n", *lines[1:]]))

            assert embedded.find(hurt_home) is None
            assert embedded.stop(hurt_home) is False
            restarted = embedded.start(hurt_home)

            assert one(restarted, "SELECT 1") == 1
            assert foreign.poll() is None
        finally:
            foreign.kill()


@pytest.mark.system
def test_a_server_whose_socket_was_deleted_is_started_anew(hurt_home: Path) -> None:
    server = embedded.start(hurt_home)
    unreachable = postmaster_pid(server)
    (server.socket_dir / ".s.PGSQL.5432").unlink()

    restarted = embedded.start(hurt_home)

    assert postmaster_pid(restarted) != unreachable
    assert one(restarted, "SELECT 1") == 1


@pytest.mark.system
def test_an_initdb_that_was_killed_leaves_nothing_that_stops_the_next_start(home: Path) -> None:
    process = in_another_process("embedded.start(home)", home)
    while not list(home.glob("initdb-*/global")):
        time.sleep(0.005)
    process.kill()
    process.communicate()

    server = embedded.start(home)

    assert one(server, "SELECT 1") == 1
    assert not list(home.glob("initdb-*"))


@pytest.mark.system
def test_an_initdb_that_outlives_its_starter_keeps_the_lock(home: Path) -> None:
    process = in_another_process("embedded.start(home)", home)
    while not list(home.glob("initdb-*/global")):
        time.sleep(0.005)
    (initdb,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # Stopped, so that it is there for certain when we look.
    os.kill(int(initdb), signal.SIGSTOP)
    try:
        process.kill()
        process.communicate()

        with (home / "server.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(int(initdb), signal.SIGKILL)


def test_a_failed_start_shows_the_end_of_the_log_and_its_path(hurt_home: Path) -> None:
    server = embedded.start(hurt_home)
    embedded.stop(hurt_home)
    settings = server.data / "postgresql.conf"
    right = settings.read_text()
    settings.write_text(right + "max_connections = nonsense\n")
    try:
        with pytest.raises(PipelineError) as raised:
            embedded.start(hurt_home)
    finally:
        settings.write_text(right)

    assert str(hurt_home / "postgresql.log") in raised.value.message
    assert 'invalid value for parameter "max_connections": "nonsense"' in raised.value.message


def test_data_of_another_version_is_refused(running: embedded.EmbeddedServer) -> None:
    with pytest.raises(UsageError, match="is of PostgreSQL 18, not 16"):
        embedded.start(running.home, version=16)


@pytest.mark.system
def test_postgresql_16_runs_too(home: Path) -> None:
    assert str(one(embedded.start(home, version=16), "SHOW server_version")).startswith("16.")


def test_a_version_that_the_wheel_lacks_is_named(home: Path) -> None:
    with pytest.raises(UsageError, match="no PostgreSQL 15"):
        embedded.start(home, version=15)


@pytest.mark.system
def test_a_path_too_long_for_a_socket_gets_a_private_directory_that_others_find(hurt_home: Path) -> None:
    server = embedded.start(hurt_home)

    assert len(bytes(server.data)) > 107
    # Root's server is another user's, who may have no use for root's own temporary directory.
    assert server.socket_dir.parent == Path("/tmp" if installation.server_account().other else tempfile.gettempdir())
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    found = output_of(in_another_process("print(embedded.find(home).socket_dir)", server.home))
    assert found == str(server.socket_dir)


@pytest.mark.system
def test_a_path_with_characters_of_the_shell_and_of_lists_of_hosts_will_do(directory: Path) -> None:
    server = embedded.start(directory / "com,ma quo\"te's$HOME")

    assert one(server, "SHOW data_directory") == str(server.data)


def test_a_socket_directory_that_somebody_else_left_open_is_refused(directory: Path) -> None:
    account = installation.Account(os.geteuid(), os.getegid(), other=False)
    socket_dir = embedded._socket_dir(directory / "com,ma", account)
    socket_dir.chmod(0o777)
    try:
        with pytest.raises(UsageError, match="must be a directory of mode 0700"):
            embedded._socket_dir(directory / "com,ma", account)
    finally:
        socket_dir.rmdir()


def test_a_database_is_made_once_whatever_its_name(running: embedded.EmbeddedServer) -> None:
    name = 'We "ird"/ä?%'

    embedded.ensure_database(running, name)
    embedded.ensure_database(running, name)

    assert one(running, "SELECT current_database()", name) == name


@as_root_only
def test_as_root_the_server_runs_as_its_own_user_in_data_of_mode_0700(
    running: embedded.EmbeddedServer,
) -> None:
    status = running.data.stat()

    assert pwd.getpwuid(status.st_uid).pw_name == "uuid_pipeline"
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert Path(f"/proc/{postmaster_pid(running)}").stat().st_uid == status.st_uid


@pytest.mark.system
@as_root_only
def test_as_root_no_directory_gets_another_mode_and_a_copied_home_not_the_first_ones_data(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = modes_upwards(closed) | modes_upwards(Path("/var/lib"))
    server = embedded.start(closed / "home")
    try:
        assert server.data.parents[1] == Path("/var/lib/uuid_pipeline")
        assert one(server, "SELECT 1") == 1
        assert output_of(in_another_process("print(embedded.find(home))", server.home)) == str(server)
        assert modes_upwards(closed) | modes_upwards(Path("/var/lib")) == before
        shutil.copytree(server.home, closed / "copy")
        with pytest.raises(UsageError, match="was moved or copied"):
            embedded.start(closed / "copy")
    finally:
        embedded.destroy(server.home)
    assert not server.data.parent.exists()


@pytest.mark.system
@as_root_only
def test_as_root_binaries_out_of_the_users_reach_are_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    wheel = installation.locate_binaries(18, installation.server_account()).parents[1]
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        (closed / part.name).symlink_to(part)
    monkeypatch.syspath_prepend(str(closed))
    copies = Path(tempfile.mkdtemp(prefix="copies-"))
    copies.chmod(0o755)
    monkeypatch.setattr(installation, "_STATE", copies)
    try:
        server = embedded.start(home)
        program = Path(f"/proc/{postmaster_pid(server)}/exe").readlink()
        assert program.is_relative_to(copies)
        assert one(server, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == 1
        embedded.stop(home)
        assert embedded.start(home) == server
        assert len(list(copies.iterdir())) == 1
    finally:
        embedded.stop(home)
        shutil.rmtree(copies)


@as_root_only
def test_a_plain_user_is_told_whose_the_data_is(running: embedded.EmbeddedServer) -> None:
    said = as_nobody(lambda: str(embedded.start(running.home)))

    assert "belongs to uuid_pipeline, and you are nobody" in said
    assert "UUID_PIPELINE_HOME" in said


@as_root_only
def test_a_plain_user_who_may_not_write_the_home_is_told_so(home: Path) -> None:
    home.mkdir()

    assert "Permission denied" in as_nobody(lambda: str(embedded.start(home)))


@pytest.mark.system
@as_root_only
def test_a_plain_user_runs_the_server_as_himself_without_root(directory: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    own = directory / "own"
    own.mkdir()
    os.chown(own, nobody.pw_uid, nobody.pw_gid)
    home = own / "home"

    def live() -> str:
        server = embedded.start(home)
        try:
            owner = Path(f"/proc/{postmaster_pid(server)}").stat().st_uid
            return f"{owner} {server == embedded.find(home)} {one(server, 'SELECT 1')} {embedded.stop(home)}"
        finally:
            embedded.destroy(home)

    assert as_nobody(live) == f"{nobody.pw_uid} True 1 True"
    assert not (home / "postgresql").exists()
