"""The data path of large sets: listings, packing in processes and parts, the index, mixtures, held-out subjects."""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from customcontrast.base_model import BaseModel
from customcontrast.errors import ConfigError
from train.adapter.adapter_config import DataConfig
from train.data import folder, photos, prepare, shard_index, shards
from train.data.frozen_features import with_features
from train.data.mixture import BLOCK, Mixture, Part, Subset, held_out
from train.data.sampler import Samples, StepSampler, make_loader
from train.data.samples import collate, keys_of
from train.data.sources import held_out_sources, make_source

FREE = shards.FilterConfig(area_min=0.01, sharpness=0.0, single=0.3)
ONE = replace(FREE, views=1)


def write_views(place: Path, seed: int, count: int, size: tuple[int, int] = (48, 40)) -> None:
    """`count` pictures of a coloured square with its mask, as a folder of one's own holds them."""
    (place / "masks").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    color = rng.integers(120, 255, 3)
    for i in range(count):
        pixels = rng.integers(0, 90, (size[1], size[0], 3)).astype(np.uint8)
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[8:28, 6 + 2 * (i % 8) : 26 + 2 * (i % 8)] = 255
        pixels[mask > 0] = color - rng.integers(0, 60, (int((mask > 0).sum()), 3))  # textured: it is not blurred
        Image.fromarray(pixels).save(place / f"{i:03d}.png")
        Image.fromarray(mask).save(place / "masks" / f"{i:03d}.png")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine subjects: of one view, of two and of three, in turn."""
    root = tmp_path_factory.mktemp("own")
    for i in range(9):
        write_views(root / f"bear {i}", i, 1 + i % 3)
    return root


@pytest.fixture(scope="module")
def packed(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    subjects = photos.list_subjects("folder", own)
    shards.write_shards(subjects, out, ONE, shards.ShardConfig(subjects=4), progress=False)
    return out


# ---- listing


def write_openimages(root: Path, boxes: int) -> None:
    """Boxes, a mask for every second one; of each ten one truncated, one of a picture with two boxes of a class."""
    root.mkdir()
    flags = list(photos.LEFT_OUT)
    with (root / "train-bbox.csv").open("w") as out, (root / "train-object-segmentation.csv").open("w") as masks:
        out.write(",".join(["ImageID", "LabelName", "XMin", *flags]) + "\n")
        masks.write("MaskPath,ImageID,LabelName,BoxID\n")
        for i in range(boxes):
            image = f"{(i - 1 if i % 10 == 9 else i):016x}"
            out.write(f"{image},/m/0{i % 3},0.1,{int(i % 10 == 0)},0,0\n")
            if i % 2 == 0:
                masks.write(f"{image}_m0{i % 3}_{i:x}.png,{image},/m/0{i % 3},{i:x}\n")
    (root / "class-descriptions.csv").write_text("/m/00,Cat\n/m/01,Dog\n/m/02,Human face\n")


def test_openimages_are_listed_as_a_plain_count_says(tmp_path: Path) -> None:
    write_openimages(tmp_path / "open", 900)
    found = photos.list_subjects("openimages", tmp_path / "open")
    with (tmp_path / "open" / "train-bbox.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = Counter((row["ImageID"], row["LabelName"]) for row in rows)
    cut = {(row["ImageID"], row["LabelName"]) for row in rows if row["IsTruncated"] == "1"}
    with (tmp_path / "open" / "train-object-segmentation.csv").open() as file:
        masks = list(csv.DictReader(file))
    wanted = [
        row["MaskPath"].removesuffix(".png")
        for row in masks
        if pairs[key := (row["ImageID"], row["LabelName"])] == 1 and key not in cut and row["LabelName"] != "/m/02"
    ]
    assert [photos.Listing.__getitem__(found, i).id for i in range(len(found))] == sorted(wanted)
    assert found.left_out["a class that is no subject"] > 0
    everything = photos.list_subjects("openimages", tmp_path / "open", no_subjects=None)
    assert len(everything) > len(found)


def test_memory_of_a_listing_does_not_grow_with_the_boxes(tmp_path: Path) -> None:
    """Four times the boxes without a mask: the most memory at once stays (they were 1.5 kB each)."""
    peaks = []
    for boxes in (20_000, 80_000):
        root = tmp_path / str(boxes)
        write_openimages(root, 400)
        with (root / "train-bbox.csv").open("a") as out:
            out.writelines(f"{i:016x},/m/01,0.1,0,0,0\n" for i in range(10**6, 10**6 + boxes))
        tracemalloc.start()
        assert len(photos.list_subjects("openimages", root)) > 100
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4 * peaks[0] and peaks[1] < 30e6  # a chunk of rows, not the table


def test_a_listing_opens_no_subject_before_it_is_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = photos.list_subjects("folder", own)
    calls: list[str] = []
    views = photos.VIEWS["folder"]
    monkeypatch.setitem(photos.VIEWS, "folder", lambda root, place: calls.append(place) or views(root, place))
    assert len(found) == 9 and len(found.digest()) == 16 and calls == []
    third = found[2]
    assert third.noun == "bear" and len(third.views) == 3 and calls == ["bear 2"]
    assert found[-1].id == "bear 8"
    with pytest.raises(IndexError):
        found[9]


# ---- packing


def test_views_are_read_evenly_spaced_ones_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_views(tmp_path / "cat", 0, 30)
    subject = photos.list_subjects("folder", tmp_path)[0]
    read: list[str] = []
    load = shards.load_picture
    monkeypatch.setattr(shards, "load_picture", lambda path, **o: read.append(path.stem) or load(path, **o))
    sample = shards._pack(subject, replace(FREE, max_views=4), shards.ShardConfig(), [], None, [])
    assert read == ["000", "010", "019", "029"] and len(sample["json"]["captions"]) == 4
    assert shards.spread(5, 2) == [0, 4, 1, 2, 3] and shards.spread(2, 12) == [0, 1] and shards.spread(0, 4) == []


def test_processes_and_parts_write_the_bytes_of_one(own: Path, packed: Path, tmp_path: Path) -> None:
    subjects, config = photos.list_subjects("folder", own), shards.ShardConfig(subjects=4)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    cv2.GaussianBlur(
        np.zeros((1500, 1500, 3), np.uint8), (31, 31), 5
    )  # OpenCV has threads now, which no fork takes along
    shards.write_shards(subjects, tmp_path, ONE, config, progress=False, workers=2, part=(2, 2))
    assert cv2.getNumThreads() == 2
    cv2.setNumThreads(threads)
    assert [tar.name for tar in sorted(tmp_path.glob("*.tar"))] == ["shard-00001.tar"]
    assert not (tmp_path / shards.SUMMARY).exists()  # the other part is not there yet
    shards.write_shards(subjects, tmp_path, ONE, config, progress=False, part=(1, 2))
    for tar in packed.glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / tar.name).read_bytes()
    assert json.loads((tmp_path / shards.SUMMARY).read_text()) == shards.summarize(packed)
    assert (tmp_path / "index" / "index.json").is_file()
    with pytest.raises(ValueError, match="K from 1 to N"):
        prepare.part_of("17/16")


def test_the_report_counts_what_was_left_out_by_reason(own: Path, tmp_path: Path, capsys, caplog) -> None:
    arguments = ["--source", "folder", "--input", str(own), "--output", str(tmp_path / "out"), "--size", "64"]
    assert prepare.main(["prepare", *arguments, "--min-side", "0"]) == 0
    printed = capsys.readouterr().out
    assert "9 subjects listed" in printed and "left out: 3 subjects: too few usable views" in printed
    with caplog.at_level(logging.INFO, "train.data.shards"):
        shards.ShardSource(tmp_path / "out", 32, 24)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "6 subjects with 15 views" in said[0] and "too few usable views" in said[0]
    assert prepare.main(["prepare", *arguments[:4], "--output", str(tmp_path / "small")]) == 0
    assert "pictures: too small" in capsys.readouterr().out  # 40 px where 512 are needed


def test_the_shorter_side_is_limited_and_sizes_are_kept(tmp_path: Path) -> None:
    """P4: a frame of 9:16 keeps 1024 px across; what SDXL is told is its own size and the crop."""
    write_views(tmp_path / "own" / "cat", 0, 3, size=(1120, 1990))
    subjects = photos.list_subjects("folder", tmp_path / "own")
    area = replace(FREE, area_min=0.0)
    shards.write_shards(subjects, tmp_path / "out", area, shards.ShardConfig(size=1024), progress=False)
    source = shards.ShardSource(tmp_path / "out", 256, 24)
    row = source.index.rows(0)[0]
    picture = Image.open(io.BytesIO(source.index.read(0, row["picture"], row["picture_size"])))
    assert min(picture.size) == 1024
    sample = source.draw(0, random.Random(0))
    assert sample.origin[:2].tolist() == [1990, 1120] and sample.origin[3] == 0
    assert 0 <= sample.origin[2] <= 256 * 1990 / 1120 - 256
    assert folder.reduced(Image.new("RGB", (50, 40)), 64).size == (50, 40)  # never enlarged


# ---- the index


def test_the_index_holds_what_the_tars_hold_and_is_read_not_made(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = shard_index.open_index(packed)
    assert isinstance(index.subjects, np.memmap) and len(index.subjects) == 9 and len(index.views) == 18
    for i in range(9):
        record = json.loads(index.read(i, index.subjects[i]["record"], index.subjects[i]["record_size"]))
        assert record["subject"] == f"bear {i}" and len(index.rows(i)) == len(record["captions"])
        assert int(index.subjects[i]["key"]) == shard_index.key_of(shards.sample_key(f"bear {i}"))
        for row in index.rows(i):
            assert index.read(i, row["picture"], row["picture_size"])[:2] == b"\xff\xd8"
            assert index.read(i, row["mask"], row["mask_size"])[1:4] == b"PNG"
    monkeypatch.setattr(shard_index, "walk", lambda tar: pytest.fail("a tar was walked through again"))
    again = shard_index.open_index(packed)
    assert (again.subjects == index.subjects).all() and (again.views == index.views).all()


def test_only_changed_tars_are_walked_through(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = photos.list_subjects("folder", own)
    shards.write_shards(subjects, tmp_path, ONE, shards.ShardConfig(subjects=3), progress=False)
    before = shard_index.open_index(tmp_path)
    rows = np.array(before.subjects), np.array(before.views)
    (tmp_path / "shard-00000.tar").unlink()
    (tmp_path / "shard-00003.tar").write_bytes(b"no tar")
    walked: list[str] = []
    walk = shard_index.walk
    monkeypatch.setattr(shard_index, "walk", lambda tar: walked.append(tar.name) or walk(tar))
    after = shard_index.open_index(tmp_path)
    assert walked == ["shard-00003.tar"] and len(after.skipped) == 1 and "shard-00003.tar" in after.skipped[0]
    assert (after.subjects["key"] == rows[0]["key"][3:]).all() and (after.views == rows[1][6:]).all()
    source = shards.ShardSource(tmp_path, 32, 24)
    assert source.draw(0, random.Random(0)).subject == "bear 3" and len(source.skipped) == 1


# ---- several sets in one run


class Numbered:
    """A source that says which subject was drawn."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: random.Random):
        return folder_sample(str(index))

    def pair(self, index: int, rng: random.Random):
        return replace(folder_sample(str(index)), pair=True)

    def subject_keys(self) -> np.ndarray:
        return keys_of(map(str, range(self.count)))


def folder_sample(name: str):
    from train.data.samples import Sample

    return Sample(name, "a bear", (2, 6), torch.zeros(1, 4, 4, dtype=torch.bool), image=torch.zeros(3, 4, 4))


def test_a_mixture_keeps_its_shares_and_every_subject_its_turn() -> None:
    mixture = Mixture([Part("a", Numbered(100), 3.0), Part("b", Numbered(7), 1.0, captions="noun")])
    samples = Samples(mixture, seed=5)
    names = [samples[i].subject for i in range(BLOCK)]
    assert Counter(name[0] for name in names) == {"a": 768, "b": 256}
    mine = [name for name in names if name[0] == "b"]
    assert all(len(set(mine[k : k + 7])) == 7 for k in range(0, 252, 7))  # epochs of each part
    again = Samples(mixture, seed=5)
    assert [again[i].subject for i in (1500, 3, 700)] == [samples[i].subject for i in (1500, 3, 700)]
    assert Samples(mixture, seed=6)[0].subject != names[0] or Samples(mixture, seed=6)[1].subject != names[1]
    tiny = Mixture([Part("a", Numbered(3), 1e6), Part("b", Numbered(3), 1.0)])
    assert tiny.quotas == [BLOCK - 1, 1]


def test_pairs_are_a_sequence_of_their_own_which_processes_share() -> None:
    samples = Samples(Numbered(50), seed=0)
    one = list(StepSampler(2, 0, 3, pairs=4))
    two = [list(StepSampler(1, 0, 3, rank, 2, pairs=2)) for rank in (0, 1)]
    for k in range(3):
        assert sorted(one[k]) == sorted(two[0][k] + two[1][k])
    batch = next(iter(make_loader(samples, StepSampler(2, 1, 2, pairs=4))))
    assert len(batch) == 2 and len(batch.contrast) == 4 and batch.contrast.images is not None
    assert [samples[-1 - j].subject for j in range(50)] != [samples[j].subject for j in range(50)]
    assert len({samples[-1 - j].subject for j in range(50)}) == 50


def test_subjects_are_held_out_by_the_hash_of_their_ids() -> None:
    keys = keys_of(f"subject {i}" for i in range(4000))
    kept = held_out(keys, 0.1)
    assert abs(kept.mean() - 0.1) < 0.02 and (held_out(keys[::-1], 0.1)[::-1] == kept).all()
    assert held_out(keys, 0.0).sum() == 0
    source = Numbered(200)
    train, rest = Subset.split(source, 0.2, validation=False), Subset.split(source, 0.2, validation=True)
    both = sorted([*train.rows.tolist(), *rest.rows.tolist()])
    assert both == list(range(200)) and 20 < len(rest) < 60
    assert Subset.split(source, 0.0, validation=False) is source


def test_shards_and_a_folder_train_together(own: Path, packed: Path, tiny_base: BaseModel) -> None:
    parts = [
        {"name": "mv", "source": "shards", "path": str(packed), "weight": 3, "holdout": 0.3},
        {"name": "mine", "source": "folder", "path": str(own), "captions": "noun"},
    ]
    config = DataConfig(source="shards", size=32, sources=parts)
    mixture = make_source(config, tiny_base, progress=False)
    batch = collate([Samples(mixture, seed=0)[i] for i in range(6)])
    assert batch.images.shape == (6, 3, 32, 32) and batch.origins.shape == (6, 4)
    seen = {Samples(mixture, seed=0)[i].subject for i in range(60)}
    assert {name.split("/")[0] for name in seen} == {"mv", "mine"}
    held = held_out_sources(config, tiny_base)
    names = {f"mv/{held[0].source.draw(i, random.Random(0)).subject}" for i in range(len(held[0].source))}
    assert len(held) == 1 and names and not names & seen
    for wrong, match in (
        ([{"source": "shards"}], "write {name"),
        ([{"name": "a"}, {"name": "a"}], "a name of its own"),
        ([{"name": "a", "weight": 0}], "above 0"),
        ([{"name": "a", "colour": 1}], "colour is unknown"),
    ):
        with pytest.raises(ConfigError, match=match):
            DataConfig(sources=wrong)


# ---- caches of shards


def test_cached_features_of_shards_are_what_encoding_says(packed: Path, tiny_base: BaseModel) -> None:
    plain = DataConfig(source="shards", path=str(packed), size=64)
    cached = make_source(replace(plain, shard_cache="both"), tiny_base, progress=False)
    latents, states = cached.cache.latents, cached.cache.states
    assert sum(np.load(path).shape[0] for path in latents.glob("*.npy")) == 18
    assert sum(np.load(path).shape[0] for path in states.glob("*.npy")) == 3 * 4 + 15  # four turns of each only view
    times = [path.stat().st_mtime_ns for path in sorted(latents.glob("*.npy"))]
    for index in (0, 1, 5, 8):
        record = cached.record(index)
        image, mask, _origin = cached.cropped(index, record, 0)
        fresh = with_features(tiny_base, collate([replace(folder_sample("x"), image=image, reference=image,
                                                          positive=image, mask=mask)]))  # fmt: skip
        torch.testing.assert_close(cached.cache.latent(index, 0), fresh.latents[0], atol=5e-3, rtol=5e-3)
    sample, pair = cached.draw(2, random.Random(1)), cached.pair(0, random.Random(1))
    assert sample.image is None and sample.latent.shape == (8, 8, 8) and sample.mask.any()
    assert not torch.equal(pair.reference_states[0], pair.positive_states[0]) and pair.embedding is not None
    batch = collate([sample, cached.draw(5, random.Random(0))])
    assert with_features(tiny_base, batch).reference_states[0].shape[0] == 2
    make_source(replace(plain, shard_cache="both"), tiny_base, progress=False)
    assert times == [path.stat().st_mtime_ns for path in sorted(latents.glob("*.npy"))]
    mixed = [{"name": "a"}, {"name": "b", "shard_cache": "clip"}]
    with pytest.raises(ConfigError, match="all of them the same"):
        make_source(replace(plain, sources=mixed), tiny_base, progress=False)
