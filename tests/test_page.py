"""The page as a visitor uses it, in a real browser: `python app.py` in its own process, Chromium in front of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import EXAMPLES, server, tiny_model

from customcontrast.recipe import read_png

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install it, or set CHROMIUM")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
PATIENCE = 60_000  # ms, for a machine that does other things too
LOUD = "error", "assert"  # console messages that a visitor's browser must never show


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with server(tiny_model(folder / "tiny"), folder / "server.log") as address:
        yield address
    log = (folder / "server.log").read_text()
    assert "Traceback" not in log, log[-4000:]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


class Visitor:
    """One visitor's window; it notes what a page should never do."""

    def __init__(self, browser: sync_api.Browser, url: str, width: int = 1280, height: int = 900, **options: object):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in LOUD else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self._outside(r.url, url))
        self.page.goto(url)
        self.page.wait_for_selector("#generate")

    def _outside(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.complaints.append(f"outside request: {address}")

    def give(self, k: int, file: Path | str) -> None:
        self.page.set_input_files(f"#upload-{k} input[type=file]", str(file))

    def cutout(self, k: int = 1) -> str:
        """Waits for the cut-out; returns its address."""
        self.page.wait_for_selector(f"#cutout-{k} img")
        return self.page.get_attribute(f"#cutout-{k} img", "src") or ""

    def cutout_after(self, before: str, k: int = 1) -> str:
        changed = (
            "([k, before]) => { const i = document.querySelector(`#cutout-${k} img`); return i && i.src !== before }"
        )
        self.page.wait_for_function(changed, arg=[k, before])
        return self.cutout(k)

    def write(self, where: str, text: str) -> None:
        self.page.locator(f"{where} textarea, {where} input").first.fill(text)

    def generate(self) -> str:
        """Presses Generate and waits for the end; returns what the page says."""
        self.page.evaluate("document.querySelectorAll('#status .cc-note').forEach(n => n.classList.add('old'))")
        self.page.click("#generate")
        self.page.wait_for_selector("#status .cc-good:not(.old), #status .cc-error:not(.old)")
        return self.page.inner_text("#status")

    def picture(self, folder: Path) -> Path:
        """Downloads the picture with the button on it."""
        with self.page.expect_download() as download:
            self.page.locator("#pictures-out [title='Download'], #pictures-out [aria-label='Download']").first.click()
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def leave(self) -> None:
        assert self.complaints == []
        assert self.page.locator(".toast-body").all_inner_texts() == []
        self.context.close()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


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
    visitor.cutout_after(second)
    visitor.write("#noun-1", "bear")
    visitor.write("#prompt", "a bear on the beech")
    page.wait_for_selector("#prompt-notes .cc-warn", state="visible")
    assert "beach" in page.inner_text("#prompt-notes")
    page.get_by_role("button", name="Beach").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('a bear')")

    assert "Done" in visitor.generate()
    page.wait_for_selector("#strip img")
    page.wait_for_selector("#plot img")
    overlay = page.get_attribute("#overlay img", "src")
    page.locator("#step input[type=range]").fill("3")
    page.wait_for_function("before => document.querySelector('#overlay img').src !== before", arg=overlay)
    page.get_by_role("tab", name="Words").click()
    page.wait_for_selector("#grid img")
    before = page.get_attribute("#map img", "src")
    page.locator("#word label", has_text="beach").click()
    page.wait_for_function("before => document.querySelector('#map img').src !== before", arg=before)
    before = page.get_attribute("#map img", "src")
    page.locator("#branch label", has_text="Subject's picture").click()
    page.wait_for_function("before => document.querySelector('#map img').src !== before", arg=before)
    file = visitor.picture(tmp_path)
    assert re.fullmatch(r"customcontrast-seed\d+-1\.png", file.name)
    settings, references = read_png(file)
    assert settings["prompt"] == page.input_value("#prompt textarea") and len(references) == 1
    visitor.leave()

    other = Visitor(browser, url)  # somebody else, who was given the file
    other.page.set_input_files(
        "#load-recipe input[type=file], input#load-recipe, input[type=file][accept='.png']", str(file)
    )
    other.page.wait_for_selector("#status .cc-good")
    other.cutout()
    assert other.page.input_value("#prompt textarea") == settings["prompt"]
    assert "Done" in other.generate()
    (tmp_path / "again").mkdir()
    assert np.array_equal(pixels(file), pixels(other.picture(tmp_path / "again")))
    other.leave()


def test_bad_files_and_an_empty_prompt_get_a_sentence(browser: sync_api.Browser, url: str, tmp_path: Path):
    visitor = Visitor(browser, url)
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
    visitor.leave()


def test_two_subjects_and_stop(browser: sync_api.Browser, url: str):
    visitor = Visitor(browser, url)
    page = visitor.page
    page.locator("#examples button").first.click()
    visitor.cutout(1)
    word = page.input_value("#noun-1 textarea, #noun-1 input")
    assert word
    page.click("#add")
    page.wait_for_selector("#slot-2", state="visible")
    visitor.give(2, EXAMPLES / "robot.png")
    visitor.cutout(2)
    visitor.write("#noun-2", "robot")
    visitor.write("#prompt", f"a {word} and a robot in the city")
    page.get_by_text("More settings").click()
    page.locator("#steps input[type=number]").fill("100")
    page.locator("#steps input[type=number]").blur()
    page.click("#generate")
    page.wait_for_selector("#status .cc-progress")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
    page.locator("#steps input[type=number]").fill("4")
    page.locator("#steps input[type=number]").blur()
    assert "Done" in visitor.generate()
    page.wait_for_selector("#strip img")
    page.locator("#slot-2 button", has_text="Remove this subject").click()
    page.wait_for_selector("#slot-2", state="hidden")
    visitor.leave()


def test_two_visitors_at_once_get_their_own_pictures(browser: sync_api.Browser, url: str, tmp_path: Path):
    visitors = [Visitor(browser, url) for _ in range(2)]
    prompts = ["a red car in the city", "a blue bird in the forest"]
    for visitor, prompt in zip(visitors, prompts, strict=True):
        visitor.write("#prompt", prompt)
        visitor.page.click("#generate")
    for k, (visitor, prompt) in enumerate(zip(visitors, prompts, strict=True)):
        page = visitor.page
        page.wait_for_selector("#status .cc-good")
        page.get_by_role("tab", name="Words").click()
        before = page.wait_for_selector("#map img").get_attribute("src")
        page.locator("#word label", has_text=prompt.split()[-1]).click()
        page.wait_for_function("before => document.querySelector('#map img').src !== before", arg=before)
        (tmp_path / str(k)).mkdir()
        assert read_png(visitor.picture(tmp_path / str(k)))[0]["prompt"] == prompt
        visitor.leave()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser: sync_api.Browser, url: str, scheme: str):
    visitor = Visitor(browser, url, 390, 844, color_scheme=scheme)
    wide = visitor.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    dark = visitor.page.evaluate("document.body.classList.contains('dark')")
    assert wide <= 0 and dark == (scheme == "dark")
    visitor.page.get_by_role("button", name="Light / dark").click()
    assert visitor.page.evaluate("document.body.classList.contains('dark')") != dark
    visitor.leave()
