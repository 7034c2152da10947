"""The page's further tabs in a real browser: compare, grid, features, several pictures of a subject, accessibility."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import pytest

from tests.support.browsing import Visitor, browser, needs_chromium, sync_api, url, with_a_picture  # noqa: F401
from tests.support.serving import EXAMPLES

pytestmark = needs_chromium
SERIOUS = "serious", "critical"


def changed(visitor: Visitor, selector: str, before: str | None) -> None:
    """Waits until a picture is another one."""
    script = "([s, before]) => { const i = document.querySelector(s); return i && i.src !== before }"
    visitor.page.wait_for_function(script, arg=[selector, before])


def test_compare_grid_and_features(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    with_a_picture(visitor)
    page.get_by_role("tab", name="Compare").click()
    visitor.set_steps(100)
    page.click("#compare")
    page.wait_for_selector("#compare-status .cc-progress")
    page.click("#compare-stop")
    page.wait_for_function("document.querySelector('#compare-status').innerText.includes('Stopped')")
    assert page.locator("#sheet img").count() == 0
    visitor.set_steps(3)
    page.click("#compare")
    visitor.see("#sheet")
    assert page.locator("#slider img").count() >= 2
    before = page.locator("#slider img").first.get_attribute("src")
    page.locator("#left input").click()
    page.get_by_role("option", name="Text only").click()
    changed(visitor, "#slider img", before)
    page.locator("#grid-x input").click()
    page.get_by_role("option", name="Seed").click()
    page.wait_for_function(
        "document.querySelector('#grid-x-values textarea, #grid-x-values input').value === '0, 1, 2'"
    )
    page.click("#make-grid")
    visitor.see("#made-grid")
    page.get_by_role("tab", name="Features").click()
    page.wait_for_selector("#around-note .cc-note")
    assert "train.evaluation.atlas" in page.inner_text("#around-note")
    visitor.leave()


def test_the_steps_play_and_stop_at_the_last(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    with_a_picture(visitor, steps=4)
    visitor.see("#overlay")
    last = page.get_attribute("#overlay img", "src")
    page.click("#play")
    page.wait_for_function("document.querySelector('#play').innerText.includes('Pause')")
    changed(visitor, "#overlay img", last)
    page.wait_for_function("document.querySelector('#play').innerText.includes('Play')")
    assert page.locator("#step input[type=number]").input_value() == "4"
    visitor.leave()


def test_a_click_on_the_map_shows_what_was_looked_at(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    with_a_picture(visitor)
    page.get_by_role("tab", name="Words").click()
    assert page.locator("#looked img").count() == 0
    page.locator("#branch").get_by_text("Subject's picture").click()
    visitor.see("#looked")
    before = page.get_attribute("#looked img", "src")
    page.locator("#map img").click(position={"x": 8, "y": 8})
    changed(visitor, "#looked img", before)
    with page.expect_download() as saved:
        page.get_by_role("tab", name="Where").click()
        page.click("#video")
    assert saved.value.path().read_bytes()[4:8] == b"ftyp"
    visitor.leave()


def test_several_pictures_of_one_subject(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    visitor.give(1, EXAMPLES / "bear.png")
    visitor.cutout()
    page.click("#another-1")
    page.wait_for_selector("#others-1 img")
    page.wait_for_selector("#cutout-1 img", state="detached")
    visitor.give(1, EXAMPLES / "cat.png")
    second = visitor.cutout()
    page.locator("#others-1 button.thumbnail-item").first.click()
    visitor.cutout_after(second)
    visitor.write("#noun-1", "bear")
    visitor.write("#prompt", "a bear in the city")
    assert "Done" in visitor.generate()
    visitor.leave()


def test_wide_figures_scroll_on_a_phone(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url, 390, 844)
    page = visitor.page
    with_a_picture(visitor)
    visitor.see("#plot")
    measure = """name => { const box = document.querySelector(name + ' .image-container');
      const image = box.querySelector('img'); box.scrollLeft = 0;
      return [image.getBoundingClientRect().left - box.getBoundingClientRect().left, image.clientWidth,
              box.scrollWidth - box.clientWidth, document.documentElement.scrollWidth - innerWidth] }"""
    for name in ("#strip", "#plot"):
        left, width, room, beyond = page.evaluate(measure, name)
        assert left >= 0 and width >= 600 and room > 100 and beyond <= 0, (name, left, width, room, beyond)
    visitor.leave()


def violations(visitor: Visitor, state: str) -> list[str]:
    """What axe-core finds serious on the page as it stands."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    found = [wrong for wrong in axe.Axe().run(visitor.page).response["violations"] if wrong["impact"] in SERIOUS]
    nodes = [(wrong["id"], node) for wrong in found for node in wrong["nodes"]]
    return [f"{state}: {name}: {node['html'][:160]} {node['failureSummary'][:240]}" for name, node in nodes]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_axe_finds_nothing_serious(browser: sync_api.Browser, url: str, scheme: str, width: int):
    visitor = Visitor(browser, url, width, 900, color_scheme=scheme)
    page = visitor.page
    found = violations(visitor, "empty")
    with_a_picture(visitor)
    visitor.see("#overlay")
    page.locator("#brushing-1 button").first.click()
    page.locator("#placing-1 button").first.click()
    page.locator("#place-1 label", has_text="A box").click()
    page.wait_for_selector("#area-1", state="visible")
    page.wait_for_selector("#brush-1 canvas")
    page.locator("#explaining button").first.click()
    page.wait_for_selector("#explained figure")
    for tab in ("Where", "Words", "Compare", "Features", "Recipe"):
        place = page.get_by_role("tab", name=tab, exact=True)
        if not place.first.is_visible():  # a phone keeps the last ones behind "…"
            page.locator("#viewers .overflow-menu > button").click()
            place = page.locator("#viewers .overflow-dropdown button", has_text=tab)
        place.first.click()
        page.wait_for_timeout(500)
        found += violations(visitor, tab)
    assert not found, "\n".join(found)
    visitor.leave()
