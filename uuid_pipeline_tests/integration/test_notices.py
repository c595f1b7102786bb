"""Notices: their figures against plain SQL, their files, the team's own templates, and what a spec leaves out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.plans import notice_facts
from uuid_pipeline.engine.plans.notice_facts import Kind
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.operations import notices as operation
from uuid_pipeline.reports import notices
from uuid_pipeline.reports.notices import Rendered
from uuid_pipeline.spec import Describe, Notices, Spec
from uuid_pipeline_tests import receivers
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()
Write = Callable[..., Rendered]
# Documents of each user, and how many of them have chunks: by the application's own tables alone.
BY_USER = """
SELECT user_id::text, count(*), count(*) FILTER (WHERE EXISTS (
           SELECT FROM upload_pipeline.document_chunks c WHERE c.document_id = d.document_id))
FROM upload_pipeline.documents d GROUP BY 1 ORDER BY 1
"""


@pytest.fixture
def write(incident: Engine, tmp_path: Path) -> Write:
    """Renders notices of the incident's store below a home of the test's own."""

    def render(kind: Kind, spec: Spec = SPEC, templates: Path | None = None, store: Engine = incident) -> Rendered:
        with store.connect().execution_options(isolation_level="REPEATABLE READ") as c, c.begin():
            return notices.write(c, cycle.bound(c, spec), kind, tmp_path, templates)

    return render


def lines(made: Rendered) -> dict[str, dict[str, Any]]:
    """Each user's line."""
    found = [json.loads(line) for line in (made.directory / "users.jsonl").read_text().splitlines()]
    assert len({line["user"] for line in found}) == len(found)
    return {line["user"]: line for line in found}


def counted(made: Rendered, *columns: str) -> dict[str, tuple[int, ...]]:
    return {user: tuple(line[column] for column in columns) for user, line in lines(made).items()}


def by_user(store: Engine) -> dict[str, tuple[int, ...]]:
    return {user: (documents, chunked) for user, documents, chunked in cycle.run_sql(store, BY_USER)}


def test_figures_follow_the_store_before_during_after_and_back(incident: Engine, write: Write) -> None:
    expected = by_user(incident)
    plan = cycle.assess_and_plan(incident, SPEC)
    before = write("before")
    assert before.timely
    assert counted(before, "changing", "with_text") == expected
    assert (before.totals.changing, before.totals.waiting, before.totals.with_text, before.totals.without_text) == (
        38, 38, 29, 9,
    )  # fmt: skip

    execution = cycle.approve(incident, SPEC, plan.plan_id)
    canary = cycle.waves_of(incident, execution)[0]
    cycle.migrate(incident, SPEC, canary)
    cycle.assert_green(cycle.check_wave(incident, SPEC, canary))
    during = write("during")
    assert during.timely
    assert not write("after").timely
    assert (during.totals.moved, during.totals.waiting) == (5, 33)
    assert {user: sum(n) for user, n in counted(during, "moved", "waiting").items()} == {
        user: documents for user, (documents, _) in expected.items()
    }

    for wave in cycle.all_waves_of(incident, execution)[1:-1]:
        cycle.migrate(incident, SPEC, wave)
        cycle.assert_green(cycle.check_wave(incident, SPEC, wave))
    cycle.assert_green(cycle.validate(incident))
    # Since then one user deleted a document.
    (gone,) = cycle.run_sql(
        incident,
        """WITH d AS (SELECT document_id, user_id FROM upload_pipeline.documents d WHERE NOT EXISTS (
                          SELECT FROM upload_pipeline.document_chunks c USING (document_id)) LIMIT 1)
           SELECT document_id::text, user_id::text FROM d""".replace(
            " c USING (document_id)", " c WHERE c.document_id = d.document_id"
        ),
    )
    for table in ("events", "upload_jobs", "documents"):
        cycle.run_sql(incident, f"DELETE FROM upload_pipeline.{table} WHERE document_id = %(id)s", id=gone[0])  # noqa: S608
    after = write("after")
    assert after.timely
    now = by_user(incident)
    assert {user: n for user, n in counted(after, "moved", "found_now").items() if n != (0, 0)} == now
    assert (after.totals.moved, after.totals.gone, after.totals.found_now, after.totals.waiting) == (37, 1, 29, 0)

    cycle.roll_back(incident, SPEC)
    back = write("rollback")
    assert back.timely
    assert (back.totals.waiting, back.totals.moved) == (37, 0)
    assert {user: n[0] for user, n in counted(back, "waiting").items() if n[0]} == {u: d for u, (d, _) in now.items()}


@pytest.mark.begins("planned")
def test_every_audience_has_its_files_and_a_user_the_own_titles_alone(incident: Engine, write: Write) -> None:
    plan = cycle.newest_plan(incident)
    made = write("before", cycle.spec_with(notices=Notices(product="Papers", contact="help@example.org")))

    for audience in ("support", "stakeholders"):
        for form in ("md", "html", "txt"):
            text = (made.directory / f"{audience}.{form}").read_text()
            assert "Papers" in text
            assert "38" in text
    assert f"uuid-pipeline approve {plan.plan_id}" in made.notices["stakeholders"].txt
    assert len(list((made.directory / "users").glob("*.md"))) == 20
    assert (made.directory / "users.jsonl").stat().st_mode & 0o77 == 0
    manifest = json.loads((made.directory / "notices.json").read_text())
    assert (manifest["kind"], manifest["users"], manifest["totals"]["changing"]) == ("before", 27, 38)

    titles = "SELECT user_id::text, array_agg(filename ORDER BY filename) FROM upload_pipeline.documents GROUP BY 1"
    owned = dict(cycle.run_sql(incident, titles))
    for user, line in lines(made).items():
        assert line["subject"] in line["body"]
        assert line["subject"].startswith("Papers: planned repair of ")
        assert "help@example.org" in line["body"]
        listed = sorted(row.removeprefix("  - ") for row in line["body"].splitlines() if row.startswith("  - "))
        assert listed == sorted(owned[user])
        # Without chunks it is to be uploaded again.
        assert ("Please upload again" in line["body"]) == (line["without_text"] > 0)


def test_a_merged_document_and_a_quarantined_one_are_told_to_their_owner(twins: Engine, write: Write) -> None:
    (broken,) = cycle.run_sql(
        twins,
        """UPDATE upload_pipeline.documents SET file_sha256 = 'broken' WHERE document_id = (
               SELECT document_id FROM upload_pipeline.documents d WHERE NOT EXISTS (
                   SELECT FROM upload_pipeline.documents o WHERE o.user_id = d.user_id
                   AND lower(btrim(o.file_sha256)) = lower(btrim(d.file_sha256)) AND o.document_id <> d.document_id)
               ORDER BY 1 LIMIT 1) RETURNING user_id::text, filename""",
    )
    # A row is the same one while user and upload time are; of its id only the version is asked here.
    rows = """SELECT user_id::text || created_at, document_id::text, uuid_extract_version(document_id)
              FROM upload_pipeline.documents"""
    before = {row: key for row, key, version in cycle.run_sql(twins, rows) if version == 4}
    assert len(before) == 38
    cycle.run_all(twins, SPEC)
    made = write("after", store=twins)

    there = {row: key for row, key, _ in cycle.run_sql(twins, rows)}
    moved = sum(there.get(row, key) != key for row, key in before.items())
    merged = sum(row not in there for row in before)
    assert merged > 0
    # The quarantined one stays as it is.
    assert moved + merged == 37
    assert (made.totals.changing, made.totals.moved, made.totals.merged) == (37, moved, merged)
    assert made.totals.quarantined == 1
    told = lines(made)[broken[0]]
    assert told["quarantined"] == 1
    assert broken[1] in told["body"]
    assert "Of 0 documents" not in told["body"]
    assert ("may have stopped working" in told["body"]) == (told["changing"] > 0)


@pytest.mark.begins("planned")
def test_the_teams_own_template_is_used_and_its_fault_named(incident: Engine, write: Write, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "before").mkdir(parents=True)
    (own / "before" / "users.md.j2").write_text("# Hallo\n\n{{ me.changing }} Dokumente von dir.\n")
    (own / "before" / "support.html.j2").write_text("<p>{{ product }}: {{ all.changing }}</p>")
    made = write("before", cycle.spec_with(notices=Notices(product="<b>P</b>")), own)

    assert {line["subject"] for line in lines(made).values()} == {"Hallo"}
    assert made.notices["support"].html == "<p>&lt;b&gt;P&lt;/b&gt;: 38</p>"
    assert made.own_templates == ("before/support.html.j2", "before/users.md.j2")
    # What the team did not write is ours.
    assert "planned correction" in made.notices["stakeholders"].md

    (own / "before" / "users.md.j2").write_text("{{ me.no_such_figure }}")
    with pytest.raises(UsageError, match=r"before/users\.md\.j2 cannot be rendered: .*no_such_figure"):
        write("before", SPEC, own)
    # The file of the earlier call is still whole.
    assert len(lines(made)) == 27


def test_the_directory_of_templates_starts_at_the_spec_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    spec = tmp_path / "spec.yaml"
    assert notices.template_directory(Notices(), spec) is None
    assert notices.template_directory(Notices(templates="own"), spec) == tmp_path / "own"
    with pytest.raises(UsageError, match="is no directory"):
        notices.template_directory(Notices(templates="other"), spec)


@pytest.mark.parametrize(
    "title", ["<script>alert(1)</script>", "[x](http://evil.example)", "a\nBcc: everybody@example.org", "| a | **b** |"]
)
def test_a_title_injects_nothing(incident: Engine, write: Write, title: str) -> None:
    cycle.run_sql(incident, "UPDATE upload_pipeline.documents SET filename = %(title)s", title=title)
    cycle.assess_and_plan(incident, SPEC)
    made = write("before")

    for path in (made.directory / "users").iterdir():
        text = path.read_text()
        assert "<script" not in text or path.suffix == ".txt"
        assert "href" not in text
        assert "\nBcc" not in text
        assert "<strong>" not in text
    for line in lines(made).values():
        assert "\n" not in line["subject"]
        assert "\nBcc" not in line["body"]


def test_what_the_spec_does_not_describe_is_unknown_and_works_without(incident: Engine, write: Write) -> None:
    document = SPEC.entities["document"].model_copy(update={"describe": Describe()})
    bare = cycle.spec_with(entities={**SPEC.entities, "document": document})
    cycle.assess_and_plan(incident, bare)
    made = write("before", bare)
    assert (made.users, made.documents_without_owner) == (None, 38)
    assert not (made.directory / "users.jsonl").exists()
    assert "unknown" in made.notices["support"].md
    assert "the spec names no owner" in made.notices["support"].md

    # No title: the document's id stands for it. No child entity: nobody knows what has text.
    owned = document.model_copy(update={"describe": Describe(owner="user_id")})
    cycle.assess_and_plan(incident, cycle.spec_with(entities={**SPEC.entities, "document": owned}))
    told = lines(write("before", cycle.spec_with(entities={**SPEC.entities, "document": owned})))
    ids = {str(key) for (key,) in cycle.run_sql(incident, "SELECT document_id FROM upload_pipeline.documents")}
    listed = {row.removeprefix("  - ") for line in told.values() for row in line["body"].splitlines() if "  - " in row}
    assert listed == ids


def test_an_owner_with_no_name_is_counted_and_told_nothing(incident: Engine, write: Write) -> None:
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents ADD COLUMN team text")
    cycle.run_sql(incident, "UPDATE upload_pipeline.documents SET team = 'a' WHERE bytes_len > 90000")
    (known,) = cycle.run_sql(incident, "SELECT count(team) FROM upload_pipeline.documents")
    document = SPEC.entities["document"].model_copy(update={"describe": Describe(owner="team")})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})
    cycle.assess_and_plan(incident, spec)
    made = write("before", spec)

    assert 0 < known[0] < 38
    assert counted(made, "changing") == {"a": (known[0],)}
    assert made.documents_without_owner == 38 - known[0]


def test_the_kind_that_fits_follows_the_execution(incident: Engine, write: Write) -> None:
    def fits() -> Kind:
        with incident.begin() as connection:
            return notice_facts.kind_now(connection)

    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    with pytest.raises(RefusedError, match="uuid-pipeline plan"):
        write("before")
    plan = cycle.assess_and_plan(incident, SPEC)
    with pytest.raises(RefusedError, match="Nothing was approved"):
        write("after")
    assert fits() == "before"
    execution = cycle.approve(incident, SPEC, plan.plan_id)
    assert fits() == "during"
    cycle.migrate_all(incident, SPEC, execution)
    cycle.assert_green(cycle.validate(incident))
    assert fits() == "after"
    assert not write("before").timely
    cycle.roll_back(incident, SPEC)
    assert fits() == "rollback"
    cycle.assess_and_plan(incident, SPEC)
    assert fits() == "before"


def test_the_job_launches_as_the_launchpad_shows_it() -> None:
    defaults = dg.validate_run_config(operation.notices_job, {})
    assert defaults["ops"]["write_notices"]["config"] == {"kind": "", "send_to": []}


@pytest.mark.begins("planned")
def test_sent_only_to_whom_was_asked_while_it_is_true_and_recorded(
    incident: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = cycle.spec_with(notices=Notices(send={"stakeholders": "BOARD_URLS"}))
    store = cycle.bound_store(incident, spec)
    made = write("before", spec)
    with receivers.webhook() as hook, receivers.webhook(503) as broken:
        monkeypatch.setenv("UUID_PIPELINE_NOTIFY_URLS", f"json://127.0.0.1:{hook.port}/support")
        monkeypatch.setenv("BOARD_URLS", f"json://u:pl4nted@127.0.0.1:{broken.port}/board")
        operation.deliver(incident, store, made, ["support"])
        assert hook.paths == ["/support"]
        assert hook.bodies[0]["title"] == made.notices["support"].subject
        with pytest.raises(RefusedError, match=r"stakeholders: channel 1 \(json\): .*503") as refused:
            operation.deliver(incident, store, made, ["support", "stakeholders"])
        assert len(hook.paths) == 2
        execution = cycle.run_all(incident, SPEC)
        late = write("before", spec)
        with pytest.raises(RefusedError, match="is not true now"):
            operation.deliver(incident, store, late, ["support"])
        assert len(hook.paths) == 2
    assert execution.status == "completed"
    with pytest.raises(UsageError, match=r"not to users.*users\.jsonl"):
        operation.channels_of(store, "users")

    recorded = cycle.run_sql(incident, "SELECT detail::text FROM uuid_pipeline.audit WHERE action = 'notices sent'")
    assert len(recorded) == 2
    for text in (str(refused.value), str(recorded), (made.directory / "sent.json").read_text()):
        assert "pl4nted" not in text
        assert "127.0.0.1" not in text
