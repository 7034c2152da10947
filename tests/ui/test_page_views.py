"""Turn, pose and camera on the page of a base that is told them, in a real browser."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from customcontrast.ui.service.recipe import read_png
from tests.support.browsing import Visitor, browser, needs_chromium, served, sync_api  # noqa: F401
from tests.support.serving import EXAMPLES, tiny_layout_model

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tiny_layout_model, tmp_path_factory.mktemp("page")) as address:
        yield address


def choose(page: sync_api.Page, selector: str, option: str) -> None:
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_view_is_chosen_drawn_and_kept(browser: sync_api.Browser, url: str, tmp_path: Path, width: int, scheme: str):
    visitor = Visitor(browser, url, width, 900, color_scheme=scheme)
    page = visitor.page
    visitor.give(1, EXAMPLES / "bear.png")
    visitor.cutout()
    visitor.write("#noun-1", "bear")
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
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    if width > 1000:
        page.locator("#turntable button").first.click()
        page.click("#turn")
        visitor.see("#turn-sheet")
        with page.expect_download() as saved:
            page.click("#turn-gif")
        assert Image.open(saved.value.path()).n_frames == 8
    visitor.leave()


def test_views_go_with_the_base(browser: sync_api.Browser, url: str):
    """They are there for this base from the start; one without them hides them, and says what it draws."""
    visitor = Visitor(browser, url)
    page = visitor.page
    assert page.locator("#view-1").is_visible() and page.locator("#turntable").is_visible()
    assert "bears" in page.inner_text("#about") and "Stable Diffusion" in page.inner_text("#about")
    visitor.leave()
