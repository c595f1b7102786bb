"""The UI as a user has it: the real webserver and daemon, a real browser, a store of one's own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, sync_playwright

pytestmark = pytest.mark.system

NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
STAGES = (
    "store_profile",
    "document_inventory",
    "duplicate_clusters",
    "id_mapping",
    "store_backup",
    "migration_plan",
    "migrated_documents",
    "validation_report",
)
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
METADATA = """
query Plan {
  assetOrError(assetKey: {path: ["migration_plan"]}) { ... on Asset { assetMaterializations(limit: 1) {
    metadataEntries { label ... on TextMetadataEntry { text } } } } }
}
"""
PARTITIONS = """
query Waves { assetNodeOrError(assetKey: {path: ["migrated_documents"]}) { ... on AssetNode { partitionKeys } } }
"""


class Ui:
    """The running UI, asked as its pages ask it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer["data"]  # type: ignore[no-any-return]

    def launch(self, job: str, config: dict[str, Any] | None = None, partition: str | None = None) -> str:
        """Launch a job as the launchpad does and wait for its end; returns its status."""
        selector = {
            "repositoryLocationName": "uuid_pipeline",
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {"selector": selector, "runConfigData": config or {}, "executionMetadata": {"tags": tags}}
        launched = self.ask(LAUNCH, {"params": params})["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id = launched["run"]["runId"]
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            status: str = self.ask(RUN, {"id": run_id})["runOrError"]["status"]
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        raise AssertionError(f"run {run_id} of {job} did not end in 90 s")

    def plan_id(self) -> str:
        found = self.ask(METADATA)["assetOrError"]["assetMaterializations"][0]["metadataEntries"]
        return next(str(entry["text"]) for entry in found if entry["label"] == "plan_id")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ui(incident_url: str, tmp_path: Path) -> Iterator[Ui]:
    from uuid_pipeline.demo import server

    home = tmp_path / "home"
    environment = {**os.environ, "UUID_PIPELINE_HOME": str(home), "UUID_PIPELINE_DATABASE_URL": incident_url}
    port = free_port()
    program = [sys.executable, "-c", "from uuid_pipeline.cli.main import main; main()", "ui", "--port", str(port)]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_up(port, process)
        yield Ui(port)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        server.stop(home)


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the UI ended by itself"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the UI was not up in 60 s")


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser.new_page(viewport={"width": 2400, "height": 700})
        browser.close()


def ids(engine: sa.Engine) -> list[tuple[str, str]]:
    """(id, the id that uuid.uuid5 makes of the row) of every document."""
    with engine.begin() as connection:
        rows = connection.exec_driver_sql("SELECT document_id, user_id, file_sha256 FROM upload_pipeline.documents")
        return sorted((str(key), str(uuid.uuid5(NAMESPACE, f"{user}:{sha}"))) for key, user, sha in rows)


def test_everything_from_assessment_to_rollback_can_be_done_from_the_ui(
    ui: Ui, page: Page, incident: sa.Engine, tmp_path: Path
) -> None:
    before = ids(incident)
    assert ui.launch("assess") == "SUCCESS"
    assert ui.launch("plan") == "SUCCESS"
    plan_id = ui.plan_id()
    assert ids(incident) == before

    assert ui.launch("approve", {"ops": {"approve_plan": {"config": {"plan_id": "not-" + plan_id}}}}) == "FAILURE"
    assert ui.launch("approve", {"ops": {"approve_plan": {"config": {"plan_id": plan_id}}}}) == "SUCCESS"
    waves = ui.ask(PARTITIONS)["assetNodeOrError"]["partitionKeys"]
    assert [wave.split("-", 5)[-1] for wave in waves] == ["canary", "recent", "remaining-001", "sweep-1", "sweep-2"]

    assert ui.launch("migrate", partition=waves[1]) == "FAILURE", "a wave out of its order is refused"
    assert ids(incident) == before
    for wave in waves:
        assert ui.launch("migrate", partition=wave) == "SUCCESS"
    assert ui.launch("validate") == "SUCCESS"
    assert all(key == target for key, target in ids(incident))

    look_at_the_graph(ui, page, tmp_path)
    assert ui.launch("rollback", {"ops": {"roll_back_waves": {"config": {}}}}) == "SUCCESS"
    assert ids(incident) == before


def look_at_the_graph(ui: Ui, page: Page, folder: Path) -> None:
    page.goto(f"{ui.url}/asset-groups")
    for stage in STAGES:
        page.get_by_text(stage, exact=True).first.wait_for(timeout=30_000)
    picture = Path(os.environ.get("UUID_PIPELINE_PICTURE", folder / "asset_graph.png"))
    page.get_by_text("Checks").first.wait_for(timeout=30_000)
    page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000
    page.goto(f"{ui.url}/assets/document_inventory")
    page.get_by_text("38 (100.0 %)").first.wait_for(timeout=30_000)
    page.get_by_text("76.3 %").first.wait_for(timeout=30_000)
