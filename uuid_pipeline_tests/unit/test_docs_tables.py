"""The tables of the docs name what there is: test files, tests, assets, verbs, checks."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from uuid_pipeline.cli.main import app

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TESTS = ROOT / "uuid_pipeline_tests"
# What a row may name in place of an asset or a verb: the report's own scripts, columns and criteria.
CALLED = re.compile(r"`([^`]+)`")


def rows(page: str) -> list[list[str]]:
    """The cells of each row of every table of a page, without the heads."""
    lines = [*(DOCS / page).read_text(encoding="utf-8").splitlines(), ""]
    bodies = [
        line
        for line, after in pairwise(lines)
        if line.startswith("|") and not line.startswith("|---") and not after.startswith("|---")
    ]
    return [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in bodies]


COVERAGE = rows("report_coverage.md")


def verbs() -> set[str]:
    return set(get_command(app).commands)  # type: ignore[attr-defined]


def graph() -> Any:
    # Imported late: Dagster's warnings on previews are errors while tests are collected.
    from uuid_pipeline.definitions import defs

    return defs.resolve_asset_graph()


def assets() -> set[str]:
    return {key.to_user_string() for key in graph().get_all_asset_keys()}


@pytest.mark.parametrize("row", COVERAGE, ids=lambda row: row[0][:40])
def test_every_line_of_the_report_is_delivered_and_shown_by_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    assert all(row), "a cell is blank"
    named = CALLED.findall(row[2])
    files = [name for name in named if name.endswith(".py")]
    if not files:
        assert row[2].startswith(("as ", "the same"))
    at = None
    for name in named:
        if name.endswith(".py"):
            at = TESTS / name
            assert at.is_file(), f"{name} does not exist"
        else:
            assert at is not None
            assert re.search(rf"^def {re.escape(name)}\(", at.read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("row", COVERAGE, ids=lambda row: row[0][:40])
def test_what_a_line_is_delivered_by_exists(row: list[str]) -> None:
    there = verbs() | assets()
    told = re.sub(r"\[[^]]*\]\(([^)]+)\)", "", row[1])
    for page in re.findall(r"\]\(([^)]+\.md)\)", row[1]):
        assert (DOCS / page).is_file(), page
    for name in CALLED.findall(told):
        word = name.removeprefix("uuid-pipeline ").split(" ")[0]
        assert word in there or name in SAID_OTHERWISE or (ROOT / name).exists(), f"{name} is neither asset nor verb"


SAID_OTHERWISE = {"strategy.md", "strategy.html", "canary", "recent", "remaining"}


def test_every_check_has_a_row_that_says_what_it_cannot_see() -> None:
    checks = {key.name for key in graph().asset_check_keys}
    told = {name for row in rows("checks.md") for name in CALLED.findall(row[0])}
    assert sorted(checks - told) == []
    assert all(len(row) >= 3 and all(row) for row in rows("checks.md"))
