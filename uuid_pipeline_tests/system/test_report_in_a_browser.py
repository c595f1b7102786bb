"""The report as people open it: from disk, in Chromium, light and dark, on paper, on a phone, without a network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.evidence import figures, inventory_figures, lookups
from uuid_pipeline.reports.html import report as reports
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.system.test_ui import CHROMIUM

pytestmark = pytest.mark.system

SPEC = load_spec(None)
# WCAG's contrast of each text with what is painted behind it; the least, with its text.
CONTRAST = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                           return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const part = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  const behind = node => { for (let e = node; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
  let least = [99, ''];
  const walker = document.createTreeWalker(document.querySelector('.page'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest('svg, .hidden')) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < least[0]) least = [ratio, text];
  }
  return least;
}
"""


@pytest.fixture
def page_path(incident: Engine, tmp_path: Path) -> Path:
    assessed = cycle.assess(incident, SPEC)
    with incident.begin() as connection:
        found = inventory_figures.take(connection, assessed.store, ledger.newest_assessment(connection))
        figures.record(connection, "inventory", found, assessment=assessed.number)
        timed = lookups.measure_inventory(connection, assessed.store, assessed.number)
        figures.record(connection, "lookups", timed.as_record(), assessment=assessed.number)
    execution = cycle.approve(incident, SPEC, cycle.plan(incident, assessed).plan_id)
    cycle.migrate_all(incident, SPEC, execution)
    cycle.assert_green(cycle.validate(incident))
    with incident.begin() as connection:
        report = reports.build(connection, cycle.bound(connection, SPEC))
    return reports.write(report, tmp_path / "report.html")[0]


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield opened
        opened.close()


def opened(browser: Browser, path: Path, scheme: str, width: int = 1280) -> tuple[Page, list[str]]:
    """The page, and what it said or asked for besides itself."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri(), wait_until="networkidle")
    return page, said


def test_the_report_is_read_in_light_and_dark_on_paper_and_on_a_phone(
    browser: Browser, page_path: Path, tmp_path: Path
) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        page, said = opened(browser, page_path, scheme)
        assert said == []
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ratio, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, (scheme, ratio, text)
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.get_by_role("main").count() == page.get_by_role("navigation").count() == 1
        assert page.get_by_role("img").count() >= 7
        assert page.get_by_text("The migration is complete.").is_visible()
        picture = tmp_path / f"{scheme}.png"
        page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 100_000
    assert len(set(grounds.values())) == 2

    page, _ = opened(browser, page_path, "dark")
    paper = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert paper.startswith(b"%PDF-")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_role("navigation").is_visible()

    page, said = opened(browser, page_path, "light", width=390)
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_reaches_the_content_first(browser: Browser, page_path: Path) -> None:
    page, _ = opened(browser, page_path, "light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
