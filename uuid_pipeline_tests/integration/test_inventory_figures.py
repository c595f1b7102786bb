"""What the inventory says in tables and plots, against plain SQL over the store and own arithmetic."""

import json
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger, priorities
from uuid_pipeline.engine.evidence import figures, inventory_figures
from uuid_pipeline.reports.html.inventory_plots import plots
from uuid_pipeline.spec import Describe, Spec, Statuses, load_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
Figures = dict[str, Any]


def taken(engine: Engine, spec: Spec = SPEC) -> Figures:
    """The figures of a fresh inventory, as they come back from JSON."""
    assessed = cycle.assess(engine, spec)
    with engine.begin() as connection:
        found = inventory_figures.take(connection, assessed.store, ledger.newest_assessment(connection))
    read: Figures = json.loads(json.dumps(found, default=str))
    return read


def change(engine: Engine, condition: str, change: str, **values: object) -> None:
    cycle.run_sql(engine, f"UPDATE upload_pipeline.documents SET {change} WHERE {condition}", **values)  # noqa: S608


def documents(engine: Engine, expression: str) -> list[Any]:
    return [row[0] for row in cycle.run_sql(engine, f"SELECT {expression} FROM upload_pipeline.documents d")]  # noqa: S608


def pattern(found: Figures, name: str) -> Figures:
    [one] = [p for p in found["patterns"] if p["name"] == name]
    return dict(one)


def test_the_incidents_figures_are_the_reports(incident: Engine) -> None:
    found = taken(incident)

    summary = found["summary"]
    assert {
        name: summary[name]
        for name in ("documents", "random", "deterministic", "affected_users", "bytes", "recent", "failed", "orphans",
                     "high_impact_users")
    } == {"documents": 38, "random": 38, "deterministic": 0, "affected_users": 27, "bytes": 3_520_000, "recent": 38,
          "failed": 1, "orphans": 0, "high_impact_users": 1}  # fmt: skip
    assert round(100 * summary["consistency"], 1) == 76.3
    assert sum(found["orphans"].values()) == 0
    assert {p["name"]: p["documents"] for p in found["patterns"]} == {
        "never_processed": 1, "processed_without_chunks": 8, "chunks_without_embedding": 0,
        "complete_yet_unreachable": 29,
    }  # fmt: skip


def test_users_statuses_uploads_sizes_and_chunks_are_those_of_the_tables(incident: Engine) -> None:
    found = taken(incident)

    by_user = Counter(documents(incident, "user_id::text"))
    first = found["users"]["top"][0]
    assert (first["owner"], first["documents"]) == by_user.most_common(1)[0]
    assert {u["impact"]: u["users"] for u in found["users"]["impact"]} == {
        "high": sum(n >= 5 for n in by_user.values()),
        "several": sum(1 < n < 5 for n in by_user.values()),
        "one": sum(n == 1 for n in by_user.values()),
    }
    statuses = Counter(documents(incident, "processing_status"))
    assert {s["status"]: s["documents"] for s in found["statuses"]} == dict(statuses)
    days = Counter(documents(incident, "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"))
    assert found["uploads"]["unit"] == "day"
    assert {bar["at"]: bar["documents"] for bar in found["uploads"]["bars"] if bar["documents"]} == dict(days)
    held = "(SELECT count(*) FROM upload_pipeline.document_chunks c WHERE c.document_id = d.document_id)"
    chunks = Counter(documents(incident, held))
    assert {c["band"]: c["documents"] for c in found["children"]} == {"none": chunks[0], "1 to 3": chunks[3]}
    sizes = documents(incident, "bytes_len")
    assert found["storage"]["bytes"] == sum(sizes) == sum(band["bytes"] for band in found["storage"]["bands"])
    assert found["storage"]["largest"] == max(sizes)
    for bands in (found["children"], found["storage"]["bands"], found["statuses"], found["recency"]):
        assert sum(band["due"] for band in bands) == sum(band["documents"] for band in bands) == 38


@pytest.mark.parametrize(
    ("days", "status", "expected"),
    [
        (1, "complete", (0.4, 0.3, 0.03)),
        (8, "chunked", (0.3, 0.2, 0.03)),
        (31, "parsed", (0.2, 0.1, 0.03)),
        (91, "uploaded", (0.1, 0.0, 0.03)),
        (91, None, (0.1, 0.0, 0.03)),
    ],
)
def test_the_score_is_recency_and_status_and_chunks(
    incident: Engine, days: int, status: str | None, expected: tuple[float, float, float]
) -> None:
    [(one,)] = cycle.run_sql(incident, "SELECT document_id::text FROM upload_pipeline.document_chunks LIMIT 1")
    change(
        incident, "document_id = %(id)s", "created_at = now() - make_interval(days => %(days)s), "
        "processing_status = %(status)s", id=one, days=days, status=status,
    )  # fmt: skip
    assessed = cycle.assess(incident, SPEC)

    with incident.begin() as connection:
        rows = priorities.top(connection, assessed.store, assessed.number, 38)

    [row] = [row for row in rows if row["id"] == one]
    assert (row["recency"], row["by_status"], row["by_children"]) == pytest.approx(expected)
    assert row["priority"] == pytest.approx(sum(expected))
    assert [row["priority"] for row in rows] == sorted((row["priority"] for row in rows), reverse=True)


def test_a_score_counts_no_more_than_thirty_chunks(incident: Engine) -> None:
    [(one,)] = cycle.run_sql(incident, "SELECT document_id::text FROM upload_pipeline.document_chunks LIMIT 1")
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord,
               text, chunk_sha, embed_model, embed_version, vector_dim, embedding)
           SELECT gen_random_uuid(), document_id, chunker_name, 'other', n, text, chunk_sha, embed_model, embed_version,
                  vector_dim, embedding
           FROM (SELECT * FROM upload_pipeline.document_chunks WHERE document_id = %(id)s LIMIT 1) c,
                generate_series(1, 60) n""",
        id=one,
    )
    assert taken(incident)["priorities"]["top"][0]["by_children"] == pytest.approx(0.3)


def test_failure_patterns_follow_status_chunks_and_vectors(incident: Engine) -> None:
    [(chunked,), (other,)] = cycle.run_sql(
        incident, "SELECT DISTINCT document_id::text FROM upload_pipeline.document_chunks ORDER BY 1 LIMIT 2"
    )
    [(bare,)] = cycle.run_sql(
        incident,
        "SELECT document_id::text FROM upload_pipeline.documents WHERE processing_status = 'duplicate' LIMIT 1",
    )
    change(incident, "document_id = %(id)s", "processing_status = 'failed_parse'", id=bare)
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.document_chunks ALTER embedding DROP NOT NULL")
    for document in (chunked, other):
        cycle.run_sql(
            incident, "UPDATE upload_pipeline.document_chunks SET embedding = NULL WHERE document_id = %(id)s",
            id=document,
        )  # fmt: skip

    found = taken(incident)

    assert pattern(found, "never_processed")["documents"] == 2
    assert bare in pattern(found, "never_processed")["examples"]
    assert pattern(found, "processed_without_chunks")["documents"] == 7
    assert pattern(found, "chunks_without_embedding") | {"examples": []} == {
        "name": "chunks_without_embedding", "title": "Chunks without embedding",
        "meaning": "chunks that no similarity query can find", "documents": 2, "examples": [], "unknown": None,
    }  # fmt: skip
    assert sorted(pattern(found, "chunks_without_embedding")["examples"]) == sorted([chunked, other])


@pytest.mark.begins("migrated")
def test_what_is_complete_is_reachable_once_it_is_under_its_target_id(incident: Engine) -> None:
    found = taken(incident)

    assert pattern(found, "complete_yet_unreachable")["documents"] == 0
    assert pattern(found, "never_processed")["documents"] == 1


def test_what_is_not_described_is_unknown_and_the_rest_is_there(incident: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"describe": Describe()})
    chunk = SPEC.entities["chunk"]
    spec = cycle.spec_with(
        entities={"document": document, "chunk": chunk}, statuses=Statuses(), retrieval=None
    )  # fmt: skip

    found = taken(incident, spec)

    assert [found[part] for part in ("users", "uploads", "recency", "statuses", "storage")] == [None] * 5
    assert {p["name"]: (p["documents"], p["unknown"] is not None) for p in found["patterns"]} == dict.fromkeys(
        ("never_processed", "processed_without_chunks", "chunks_without_embedding", "complete_yet_unreachable"),
        (None, True),
    )
    assert found["summary"]["documents"] == 38
    assert [chart.title for chart in plots(found)] == ["Documents by number of chunks", "Documents by priority score"]


def test_what_is_unknown_of_users_is_no_figure(incident: Engine) -> None:
    entity = SPEC.entities["document"]
    described = entity.describe.model_copy(update={"size": None})
    spec = cycle.spec_with(entities={"document": entity.model_copy(update={"describe": described})})

    found = taken(incident, spec)["users"]["top"]

    assert all(user["bytes"] is None and user["without_children"] is None for user in found)


def test_dates_that_are_missing_infinite_or_far_away_are_counted_and_do_not_grow_the_plot(incident: Engine) -> None:
    ids = documents(incident, "document_id::text")
    for document, moment in zip(ids, ("infinity", "-infinity", None, "0044-03-15 BC", "9999-01-01"), strict=False):
        change(incident, "document_id = %(id)s", "created_at = %(at)s", id=document, at=moment)

    found = taken(incident)

    assert found["uploads"]["undated"] == 3
    assert sum(bar["documents"] for bar in found["uploads"]["bars"]) == 35
    assert found["uploads"]["unit"] == "century"
    assert len(found["uploads"]["bars"]) == 3
    assert next(row["documents"] for row in found["recency"] if row["age"] == "no date") == 1


@pytest.mark.parametrize(("days", "unit"), [(40, "day"), (200, "week"), (1000, "month"), (9000, "year")])
def test_the_unit_of_the_uploads_keeps_the_plot_readable_and_gaps_are_bars_of_nothing(
    incident: Engine, days: int, unit: str
) -> None:
    [(one,)] = cycle.run_sql(incident, "SELECT document_id::text FROM upload_pipeline.documents LIMIT 1")
    change(incident, "document_id = %(id)s", "created_at = now() - make_interval(days => %(days)s)", id=one, days=days)

    uploads = taken(incident)["uploads"]

    assert uploads["unit"] == unit
    assert sum(bar["documents"] for bar in uploads["bars"]) == 38
    assert any(bar["documents"] == 0 for bar in uploads["bars"])
    assert len(uploads["bars"]) <= 80


def test_an_empty_store_has_figures_of_nothing(incident: Engine) -> None:
    for table in ("webhook_log", "events", "upload_jobs", "document_chunks", "documents"):
        cycle.run_sql(incident, f"DELETE FROM upload_pipeline.{table}")  # noqa: S608

    found = taken(incident)

    assert found["summary"]["documents"] == 0
    assert (found["users"]["top"], found["uploads"]["bars"], found["statuses"]) == ([], [], [])
    assert plots(found) == ()


def test_kept_figures_outlive_the_inventory_that_they_were_taken_from(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    with incident.begin() as connection:
        first = ledger.newest_assessment(connection)
        kept = inventory_figures.take(connection, assessed.store, first)
        figures.record(connection, "inventory", kept, assessment=assessed.number)
    for _ in range(5):
        cycle.assess(incident, SPEC)

    with incident.begin() as connection:
        assert inventory_figures.of(connection, assessed.store, first) == json.loads(json.dumps(kept, default=str))


def test_figures_never_kept_are_gone_with_the_inventory(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    with incident.begin() as connection:
        first = ledger.newest_assessment(connection)
        assert inventory_figures.of(connection, assessed.store, first) is not None
    for _ in range(5):
        cycle.assess(incident, SPEC)

    with incident.begin() as connection:
        assert inventory_figures.of(connection, assessed.store, first) is None
