"""Tables as the UI's metadata panel gets them."""

from datetime import UTC, datetime

from uuid_pipeline.reports.tables import markdown, risk_lines


def test_numbers_stand_to_the_right_and_what_is_not_there_is_left_empty() -> None:
    shown = markdown(
        [
            {"wave": "canary", "documents": 5, "share": 0.25, "at": datetime(2026, 5, 1, tzinfo=UTC)},
            {"wave": "recent", "documents": None, "share": 1.0, "note": "a|b"},
        ]
    )
    assert shown.splitlines() == [
        "| wave   |   documents |   share | at                  | note   |",
        "|:-------|------------:|--------:|:--------------------|:-------|",
        "| canary |           5 |    0.25 | 2026-05-01 00:00:00 |        |",
        "| recent |             |       1 |                     | a\\|b   |",
    ]


def test_figures_that_are_whole_stay_whole_and_texts_of_digits_stay_texts() -> None:
    shown = markdown([{"no": 3, "version": "18.10"}, {"no": None, "version": "007"}])
    assert shown.splitlines()[1:] == ["|-----:|:----------|", "|    3 | 18.10     |", "|      | 007       |"]


def test_no_records_are_a_sentence() -> None:
    assert markdown([]) == "_nothing to show_"


def test_of_many_risks_of_a_kind_the_first_are_shown_and_the_others_counted() -> None:
    kinds = ["unwitnessed"] + ["unindexed_reference"] * 11
    register = [
        {"rule": kind, "finding": f"finding {n}", "probability": "high", "impact": "low"}
        for n, kind in enumerate(kinds)
    ]

    assert risk_lines({"risk_register": register}) == [
        *[f"finding {n} (high / low)" for n in range(9)],
        "3 more like it (unindexed_reference), in --json",
    ]
