"""Make the sample pictures of README and docs with the shipped weights: seed 0, none chosen.

    python examples/make_samples.py [--base toyland2] [--photo PICTURE --photo-noun cat]

BASE-one.webp: prompt, reference, location masks over the steps, output; BASE-two.webp: two and, where the
base can, three subjects; BASE-words.webp: where the picture of two looked for each word.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from customcontrast import CustomContrast, Segmenter, visualize
from customcontrast.config import LocationConfig
from customcontrast.layout import MAX_SUBJECTS
from customcontrast.specs import BASES, DEFAULT_BASE
from customcontrast.ui.service.figures import stack
from customcontrast.visualize.drawing import label

HERE = Path(__file__).parent
ONE = (
    ("bear", "a <bear> wearing a green hat in the snow"),
    ("car", "a <car> on the beach"),
    ("elephant", "a <elephant> in the jungle"),
    ("rabbit", "a <rabbit> at night"),
    ("duck", "a watercolor painting of a <duck> in the city"),
)
SEVERAL = (
    (("cat", "robot"), "a <cat> and a <robot> in the snow"),
    (("bear", "rabbit"), "a <bear> and a <rabbit> on the beach"),
    (("duck", "car"), "a <duck> wearing a red hat and a <car> in the jungle"),
    (("rabbit", "bear", "cat"), "a <rabbit>, a <bear> and a <cat> in the city"),
)
SEEDS = 4  # pictures of each row of BASE-two.webp
LINE = 22  # px of a prompt above its row
GAP = 8  # px between rows
CELL = 160


def titled(prompt: str, picture: Image.Image) -> Image.Image:
    """A picture with its prompt above it."""
    page = Image.new("RGB", (picture.width, picture.height + LINE), "white")
    label(page, picture.width / 2, 2, prompt, picture.width, 14)
    page.paste(picture, (0, LINE))
    return page


def main() -> None:
    """Generate, lay out, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    embedded = [name for name, spec in BASES.items() if spec.embedded]
    parser.add_argument("--base", choices=embedded, default=DEFAULT_BASE)
    parser.add_argument("--photo", type=Path, help="a real photograph for one more row")
    parser.add_argument("--photo-noun", default="cat", help="what the photograph is drawn as, on the beach")
    parser.add_argument("--out", type=Path, default=HERE / "shots")
    options = parser.parse_args()
    model, segmenter = CustomContrast.load(options.base), Segmenter()
    names = {name for name, _ in ONE} | {name for several, _ in SEVERAL for name in several}
    found = {name: segmenter.auto(HERE / f"{name}.png") for name in sorted(names)}

    rows = [(found[name], name, prompt) for name, prompt in ONE]
    if options.photo:
        noun = options.photo_noun
        rows.append((segmenter.auto(options.photo), noun, f"a <{noun}> on the beach"))
    strips = []
    for segmentation, noun, prompt in rows:
        result = model.generate(prompt, [model.subject(segmentation, noun)])
        strip = visualize.location_strip(segmentation.on_plain(), result.location_masks[0, :, 0], result.images[0])
        strips.append(titled(prompt, strip))
    visualize.save_small(stack(strips, GAP), options.out / f"{options.base}-one.webp")

    apart, pages = LocationConfig(apart=True), []
    most = MAX_SUBJECTS if model.base.layout_channels else 4  # a layout holds two; a third melts into them
    for i, (names, prompt) in enumerate(row for row in SEVERAL if len(row[0]) <= most):
        subjects = [model.subject(found[name], name) for name in names]
        made = [model.generate(prompt, subjects, seed=seed, location=apart) for seed in range(SEEDS)]
        line = [found[name].on_plain(size=CELL // 2) for name in names]
        page = Image.new("RGB", (CELL * SEEDS + 100, CELL), "white")
        for k, reference in enumerate(line):
            size = min(CELL // 2, CELL // len(line))
            page.paste(reference.resize((size, size)), (8, k * size))
        for k, result in enumerate(made):
            page.paste(result.images[0].resize((CELL - 6, CELL - 6), Image.Resampling.BICUBIC), (100 + k * CELL, 0))
        pages.append(titled(prompt, page))
        if i == 0:
            mean = made[0].text_maps[0].astype("float32").mean(axis=0)  # over the steps: (tokens, h, w)
            words = enumerate(made[0].words, start=1)
            maps = {f"{n}. {word}": mean[places].mean(axis=0) for n, (word, places) in words if mean[places].any()}
            visualize.save_small(
                visualize.token_grid(made[0].images[0], maps), options.out / f"{options.base}-words.webp"
            )
    visualize.save_small(stack(pages, GAP), options.out / f"{options.base}-two.webp")


if __name__ == "__main__":
    main()
