"""Render the Toyland reference pictures in this folder: held-out subjects, which no training picture shows.

    python examples/make_references.py

The file names say what the pictures show; the app offers them as examples.
"""

import random
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from train.toyland import World, render, sample_scene, sample_subject

SIZE = 384  # px


def main() -> None:
    """One picture for each species of the embedded model's world, a different scene each."""
    here, world = Path(__file__).parent, World.small()
    rng = random.Random("references")
    for species, background in zip(world.species, world.backgrounds, strict=True):
        while True:
            subject = sample_subject(rng, world, heldout=True)
            if subject.species == species:
                break
        scene = sample_scene(
            rng, world, subjects=(subject,), background=background, style="photo", shape="normal",
            accessory="none", pose="standing", azimuth=rng.uniform(-45, 45), x=0.0,
        )  # fmt: skip
        picture = render([scene], SIZE).images[0].permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(here / f"{species}.png")


if __name__ == "__main__":
    main()
