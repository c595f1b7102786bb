"""Rollback where merges and rows of several documents meet: the batches are undone one by one, the last first."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import migration, sync_points
from uuid_pipeline.engine.batches import tries
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle

NAMESPACE = uuid.UUID("a1111111-2222-4333-8444-555555555555")
DOCUMENTS = 60
# Two of three documents have a twin, far from it in the table and so in another batch's reach; what refers to two of
# them does so across batches.
TABLES = f"""
CREATE SCHEMA papers;
CREATE TABLE papers.docs (id uuid PRIMARY KEY, nk text NOT NULL, nr int, other uuid REFERENCES papers.docs);
CREATE TABLE papers.cites (src uuid REFERENCES papers.docs, dst uuid REFERENCES papers.docs, PRIMARY KEY (src, dst));
CREATE TABLE papers.shelves (nr int PRIMARY KEY, ids uuid[], notes jsonb);
INSERT INTO papers.docs
SELECT md5('doc' || n)::uuid, 'k' || CASE WHEN n % 3 = 0 THEN n ELSE n % 20 + 1000 END, n
FROM generate_series(1, {DOCUMENTS}) n;
UPDATE papers.docs SET other = md5('doc' || (nr * 7) % {DOCUMENTS} + 1)::uuid WHERE nk <> 'k3';
INSERT INTO papers.cites
SELECT a.id, b.id FROM papers.docs a JOIN papers.docs b ON a.nk <> b.nk
WHERE ascii(md5(a.id::text || b.id::text)) < ascii('4');
INSERT INTO papers.shelves
SELECT n, (SELECT array_agg(id ORDER BY id) FROM papers.docs WHERE ascii(md5(id::text || n)) < ascii('3')),
       jsonb_build_object('doc', (SELECT id FROM papers.docs ORDER BY md5(id::text || n) LIMIT 1), 'n', n)
FROM generate_series(1, 40) n;
"""  # noqa: S608
SPEC_TEXT = f"""
namespace: {NAMESPACE}
schema: papers
entities:
  paper: {{table: docs, key: id, identity: "{{nk}}"}}
soft_references:
  - {{table: shelves, column: ids, entity: paper}}
  - {{table: shelves, column: notes, entity: paper, path: doc}}
backup: none
batch_rows: 80
waves: {{canary: 4, recent: 6, remaining: 25}}
"""
FOREIGN_KEYS = (("cites", "src"), ("cites", "dst"), ("docs", "other"))


@pytest.fixture
def spec() -> Spec:
    return parse_spec(SPEC_TEXT, "papers.yaml")


@pytest.fixture
def papers(empty_store: Engine) -> Engine:
    for statement in TABLES.strip().rstrip(";").split(";\n"):
        cycle.run_sql(empty_store, statement.replace("%", "%%"))
    return empty_store


def rows_of(engine: Engine) -> cycle.Rows:
    return cycle.rows_of(engine, "papers")


def dangling(engine: Engine) -> dict[str, int]:
    """By foreign key the rows that refer to nothing; the server checks none in a batch of ours."""
    found = {}
    for table, column in FOREIGN_KEYS:
        [(count,)] = cycle.run_sql(
            engine,
            f"""SELECT count(*) FROM papers.{table} t WHERE {column} IS NOT NULL
                AND NOT EXISTS (SELECT FROM papers.docs d WHERE d.id = t.{column})""",  # noqa: S608
        )
        found[f"{table}.{column}"] = int(count)
    return {name: count for name, count in found.items() if count}


def moved(engine: Engine, spec: Spec) -> list[str]:
    """Migrate, and see that batches forward are none that a rollback would cut the same; names of the waves moved."""
    cycle.run_all(engine, spec)
    assert dangling(engine) == {}
    targets = {str(uuid.uuid5(NAMESPACE, str(row["nk"]))) for row in rows_of(engine)["docs"]}
    assert {row["id"] for row in rows_of(engine)["docs"]} == targets
    batches = "SELECT count(*), count(DISTINCT last_ordinal - first_ordinal) FROM uuid_pipeline.batches"
    [(count, sizes)] = cycle.run_sql(engine, batches)
    assert count > 4
    assert sizes > 1
    return [wave.wave for wave in cycle.waves_of(engine, cycle.newest_execution(engine))]


def test_every_row_is_back_as_it_was_and_no_reference_dangles(papers: Engine, spec: Spec) -> None:
    before, objects = rows_of(papers), cycle.catalog_of(papers, "papers")
    moved(papers, spec)

    cycle.roll_back(papers, spec)

    assert rows_of(papers) == before
    assert cycle.catalog_of(papers, "papers") == objects
    assert dangling(papers) == {}


def test_where_foreign_keys_are_checked_they_refuse_no_batch(
    papers: Engine, empty_url: str, spec: Spec, new_role: NewRole
) -> None:
    before, role = rows_of(papers), new_role("BYPASSRLS")
    cycle.make_owner(papers, role, "papers")
    with opened(as_role(empty_url, role)) as owner:
        moved(owner, spec)
        assert cycle.newest_plan(owner).content["tier"] == "O"

        cycle.roll_back(owner, spec)

    assert rows_of(papers) == before


def test_a_rollback_that_was_interrupted_goes_on_where_it_was(papers: Engine, spec: Spec) -> None:
    before = rows_of(papers)
    moved(papers, spec)
    left = [3]

    def come() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    sync_points.on("committed", come)
    with pytest.raises(KeyboardInterrupt):
        cycle.roll_back(papers, spec)
    sync_points.clear()
    assert rows_of(papers) != before

    cycle.roll_back(papers, spec)

    assert rows_of(papers) == before


def test_a_document_that_stays_busy_keeps_no_wave_from_going_back(papers: Engine, spec: Spec) -> None:
    """Each look at it is a batch, later than those of the other waves; it writes nothing."""
    paper = spec.entities["paper"].model_copy(update={"busy": "nr = 3"})
    patient = spec.model_copy(update={"entities": {"paper": paper}})
    before = rows_of(papers)
    execution = cycle.approve(papers, patient, cycle.assess_and_plan(papers, patient).plan_id)
    waves = cycle.waves_of(papers, execution)
    for wave in waves:
        cycle.migrate(papers, patient, wave)
        cycle.assert_green(cycle.check_wave(papers, patient, wave))
    [(busy,)] = cycle.run_sql(papers, "SELECT DISTINCT wave FROM uuid_pipeline.unmoved WHERE reason = 'busy'")
    assert busy != waves[-1].wave
    cycle.migrate(papers, patient, next(wave for wave in waves if wave.wave == busy))
    [(last,)] = cycle.run_sql(papers, "SELECT wave FROM uuid_pipeline.batches ORDER BY batch_no DESC LIMIT 1")
    assert last == busy

    for wave in reversed(waves):
        cycle.roll_back(papers, patient, wave.wave)
        assert dangling(papers) == {}

    assert rows_of(papers) == before


def test_a_wave_that_others_were_written_after_is_refused_with_the_order_and_goes_back_in_it(
    papers: Engine, spec: Spec
) -> None:
    before = rows_of(papers)
    first, *later = moved(papers, spec)
    after = rows_of(papers)

    with pytest.raises(RefusedError, match=", ".join(reversed(later))):
        cycle.roll_back(papers, spec, first)

    assert rows_of(papers) == after
    for wave in reversed([first, *later]):
        cycle.roll_back(papers, spec, wave)
        assert dangling(papers) == {}
    assert rows_of(papers) == before


def test_a_document_taken_up_again_by_a_later_wave_is_undone_before_that_wave(papers: Engine, spec: Spec) -> None:
    """Its batch is of its own wave and was written after others': only all together can go back."""
    before = rows_of(papers)
    execution = cycle.approve(papers, spec, cycle.assess_and_plan(papers, spec).plan_id)
    waves = cycle.waves_of(papers, execution)
    merging = """SELECT m.old_id FROM uuid_pipeline.id_map_paper m
                 WHERE m.wave = 'canary' AND EXISTS (SELECT FROM uuid_pipeline.id_map_paper o
                                                     WHERE o.ordinal = m.ordinal AND o.role = 'merge') LIMIT 1"""
    [(busy,)] = cycle.run_sql(papers, merging)
    with cycle.session(papers) as somebody:
        somebody.execute("SELECT FROM papers.docs WHERE id = %s FOR UPDATE", [busy])
        cycle.migrate(papers, spec, waves[0])
    cycle.check_wave(papers, spec, waves[0])
    assert cycle.run_sql(papers, "SELECT DISTINCT reason FROM uuid_pipeline.unmoved") == [("locked",)]
    for wave in cycle.all_waves_of(papers, execution)[1:]:
        cycle.migrate(papers, spec, wave)
        cycle.assert_green(cycle.check_wave(papers, spec, wave))
    [(own,)] = cycle.run_sql(
        papers,
        "SELECT wave FROM uuid_pipeline.batches WHERE first_ordinal = last_ordinal ORDER BY batch_no DESC LIMIT 1",
    )
    assert own == waves[0].wave

    cycle.roll_back(papers, spec)

    assert rows_of(papers) == before


def archive_of(engine: Engine, table: str) -> str:
    [(name,)] = cycle.run_sql(
        engine,
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid::regclass::text LIKE %(like)s",
        like=f"uuid_pipeline.archive_papers_{table}_%",
    )
    return str(name)


def delete_one_that_archived_rows_refer_to(engine: Engine, archive: str, column: str) -> int:
    """Let the application delete a document without a twin, and what still refers to it; how many archived rows did."""
    [(gone, referring)] = cycle.run_sql(
        engine,
        f"""SELECT d.id::text, count(*) FROM papers.docs d
            JOIN uuid_pipeline.id_map_paper m ON m.new_id = d.id AND m.role = 'move'
            JOIN {archive} a ON a.{column} IN (m.old_id, m.new_id)
            WHERE NOT EXISTS (SELECT FROM uuid_pipeline.id_map_paper o WHERE o.ordinal = m.ordinal AND o.role = 'merge')
            GROUP BY 1 ORDER BY 2 DESC LIMIT 1""",  # noqa: S608
    )
    cycle.run_sql(engine, "DELETE FROM papers.cites WHERE %(gone)s::uuid IN (src, dst)", gone=gone)
    cycle.run_sql(engine, "UPDATE papers.docs SET other = NULL WHERE other = %(gone)s::uuid", gone=gone)
    cycle.run_sql(engine, "DELETE FROM papers.docs WHERE id = %(gone)s::uuid", gone=gone)
    return int(referring)


def kept_in_the_archive(papers: Engine, spec: Spec, table: str, column: str) -> int:
    """Migrate, delete what archived rows of this table refer to, roll back: how many of them stay archived.

    Those that refer to it do, and nothing dangles.
    """
    moved(papers, spec)
    archive = archive_of(papers, table)
    referring = delete_one_that_archived_rows_refer_to(papers, archive, column)

    cycle.roll_back(papers, spec)

    assert dangling(papers) == {}
    [(kept,)] = cycle.run_sql(papers, f"SELECT count(*) FROM {archive}")  # noqa: S608
    assert kept >= referring > 0
    return int(kept)


def test_an_archived_row_that_refers_to_what_the_application_deleted_since_stays_archived(
    papers: Engine, spec: Spec
) -> None:
    kept_in_the_archive(papers, spec, "cites", "dst")


def test_where_an_archived_document_refers_to_a_deleted_one_its_whole_cluster_stays_merged(
    papers: Engine, spec: Spec
) -> None:
    before = rows_of(papers)

    kept = kept_in_the_archive(papers, spec, "docs", "other")

    old = {row["id"] for row in before["docs"]}
    after = {row["id"] for row in rows_of(papers)["docs"]}
    assert after < old
    assert len(after) == len(old) - 1 - kept


def test_waves_whose_batches_lie_between_each_others_are_said_to_go_back_together(
    papers: Engine, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that was locked is taken up when the sweep has moved what had arrived meanwhile."""
    monkeypatch.setattr(tries, "MAX_TRIES", 2)
    monkeypatch.setattr(migration, "RETAKE_SECONDS", ())
    before = cycle.rows_of(papers, "papers")
    execution = cycle.approve(papers, spec, cycle.assess_and_plan(papers, spec).plan_id)
    *planned, last = cycle.waves_of(papers, execution)
    for wave in planned:
        cycle.migrate(papers, spec, wave)
        cycle.assert_green(cycle.check_wave(papers, spec, wave))
    with cycle.session(papers) as worker:
        worker.execute(
            "SELECT FROM papers.docs WHERE substr(id::text, 15, 1) <> '5' ORDER BY id DESC LIMIT 1 FOR UPDATE"
        )
        cycle.migrate(papers, spec, last)
    cycle.assert_green(cycle.check_wave(papers, spec, last))
    cycle.run_sql(papers, "INSERT INTO papers.docs VALUES (md5('late')::uuid, 'late', 99)")
    sweep = cycle.all_waves_of(papers, execution)[len(planned) + 1]
    cycle.migrate(papers, spec, sweep)

    for name in (last.wave, sweep.wave):
        with pytest.raises(RefusedError, match=r"they go back together only: uuid-pipeline rollback --all"):
            cycle.roll_back(papers, spec, name)

    cycle.roll_back(papers, spec)
    cycle.run_sql(papers, "DELETE FROM papers.docs WHERE nr = 99")
    assert cycle.rows_of(papers, "papers") == before
