"""Pictures of the page's main states, made with the packaged weights in a real browser: light, dark, phone, each tab.

    python -m tests.support.screenshots [--out examples/shots] [--only page,phone]

Not a test: it is run by hand when the page changes, and its pictures are looked at.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from customcontrast.specs import BASES, DEFAULT_BASE
from customcontrast.visualize import save_small
from tests.support.browsing import CHROMIUM, FLAGS, Visitor
from tests.support.serving import EXAMPLES, server

TABS = ("Words", "Compare", "Features", "Recipe")


def main() -> None:
    """Start the page, walk through it, take pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=EXAMPLES / "shots")
    parser.add_argument("--only", default="", help="names with commas; all where empty")
    parser.add_argument("--base", default=DEFAULT_BASE, choices=[name for name, spec in BASES.items() if spec.embedded])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = set(filter(None, options.only.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        weights, base = Path(BASES[options.base].weights), ["--base", options.base]
        with server(weights, Path(folder) / "log", arguments=base) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
            for name, walk in (
                ("first", walk_first), ("page", walk_tabs), ("two", walk_two), ("subject", walk_subject),
            ):  # fmt: skip
                if not wanted or name in wanted:
                    visitor = Visitor(browser, url)
                    walk(visitor, lambda page, shot: keep(page, options.out / f"{shot}.webp"))
                    visitor.context.close()
            browser.close()


Shoot = Callable[[Page, str], None]


BOXES = """names => { const found = {}; for (const name of names) {
  const box = document.querySelector('#' + name)?.getBoundingClientRect();
  if (box && box.width && box.height) found[name] = [box.left, box.top + scrollY, box.right, box.bottom + scrollY];
} return found }"""
PARTS = ("cards", "slot-1", "pictures-out", "hover", "strip", "overlay", "explained", "map", "looked", "grid", "sheet",
         "made-grid", "around", "alike")  # fmt: skip


def keep(page: Page, path: Path) -> None:
    """The whole page as a small WebP, and in boxes.json beside it where its parts are: px from the left and top."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as picture:
        save_small(picture, path)
    file = path.parent / "boxes.json"
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    known[path.stem] = {name: [round(px) for px in box] for name, box in page.evaluate(BOXES, PARTS).items()}
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def make(visitor: Visitor, names: tuple[str, ...], prompt: str) -> None:
    """Examples into the slots, a prompt, and one picture."""
    page = visitor.page
    for k, name in enumerate(names, start=1):
        if k > 1:
            page.click("#add")
            page.wait_for_selector(f"#slot-{k}", state="visible")
        visitor.give(k, EXAMPLES / f"{name}.png")
        visitor.cutout(k)
        visitor.write(f"#noun-{k}", name)
    visitor.write("#prompt", prompt)
    visitor.generate()
    visitor.see("#plot")


def on_a_phone(page: Page) -> None:
    """The same page at a phone's width."""
    page.set_viewport_size({"width": 390, "height": 844})


def turn_dark(page: Page) -> None:
    """The other colours."""
    page.get_by_role("button", name="Light / dark").click()


def walk_first(visitor: Visitor, shoot: Shoot) -> None:
    """What a visitor finds, and one of the finished examples."""
    visitor.page.wait_for_selector("#examples img")
    visitor.page.wait_for_function("!document.body.innerText.includes('Loading...')")
    shoot(visitor.page, "first")
    visitor.page.locator("#cards button").first.click()
    visitor.page.wait_for_selector("#status .cc-good")
    visitor.page.wait_for_selector("#pictures-out img")
    shoot(visitor.page, "first-example")


def walk_two(visitor: Visitor, shoot: Shoot) -> None:
    """Two subjects, dark, on a desktop and on a phone."""
    make(visitor, ("cat", "robot"), "a cat and a robot in the snow")
    turn_dark(visitor.page)
    shoot(visitor.page, "dark")
    on_a_phone(visitor.page)
    shoot(visitor.page, "phone-dark")


def walk_subject(visitor: Visitor, shoot: Shoot) -> None:
    """One subject with a stroke of the brush, a place, and every setting open; notes about the prompt."""
    page = visitor.page
    visitor.give(1, EXAMPLES / "bear.png")
    before = visitor.cutout()
    page.locator("#brushing-1 button").first.click()
    page.wait_for_function("document.querySelector('#brush-1 img')?.naturalWidth > 0")
    page.locator("#mode-1 label", has_text="Remove").click()
    page.locator("#brush-1 canvas").scroll_into_view_if_needed()
    box = page.locator("#brush-1 canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.35, steps=9)
    page.mouse.up()
    visitor.cutout_after(before)
    page.locator("#placing-1 button").first.click()
    page.locator("#place-1 label", has_text="A box").click()
    page.wait_for_selector("#area-1", state="visible")
    page.get_by_text("More settings").click()
    page.locator("#base input").click()
    page.get_by_role("option", name="Stable Diffusion XL").click()
    page.wait_for_selector("#base-note .cc-warn", state="visible")
    visitor.write("#noun-1", "bear")
    visitor.write("#prompt", "a zebra in the jungle " * 20)
    page.wait_for_selector("#prompt-notes .cc-warn", state="visible")
    page.wait_for_timeout(4000)  # the stroke fades
    shoot(page, "subject")
    turn_dark(page)
    on_a_phone(page)
    shoot(page, "subject-phone")


def walk_tabs(visitor: Visitor, shoot: Shoot) -> None:
    """One subject, then every tab; the words on a phone too."""
    page = visitor.page
    make(visitor, ("bear",), "a bear on the beach")
    shoot(page, "page")
    on_a_phone(page)
    shoot(page, "phone")
    page.set_viewport_size({"width": 1280, "height": 900})
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).click()
        if tab == "Words":
            visitor.see("#grid")
            page.locator("#explaining button").first.click()
            page.locator("#hover button", has_text="beach").click()
            page.wait_for_selector("#explained figure")
            shoot(page, "page-words")
            on_a_phone(page)
            shoot(page, "phone-words")
            page.set_viewport_size({"width": 1280, "height": 900})
            page.locator("#explaining button").first.click()
            page.locator("#branch").get_by_text("Subject's picture").click()
            visitor.see("#looked")
            page.locator("#map img").click(position={"x": 190, "y": 120})
            page.wait_for_timeout(500)
            shoot(page, "page-looked")
            continue
        if tab == "Compare":
            page.get_by_text("More settings").click()
            visitor.set_steps(10)  # enough to compare, in half the time
            page.get_by_text("More settings").click()
            page.click("#compare")
            visitor.see("#sheet")
            visitor.write("#grid-y-values", "2, 6")
            page.click("#make-grid")
            visitor.see("#made-grid")
        if tab == "Features":
            page.wait_for_selector("#alike img, #around-note .cc-note")  # not every base has known subjects
        shoot(page, f"page-{tab.lower()}")


if __name__ == "__main__":
    main()
