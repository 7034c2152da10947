"""What is seen of one picture in a real browser: words, steps, comparisons, features, accessibility, a phone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browsing import Visitor, changed, needs_chromium, sync_api
from tests.support.serving import EXAMPLES

pytestmark = needs_chromium
TABS = ("Where", "Words", "Compare", "Features", "Recipe")


@pytest.fixture(scope="module")
def visitor(browser: sync_api.Browser, url: str) -> Iterator[Visitor]:
    """One subject and its first picture, of three steps; each test looks at it in its own way."""
    visitor = Visitor(browser, url)
    page = visitor.page
    visitor.give(1, EXAMPLES / "bear.png")
    visitor.cutout()
    page.wait_for_function("document.querySelector('#noun-1 textarea, #noun-1 input').value === 'bear'")
    page.wait_for_selector("#chip-1", state="visible")
    visitor.write("#prompt", "a bear on the beach")
    page.get_by_text("More settings").click()
    visitor.set_steps(3)
    assert "Done" in visitor.generate()
    yield visitor
    visitor.leave()


def test_words_light_up_and_the_maps_are_explained(visitor: Visitor):
    page = visitor.page
    page.wait_for_selector("#hover .cc-hover-words button")
    plain = page.get_attribute("#hover img", "src")
    word = page.locator("#hover button", has_text="beach")
    word.hover()
    changed(visitor, "#hover img", plain)
    page.mouse.move(0, 0)
    page.wait_for_function("before => document.querySelector('#hover img').src === before", arg=plain)
    word.click()
    page.mouse.move(0, 0)
    assert page.get_attribute("#hover img", "src") != plain and word.get_attribute("aria-pressed") == "true"
    page.locator("#explaining button").first.click()
    page.wait_for_selector("#explained figure")
    assert page.locator("#explained figure").count() == 3
    said = page.inner_text("#explained")
    assert "the bear fills" in said and "“beach” acted" in said and "%" in said


def test_the_steps_play_and_stop_at_the_last(visitor: Visitor):
    page = visitor.page
    visitor.see("#overlay")
    last = page.get_attribute("#overlay img", "src")
    page.click("#play")
    page.wait_for_function("document.querySelector('#play').innerText.includes('Pause')")
    changed(visitor, "#overlay img", last)
    page.wait_for_function("document.querySelector('#play').innerText.includes('Play')")
    assert page.locator("#step input[type=number]").input_value() == "3"


def test_wide_figures_scroll_on_a_phone(visitor: Visitor):
    page = visitor.page
    page.set_viewport_size({"width": 390, "height": 844})
    visitor.see("#plot")
    measure = """name => { const box = document.querySelector(name + ' .image-container');
      const image = box.querySelector('img'); box.scrollLeft = 0;
      return [image.getBoundingClientRect().left - box.getBoundingClientRect().left, image.clientWidth,
              box.scrollWidth - box.clientWidth, document.documentElement.scrollWidth - innerWidth] }"""
    for name in ("#strip", "#plot"):
        left, width, room, beyond = page.evaluate(measure, name)
        assert left >= 0 and width >= 600 and room > 100 and beyond <= 0, (name, left, width, room, beyond)
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_click_on_the_map_shows_what_was_looked_at(visitor: Visitor):
    page = visitor.page
    page.get_by_role("tab", name="Words").click()
    assert page.locator("#looked img").count() == 0
    page.locator("#branch").get_by_text("Subject's picture").click()
    visitor.see("#looked")
    before = page.get_attribute("#looked img", "src")
    page.locator("#map img").click(position={"x": 8, "y": 8})
    changed(visitor, "#looked img", before)
    page.get_by_role("tab", name="Where").click()
    assert page.locator("#video").count() == 0
    page.click("#make-film")
    page.wait_for_selector("#video")
    with page.expect_download() as saved:
        page.click("#video")
    assert saved.value.path().read_bytes()[4:8] == b"ftyp"


def test_compare_grid_and_features(visitor: Visitor):
    page = visitor.page
    page.get_by_role("tab", name="Compare").click()
    visitor.set_steps(100)
    page.click("#compare")
    page.wait_for_selector("#compare-status .cc-progress")
    page.click("#compare-stop")
    page.wait_for_function("document.querySelector('#compare-status').innerText.includes('Stopped')")
    assert page.locator("#sheet img").count() == 0
    visitor.set_steps(2)
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
    visitor.write("#grid-y-values", "4")
    page.click("#make-grid")
    visitor.see("#made-grid")
    page.get_by_role("tab", name="Features").click()
    page.wait_for_selector("#around-note .cc-note")
    assert "train.evaluation.atlas" in page.inner_text("#around-note")


def open_tab(visitor: Visitor, name: str) -> None:
    place = visitor.page.get_by_role("tab", name=name, exact=True)
    if not place.first.is_visible():  # a phone keeps the last ones behind "…"
        visitor.page.locator("#viewers .overflow-menu > button").click()
        place = visitor.page.locator("#viewers .overflow-dropdown button", has_text=name)
    place.first.click()
    visitor.page.wait_for_selector(f"[role=tab][aria-selected=true]:has-text('{name}')", state="attached")


def test_axe_finds_nothing_serious(visitor: Visitor):
    """Every tab with all folds open; then dark, on a phone, and both."""
    page = visitor.page
    page.locator("#brushing-1 button").first.click()
    page.locator("#placing-1 button").first.click()
    page.locator("#place-1 label", has_text="A box").click()
    page.wait_for_selector("#area-1", state="visible")
    page.wait_for_selector("#brush-1 canvas")
    found = []
    for tab in TABS:
        open_tab(visitor, tab)
        found += visitor.violations(tab, within="#viewers" if tab != TABS[0] else None)
    for width, toggle, tab in ((1280, True, "Words"), (390, False, "Where"), (390, True, "Compare")):
        page.set_viewport_size({"width": width, "height": 900})
        if toggle:
            page.get_by_role("button", name="Light / dark").click()
        open_tab(visitor, tab)
        found += visitor.sticks_out()
        found += visitor.violations(f"{tab} at {width} px, {'dark' if tab != 'Compare' else 'light'}")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert not found, "\n".join(found)


def test_several_pictures_of_one_subject(visitor: Visitor):
    page = visitor.page
    page.click("#another-1")
    page.wait_for_selector("#others-1 img")
    page.wait_for_selector("#cutout-1 img", state="detached")
    label = page.locator("#others-1 label").bounding_box()
    assert label["y"] + label["height"] <= page.locator("#others-1 button.thumbnail-item").bounding_box()["y"]
    visitor.give(1, EXAMPLES / "cat.png")
    second = visitor.cutout()
    page.locator("#others-1 button.thumbnail-item").first.click()
    visitor.cutout_after(second)
    visitor.write("#noun-1", "bear")
    visitor.write("#prompt", "a bear in the city")
    assert "Done" in visitor.generate()
