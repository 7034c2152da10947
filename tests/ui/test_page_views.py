"""Turn, pose and camera on the page of a base that is told them, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from customcontrast.ui.service.recipe import read_png
from tests.support.browsing import Visitor, needs_chromium, sync_api
from tests.support.serving import EXAMPLES

pytestmark = needs_chromium


def heic_of(name: str, folder: Path) -> Path:
    """An example as an iPhone's photograph."""
    writer = pytest.importorskip("pillow_heif", reason="pip install pillow-heif")
    with Image.open(EXAMPLES / f"{name}.png") as picture:
        writer.from_pillow(picture.convert("RGB")).save(folder / f"{name}.heic")
    return folder / f"{name}.heic"


def choose(page: sync_api.Page, selector: str, option: str) -> None:
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def test_a_view_is_chosen_drawn_and_turned_around(browser: sync_api.Browser, url: str, tmp_path: Path):
    """On a dark phone, then at a desktop's width: the controls are there from the start."""
    visitor = Visitor(browser, url, 390, 900, color_scheme="dark")
    page = visitor.page
    for control in ("#view-1", "#turntable"):  # the page builds itself piece by piece
        page.wait_for_selector(control, state="visible")
    assert "bears" in page.inner_text("#about") and "Stable Diffusion" in page.inner_text("#about")
    visitor.drop_untyped(1, heic_of("bear", tmp_path))
    visitor.cutout()
    page.wait_for_function("document.querySelector('#upload-1 img').naturalWidth > 0")
    page.wait_for_function("document.querySelector('#noun-1 textarea, #noun-1 input').value === 'bear'")
    visitor.write("#prompt", "a bear on the beach")
    choose(page, "#turn-1", "back left")
    choose(page, "#pose-1", "sitting")
    choose(page, "#camera", "25°")
    page.get_by_text("More settings").click()
    visitor.set_steps(2)
    assert "Done" in visitor.generate()
    settings, _ = read_png(visitor.picture(tmp_path))
    assert settings["elevation"] == 25
    assert (settings["subjects"][0]["azimuth"], settings["subjects"][0]["pose"]) == (135, "sitting")
    assert visitor.sticks_out() == []
    page.set_viewport_size({"width": 1280, "height": 900})
    assert visitor.sticks_out() == []
    page.locator("#turntable button").first.click()
    page.click("#turn")
    visitor.see("#turn-sheet")
    with page.expect_download() as saved:
        page.click("#turn-gif")
    assert Image.open(saved.value.path()).n_frames == 8
    visitor.leave()
