"""The UI as a user has it: the real webserver and daemon, a real browser, a store of one's own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from playwright.sync_api import Page, sync_playwright

from uuid_pipeline_tests.receivers import Received, webhook

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
BESIDE = ("uuid_health", "alias_review", "alerts", "completion_report", "determinism_certificate")
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
RUNS = """
query Runs($filter: RunsFilter!) { runsOrError(filter: $filter, limit: 20) { ... on Runs { results {
  runId status jobName tags { key value } } } } }
"""
AUTOMATIONS = """
query Automations { repositoryOrError(repositorySelector:
  {repositoryLocationName: "uuid_pipeline", repositoryName: "__repository__"}) { ... on Repository {
    sensors { name sensorState { status ticks(limit: 50) { timestamp status } } }
    schedules { name scheduleState { status } } } } }
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
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            status: str = self.ask(RUN, {"id": run_id})["runOrError"]["status"]
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        raise AssertionError(f"run {run_id} of {job} did not end in 180 s")

    def ended(self, job: str, count: int, seconds: float = 180) -> list[str]:
        """Wait until so many runs of a job have ended; their statuses, the newest first."""
        return [run["status"] for run in self.runs({"pipelineName": job}, count, seconds)]

    def runs(self, wanted: dict[str, Any], count: int, seconds: float = 180) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = self.ask(RUNS, {"filter": wanted})["runsOrError"]["results"]
            over = [run for run in found if run["status"] in ("SUCCESS", "FAILURE", "CANCELED")]
            if len(over) >= count:
                return over
            time.sleep(0.5)
        raise AssertionError(f"{len(over)} of {count} runs of {wanted} ended in {seconds} s")

    def automations(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """State of each sensor and schedule by name."""
        found = self.ask(AUTOMATIONS)["repositoryOrError"]
        sensors = {one["name"]: one["sensorState"] for one in found["sensors"]}
        return sensors, {one["name"]: one["scheduleState"] for one in found["schedules"]}

    def plan_id(self) -> str:
        found = self.ask(METADATA)["assetOrError"]["assetMaterializations"][0]["metadataEntries"]
        return next(str(entry["text"]) for entry in found if entry["label"] == "plan_id")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Installation:
    """``uuid-pipeline ui`` of one home, as a process that can be ended and begun again."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment = environment
        self.log = log
        self.port = free_port()
        self.ui = Ui(self.port)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Ui:
        program = [sys.executable, "-c", "from uuid_pipeline.cli.main import main; main()", "ui"]
        with self.log.open("ab") as said:
            self.process = subprocess.Popen(
                [*program, "--port", str(self.port)],
                env={**os.environ, "UUID_PIPELINE_UI_URL": self.ui.url, **self.environment},
                stdout=said,
                stderr=said,
            )
        wait_until_up(self.port, self.process, self.log)
        return self.ui

    def kill_daemon(self) -> None:
        """Kill the daemon where it is; without it the UI ends by itself."""
        assert self.process is not None
        [daemon] = [pid for pid in children(self.process.pid) if "dagster._daemon" in command_of(pid)]
        os.kill(daemon, signal.SIGKILL)
        self.process.wait(120)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in children(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.kill()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.fixture
def installation(incident_url: str, tmp_path: Path) -> Iterator[Installation]:
    from uuid_pipeline.demo import server

    home = tmp_path / "home"
    environment = {"UUID_PIPELINE_HOME": str(home), "UUID_PIPELINE_DATABASE_URL": incident_url}
    made = Installation(environment, tmp_path / "ui.log")
    try:
        yield made
    finally:
        made.stop()
        server.destroy(home)


@pytest.fixture
def ui(installation: Installation) -> Ui:
    return installation.start()


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the UI ended by itself: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the UI was not up in 180 s")


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser.new_page(viewport={"width": 3300, "height": 1300})
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
    expand_groups(page)
    for stage in (*STAGES, *BESIDE):
        page.get_by_text(stage, exact=True).first.wait_for(timeout=60_000)
    picture = Path(os.environ.get("UUID_PIPELINE_PICTURE", folder / "asset_graph.png"))
    page.get_by_text("Checks").first.wait_for(timeout=60_000)
    until(lambda: not page.get_by_text("Loading").count(), 60, "the graph goes on loading")
    page.screenshot(path=picture, clip={"x": 540, "y": 110, "width": 2700, "height": 1080})
    assert picture.stat().st_size > 20_000
    page.goto(f"{ui.url}/assets/document_inventory")
    page.get_by_text("38 (100.0 %)").first.wait_for(timeout=60_000)
    page.get_by_text("76.3 %").first.wait_for(timeout=60_000)


def expand_groups(page: Page) -> None:
    """Every group of the graph open, and all of it in the picture."""
    for group, one_of_it in (("id_migration", "store_profile"), ("reports", "completion_report"), ("health", "alerts")):
        page.locator("foreignObject").get_by_text(group, exact=True).locator("visible=true").first.click(
            timeout=120_000
        )
        page.get_by_text(one_of_it, exact=True).first.wait_for(timeout=120_000)
        page.reload()
        page.wait_for_timeout(3_000)  # the graph draws itself, and moves into the picture


def subjects(received: Received) -> list[str]:
    """The titles of the alerts that came."""
    return [str(body["title"]).removeprefix("[uuid-pipeline] ") for body in received.bodies]


def until(done: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def materialize_all(ui: Ui, page: Page, job: str) -> None:
    """Press the button of a job of assets."""
    page.goto(f"{ui.url}/locations/uuid_pipeline/jobs/{job}")
    page.get_by_role("button", name="Materialize").first.click(timeout=120_000)


def launch_run(page: Page) -> None:
    """Press the launchpad's button, as soon as its config is found right."""
    page.get_by_text("No errors").wait_for(timeout=120_000)
    page.get_by_role("button", name="Launch Run").click(timeout=120_000)


def spec_file(folder: Path, *, references_declared: bool) -> Path:
    """The incident's specification with a tick of health every minute; without the ignored references gate 1 is red."""
    from uuid_pipeline import specs

    content = yaml.safe_load(Path(str(specs.__path__[0]), "upload_pipeline.yaml").read_text())
    content["schedules"] = {"health": "* * * * *", "assessment": None, "validation": None, "alias_review": None}
    if not references_declared:
        del content["ignore_references"]
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_red_gate_is_seen_and_told_once_mended_approved_run_watched_and_undone_in_the_browser(
    installation: Installation, page: Page, incident: sa.Engine, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 1600, "height": 1000})
    before = ids(incident)
    with webhook() as received:
        channel = f"json://127.0.0.1:{received.port}/"
        spec = spec_file(tmp_path, references_declared=False)
        installation.environment |= {"UUID_PIPELINE_ALERT_URLS": channel, "UUID_PIPELINE_SPEC": str(spec)}
        ui = installation.start()
        watch_begins(ui, page, tmp_path)
        red_then_green(ui, page, tmp_path)
        assert ui.launch("approve", {"ops": {"approve_plan": {"config": {"plan_id": "no-such-plan"}}}}) == "FAILURE"
        told = [
            "FAILED (error): store_profile.references_known",
            "recovered: store_profile.references_known",
            "RUN FAILED (error): job approve",
        ]
        until(lambda: set(told) <= set(subjects(received)), 180, f"of {told} came only {subjects(received)}")
        follow_the_link(received, page, tmp_path)
        installation.kill_daemon()
        ui = installation.start()

        migrate_in_the_browser(ui, page, tmp_path)
        assert ids(incident) == sorted((target, target) for _, target in before)
        look_at_health_and_report(ui, page, tmp_path)
        page.goto(f"{ui.url}/locations/uuid_pipeline/jobs/rollback/playground")
        launch_run(page)
        assert ui.ended("rollback", 1) == ["SUCCESS"]
        assert ids(incident) == before
        # The new daemon knows what failed before it, tells what is new, and says nothing of the old a second time.
        assert ui.launch("resume") == "FAILURE"
        since = {"recovered: uuid_health.mismatch_rate", "RUN FAILED (error): job resume"}
        until(lambda: since <= set(subjects(received)), 180, f"of {since} came only {subjects(received)}")
        assert [subjects(received).count(subject) for subject in told] == [1, 1, 1], subjects(received)


def watch_begins(ui: Ui, page: Page, folder: Path) -> None:
    """Sensors are on, for a channel is configured; the schedule is off on a store of one's own, and switched on."""
    sensors, schedules = ui.automations()
    assert {name: state["status"] for name, state in sensors.items()} == {
        "alert_checks": "RUNNING",
        "alert_failed_runs": "RUNNING",
    }
    assert {name: state["status"] for name, state in schedules.items()} == {"health_schedule": "STOPPED"}
    # A sensor tells of what comes after its first look.
    until(lambda: all(state["ticks"] for state in ui.automations()[0].values()), 180, "the sensors do not tick")
    page.goto(f"{ui.url}/automation")
    page.get_by_text("health_schedule").first.wait_for(timeout=120_000)
    page.locator("label[class*=formatSwitch]").nth(2).click(timeout=60_000)
    until(lambda: ui.automations()[1]["health_schedule"]["status"] == "RUNNING", 20, "the switch does not switch")
    page.screenshot(path=folder / "automation.png")


def red_then_green(ui: Ui, page: Page, folder: Path) -> None:
    """Assess in the browser, read what the red gate says, mend the spec by it, plan."""
    materialize_all(ui, page, "assess")
    assert ui.ended("assess", 1) == ["FAILURE"]
    page.goto(f"{ui.url}/assets/store_profile?view=checks&checkDetail=references_known")
    page.get_by_text("Remedy:").first.wait_for(timeout=120_000)
    page.get_by_text("events.payload").first.wait_for(timeout=60_000)
    page.screenshot(path=folder / "red_gate.png")
    page.get_by_text("rows: found_references").first.wait_for(timeout=60_000)

    spec_file(folder, references_declared=True)
    materialize_all(ui, page, "plan")
    assert ui.ended("plan", 1) == ["SUCCESS"]


def follow_the_link(received: Received, page: Page, folder: Path) -> None:
    """The alert's own link opens the check in the UI."""
    [body] = [one for one in received.bodies if "FAILED (error): store_profile.references_known" in one["title"]]
    link = re.search(r"Look: (\S+)", body["message"])
    assert link, body
    page.goto(link[1])
    page.get_by_text("references_known").first.wait_for(timeout=120_000)
    page.get_by_text("Execution history").first.wait_for(timeout=60_000)
    page.screenshot(path=folder / "from_the_alert.png")


def migrate_in_the_browser(ui: Ui, page: Page, folder: Path) -> None:
    """Approve by the plan's own link, and launch every wave at once: they come in their order."""
    page.goto(f"{ui.url}/assets/migration_plan")
    link = page.get_by_role("link", name="job approve, filled in").first.get_attribute("href", timeout=120_000)
    page.goto(f"{ui.url}{link}")
    launch_run(page)
    assert ui.ended("approve", 2) == ["SUCCESS", "FAILURE"]
    page.goto(f"{ui.url}/assets/migrated_documents")
    page.get_by_role("button", name="Materialize").first.click(timeout=120_000)
    page.get_by_role("button", name="Missing", exact=True).click(timeout=60_000)
    page.screenshot(path=folder / "waves.png")
    page.get_by_role("button", name=re.compile("Launch .*backfill")).click(timeout=60_000)
    waves = ui.runs({"pipelineName": "__ASSET_JOB"}, 5, 240)
    assert [run["status"] for run in waves] == ["SUCCESS"] * 5, waves
    materialize_all(ui, page, "validate")
    assert ui.ended("validate", 1) == ["SUCCESS"]
    page.goto(f"{ui.url}/assets/validation_report?view=checks&checkDetail=whole_ids_exact")
    page.get_by_text("125 ids made anew from the rows, all equal").first.wait_for(timeout=120_000)
    page.screenshot(path=folder / "green.png")


def look_at_health_and_report(ui: Ui, page: Page, folder: Path) -> None:
    """The schedule's own runs succeed and are plotted; the report says what is ready."""
    ticks = ui.runs({"tags": [{"key": "dagster/schedule_name", "value": "health_schedule"}]}, 1, 120)
    assert {run["status"] for run in ticks} == {"SUCCESS"}
    assert ui.launch("health", {"ops": {"uuid_health": {"config": {"full": True}}}}) == "SUCCESS"
    page.goto(f"{ui.url}/assets/uuid_health")
    page.get_by_role("button", name="Plots").first.click(timeout=120_000)
    page.get_by_text("mismatch", exact=True).first.wait_for(timeout=60_000)
    page.locator("canvas").first.wait_for(timeout=60_000)
    page.screenshot(path=folder / "health.png")
    materialize_all(ui, page, "report")
    assert ui.ended("report", 1) == ["SUCCESS"]
    page.goto(f"{ui.url}/assets/completion_report")
    page.get_by_text("criteria_ready").first.wait_for(timeout=120_000)
    page.screenshot(path=folder / "report.png")
