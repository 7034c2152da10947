"""The first screen and what is around a picture, in a real browser: finished examples, surprise, history, recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from customcontrast.ui.handlers.generation_run import NOT_BEGUN
from customcontrast.ui.service.recipe import png_bytes, read_png
from customcontrast.ui.service.request import Request
from tests.support.browsing import Visitor, needs_chromium, sync_api
from tests.support.serving import EXAMPLES

pytestmark = needs_chromium
GALLERY = sorted((EXAMPLES / "gallery").glob("*.png"))
PAST = "#history button.thumbnail-item"
BELOW_ARROW = """() => { const input = document.querySelector('#camera input');  // px of its text below the arrow
  return input.getBoundingClientRect().right - parseFloat(getComputedStyle(input).paddingRight)
    - document.querySelector('#camera .icon-wrap').getBoundingClientRect().left }"""
STEPS = 13  # a number that no other control holds


@pytest.fixture(scope="module")
def visitor(browser: sync_api.Browser, url: str) -> Iterator[Visitor]:
    """One visitor for the tests that do not mind what the tests before left in the controls."""
    visitor = Visitor(browser, url)
    visitor.page.get_by_text("More settings").click()
    visitor.set_steps(2)
    yield visitor
    visitor.leave()


def prompt_of(visitor: Visitor) -> str:
    return visitor.page.input_value("#prompt textarea")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_finished_example_fills_in_everything(browser: sync_api.Browser, url: str, width: int, scheme: str):
    visitor = Visitor(browser, url, width, 900, color_scheme=scheme)
    page, is_dark = visitor.page, "document.body.classList.contains('dark')"
    assert page.evaluate(is_dark) == (scheme == "dark") and visitor.sticks_out() == []
    if width == 390:
        edges = visitor.left_edges("#surprise", "#about .cc-note", "#cards .cc-cards", ".cc-step h2", "#slot-1")
        assert len(edges) == 1 and edges < set(range(17)), edges
        page.evaluate("document.querySelector('#surprise').style.marginLeft = '-17px'")
        assert "Surprise me" in "".join(visitor.sticks_out())
        page.evaluate("document.querySelector('#surprise').style.marginLeft = ''")
        assert page.evaluate(BELOW_ARROW) <= 0
        tops = [page.locator(f"#{name}").bounding_box()["y"] for name in ("slot-1", "prompt", "pictures-out", "seed")]
        assert tops == sorted(tops), "the settings come after the picture"
    wrong = visitor.violations("first screen")
    assert len(GALLERY) == 6 and page.locator("#cards button").count() == 6
    settings, references = read_png(GALLERY[1])
    page.locator("#cards button").nth(1).click()
    page.wait_for_selector("#status .cc-good")
    assert prompt_of(visitor) == settings["prompt"] and "Press Generate" in page.inner_text("#status")
    assert len(references) == 2
    for k, row in enumerate(settings["subjects"], start=1):
        visitor.cutout(k)
        assert page.input_value(f"#noun-{k} textarea, #noun-{k} input") == row["noun"]
    page.wait_for_selector("#pictures-out img")
    assert not page.locator("#viewers").is_visible() and visitor.sticks_out() == []
    page.get_by_role("button", name="Light / dark").click()
    assert page.evaluate(is_dark) != (scheme == "dark")
    assert not wrong, "\n".join(wrong)
    visitor.leave()


def test_a_surprise_is_generated(visitor: Visitor):
    visitor.page.click("#surprise")
    assert "Done" in visitor.ended()
    assert prompt_of(visitor) and visitor.page.input_value("#noun-1 textarea, #noun-1 input") in prompt_of(visitor)
    visitor.page.wait_for_selector(PAST)


def test_ctrl_enter_generates_and_the_session_goes_back(visitor: Visitor):
    page = visitor.page
    before = page.locator(PAST).count()
    joined: list[str] = []
    page.on("request", lambda request: joined.append(request.url) if "/queue/join" in request.url else None)
    for more, prompt in enumerate(("a red car in the city", "a blue bird in the forest"), start=1):
        visitor.write("#prompt", prompt)
        joined.clear()
        page.evaluate("document.querySelectorAll('#status .cc-note').forEach(n => n.classList.add('old'))")
        page.focus("#prompt textarea")
        page.keyboard.press("Control+Enter")
        assert "Done" in visitor.ended()
        page.wait_for_function(f"n => document.querySelectorAll('{PAST}').length === n", arg=before + more)
        visitor.see("#hover")
        assert len(joined) == 2, "the run, and one request for all that is seen of it"
    page.locator(PAST).nth(1).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a red car in the city'")
    assert "finished picture" in page.inner_text("#status")


def test_a_recipe_of_the_api_can_be_shown_and_run(visitor: Visitor, tmp_path: Path):
    """Values at the end of what the API accepts: the controls show them, and the run begins."""
    settings = Request(
        "a red car", steps=2, guidance=30.0, subject_scale=5.0, subject_end=0.5, base="toyland"
    ).settings()
    (tmp_path / "edge.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), settings))
    page = visitor.page
    page.evaluate("document.querySelectorAll('#status .cc-note').forEach(n => n.classList.add('old'))")
    chosen = "#load-recipe input[type=file], input#load-recipe, input[type=file][accept='.png']"
    page.set_input_files(chosen, str(tmp_path / "edge.png"))
    page.wait_for_selector("#status .cc-good:not(.old)")
    assert page.input_value("#text-guidance input[type=number]") == "30"
    assert page.input_value("#image-guidance input[type=number]") == "5"
    assert page.input_value("#guidance-until input[type=number]") == "0.5"
    assert "Done" in visitor.generate()


def test_a_run_that_never_reached_its_handler_says_so(browser: sync_api.Browser, url: str):
    """A value beyond its control's range is refused by gradio, with a traceback in the log."""
    visitor = Visitor(browser, url)
    page = visitor.page
    visitor.write("#prompt", "a red car")
    page.get_by_text("More settings").click()
    visitor.set_steps(STEPS)

    def spoil(route: sync_api.Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        if len(body.get("data") or ()) > 20:  # the run: it reads every control
            body["data"] = [10**6 if value == STEPS else value for value in body["data"]]
        route.continue_(post_data=json.dumps(body))

    page.route("**/queue/join*", spoil)
    page.click("#generate")
    page.wait_for_selector("#status .cc-error")
    assert NOT_BEGUN.split(":")[0] in page.inner_text("#status") and page.locator("#generate").is_enabled()
    page.unroute("**/queue/join*")
    visitor.set_steps(2)
    assert "Done" in visitor.generate()
    visitor.context.close()  # its console tells of the refusal
