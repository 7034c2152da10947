"""The first two minutes, timed: from opening the page to a picture of one's own photo, in a real browser.

    python -m tests.support.first_use PHOTO --noun robot

The server is up and warm, as on a Space; the browser is new. Prints the clicks, and the seconds until things are seen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from customcontrast.specs import BASES, DEFAULT_BASE
from tests.support.browsing import CHROMIUM, FLAGS, Visitor
from tests.support.serving import EXAMPLES, server


def first_use(url: str, photo: Path, noun: str) -> tuple[list[str], dict[str, float]]:
    """Walk through it. Returns the clicks, and the seconds since the page was asked for."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        start, seen = time.perf_counter(), {}

        def note(what: str) -> None:
            seen[what] = time.perf_counter() - start

        visitor = Visitor(browser, url)
        note("page")
        visitor.give(1, photo)
        visitor.cutout()
        note("cut-out")
        clicks = ["choose the photo"]
        if not visitor.page.input_value("#noun-1 input, #noun-1 textarea"):
            visitor.write("#noun-1", noun)
            clicks.append("say what it is")
        visitor.page.get_by_role("button", name="Beach", exact=True).click()
        visitor.page.wait_for_function("document.querySelector('#prompt textarea').value !== ''")
        visitor.press()
        clicks += ["Beach", "Generate"]
        visitor.page.wait_for_selector("#pictures-out img")
        note("first preview")
        visitor.ended()
        note("picture")
        visitor.see("#strip")
        note("location masks")
        visitor.leave()
        browser.close()
    return clicks, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photo", type=Path, nargs="?", default=EXAMPLES / "bear.png")
    parser.add_argument("--noun", default="bear", help="what is typed where the file's name does not tell")
    options = parser.parse_args()
    weights, arguments = Path(BASES[DEFAULT_BASE].weights), ["--base", DEFAULT_BASE]
    with tempfile.TemporaryDirectory() as folder, server(weights, Path(folder) / "log", arguments=arguments) as url:
        first_use(url, EXAMPLES / "bear.png", "bear")  # somebody was here before
        clicks, seen = first_use(url, options.photo, options.noun)
    print(f"{len(clicks)} clicks: {', '.join(clicks)}")
    print("\n".join(f"{what}: {seconds:.1f} s" for what, seconds in seen.items()))


if __name__ == "__main__":
    main()
