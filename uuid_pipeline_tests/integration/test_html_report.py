"""The HTML report: it stands by itself, says what the store says, and no title breaks out of it."""

import json
import re
import uuid
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.evidence import figures, inventory_figures, lookups
from uuid_pipeline.engine.trials import analysis
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.reports.html import report as reports
from uuid_pipeline.reports.html.report import Report
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
CLIENTS = tuple(installation.client_directories())
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col"}
FOREIGN = {"rect", "line"}
TITLES = (
    '<script>alert("x")</script>.pdf',
    "\"><img src=x onerror=alert(1)>'.pdf",
    "\u202efdp.exe\u202c {{ 7 * 7 }} {% raw %}",
    "a" * 5_000,
    "nul\x01\x1b[31m & <b>\n</td></table>",
    "]]></style><style>*{display:none}",
)


class Page(HTMLParser):
    """A page's elements, checked to be nested; text by element id of figures."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.tiles: dict[str, dict[str, str]] = {}
        self.words: list[str] = []
        self._tile = self._part = ""
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)
        self._tile = found.get("data-figure") or self._tile
        self._part = {"figure-before": "before", "figure-now": "now"}.get(found.get("class") or "", self._part)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")
        self._part = ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if self._part:
            self.tiles.setdefault(self._tile, {})[self._part] = data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(engine: Engine) -> Report:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        return reports.build(connection, cycle.bound(connection, SPEC))


def as_json(report: Report) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(report.as_json(), default=str))
    return read


def migrate(engine: Engine) -> None:
    """The whole cycle, with the figures that the stages keep."""
    assessed = cycle.assess(engine, SPEC)
    with engine.begin() as connection:
        found = inventory_figures.take(connection, assessed.store, ledger.newest_assessment(connection))
        figures.record(connection, "inventory", found, assessment=assessed.number)
        timed = lookups.measure_inventory(connection, assessed.store, assessed.number)
        figures.record(connection, "lookups", timed.as_record(), assessment=assessed.number)
    execution = cycle.approve(engine, SPEC, cycle.plan(engine, assessed).plan_id)
    cycle.migrate_all(engine, SPEC, execution)
    cycle.assert_green(cycle.validate(engine))


@pytest.fixture(scope="module")
def report(server: EmbeddedServer, incident_template: str) -> Iterator[Report]:
    """Of the incident, migrated, in a database of this module's own."""
    name = f"report_{uuid.uuid4().hex}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        names = (sql.Identifier(name), sql.Identifier(incident_template))
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        engine = open_store(server.url(name))
        migrate(engine)
        yield made(engine)
        engine.dispose()
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(names[0]))


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.as_html())


def test_the_page_is_well_formed_and_its_ids_are_unique(page: Page) -> None:
    assert page.faults == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {"#" + str(name) for name in ids}
    assert {attributes["href"] for attributes in page.named("a")} <= targets
    labels = [a[name] for _, a in page.elements for name in ("aria-labelledby",) if name in a]
    assert {name for label in labels for name in str(label).split()} <= set(ids)


def test_nothing_is_fetched_from_anywhere(report: Report, page: Page) -> None:
    html = report.as_html()
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert not attributes.get(name) or str(attributes[name]).startswith("#"), attributes
    assert not page.named("script")
    assert not page.named("link")
    assert "@import" not in html
    assert set(re.findall(r"url\((?!#)", html)) == set()
    assert {a.get("xmlns") for a in page.named("svg")} == {"http://www.w3.org/2000/svg"}
    assert len(re.findall("https?://", html)) == len(page.named("svg"))


def test_headings_landmarks_tables_and_pictures_are_for_everybody(page: Page) -> None:
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.named("main")) == len(page.named("header")) == len(page.named("nav")) == 1
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("caption")) == len(page.named("table"))
    assert {a.get("scope") for a in page.named("th")} == {"col", "row"}
    pictures = page.named("svg")
    assert len(pictures) >= 7
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in pictures)
    assert len(page.named("title")) == len(pictures) + 1
    assert len(page.named("desc")) == len(pictures)
    assert page.named("a")[0] == {"class": "skip", "href": "#content"}


def test_every_figure_of_the_summary_is_that_of_the_json_and_of_the_case(report: Report, page: Page) -> None:
    found = as_json(report)["sections"]["summary"]["figures"]

    for name, values in found.items():
        if name == "readiness":
            continue
        for part in ("before", "now"):
            assert page.tiles[name][part] == worded(values[part], values["unit"]), name
    shown = {name: (tile["before"], tile["now"]) for name, tile in page.tiles.items() if "before" in tile}
    assert shown == {
        "documents": ("38", "38"), "deterministic": ("0", "38"), "mismatch": ("100.0 %", "0.0 %"),
        "affected_users": ("27", "0"), "high_impact_users": ("1", "0"), "found_by_target": ("0", "38"),
        "orphans": ("0", "0"), "consistency": ("76.3 %", "76.3 %"),
    } | {name: tile for name, tile in shown.items() if name.startswith("retriev")}  # fmt: skip


def worded(value: float | None, unit: str) -> str:
    if value is None:
        return "unknown"
    return {"share": f"{value * 100:.1f} %", "count": f"{value:,.0f}"}[unit]


def test_the_sections_say_what_the_journal_the_gates_and_the_fingerprints_say(report: Report) -> None:
    sections = as_json(report)["sections"]

    assert sections["migration"]["figures"]["rows"] == 38 + 87
    assert [wave["moved"] for wave in sections["migration"]["figures"]["waves"]] == [5, 15, 18, 0, 0]
    assert sections["gates"]["figures"]["open"] == []
    assert all(gate["passed"] for gate in sections["gates"]["figures"]["gates"])
    assert {t["table"]: t["rows_before"] for t in sections["conservation"]["figures"]["tables"]} == {
        "upload_pipeline.documents": 38, "upload_pipeline.document_chunks": 87, "upload_pipeline.events": 167,
        "upload_pipeline.upload_jobs": 38,
    }  # fmt: skip
    assert sections["failures"]["figures"]["complete_yet_unreachable"] == 29
    assert sections["duplicates"]["figures"]["clusters"] == {"document": 0}
    assert sections["inventory"]["figures"]["summary"]["bytes"] == 3_520_000


def table(report: Report, section: str, caption: str) -> list[dict[str, Any]]:
    """A table of the report by its columns."""
    blocks = as_json(report)["sections"][section]["blocks"]
    [found] = [block for block in blocks if block.get("caption") == caption]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def test_a_gate_of_the_waves_is_shown_by_its_largest_wave_and_a_sweep_of_nothing_draws_no_bar(
    report: Report, page: Page
) -> None:
    shown = {row["Gate"]: row["Finding, of one wave"] for row in table(report, "gates", "Gates of the waves")}
    assert shown["conservation"] == "030-remaining-001: 18 planned, 18 moved"
    assert all(finding.startswith("030-remaining-001: ") for finding in shown.values())
    widths = [a["style"] for a in page.named("i")]
    assert widths == ["width: 100.0%"] * 3 + ["width: 0%"] * 2


def test_every_chart_of_documents_tells_those_to_be_moved_from_the_others(report: Report) -> None:
    blocks = as_json(report)["sections"]["inventory"]["blocks"]
    [charts] = [block["blocks"] for block in blocks if block["kind"] == "grid"]
    of_documents = [chart for chart in charts if not chart["title"].startswith("Users")]
    assert len(of_documents) == 6
    for chart in of_documents:
        assert chart["part_label"] == "to be moved", chart["title"]
        assert sum(bar["part"] for bar in chart["bars"]) == sum(bar["value"] for bar in chart["bars"]) == 38


def test_only_a_unique_key_collides_with_a_row_and_every_column_has_a_heading(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    tried = analysis.analyse(incident, assessed.store, Workshop(Path("/nonexistent"), CLIENTS))
    cycle.run_sql(
        incident,
        """UPDATE uuid_pipeline.assessments
           SET profile = profile || jsonb_build_object('constraint_analysis', %(it)s::jsonb)""",
        it=json.dumps(tried, default=str),
    )
    cycle.plan(incident, assessed)

    report = made(incident)

    met = table(report, "constraints", "Constraints and triggers that do not simply let it pass")
    whose = {(row["Outcome"], row["Collides with"].split(" row ")[0]) for row in met}
    assert whose == {("fails 23505", "its own old"), ("fails 23503", "no row"), ("changes", "no row")}
    assert "These 38 violations" in report.as_html()
    assert not re.search(r"<th[^>]*>\s*</th>", report.as_html())


def test_documents_to_process_again_are_listed_with_why_and_the_plan_with_time_and_triggers(
    report: Report, page: Page
) -> None:
    sections = as_json(report)["sections"]
    # The incident's nine without chunks, of which one failed.
    again = sections["regeneration"]["figures"]
    assert (again["documents"], again["by_reason"]) == (9, {"no_chunks": 9, "failed": 1})
    readings = {trigger["name"]: trigger for trigger in sections["plan"]["figures"]["rollback_triggers"]}
    assert readings["wave_gate_red"]["pulled"] is readings["retrieval_drop"]["pulled"] is False
    assert readings["application_errors"]["figure"] is None
    captions = {block.get("caption") for block in sections["plan"]["blocks"]}
    assert {"Timeline, counted from the first wave", "Rollback triggers", "Decision points"} <= captions
    assert {"Risk", "Probability", "Impact", "Mitigation", "If it happens"} <= {word.strip() for word in page.words}


def test_clusters_keep_the_rule_and_what_was_foreseen_after_they_were_merged(twins: Engine) -> None:
    total = cycle.run_sql(twins, "SELECT count(*) FROM upload_pipeline.documents")[0][0]
    migrate(twins)
    left = cycle.run_sql(twins, "SELECT count(*) FROM upload_pipeline.documents")[0][0]

    section = as_json(made(twins))["sections"]["duplicates"]

    [clusters] = [b for b in section["blocks"] if b.get("caption") == "Clusters of document"]
    kinds, rules = ({row[column] for row in clusters["rows"]} for column in (1, 4))
    assert kinds <= {"re-upload twin", "spelling", "race"}
    assert rules <= {"complete", "children", "oldest", "smallest key"}
    decided = section["figures"]["decided"]
    assert sum(c["archives"]["upload_pipeline.documents"] for c in decided) == total - left > 0
    assert section["figures"]["archived"]["upload_pipeline.documents"] == total - left
    assert all("natural_key" not in cluster for cluster in decided)
    assert section["figures"]["look_alikes"].keys() == {
        "same content, different owners", "same text, different natural keys",
    }  # fmt: skip


@pytest.mark.begins("planned")
def test_titles_owners_and_natural_keys_are_marks_where_they_are_not_to_be_shown(
    incident: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UUID_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("UUID_PIPELINE_REDACT", "1")
    personal = cycle.run_sql(incident, "SELECT filename, user_id::text, file_sha256 FROM upload_pipeline.documents")

    report = made(incident)

    text = report.as_html() + json.dumps(report.as_json(), default=str, ensure_ascii=False)
    assert "hidden-" in text
    assert [value for row in personal for value in row if value in text] == []


def test_a_verdict_is_said_in_words_not_only_in_colour(report: Report, page: Page) -> None:
    text = "".join(page.words)
    for criterion in report.subject.readiness.criteria:
        assert criterion.title in text
        assert criterion.figure in text.replace("\n", " ")
    assert {"Ready", "Not ready", "Not measured"} <= {word.strip() for word in page.words}


def test_no_title_breaks_out_of_the_page(incident: Engine) -> None:
    keys = cycle.run_sql(incident, "SELECT DISTINCT document_id::text FROM upload_pipeline.document_chunks ORDER BY 1")
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents DISABLE TRIGGER USER")
    for (key,), title in zip(keys, TITLES, strict=False):
        cycle.run_sql(
            incident,
            """UPDATE upload_pipeline.documents
               SET filename = %(title)s, processing_status = %(title)s, created_at = now()
               WHERE document_id = %(id)s""",
            id=key, title=title,
        )  # fmt: skip
    complete = [*SPEC.statuses.complete, *TITLES]
    spec = SPEC.model_copy(update={"statuses": SPEC.statuses.model_copy(update={"complete": complete})})
    cycle.assess_and_plan(incident, spec)
    with incident.begin() as connection:
        html = reports.build(connection, cycle.bound(connection, spec)).as_html()

    page = Page(html)
    assert page.faults == []
    assert page.named("script") == page.named("img") == page.named("b") == []
    assert len(page.named("style")) == 1
    assert '<script>alert("x")</script>.pdf' in "".join(page.words)
    assert "{{ 7 * 7 }} {% raw %}" in "".join(page.words)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    assert "a" * 400 not in html


def test_before_a_plan_there_is_nothing_to_report(incident: Engine) -> None:
    cycle.assess(incident, SPEC)
    with pytest.raises(RefusedError, match="uuid-pipeline plan"):
        made(incident)


@pytest.mark.begins("planned")
def test_a_plan_alone_is_reported_as_waiting_with_its_command(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)

    found = as_json(made(incident))

    assert (found["execution_id"], found["verdict"]) == (None, "not ready")
    assert f"uuid-pipeline approve {plan.plan_id}" in {
        i["command"] for i in found["sections"]["open"]["figures"]["items"]
    }
    assert found["sections"]["summary"]["figures"]["deterministic"] == {"before": 0, "now": 0, "unit": "count"}


def test_a_rolled_back_execution_is_reported_as_such(incident: Engine) -> None:
    migrate(incident)
    cycle.roll_back(incident, SPEC)

    report = made(incident)

    found = as_json(report)
    assert (found["status"], found["verdict"]) == ("rolled_back", "not ready")
    assert found["sections"]["summary"]["figures"]["affected_users"] == {"before": 27, "now": 27, "unit": "count"}
    assert "was rolled back" in report.as_html()


def test_both_files_are_written_and_a_place_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    page, kept = reports.write(report, tmp_path / "deep" / "r.html")

    assert page.read_text(encoding="utf-8") == report.as_html()
    assert json.loads(kept.read_text(encoding="utf-8"))["verdict"] == report.subject.readiness.verdict
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match=r"file/r\.html"):
        reports.write(report, blocked / "r.html")
