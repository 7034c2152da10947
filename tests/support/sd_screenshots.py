"""The page on SD-1.5 with a published IP-Adapter, as docs/sd15-sdxl.md shows it: JPEGs from a real browser.

    python -m tests.support.sd_screenshots [--out docs/images]

Weights are random, at toy width, in the published layouts: the pictures made are noise, what is shown is the page.
Not a test: it is run by hand when the page changes, and its pictures are looked at.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from customcontrast.base_model import load_base
from tests.support.browsing import CHROMIUM, FLAGS, Visitor
from tests.support.ip_files import random_ip_file
from tests.support.serving import EXAMPLES, ROOT, server
from tests.support.tiny_models import save_tiny_sd15

STYLE = EXAMPLES / "gallery" / "3-duck.png"  # a watercolour
WIDTH, QUALITY = 1000, 80  # px and JPEG's, of a picture in the docs
LONG = 300_000  # ms, for a machine that does other things too


def main() -> None:
    """Start the page, walk through it, take pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = ["--base", "sd15", "--adapter", str(tiny_weights(folder / "sd15"))]
        with server(folder / "sd15", folder / "log", arguments=arguments) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
            walk(Visitor(browser, url, 1280, 900), out)
            browser.close()


def tiny_weights(folder: Path) -> Path:
    """SD-1.5 at toy width, and beside it a file in IP-Adapter plus's layout; returns that."""
    save_tiny_sd15(folder)
    base = load_base("sd15", weights=folder, device="cpu")
    return random_ip_file(folder / "plus.safetensors", "plus", base.unet, base.image_encoder.config)


def walk(visitor: Visitor, out: Path) -> None:
    """A subject, a style picture and a weighted word; then what the maps and the comparison show."""
    page = visitor.page
    page.set_default_timeout(LONG)
    visitor.give(1, EXAMPLES / "bear.png")
    visitor.cutout(1)
    visitor.write("#noun-1", "bear")
    page.set_input_files("#style-upload input[type=file]", str(STYLE))
    page.wait_for_selector("#style-upload img")
    visitor.write("#prompt", "a watercolor of a bear on the (beach:1.3)")
    visitor.generate()
    visitor.see("#plot", LONG)
    keep(page, out / "sd15-page.jpg", ".cc-step", "#image-guidance")
    keep(page, out / "sd15-where.jpg", "#viewers", "#overlay")
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.click("#compare")
    visitor.see("#sheet", LONG)
    keep(page, out / "sd15-compare.jpg", "#compare", "#sheet")


def keep(page: Page, path: Path, first: str, last: str) -> None:
    """The page from one element to another as a small JPEG, from the left edge of the first one on."""
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(800)
    top, bottom = (page.locator(each).first.bounding_box() for each in (first, last))
    if top is None or bottom is None:
        raise RuntimeError(f"sd_screenshots: {first} or {last} is not on view.")
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as whole:
        shot = whole.convert("RGB")
    left, upper = (max(0, int(top[side]) - 12) for side in ("x", "y"))
    shot = shot.crop((left, upper, shot.width, int(bottom["y"] + bottom["height"]) + 16))
    shot.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
    shot.save(path, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
