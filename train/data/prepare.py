"""`python -m train.data prepare`: everything a training run reads, made ready on disk.

python -m train.data prepare --config toyland       render the pool and cache what is frozen, resumable
python -m train.data prepare --source mvimgnet --input FOLDER --output FOLDER      pack photographs into shards
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train.data.sources import make_source

if TYPE_CHECKING:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train.data prepare`: a Toyland pool by --config, or photographs by --source, --input, --output."""
    parser = argparse.ArgumentParser(prog="python -m train.data", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["prepare"])
    parser.add_argument("--source", choices=["toyland", "mvimgnet", "openimages", "folder"], default="toyland")
    parser.add_argument("--config", default="toyland", help="toyland: preset or YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. data.subjects=500")
    parser.add_argument("--input", type=Path, help="photographs: root of the data set")
    parser.add_argument("--output", type=Path, help="photographs: folder of the shards")
    parser.add_argument("--size", type=int, default=768, help="photographs: shorter side that is kept, px")
    parser.add_argument("--views", type=int, help="photographs: usable views a subject needs (openimages: 1, else 2)")
    parser.add_argument("--captions", metavar="BLIP", help="photographs: hub id or folder of a BLIP that words them")
    options = parser.parse_args(arguments)
    if options.source == "toyland":
        try:
            return _prepare_pool(options.config, options.set)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 2
    if options.size < 32 or (options.views is not None and options.views < 1):
        parser.error(f"--size {options.size} --views {options.views}: give 32 px or more, and 1 view or more")
    if options.input is None or options.output is None:
        parser.error(f"--source {options.source} needs --input FOLDER and --output FOLDER")
    views = options.views or (1 if options.source == "openimages" else 2)
    try:
        return _prepare_shards(options.source, options.input, options.output, options.size, views, options.captions)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _prepare_pool(name: str, settings: list[str]) -> int:
    from customcontrast.base_model import load_base
    from train.adapter.adapter_config import load_config

    config = load_config(name, settings)
    source = make_source(config.data, load_base(config.base, config.weights))
    print(f"{config.data.source}: {len(source)} subjects ready in {config.data.path}")
    return 0


def _prepare_shards(source: str, folder: Path, output: Path, size: int, views: int, captions: str | None) -> int:
    from train.data import photos, shards
    from train.data.captioning import Captioner

    subjects = photos.list_subjects(source, folder)
    captioner = Captioner.load(captions) if captions else None
    filters = shards.FilterConfig(views=views)
    tars = shards.write_shards(subjects, output, filters, shards.ShardConfig(size=size), captioner=captioner)
    left_out = list(shards.skipped_views(output))
    for row in left_out[:20]:
        print(f"left out: {row['subject']} {row['picture']}: {row['why']}")
    print(f"{source}: {len(subjects)} subjects listed, {len(tars)} shards in {output}, {len(left_out)} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
