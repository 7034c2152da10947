"""Make README's tour of the page from the screenshots beside this file: one labelled sheet of cut-outs.

    python examples/make_tour.py

Run it after `python -m tests.support.screenshots`, which also writes where the parts of the page are (boxes.json).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from customcontrast.visualize import save_small
from customcontrast.visualize.drawing import frame, label

HERE = Path(__file__).parent
GAP, LINE = 14, 30  # px between panels; of a title
WIDTH = 1280


@dataclass(frozen=True)
class Panel:
    """Parts of a screenshot, side by side or below each other, in one cut-out."""

    title: str
    shot: str  # name of the screenshot, without its ending
    parts: tuple[str, ...]  # ids of the page's elements, as boxes.json has them
    height: int = 0  # px of the cut-out, from its top; 0 = all of it

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom in px around all parts."""
        boxes = json.loads((HERE / "shots" / "boxes.json").read_text("utf-8"))[self.shot]
        left, top, right, bottom = zip(*(boxes[part] for part in self.parts), strict=True)
        low = max(bottom)
        return min(left), min(top), max(right), min(low, min(top) + self.height) if self.height else low


LEFT = (Panel("Subjects, prompt, picture", "page", ("slot-1", "pictures-out")),)
RIGHT = (
    Panel("Where: location masks over the steps", "page", ("strip",)),
    Panel("Words: where each word acted", "page-words", ("hover",)),
    Panel("… and what a place attended to", "page-looked", ("looked",)),
)
BELOW = (
    Panel("Compare: the same seed, several ways", "page-compare", ("sheet",)),
    Panel("Features: the subject among others", "page-features", ("around",)),
)


def panel(part: Panel, width: int) -> Image.Image:
    """The cut-out at a width, in a frame, with its title above it."""
    with Image.open(HERE / "shots" / f"{part.shot}.webp") as shot:
        cut = shot.convert("RGB").crop(part.box)
    cut = cut.resize((width, round(cut.height * width / cut.width)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (width, cut.height + LINE), "white")
    label(page, width / 2, 4, part.title, width, 16)
    page.paste(cut, (0, LINE))
    frame(page, (1, LINE, width - 1, page.height - 1))
    return page


def column(parts: tuple[Panel, ...], width: int) -> Image.Image:
    """Panels below each other."""
    panels = [panel(part, width) for part in parts]
    page = Image.new("RGB", (width, sum(p.height for p in panels) + GAP * (len(panels) - 1)), "white")
    top = 0
    for one in panels:
        page.paste(one, (0, top))
        top += one.height + GAP
    return page


def row(parts: list[Image.Image]) -> Image.Image:
    """Pictures side by side, at their tops."""
    page = Image.new("RGB", (WIDTH, max(part.height for part in parts)), "white")
    left = 0
    for part in parts:
        page.paste(part, (left, 0))
        left += part.width + GAP
    return page


def main() -> None:
    """Cut out, lay out, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "shots" / "tour.webp")
    options = parser.parse_args()
    right = 470
    above = row([column(LEFT, WIDTH - right - GAP), column(RIGHT, right)])
    each = (WIDTH - GAP * (len(BELOW) - 1)) // len(BELOW)
    below = row([column((part,), each) for part in BELOW])
    sheet = Image.new("RGB", (WIDTH, above.height + GAP + below.height), "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height + GAP))
    save_small(sheet, options.out)


if __name__ == "__main__":
    main()
