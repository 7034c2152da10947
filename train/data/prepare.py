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
from pathlib import Path

from train.data import photos, shards
from train.data.captioning import Captioner
from train.data.sources import make_source


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
    parser.add_argument("--size", type=int, default=768, help="photographs: shorter side that is kept, px")
    parser.add_argument("--min-side", type=int, default=512, help="photographs: shorter side that is needed, px")
    parser.add_argument("--views", type=int, help="photographs: usable views a subject needs (openimages: 1, else 2)")
    parser.add_argument("--captions", metavar="BLIP", help="photographs: hub id or folder of a BLIP that words them")
    parser.add_argument("--workers", type=int, default=0, help="photographs: processes that pack; 0 = this one")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="photographs: the K-th of N parts alone")
    parser.add_argument(
        "--no-subjects",
        type=Path,
        default=photos.NO_SUBJECTS,
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
        return _prepare_shards(options, part_of(options.part))
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


def _prepare_shards(options: argparse.Namespace, part: tuple[int, int]) -> int:
    begun = time.monotonic()
    subjects = photos.list_subjects(options.source, options.input, options.no_subjects)
    print(f"{options.source}: {len(subjects):,} subjects listed in {time.monotonic() - begun:.1f} s", flush=True)
    for why, count in sorted(subjects.left_out.items(), key=lambda item: -item[1]):
        print(f"not listed: {count:,} ({why})")
    views = options.views or (1 if options.source == "openimages" else 2)
    filters = shards.FilterConfig(views=views, min_side=options.min_side)
    device = "cpu" if options.workers else None  # a GPU cannot be shared with forked processes
    captioner = Captioner.load(options.captions, device) if options.captions else None
    config = shards.ShardConfig(size=options.size)
    shards.write_shards(
        subjects, options.output, filters, config, captioner=captioner, workers=options.workers, part=part
    )
    summary = shards.summarize(options.output)
    print(f"kept: {summary['subjects']:,} subjects with {summary['views']:,} views in {options.output}")
    for why, count in summary["left_out"].items():
        print(f"left out: {count:,} {why}")
    if not (options.output / shards.SUMMARY).is_file():
        print("other parts are not finished yet; the last one to finish writes the index")
    return 0


if __name__ == "__main__":
    sys.exit(main())
