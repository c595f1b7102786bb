"""docs/report_coverage.md: each line of the incident's report has a test by name, and those tests exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
COVERAGE = TESTS.parent / "docs" / "report_coverage.md"


def rows() -> list[list[str]]:
    """The cells of each line of the tables, without the headings."""
    lines = [line for line in COVERAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "the report" and not row[0].startswith("---")]


def named(cell: str) -> list[tuple[str, str]]:
    """(file, test) of a cell, each test in the file that stands before it."""
    found, file = [], ""
    for word in re.findall("`([^`]+)`", cell):
        file = word if word.endswith(".py") else file
        if word.startswith("test_"):
            found.append((file, word))
    return found


def test_each_line_of_the_report_names_a_test_or_the_line_that_does() -> None:
    lines = rows()
    assert len(lines) > 60
    assert [row[0] for row in lines if not named(row[-1]) and not re.match("as |the same", row[-1])] == []


def test_every_test_that_is_named_is_there() -> None:
    missing = [
        (file, test)
        for row in rows()
        for file, test in named(row[-1])
        if not (TESTS / file).is_file() or f"def {test}(" not in (TESTS / file).read_text(encoding="utf-8")
    ]
    assert missing == []
