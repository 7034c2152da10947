"""The data path at the size of the paper's data sets: how long listing and opening take, and how much memory.

    python -m tests.benchmarks.data_scale --work FOLDER [--boxes 14600000] [--masks 2700000] [--subjects 20000]
        [--views 30]

Makes tables of OpenImages' size (21 columns, as published), a tree of MVImgNet's layout (empty files; with `--subjects
219188 --views 2` as many subjects as it has, whose views a listing does not open), and shards of tiny pictures, whose
index is then blown up to 219,188 subjects of 12 views. Each figure is of a fresh process: seconds, CPU seconds with its
imports, and MB resident at most.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.report import table

ROOT = Path(__file__).parents[2]
SUBJECTS, VIEWS = 219_188, 12  # of MVImgNet; views that are kept of each
CLASSES = 350  # of OpenImages with masks
HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y\n"
)


def make_openimages(folder: Path, boxes: int, masks: int) -> None:
    """Boxes, masks and classes as CSVs; about one mask in five boxes, two boxes a (picture, class) on average."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    with (
        (folder / "oidv6-train-annotations-bbox.csv").open("w") as out,
        (folder / "train-annotations-object-segmentation.csv").open("w") as segmented,
    ):
        out.write(HEADER)
        segmented.write("MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks\n")
        share, bits, number = masks / boxes, rng.getrandbits, 0
        for i in range(boxes):
            number = bits(60) if i % 8 == 0 else number  # eight boxes a picture
            image, label = f"{number:016x}", f"/m/0{rng.randrange(CLASSES):04d}"
            flags = f"{bits(1)},{int(rng.random() < 0.2)},{int(rng.random() < 0.06)},{int(rng.random() < 0.05)},0"
            out.write(f"{image},xclick,{label},1,0.012500,0.195312,0.148438,0.587500,{flags}" + ",0.031250" * 8 + "\n")
            if rng.random() < share:
                box = f"{bits(32):08x}"
                name = f"{image}_{label[1:].replace('/', '')}_{box}.png"
                segmented.write(f"{name},{image},{label},{box},0.012500,0.195312,0.148438,0.587500,0.0,\n")
    names = "".join(f"/m/0{i:04d},Class {i}\n" for i in range(CLASSES))
    (folder / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n" + names)


def make_mvimgnet(folder: Path, subjects: int, views: int = 30) -> None:
    """A tree of empty pictures and masks, 238 classes."""
    for i in range(subjects):
        place = folder / str(i % 238) / f"{i:08x}"
        for name in ("images", "masks"):
            (place / name).mkdir(parents=True)
        for k in range(views):
            (place / "images" / f"{k:03d}.jpg").touch()
            (place / "masks" / f"{k:03d}.jpg.png").touch()
    (folder / "mvimgnet_category.txt").write_text("".join(f"{i},Class {i}\n" for i in range(238)))


def make_shards(folder: Path, subjects: int, per_shard: int = 64) -> None:
    """Tars of tiny pictures in our layout."""
    folder.mkdir(parents=True)
    picture, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "JPEG")
    Image.new("L", (16, 16), 255).save(mask, "PNG")
    members = [(f"{v:03d}.{end}", data.getvalue()) for v in range(VIEWS) for end, data in (("jpg", picture),
               ("mask.png", mask))]  # fmt: skip
    for start in range(0, subjects, per_shard):
        with tarfile.open(folder / f"shard-{start // per_shard:05d}.tar", "w") as tar:
            for i in range(start, min(subjects, start + per_shard)):
                about = {"subject": f"{i}", "noun": "cat", "captions": [["a cat", [2, 5]]] * VIEWS}
                for suffix, data in [("json", json.dumps(about).encode()), *members]:
                    info = tarfile.TarInfo(f"{i}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def blow_up(folder: Path, subjects: int) -> None:
    """Make the index of `folder` speak of so many subjects: its own, again and again, each under a key of its own."""
    from train.data.shard_index import open_index

    index = open_index(folder)
    times = -(-subjects // len(index.subjects))
    rows = np.tile(np.array(index.subjects), times)[:subjects]
    rows["key"] = np.random.default_rng(0).integers(0, 2**63, len(rows))
    views = np.tile(np.array(index.views), times)
    rows["first"] += np.repeat(np.arange(times), len(index.subjects))[:subjects] * len(index.views)
    about = json.loads((folder / "index" / "index.json").read_text())
    np.save(folder / "index" / f"subjects-{about['digest']}.npy", rows)
    np.save(folder / "index" / f"views-{about['digest']}.npy", views)


def list_and_plan(source: str, folder: Path) -> dict[str, object]:
    """List, and cut into shards; look the views of 1,000 subjects up."""
    from train.data import photos

    begun = time.monotonic()
    subjects = photos.list_subjects(source, folder)
    listed = time.monotonic()
    planned = [(start, min(start + 64, len(subjects))) for start in range(0, len(subjects), 64)]
    digest = subjects.digest()
    for i in range(0, len(subjects), max(1, len(subjects) // 1000)):
        _ = subjects[i]
    looked = time.monotonic()
    return {
        "cpu_s": time.process_time(), "subjects": len(subjects), "shards": len(planned), "digest": digest,
        "left_out": subjects.left_out,
        "list_s": listed - begun, "look_up_1000_s": looked - listed,
    }  # fmt: skip


def open_and_draw(folder: Path) -> dict[str, object]:
    """Open the shards, hold subjects out by hash, draw 200 samples."""
    before = resident()
    from train.data.mixture import Subset
    from train.data.sampler import Samples
    from train.data.shards import ShardSource

    imported = resident()
    begun = time.monotonic()
    source = ShardSource(folder, 16, 16)
    opened = time.monotonic()
    rest = Subset.split(source, 0.01, validation=False)
    split = time.monotonic()
    samples = Samples(rest, seed=0)
    for i in range(200):
        _ = samples[i]
    return {
        "cpu_s": time.process_time(), "subjects": len(source), "open_s": opened - begun, "hold_out_s": split - opened,
        "draw_200_s": time.monotonic() - split, "own_mb": resident() - imported, "imports_mb": imported - before,
    }  # fmt: skip


def index_all(folder: Path) -> dict[str, object]:
    """Walk through all tars once."""
    from train.data.shard_index import open_index

    begun = time.monotonic()
    index = open_index(folder)
    return {
        "cpu_s": time.process_time(),
        "subjects": len(index.subjects),
        "tars": len(index.tars),
        "index_s": time.monotonic() - begun,
    }


def resident() -> float:
    """MB resident now."""
    return _status("VmRSS")


def peak() -> float:
    """MB resident at most since this program began (getrusage's figure survives an exec)."""
    return _status("VmHWM")


def _status(name: str) -> float:
    return int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def apart(task: str, *arguments: str) -> dict[str, object]:
    """A task in a fresh process: what it returns, and `peak_mb`."""
    command = [sys.executable, "-m", "tests.benchmarks.data_scale", "--task", task, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.strip().splitlines()[-1])


TASKS: dict[str, Callable[..., dict[str, object]]] = {
    "openimages": lambda folder: list_and_plan("openimages", Path(folder)),
    "mvimgnet": lambda folder: list_and_plan("mvimgnet", Path(folder)),
    "index": lambda folder: index_all(Path(folder)),
    "open": lambda folder: open_and_draw(Path(folder)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data_scale", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, help="an empty folder; needs 3 GB at full size")
    parser.add_argument("--boxes", type=int, default=14_600_000)
    parser.add_argument("--masks", type=int, default=2_700_000)
    parser.add_argument("--subjects", type=int, default=20_000, help="of the MVImgNet tree")
    parser.add_argument("--views", type=int, default=30, help="pictures, and masks, of each of these subjects")
    parser.add_argument("--task", nargs=2, metavar=("TASK", "FOLDER"), help="one task in this process; prints JSON")
    options = parser.parse_args()
    if options.task:
        found = TASKS[options.task[0]](options.task[1])
        print(json.dumps(found | {"peak_mb": peak()}))
        return
    work = options.work
    make_openimages(work / "openimages", options.boxes, options.masks)
    make_mvimgnet(work / "mvimgnet", options.subjects, options.views)
    make_shards(work / "shards", min(options.subjects, 6400))
    found = {task: apart(task, str(work / place)) for task, place in
             (("openimages", "openimages"), ("mvimgnet", "mvimgnet"), ("index", "shards"))}  # fmt: skip
    blow_up(work / "shards", SUBJECTS)
    found["open"] = apart("open", str(work / "shards"))
    print(json.dumps(found, indent=1))
    rows = [(name, json.dumps({k: v for k, v in row.items() if k not in ("digest", "left_out")})) for name, row in
            found.items()]  # fmt: skip
    print("\n".join(table(("task", "figures"), rows)))


if __name__ == "__main__":
    main()
