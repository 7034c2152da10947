"""Photographs in their data sets' own layouts, packed into WebDataset shards and drawn from them."""

import csv
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from train.adapter.adapter_config import DataConfig
from train.data import photos, prepare, sampler, shards, toyland_source
from train.toyland import World, render, sample_subject

SIZE = 64


@pytest.fixture(scope="module")
def views() -> tuple[list[list[Image.Image]], list[list[Image.Image]]]:
    """Pictures and masks of 3 Toyland subjects, 4 views each."""
    world, rng = World.small(), random.Random(3)
    scenes = []
    for _ in range(3):
        subject = sample_subject(rng, world)
        scenes += [toyland_source.reference_scene(rng, world, subject) for _ in range(4)]
    out = render(scenes, SIZE)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in out.images]
    masks = [Image.fromarray(m[0].numpy().astype(np.uint8) * 255) for m in out.masks]
    return [pictures[i : i + 4] for i in (0, 4, 8)], [masks[i : i + 4] for i in (0, 4, 8)]


@pytest.fixture
def mvimgnet(tmp_path: Path, views) -> Path:
    root = tmp_path / "mvimgnet"
    for s, (pictures, masks) in enumerate(zip(*views, strict=True)):
        place = root / str(s) / f"1a{s}"
        (place / "images").mkdir(parents=True)
        first = root / "mask" / str(s) / f"1a{s}" if s == 0 else place / "masks"  # both published places of masks
        first.mkdir(parents=True)
        for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            picture.save(place / "images" / f"{i:03d}.jpg", quality=95)
            mask.save(first / f"{i:03d}.jpg.png")
    (root / photos.MVIMGNET_CLASSES).write_text("0,Bag\n1,Toy Cat\n2,bottle\nnonsense\n")
    return root


@pytest.fixture
def openimages(tmp_path: Path, views) -> Path:
    root = tmp_path / "openimages"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    flags = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction")
    boxes, masks = [], []
    for s in range(3):
        image = f"00{s}f"
        views[0][s][0].save(root / "images" / f"{image}.jpg", quality=95)
        views[1][s][0].save(root / "masks" / f"{image}_m0cat_ab.png")
        boxes.append([image, "/m/0cat", "1"] + ["1" if (s, f) == (2, "IsGroupOf") else "0" for f in flags])
        masks.append([f"{image}_m0cat_ab.png", image, "/m/0cat", "ab"])
    boxes += [["000f", "", ""], ["junk"]]  # broken rows
    masks += [["gone.png", "none", "/m/0cat", "x"], ["y.png", "000f", "/m/unknown", "x"], []]
    for name, header, rows in (
        ("oidv6-train-annotations-bbox.csv", ["ImageID", "LabelName", "Confidence", *flags], boxes),
        ("train-annotations-object-segmentation.csv", ["MaskPath", "ImageID", "LabelName", "BoxID"], masks),
    ):
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    (root / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/0cat,Cat\n")
    return root


FREE = shards.FilterConfig(area_min=0.01, sharpness=0.0, single=0.3)


def test_mvimgnet_lists_classes_and_both_places_of_masks(mvimgnet: Path) -> None:
    found = photos.list_subjects("mvimgnet", mvimgnet)
    assert [(s.id, s.noun, len(s.views)) for s in found] == [
        ("0-1a0", "bag", 4),
        ("1-1a1", "toy cat", 4),
        ("2-1a2", "bottle", 4),
    ]
    assert all(view.mask is not None and view.mask.is_file() for s in found for view in s.views)


def test_openimages_leaves_out_groups_and_unknown_rows(openimages: Path) -> None:
    found = photos.list_subjects("openimages", openimages)
    assert [(s.id, s.noun, len(s.views)) for s in found] == [("000f_m0cat_ab", "cat", 1), ("001f_m0cat_ab", "cat", 1)]


@pytest.mark.parametrize("source", ["mvimgnet", "openimages", "folder"])
def test_another_layout_is_one_sentence(tmp_path: Path, source: str) -> None:
    with pytest.raises(photos.DataLayoutError, match="no "):
        photos.list_subjects(source, tmp_path)
    with pytest.raises(photos.DataLayoutError, match="not a folder"):
        photos.list_subjects(source, tmp_path / "nowhere")


def test_shards_hold_what_went_in(mvimgnet: Path, tmp_path: Path, views) -> None:
    subjects = photos.list_subjects("mvimgnet", mvimgnet)
    tars = shards.write_shards(subjects, tmp_path / "out", FREE, shards.ShardConfig(subjects=2), progress=False)
    assert len(tars) == 2
    urls = [str(tar) for tar in tars]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))  # the library's own reader
    assert [json.loads(sample["json"])["noun"] for sample in read] == ["bag", "toy cat", "bottle"]
    for s, sample in enumerate(read):
        kept = np.asarray(Image.open(io.BytesIO(sample["002.mask.png"]))) > 127
        assert (kept == (np.asarray(views[1][s][2]) > 127)).all()
        error = np.asarray(Image.open(io.BytesIO(sample["002.jpg"])), float) - np.asarray(views[0][s][2], float)
        assert np.abs(error).mean() < 6


def test_samples_come_from_three_views_of_one_subject(mvimgnet: Path, tmp_path: Path) -> None:
    shards.write_shards(photos.list_subjects("mvimgnet", mvimgnet), tmp_path / "out", FREE, progress=False)
    config = DataConfig(source="shards", path=str(tmp_path / "out"))
    source = shards.ShardSource(Path(config.path), size=48, crop=32)
    assert len(source) == 3
    for seed in range(10):
        sample = source.draw(1, random.Random(seed))
        assert sample.caption[slice(*sample.noun)] == "toy cat"
        assert sample.image.shape == (3, 48, 48) and sample.mask.shape == (1, 48, 48) and sample.mask.any()
        assert sample.reference.shape == (3, 32, 32) and not torch.equal(sample.reference, sample.positive)
        again = source.draw(1, random.Random(seed))
        assert torch.equal(sample.image, again.image) and torch.equal(sample.reference, again.reference)


def test_workers_and_processes_read_the_same_sequence(mvimgnet: Path, tmp_path: Path) -> None:
    shards.write_shards(photos.list_subjects("mvimgnet", mvimgnet), tmp_path / "out", FREE, progress=False)
    samples = sampler.Samples(shards.ShardSource(tmp_path / "out", 32, 24), seed=4)

    def eaten(workers: int, rank: int, world: int) -> list[tuple[list[int], torch.Tensor]]:
        batch = 2 // world
        steps = sampler.StepSampler(batch, 0, 3, rank, world)
        return [(b.subjects.tolist(), b.images) for b in sampler.make_loader(samples, steps, workers)]

    alone, two = eaten(0, 0, 1), [eaten(1, rank, 2) for rank in (0, 1)]
    for k, (subjects, images) in enumerate(alone):
        assert subjects == two[0][k][0] + two[1][k][0]
        assert torch.equal(images, torch.cat([two[0][k][1], two[1][k][1]]))


def test_a_subject_of_one_view_gives_two_different_references(openimages: Path, tmp_path: Path) -> None:
    one = shards.FilterConfig(area_min=0.01, sharpness=0.0, single=0.3, views=1)
    shards.write_shards(photos.list_subjects("openimages", openimages), tmp_path / "out", one, progress=False)
    sample = shards.ShardSource(tmp_path / "out", 48, 32).draw(0, random.Random(0))
    assert not torch.equal(sample.reference, sample.positive)
    assert (sample.reference[:, 0, 0] == 255).all()


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(mvimgnet: Path, tmp_path: Path) -> None:
    subjects, config = photos.list_subjects("mvimgnet", mvimgnet), shards.ShardConfig(subjects=1)
    whole = shards.write_shards(subjects, tmp_path / "whole", FREE, config, progress=False)
    shards.write_shards(subjects, tmp_path / "cut", FREE, config, progress=False)
    (tmp_path / "cut" / "shard-00001.tar").unlink()
    (tmp_path / "cut" / "shard-00001.part").write_bytes(b"half a shard")
    first = (tmp_path / "cut" / "shard-00000.tar").stat().st_mtime_ns
    resumed = shards.write_shards(subjects, tmp_path / "cut", FREE, config, progress=False)
    assert [tar.read_bytes() for tar in whole] == [tar.read_bytes() for tar in resumed]
    assert (tmp_path / "cut" / "shard-00000.tar").stat().st_mtime_ns == first
    with pytest.raises(ValueError, match="other settings"):
        shards.write_shards(subjects, tmp_path / "cut", FREE, shards.ShardConfig(subjects=2), progress=False)


def test_broken_files_are_left_out_and_listed(mvimgnet: Path, tmp_path: Path) -> None:
    place = mvimgnet / "1" / "1a1"
    whole = (place / "images" / "000.jpg").read_bytes()
    (place / "images" / "000.jpg").write_bytes(whole[: len(whole) // 3])  # truncated
    Image.new("L", (20, 64)).save(place / "masks" / "001.jpg.png")  # a mask of another shape
    Image.new("L", (SIZE, SIZE)).save(place / "masks" / "002.jpg.png")  # an empty one
    tars = shards.write_shards(photos.list_subjects("mvimgnet", mvimgnet), tmp_path / "out", FREE, progress=False)
    why = {row["picture"]: row["why"] for row in shards.skipped_views(tmp_path / "out")}
    assert set(why) == {"000.jpg", "001.jpg", "002.jpg", ""}
    assert (
        "another shape" in why["001.jpg"]
        and "no pixel is marked" in why["002.jpg"]
        and "1 usable views, 2 needed" in why[""]
    )
    with tarfile.open(tars[0]) as tar:
        assert not any(name.startswith("1-1a1") for name in tar.getnames())


def test_each_filter_names_its_reason() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    square = np.zeros((64, 64), bool)
    square[10:40, 10:40] = True
    config = shards.FilterConfig()
    assert shards.view_fault(noise, square, config) == ""
    assert "covers" in shards.view_fault(noise, np.ones((64, 64), bool), config)
    assert "blurred" in shards.view_fault(Image.new("RGB", (64, 64), "grey"), square, config)
    apart = square.copy()
    apart[45:60, 30:60] = True
    assert "pieces" in shards.view_fault(noise, apart, config)


def test_prepare_from_the_command_line(mvimgnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["prepare", "--source", "mvimgnet", "--input", str(mvimgnet), "--output", str(tmp_path / "out")]
    assert prepare.main(arguments) == 0
    assert "3 subjects listed" in capsys.readouterr().out
    assert prepare.main([*arguments[:3], "--input", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_an_empty_folder_says_how_to_make_shards(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=r"train.data prepare.*bad.tar"):
        shards.ShardSource(tmp_path, 32, 24)


def test_dreambench_photographs_pack(tmp_path: Path) -> None:
    place = Path(__file__).parents[3] / "shared" / "data" / "dreambench"
    if not place.is_dir():
        pytest.skip("no DreamBench photographs beside the repository")
    subjects = [s for s in photos.list_subjects("folder", place) if s.noun][:1]
    kept = photos.Subject(subjects[0].id, subjects[0].noun, subjects[0].views[:3])
    shards.write_shards([kept], tmp_path / "out", shards.FilterConfig(), shards.ShardConfig(size=256), progress=False)
    sample = shards.ShardSource(tmp_path / "out", 128, 96).draw(0, random.Random(0))
    assert sample.image.shape == (3, 128, 128) and 0.01 < sample.mask.float().mean() < 0.95


def test_keys_of_different_subjects_differ() -> None:
    ids = ["toy 1", "toy.1", "toy_1", "toy-1", "toÿ 1"]
    keys = [shards.sample_key(name) for name in ids]
    assert len(set(keys)) == len(ids) and keys[2:4] == ["toy_1", "toy-1"]
    assert all("." not in key and "/" not in key for key in keys)
