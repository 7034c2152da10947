"""The first screen and what is new around a picture, in a real browser: finished examples, surprise, history, words."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import json
from pathlib import Path

import pytest

from customcontrast.ui.handlers.generation_run import NOT_BEGUN
from customcontrast.ui.service.recipe import read_png
from tests.support.browsing import Visitor, browser, needs_chromium, sync_api, url, with_a_picture  # noqa: F401
from tests.support.serving import EXAMPLES, server, tiny_model

pytestmark = needs_chromium
GALLERY = sorted((EXAMPLES / "gallery").glob("*.png"))


def prompt_of(visitor: Visitor) -> str:
    return visitor.page.input_value("#prompt textarea")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_finished_example_fills_in_everything(browser: sync_api.Browser, url: str, width: int, scheme: str):
    visitor = Visitor(browser, url, width, 900, color_scheme=scheme)
    page = visitor.page
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
    assert not page.locator("#viewers").is_visible()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    visitor.leave()


def test_a_surprise_is_generated(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    visitor.page.click("#surprise")
    assert "Done" in visitor.ended()
    assert prompt_of(visitor) and visitor.page.input_value("#noun-1 textarea, #noun-1 input") in prompt_of(visitor)
    visitor.leave()


def test_ctrl_enter_generates_and_the_session_goes_back(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    page.get_by_text("More settings").click()
    visitor.set_steps(2)
    for prompt in ("a red car in the city", "a blue bird in the forest"):
        visitor.write("#prompt", prompt)
        page.evaluate("document.querySelectorAll('#status .cc-note').forEach(n => n.classList.add('old'))")
        page.focus("#prompt textarea")
        page.keyboard.press("Control+Enter")
        assert "Done" in visitor.ended()
        visitor.see("#hover")
    page.wait_for_function("document.querySelectorAll('#history button.thumbnail-item').length === 2")
    page.locator("#history button.thumbnail-item").nth(1).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a red car in the city'")
    assert "finished picture" in page.inner_text("#status")
    visitor.leave()


def test_words_light_up_and_the_maps_are_explained(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    with_a_picture(visitor)
    page.wait_for_selector("#hover .cc-hover-words button")
    plain = page.get_attribute("#hover img", "src")
    word = page.locator("#hover button", has_text="beach")
    word.hover()
    page.wait_for_function("before => document.querySelector('#hover img').src !== before", arg=plain)
    page.mouse.move(0, 0)
    page.wait_for_function("before => document.querySelector('#hover img').src === before", arg=plain)
    word.click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(200)
    assert page.get_attribute("#hover img", "src") != plain and word.get_attribute("aria-pressed") == "true"
    page.locator("#explaining button").first.click()
    page.wait_for_selector("#explained figure")
    assert page.locator("#explained figure").count() == 3
    said = page.inner_text("#explained")
    assert "the bear fills" in said and "“beach” acted" in said and "%" in said
    visitor.leave()


def test_a_run_that_never_reached_its_handler_says_so(browser: sync_api.Browser, tmp_path: Path):
    """A value beyond its control's range is refused by gradio, with a traceback in the log: a server of its own."""
    with server(tiny_model(tmp_path / "tiny"), tmp_path / "server.log") as own:
        spoiled_run(Visitor(browser, own))


def spoiled_run(visitor: Visitor) -> None:
    page = visitor.page
    visitor.write("#prompt", "a red car")

    def spoil(route: sync_api.Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        if len(body.get("data") or ()) > 20:  # the run: it reads every control
            body["data"] = [10**6 if value == 20 else value for value in body["data"]]  # its steps
        route.continue_(post_data=json.dumps(body))

    page.route("**/queue/join*", spoil)
    page.click("#generate")
    page.wait_for_selector("#status .cc-error")
    assert NOT_BEGUN.split(":")[0] in page.inner_text("#status") and page.locator("#generate").is_enabled()
    page.unroute("**/queue/join*")
    page.get_by_text("More settings").click()
    visitor.set_steps(2)
    assert "Done" in visitor.generate()
    visitor.context.close()


def test_a_recipe_of_the_api_can_be_shown_and_run(browser: sync_api.Browser, url: str, tmp_path: Path):
    """Values at the end of what the API accepts: the controls show them, and the run begins."""
    from PIL import Image

    from customcontrast.ui.service.recipe import png_bytes
    from customcontrast.ui.service.request import Request

    settings = Request("a red car", steps=2, guidance=30.0, subject_scale=5.0, base="toyland").settings()
    (tmp_path / "edge.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), settings))
    visitor = Visitor(browser, url)
    page = visitor.page
    chosen = "#load-recipe input[type=file], input#load-recipe, input[type=file][accept='.png']"
    page.set_input_files(chosen, str(tmp_path / "edge.png"))
    page.wait_for_selector("#status .cc-good")
    assert page.input_value("#text-guidance input[type=number]") == "30"
    assert page.input_value("#image-guidance input[type=number]") == "5"
    assert "Done" in visitor.generate()
    visitor.leave()
