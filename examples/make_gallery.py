"""Make the finished pictures that the page shows first, each PNG with its recipe. Seeds were chosen among 0 to 5.

    python examples/make_gallery.py [--base toyland2] [--only 2,5]

They go through the page's own service, so that each can be loaded, changed and made again there. Run it after the
weights of the base changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from customcontrast.specs import BASES
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.recipe import png_bytes
from customcontrast.ui.service.request import Request, SubjectRequest, check
from customcontrast.ui.service.service import Service

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """One finished picture. subjects: names of the pictures beside this file, which are their nouns too."""

    subjects: tuple[str, ...]
    prompt: str
    seed: int = 0
    azimuths: tuple[float, ...] = ()  # of each subject, degrees; () = as the base likes
    pose: str = ""  # of the first subject


GALLERY = (
    Example(("bear",), "a bear wearing a red hat on the beach", seed=2, azimuths=(20.0,)),
    Example(("cat", "robot"), "a cat and a robot in the snow", seed=3, azimuths=(20.0, -20.0)),
    Example(("duck",), "a watercolor painting of a duck in the jungle", seed=4, azimuths=(-40.0,)),
    Example(("knight",), "a knight in the desert", seed=2, azimuths=(20.0,), pose="waving"),
    Example(
        ("rabbit", "elephant"),
        "a rabbit wearing a green scarf and an elephant in the city",
        seed=3,
        azimuths=(20.0, -40.0),
    ),
    Example(("car",), "pixel art of a car at night", seed=2, azimuths=(40.0,)),
)


def request_of(example: Example, service: Service) -> Request:
    """The example as a visitor would request it."""
    subjects = []
    for name in example.subjects:
        cut = service.cutouts.open(HERE / f"{name}.png")
        subjects.append(SubjectRequest((cut.current,), name))
    if service.models.takes_layout():
        subjects[0] = replace(subjects[0], pose=example.pose)
        turned = zip(subjects, example.azimuths or [None] * len(subjects), strict=True)
        subjects = [replace(subject, azimuth=azimuth) for subject, azimuth in turned]
    spec = BASES[service.config.base]
    return check(
        Request(
            example.prompt, tuple(subjects), steps=spec.steps, guidance=spec.guidance, seed=example.seed,
            base=service.config.base, apart=True, subject_guidance_end=spec.subject_guidance_end,
        )
    )  # fmt: skip


def main() -> None:
    """Generate and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", choices=list(BASES), default="toyland2")
    parser.add_argument("--only", default="", help="numbers from 1 with commas; all where empty")
    parser.add_argument("--out", type=Path, default=HERE / "gallery")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = {int(part) for part in options.only.split(",") if part.strip()}
    service = Service(ServiceConfig(base=options.base))
    for number, example in enumerate(GALLERY, start=1):
        if wanted and number not in wanted:
            continue
        start, request = time.monotonic(), request_of(example, service)
        result = service.run(request)
        path = options.out / f"{number}-{'-'.join(example.subjects)}.png"
        references = [subject.segmentations for subject in request.subjects]
        path.write_bytes(png_bytes(result.images[0], {**request.settings(), "picture": 1}, references))
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
