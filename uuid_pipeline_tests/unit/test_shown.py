"""What the UI's metadata panel is given."""

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import yaml

from uuid_pipeline.stages.shown import bullets, launchpad, number, table


def test_a_table_shows_nothing_for_what_is_not_there_and_whole_numbers_as_they_are() -> None:
    shown = table([{"entity": "document", "random": 38}, {"entity": "chunk", "stray": 87}]).md_str or ""
    assert "nan" not in shown
    assert "38.0" not in shown
    [header, _, document, chunk] = shown.strip().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["entity", "random", "stray"]
    assert [cell.strip() for cell in document.strip("|").split("|")] == ["document", "38", ""]
    assert [cell.strip() for cell in chunk.strip("|").split("|")] == ["chunk", "", "87"]


def test_a_cell_is_one_line_and_cannot_break_its_table() -> None:
    moment = datetime(2026, 11, 23, 20, 0, 7, 123, tzinfo=UTC)
    shown = table([{"ids": ["a", "b"], "key": "x|y\nz", "at": moment, "moved": True, "map": {"n": 1.5}}]).md_str or ""
    assert shown.splitlines()[2] == r"| a, b  | x\|y z | 2026-11-23 20:00:07 | yes     | n: 1.5 |"


def test_a_wide_table_opens_in_its_own_window_and_a_narrow_one_stays_in_its_cell() -> None:
    assert len(table([{"finding": "x" * 80}]).md_str or "") >= 1000
    assert len(table([{"finding": "x" * 40}]).md_str or "") < 1000
    assert bullets([]).md_str == "_nothing_"


def test_the_launchpads_link_holds_the_config() -> None:
    made = launchpad("approve", "approve_plan", {"plan_id": "0e12"}, "uuid-pipeline approve 0e12").md_str or ""
    link = urlsplit(made.partition("](")[2].partition(")")[0])
    assert link.path == "/locations/uuid_pipeline/jobs/approve/playground/setup"
    [config] = parse_qs(link.query)["config"]
    assert yaml.safe_load(config) == {"ops": {"approve_plan": {"config": {"plan_id": "0e12"}}}}
    assert "`uuid-pipeline approve 0e12`" in made


def test_a_number_has_as_many_digits_as_one_reads_and_a_count_all_of_them() -> None:
    assert [number(value).value for value in (0.7631578947368421, 13.69798999996874, 0.00004, 12_345_678.0)] == [
        0.763158,
        13.698,
        0.00004,
        12_345_678.0,
    ]
