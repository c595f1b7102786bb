"""The UI as deploy/ sets it up: the webserver on an external PostgreSQL, and nginx, which lets nobody in unasked."""

import base64
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from uuid_pipeline_tests.acceptance.conftest import ROOT, CommandLineFor

pytestmark = pytest.mark.system

DEPLOY = ROOT / "deploy"
NGINX = "/usr/sbin/nginx"
PASSWORD = "letmein-7261"
# systemd's exposure of a service, 0 to 10 (of 10): what it calls OK or better.
EXPOSURE = 25


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def webserver(command_line_for: CommandLineFor, incident_url: str, tmp_path: Path) -> Iterator[int]:
    """Dagster's webserver with deploy/dagster.yaml, its database elsewhere; its port."""
    command_line = command_line_for(incident_url)
    home = tmp_path / "dagster"
    home.mkdir()
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(DEPLOY / name, home)
    url = command_line.environment["UUID_PIPELINE_DAGSTER_URL"].replace("postgresql://", "postgresql+psycopg2://")
    environment = command_line.environment | {"UUID_PIPELINE_DAGSTER_URL": url, "DAGSTER_HOME": str(home)}
    port = free_port()
    command = ["dagster-webserver", "--host", "127.0.0.1", "--port", str(port), "--workspace", "workspace.yaml"]
    program = str(Path(sys.executable).with_name(command[0]))
    with (tmp_path / "webserver.log").open("w") as log:
        process = subprocess.Popen(
            [program, *command[1:]], cwd=home, env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while answer(f"http://127.0.0.1:{port}/server_info") != 200:
            assert process.poll() is None, (tmp_path / "webserver.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "webserver.log").read_text()
            time.sleep(0.5)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that nginx's workers, who are not root, can read; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="up_nginx_") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def proxy(webserver: int, place: Path) -> Iterator[str]:
    """nginx with deploy/nginx/uuid-pipeline.conf, its ports and places changed; its URL."""
    port = free_port()
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*certificate, "-keyout", place / "key", "-out", place / "pem", "-subj", "/CN=localhost", "-days", "1"],
        check=True, capture_output=True,
    )  # fmt: skip
    hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True).stdout
    (place / "htpasswd").write_text(f"alice:{hashed}")
    text = (DEPLOY / "nginx/uuid-pipeline.conf").read_text()
    for ours, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/certs/uuid-pipeline.pem", str(place / "pem")),
        ("/etc/ssl/private/uuid-pipeline.key", str(place / "key")),
        ("/etc/nginx/uuid-pipeline.htpasswd;\n\n", f"{place / 'htpasswd'};\n\n"),
        ("127.0.0.1:3000", f"127.0.0.1:{webserver}"),
    ):
        assert text.count(ours) == 1, ours
        text = text.replace(ours, here)
    config = place / "nginx.conf"
    config.write_text(
        f"daemon off;\npid {place}/pid;\nerror_log {place}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log {place}/access.log;\n{text}\n}}\n"
    )
    checked = subprocess.run([NGINX, "-t", "-c", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([NGINX, "-c", config], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while answer(f"https://127.0.0.1:{port}/") == 0:
            assert time.monotonic() < deadline, (place / "error.log").read_text()
            time.sleep(0.1)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def answer(url: str, login: str | None = None, body: bytes | None = None) -> int:
    """The status of a request; 0 when nobody listens."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    if login is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    unchecked = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(request, timeout=20, context=unchecked) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_nobody_gets_to_the_ui_or_its_interface_without_a_login(proxy: str) -> None:
    query = b'{"query": "{ version }"}'
    for login in (None, "alice:wrong", "bob:" + PASSWORD, "alice:"):
        assert answer(f"{proxy}/", login) == 401, login
        assert answer(f"{proxy}/graphql", login, query) == 401, login
        assert answer(f"{proxy}/server_info", login) == 401, login
    assert answer(f"{proxy}/", f"alice:{PASSWORD}") == 200
    assert answer(f"{proxy}/graphql", f"alice:{PASSWORD}", query) == 200
    # The monitor's page asks nobody; there is no monitor here.
    assert answer(f"{proxy}/healthz") == 502


def test_the_webserver_keeps_its_instance_in_the_database_elsewhere_and_listens_on_loopback(
    webserver: int, tmp_path: Path
) -> None:
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[3] for line in listening.splitlines() if line.split()[3].endswith(f":{webserver}")} == {
        f"127.0.0.1:{webserver}"
    }
    assert not list((tmp_path / "dagster").rglob("*.db"))


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.service")), ids=lambda path: path.name)
def test_systemd_accepts_each_unit_and_finds_little_exposed(path: Path, tmp_path: Path) -> None:
    # The programs are not installed here; what they are started with is looked at elsewhere.
    unit = tmp_path / path.name.replace("@.", "@1.")
    text = path.read_text()
    start = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    unit.write_text(text.replace(start, "ExecStart=/bin/true"))

    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-500:]
