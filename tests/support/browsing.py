"""What the browser tests share: Chromium, a visitor in front of it, and axe; server and browser: tests/ui/conftest."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("REQUIRE_CHROMIUM"))  # then a missing Chromium is a failure, not a skip
needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="no Chromium here; install it, or set CHROMIUM"),
]
OFF = (  # Chromium keeps one list of these: playwright's own come first, as far as a page of ours can meet them
    "AvoidUnnecessaryBeforeUnloadCheckSync,DestroyProfileOnBrowserClose,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,"
    "LensOverlay,MediaRouter,PaintHolding,ThirdPartyStoragePartitioning,OptimizationHints,NetworkTimeServiceQuerying,"
    "AimEnabled,PreconnectToSearch,"
    # A toolbar that nobody sees, drawn by a renderer of its own: a second of CPU for each page that opens.
    "WebUIToolbar,InitialWebUI,WebUIReloadButton,WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup,"
    "WebUIOmniboxSimplification,PreloadTopChromeWebUI,PreloadTopChromeWebUILessNavigations"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    f"--disable-background-networking --disable-component-update --disable-sync --disable-features={OFF}"
)
PATIENCE = 60_000  # ms, for a machine that does other things too
STILL = """document.addEventListener('DOMContentLoaded', () => {
  const style = document.createElement('style');
  style.textContent = '*, *::before, *::after { animation: none !important; transition: none !important }';
  document.head.append(style);
})"""  # drawn without a graphics card, what moves takes a whole core from the server
LOUD = "error", "assert"  # console messages that a visitor's browser must never show
DROP = """([selector, data, name]) => { const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
  document.querySelector(selector).parentElement.dispatchEvent(
    new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer})) }"""
SERIOUS = "serious", "critical"  # of what axe-core finds
# Gradio cuts off what is wider than the page instead of letting it scroll, so each box is compared with the window.
BEYOND = """() => { const width = document.documentElement.clientWidth, found = [];
  // Gradio measures the width of its tabs in a hidden copy; its progress comes in from the left, behind its own edge.
  const apart = '.visually-hidden, [aria-hidden=true], .eta-bar';
  const scrolls = (e) => e && e !== document.body && (['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
    || scrolls(e.parentElement));
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect(), beyond = box.left < -0.5 || box.right > width + 0.5;
    if (beyond && box.width && box.height && e.checkVisibility({opacityProperty: true, visibilityProperty: true})
        && !e.closest(apart) && !scrolls(e.parentElement))
      found.push(`${e.tagName} #${e.id} ${e.innerText ?? ''}: ${box.left} to ${box.right} of ${width} px`);
  } return found }"""


class Visitor:
    """One visitor's window; it notes what a page should never do."""

    def __init__(self, browser: sync_api.Browser, url: str, width: int = 1280, height: int = 900, **options: object):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.context.add_init_script(STILL)
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

    def drop_untyped(self, k: int, file: Path) -> None:
        """Drops a file whose kind the browser does not know, as HEIC is on most desktops."""
        data = base64.b64encode(file.read_bytes()).decode()
        self.page.evaluate(DROP, [f"#upload-{k} input[type=file]", data, file.name])

    def cutout(self, k: int = 1) -> str:
        """Waits for the cut-out, its slot in view (a browser loads what is far below later); returns its address."""
        self.page.locator(f"#cutout-{k}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#cutout-{k} img")
        return self.page.get_attribute(f"#cutout-{k} img", "src") or ""

    def see(self, selector: str, timeout: int = PATIENCE) -> None:
        """Scrolls to a picture and waits for it: a browser loads what is far below later."""
        self.page.wait_for_selector(selector, timeout=timeout)
        self.page.locator(selector).scroll_into_view_if_needed()
        self.page.wait_for_selector(f"{selector} img", timeout=timeout)

    def cutout_after(self, before: str, k: int = 1) -> str:
        changed = (
            "([k, before]) => { const i = document.querySelector(`#cutout-${k} img`); return i && i.src !== before }"
        )
        self.page.wait_for_function(changed, arg=[k, before])
        return self.cutout(k)

    def write(self, where: str, text: str) -> None:
        self.page.locator(f"{where} textarea, {where} input").first.fill(text)

    def set_steps(self, steps: int) -> None:
        """Types a number of steps until the slider beside it has it too; the panel must be open."""
        box, slider = self.page.locator("#steps input[type=number]"), self.page.locator("#steps input[type=range]")
        for _ in range(50):
            box.fill(str(steps))
            box.blur()
            self.page.wait_for_timeout(100)
            if slider.input_value() == str(steps):
                return
        raise AssertionError(f"the slider of steps stays at {slider.input_value()}")

    def press(self) -> None:
        """Presses Generate; what the page said before counts no more."""
        self.page.evaluate("document.querySelectorAll('#status .cc-note').forEach(n => n.classList.add('old'))")
        self.page.click("#generate")

    def ended(self) -> str:
        """Waits for the end of what was pressed; returns what the page says."""
        self.page.wait_for_selector("#status .cc-good:not(.old), #status .cc-error:not(.old)")
        return self.page.inner_text("#status")

    def generate(self) -> str:
        """Presses Generate and waits for the end; returns what the page says."""
        self.press()
        return self.ended()

    def picture(self, folder: Path) -> Path:
        """Downloads the picture with the button on it."""
        with self.page.expect_download() as download:
            self.page.locator("#pictures-out [title='Download'], #pictures-out [aria-label='Download']").first.click()
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def sticks_out(self) -> list[str]:
        """Visible elements that begin left of the window or end right of it, apart from what can be scrolled to."""
        return self.page.evaluate(BEYOND)

    def left_edges(self, *selectors: str) -> set[int]:
        """Where these begin, in px from the left."""
        return {round(self.page.locator(one).first.bounding_box()["x"]) for one in selectors}

    def violations(self, state: str, within: str | None = None) -> list[str]:
        """What axe-core finds serious on the page as it stands, or within one element of it."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
        told = axe.Axe().run(self.page, context=within, options={"resultTypes": ["violations"]})
        found = [wrong for wrong in told.response["violations"] if wrong["impact"] in SERIOUS]
        nodes = [(wrong["id"], node) for wrong in found for node in wrong["nodes"]]
        return [f"{state}: {name}: {node['html'][:160]} {node['failureSummary'][:240]}" for name, node in nodes]

    def leave(self) -> None:
        assert self.complaints == []
        assert self.page.locator(".toast-body").all_inner_texts() == []
        self.context.close()


def changed(visitor: Visitor, selector: str, before: str | None) -> None:
    """Waits until a picture is another one."""
    script = "([s, before]) => { const i = document.querySelector(s); return i && i.src !== before }"
    visitor.page.wait_for_function(script, arg=[selector, before])
