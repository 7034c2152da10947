"""`python -m train.data prepare`: everything a training run reads, made ready on disk.

python -m train.data prepare --config toyland       render pools, index shards and cache what is frozen, resumable
python -m train.data prepare --source mvimgnet --input FOLDER --output FOLDER      pack photographs into shards
    --workers 16             in so many processes
    --part 3/16              only the third of sixteen parts: sixteen machines that share the output pack them all
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.common.options import from_options
from train.data import photos, shards
from train.data.captioning import Captioner
from train.data.sources import make_source


@dataclass(frozen=True)
class PackingConfig:
    """How photographs become shards. A field is the option of its name, and its default the option's."""

    source: str  # mvimgnet, openimages or folder
    input: Path  # root of the data set
    output: Path  # folder of the shards
    size: int = shards.ShardConfig.size  # shorter side that is kept, px, at least 32
    min_side: int = 512  # shorter side that is needed, px
    views: int | None = None  # usable views that a subject needs; None = 1 of openimages, else 2
    captions: str | None = None  # hub id or folder of a BLIP that words the views; None = "a photo of a NOUN"
    workers: int = 0  # processes that pack; 0 = this one
    part: tuple[int, int] = (1, 1)  # (k, n): the k-th of n parts alone
    no_subjects: Path = photos.NO_SUBJECTS  # openimages: file of the classes that are left out, one a line


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train.data prepare`: what --config names, or photographs by --source, --input, --output."""
    parser = argparse.ArgumentParser(
        prog="python -m train.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["prepare"])
    parser.add_argument("--source", choices=["toyland", "mvimgnet", "openimages", "folder"], default="toyland")
    parser.add_argument("--config", default="toyland", help="preset or YAML file of the run to make ready")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. data.subjects=500")
    parser.add_argument("--input", type=Path, help="photographs: root of the data set")
    parser.add_argument("--output", type=Path, help="photographs: folder of the shards")
    parser.add_argument(
        "--size", type=int, default=PackingConfig.size, help="photographs: shorter side that is kept, px"
    )
    parser.add_argument(
        "--min-side", type=int, default=PackingConfig.min_side, help="photographs: shorter side that is needed, px"
    )
    parser.add_argument("--views", type=int, help="photographs: usable views a subject needs (openimages: 1, else 2)")
    parser.add_argument("--captions", metavar="BLIP", help="photographs: hub id or folder of a BLIP that words them")
    parser.add_argument(
        "--workers", type=int, default=PackingConfig.workers, help="photographs: processes that pack; 0 = this one"
    )
    parser.add_argument(
        "--part",
        default="{}/{}".format(*PackingConfig.part),
        metavar="K/N",
        help="photographs: the K-th of N parts alone",
    )
    parser.add_argument(
        "--no-subjects",
        type=Path,
        default=PackingConfig.no_subjects,
        metavar="FILE",
        help="openimages: classes that are left out, one a line; default train/data/openimages_no_subjects.txt",
    )
    options = parser.parse_args(arguments)
    try:
        if options.source == "toyland":
            return _prepare_config(options.config, options.set)
        if options.size < 32 or (options.views is not None and options.views < 1) or options.min_side < 0:
            parser.error(
                f"--size {options.size} --views {options.views} --min-side {options.min_side}: give 32 px or more, "
                "1 view or more, and no negative side"
            )
        if options.workers < 0:
            parser.error(f"--workers {options.workers}: give 0 or more")
        if options.input is None or options.output is None:
            parser.error(f"--source {options.source} needs --input FOLDER and --output FOLDER")
        other = ("command", "config", "set")
        return _prepare_shards(from_options(PackingConfig, options, leave=other, part=part_of(options.part)))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def part_of(text: str) -> tuple[int, int]:
    """ "3/16" → (3, 16). Raises ValueError where it is no part."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--part {text!r}: write K/N with K from 1 to N, such as 3/16")
    return int(found[1]), int(found[2])


def _prepare_config(name: str, settings: list[str]) -> int:
    from customcontrast.base_model import load_base
    from train.adapter.adapter_config import load_config

    config = load_config(name, settings)
    source = make_source(config.data, load_base(config.base, config.weights))
    for name, _, own in config.data.parts():
        print(f"{name + ': ' if name else ''}{own.source} in {own.path}")
    print(f"{config.data.source}: {len(source)} subjects ready in {config.data.path}")
    return 0


def _prepare_shards(config: PackingConfig) -> int:
    begun = time.monotonic()
    subjects = photos.list_subjects(config.source, config.input, config.no_subjects)
    print(f"{config.source}: {len(subjects):,} subjects listed in {time.monotonic() - begun:.1f} s", flush=True)
    for why, count in sorted(subjects.left_out.items(), key=lambda item: -item[1]):
        print(f"not listed: {count:,} ({why})")
    views = config.views or (1 if config.source == "openimages" else 2)
    filters = shards.FilterConfig(views=views, min_side=config.min_side)
    device = "cpu" if config.workers else None  # a GPU cannot be shared with forked processes
    captioner = Captioner.load(config.captions, device) if config.captions else None
    kept = shards.ShardConfig(size=config.size)
    shards.write_shards(
        subjects, config.output, filters, kept, captioner=captioner, workers=config.workers, part=config.part
    )
    summary = shards.summarize(config.output)
    print(f"kept: {summary['subjects']:,} subjects with {summary['views']:,} views in {config.output}")
    for why, count in summary["left_out"].items():
        print(f"left out: {count:,} {why}")
    if not (config.output / shards.SUMMARY).is_file():
        print("other parts are not finished yet; the last one to finish writes the index")
    return 0


if __name__ == "__main__":
    sys.exit(main())
