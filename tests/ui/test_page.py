"""The page as a visitor uses it, in a real browser: `python app.py` in its own process, Chromium in front of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customcontrast.ui.service.recipe import read_png
from tests.support.browsing import Visitor, changed, needs_chromium, sync_api
from tests.support.serving import EXAMPLES

pytestmark = needs_chromium
RECIPE = "#load-recipe input[type=file], input#load-recipe, input[type=file][accept='.png']"


@pytest.fixture(scope="module")
def visitor(browser: sync_api.Browser, url: str) -> Iterator[Visitor]:
    """One visitor for the tests that do not mind what the tests before left in the controls."""
    visitor = Visitor(browser, url)
    visitor.page.get_by_text("More settings").click()
    yield visitor
    visitor.leave()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def made_again(browser: sync_api.Browser, url: str, file: Path) -> tuple[Visitor, np.ndarray]:
    """Somebody else, who was given the file, loads it and presses Generate."""
    other = Visitor(browser, url)
    other.page.set_input_files(RECIPE, str(file))
    other.page.wait_for_selector("#status .cc-good")
    other.cutout()
    assert "Done" in other.generate()
    again = file.parent / "again"
    again.mkdir()
    return other, pixels(other.picture(again))


def test_a_visit_from_upload_to_maps_and_back_by_recipe(browser: sync_api.Browser, url: str, tmp_path: Path):
    visitor = Visitor(browser, url)
    page = visitor.page
    visitor.give(1, EXAMPLES / "bear.png")
    first = visitor.cutout()
    box = page.locator("#cutout-1 img").bounding_box()
    assert box
    page.locator("#mode-1 label", has_text="Remove").click()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    second = visitor.cutout_after(first)
    page.locator("#slot-1 button", has_text="Undo").click()
    third = visitor.cutout_after(second)
    page.click("#crop-1")
    cropped = visitor.cutout_after(third)
    page.locator("#slot-1 button", has_text="Undo").click()
    visitor.cutout_after(cropped)
    visitor.write("#noun-1", "bear")
    visitor.write("#prompt", "a bear on the beech")
    page.wait_for_selector("#prompt-notes .cc-warn", state="visible")
    assert "beach" in page.inner_text("#prompt-notes")
    page.get_by_role("button", name="Beach", exact=True).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('a bear')")

    page.get_by_text("More settings").click()
    visitor.set_steps(4)
    assert "Done" in visitor.generate()
    visitor.see("#strip")
    visitor.see("#plot")
    overlay = page.get_attribute("#overlay img", "src")
    page.locator("#step input[type=range]").fill("2")
    changed(visitor, "#overlay img", overlay)
    page.get_by_role("tab", name="Words").click()
    visitor.see("#grid")
    before = page.get_attribute("#map img", "src")
    page.locator("#word label", has_text="beach").click()
    changed(visitor, "#map img", before)
    before = page.get_attribute("#map img", "src")
    page.locator("#branch label", has_text="Subject's picture").click()
    changed(visitor, "#map img", before)
    file = visitor.picture(tmp_path)
    assert re.fullmatch(r"customcontrast-seed\d+-1\.png", file.name)
    settings, references = read_png(file)
    assert settings["prompt"] == page.input_value("#prompt textarea") and len(references) == 1
    visitor.leave()

    other, same = made_again(browser, url, file)
    assert other.page.input_value("#prompt textarea") == settings["prompt"]
    assert np.array_equal(pixels(file), same)
    other.leave()


def drag(page: sync_api.Page, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the mouse over an element, from one place to another, in fractions of its size."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=8)
    page.mouse.up()


def area_of(page: sync_api.Page) -> str:
    return page.input_value("#area-1 input, #area-1 textarea")


def test_the_brush_and_the_place_of_a_subject(browser: sync_api.Browser, url: str, tmp_path: Path):
    """On a desktop, then on a phone: strokes and places are where they were drawn, whatever the width."""
    visitor = Visitor(browser, url)
    page = visitor.page
    visitor.give(1, EXAMPLES / "bear.png")
    last = visitor.cutout()
    assert page.locator("#brush-1 canvas").count() == 0  # the slot is calm until the brush is asked for
    page.locator("#brushing-1 button").first.click()
    page.wait_for_selector("#brush-1 img")
    page.wait_for_function("document.querySelector('#brush-1 img').naturalWidth > 0")
    page.locator("#placing-1 button").first.click()
    for width, bottom in ((1280, 0.9), (390, 0.98)):
        page.set_viewport_size({"width": width, "height": 900})
        page.locator("#mode-1 label", has_text="Remove").click()
        drag(page, "#brush-1 canvas", (0.5, 0.2), (0.5, 0.9))
        last = visitor.cutout_after(last)
        page.locator("#slot-1 button", has_text="Undo").click()
        last = visitor.cutout_after(last)
        page.locator("#place-1 label", has_text="Left").click()
        page.wait_for_selector("#frame-1 .place[width='50']")
        drag(page, "#frame-1 svg", (0.5, 0.3), (0.98, bottom))
        page.wait_for_selector("#area-1", state="visible")
        numbers = [float(part) for part in area_of(page).split(",")]
        assert np.abs(np.subtract(numbers, (50, 30, 98, 100 * bottom))).max() < 4
        assert page.locator("#place-1 label", has_text="A box").locator("input").is_checked()
    page.focus("#brush-1 canvas")  # the same with keys alone: from the middle up, then a stroke to the left
    for key in [*["Shift+ArrowUp"] * 3, "Space", *["Shift+ArrowLeft"] * 4, "Space"]:
        page.keyboard.press(key)
    last = visitor.cutout_after(last)
    page.locator("#slot-1 button", has_text="Undo").click()
    last = visitor.cutout_after(last)
    page.locator("#mode-1 label", has_text="Add").click()
    drag(page, "#brush-1 canvas", (0.05, 0.05), (0.95, 0.05))
    visitor.cutout_after(last)

    visitor.write("#noun-1", "bear")
    visitor.write("#prompt", "a bear on the beach")
    page.get_by_text("More settings").click()
    visitor.set_steps(3)
    assert "Done" in visitor.generate()
    file = visitor.picture(tmp_path)
    settings, references = read_png(file)
    assert settings["subjects"][0]["place"] == area_of(page)
    mask = references[0][0].mask
    assert mask[round(0.05 * len(mask)), len(mask[0]) // 10 : -len(mask[0]) // 10].all()
    visitor.leave()

    other, same = made_again(browser, url, file)
    other.page.locator("#placing-1 button").first.click()
    assert area_of(other.page) == settings["subjects"][0]["place"]
    assert np.array_equal(pixels(file), same)
    other.leave()


def test_bad_files_and_an_empty_prompt_get_a_sentence(visitor: Visitor, tmp_path: Path):
    (tmp_path / "holiday.png").write_text("this is a text file\n")
    visitor.give(1, tmp_path / "holiday.png")
    visitor.page.wait_for_selector("#note-1 .cc-error")
    said = visitor.page.inner_text("#note-1")
    assert len(said) < 300 and "Traceback" not in said and "picture" in said
    assert "prompt is empty" in visitor.generate()
    visitor.give(1, EXAMPLES / "cat.png")  # and all is well again
    visitor.cutout()
    assert not visitor.page.locator("#note-1 .cc-error").is_visible()
    visitor.complaints = [
        c for c in visitor.complaints if "Failed to load resource" not in c
    ]  # the broken picture itself


WRITES = """word => { const send = window.fetch; let joined = 0; window.fetch = (...args) => {
  if (String(args[0]).includes('queue/join') && ++joined === 2) {  // the cut-out, then the guess, which has read ""
    window.fetch = send;
    const box = document.querySelector('#noun-2 textarea, #noun-2 input');
    box.value = word; box.dispatchEvent(new Event('input', {bubbles: true})) }
  return send(...args) } }"""


def test_two_subjects_and_stop(visitor: Visitor):
    page = visitor.page
    page.wait_for_function("document.querySelector('#noun-1 textarea, #noun-1 input').value === 'cat'")
    page.locator("#examples button").first.click()
    page.wait_for_function("document.querySelector('#noun-1 textarea, #noun-1 input').value === 'bear'")
    visitor.cutout(1)
    page.click("#add")
    page.wait_for_selector("#slot-2", state="visible")
    page.evaluate(WRITES, "android")
    visitor.give(2, EXAMPLES / "robot.png")
    visitor.cutout(2)
    page.wait_for_timeout(1500)
    assert page.input_value("#noun-2 textarea, #noun-2 input") == "android", "written while its noun was guessed"
    visitor.write("#noun-2", "robot")
    visitor.write("#prompt", "a bear and a robot in the city")
    visitor.set_steps(100)
    page.click("#generate")
    page.wait_for_selector("#status .cc-progress")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
    visitor.set_steps(3)
    assert "Done" in visitor.generate()
    visitor.see("#strip")
    page.locator("#slot-2 button", has_text="Remove this subject").click()
    page.wait_for_selector("#slot-2", state="hidden")


OVERHEAR = """() => {
  const status = document.querySelector('#status');
  window.told = '';
  new MutationObserver(() => window.told += status.innerText + '\\n').observe(status, {childList: true, subtree: true});
}"""


def test_generate_right_after_stop_is_heard(visitor: Visitor):
    """The answer to Stop takes its time; "Stopped." comes after it, and Generate waits so long."""
    page = visitor.page
    visitor.write("#prompt", "a bear on the beach")
    visitor.set_steps(100)
    held: list[sync_api.Route] = []
    page.route("**/cancel", lambda route: held.append(route))  # the run goes on meanwhile
    page.click("#generate")
    page.wait_for_selector("#status .cc-progress")
    page.evaluate(OVERHEAR)
    page.click("#stop")
    page.wait_for_selector("#generate:disabled")
    page.wait_for_timeout(300)  # in which the run could say too much
    assert page.locator("#stop").is_disabled()
    told = page.evaluate("window.told").splitlines()
    assert "Stopping …" in told and "Stopped." not in told
    held[0].continue_()
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
    page.unroute("**/cancel")
    visitor.set_steps(3)
    assert "Done" in visitor.generate()


def test_two_visitors_at_once_get_their_own_pictures(
    visitor: Visitor, browser: sync_api.Browser, url: str, tmp_path: Path
):
    visitors = [visitor, Visitor(browser, url)]
    prompts = ["a red car in the city", "a blue bird in the forest"]
    for one, prompt in zip(visitors, prompts, strict=True):
        one.write("#prompt", prompt)
        one.press()
    for k, (one, prompt) in enumerate(zip(visitors, prompts, strict=True)):
        page = one.page
        assert "Done" in one.ended()
        page.get_by_role("tab", name="Words").click()
        one.see("#map")
        before = page.get_attribute("#map img", "src")
        page.locator("#word label", has_text=prompt.split()[-1]).click()
        changed(one, "#map img", before)
        (tmp_path / str(k)).mkdir()
        assert read_png(one.picture(tmp_path / str(k)))[0]["prompt"] == prompt
    visitors[1].leave()
