"""Sources of frames, samples, batches: exact masks, r ≠ x, class nouns only, and all a function of (seed, index)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from customcontrast.base_model import BaseModel
from customcontrast.encoder import image_features
from customcontrast.errors import ConfigError
from customcontrast.images import loading
from customcontrast.segmentation import Segmenter
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, load_config
from train.adapter.train import batches_from
from train.data import adapter_pool, folder, folder_layout, frozen_features, references, sampler, toyland_source
from train.data.frozen_features import with_features
from train.data.sampler import Samples, StepSampler, draw_drop, make_loader
from train.data.samples import Sample, collate
from train.data.sources import make_source
from train.toyland import World, is_heldout, sample_subject

SMALL = DataConfig(source="pool", world="small", size=64, reference_size=48, subjects=5, targets=2, references=3)


@pytest.fixture(scope="session")
def pool(tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A rendered and cached pool of five subjects for the tiny base."""
    config = replace(SMALL, path=str(tmp_path_factory.mktemp("pool")))
    make_source(config, tiny_base, progress=False)
    return config


def open_pool(config: DataConfig, base: BaseModel, cached: bool = True) -> adapter_pool.PoolSource:
    return make_source(replace(config, cache=cached), base, progress=False)


def test_one_picture_of_a_subject(pool: DataConfig, tiny_base: BaseModel, tmp_path: Path) -> None:
    """same_frame: r is cut out of x, r⁺ out of another frame; everything else is the ordinary pool's."""
    config = replace(pool, path=str(tmp_path), same_frame=True, references=pool.targets)
    source, ordinary = open_pool(config, tiny_base), open_pool(pool, tiny_base)
    for seed in range(6):
        sample = source.draw(seed % 5, random.Random(seed))
        cut = references.segmented(sample.image, sample.mask[0], references.crop_size(tiny_base))
        assert torch.equal(sample.reference, cut) and not torch.equal(sample.positive, cut)
    assert torch.equal(source.shards[0]["images"], ordinary.shards[0]["images"])
    with pytest.raises(ConfigError, match=r"data.references \(2\) equal to data.targets \(3\)"):
        DataConfig(same_frame=True, targets=3, references=2)
    with pytest.raises(ConfigError, match=r"choose another data.path"):
        open_pool(replace(config, path=pool.path), tiny_base)


def equal(a: Sample, b: Sample) -> bool:
    return (a.subject, a.caption, a.noun, a.drop) == (b.subject, b.caption, b.noun, b.drop) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("image", "mask", "reference", "positive")
    )


# ---- config


def test_presets_load_and_mistakes_are_one_sentence() -> None:
    paper = load_config("sd15.yaml")
    assert (paper.optim.learning_rate, paper.loss.lambda_1, paper.loss.lambda_2) == (3e-5, 1e-2, 1e-3)
    assert load_config("toyland", ["optim.batch=4", "loss.macl=false"]).optim.batch == 4
    assert load_config("toyland", ["optim.mixed_precision=no"]).optim.mixed_precision == "no"  # YAML 1.1: false
    assert AdapterTrainConfig.from_dict(paper.to_dict()) == paper
    for wrong, word in (
        ("optim.lr=1", "optim.lr is unknown"),
        ("optim.batch=x", "must be of type int"),
        ("data.source=web", "choose pool, toyland, folder or shards"),
        ("optim.batch", "must look like"),
        ("data.references=1", "at least 2"),
    ):
        with pytest.raises(ConfigError, match=word):
            load_config("toyland", [wrong])
    with pytest.raises(ConfigError, match="presets are sd15, sdxl, toyland"):
        load_config("sd3")


# ---- samples


def test_every_frame_is_of_one_training_subject_and_masks_fit(pool: DataConfig, tiny_base: BaseModel) -> None:
    source = open_pool(pool, tiny_base, cached=False)
    assert len(source) == 5
    for i in range(5):
        sample = source.draw(i, random.Random(i))
        start, end = sample.noun
        words = set(sample.caption.replace(",", " ").split())
        assert sample.caption[start:end] in words
        assert sample.image.shape == (3, 64, 64) and sample.image.dtype == torch.uint8
        assert sample.mask.shape == (1, 64, 64) and 0.02 < sample.mask.float().mean() < 0.9
        assert sample.reference.shape == (3, 24, 24)  # what this base's CLIP reads
        corners = sample.reference[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == 255).all()  # on white
        assert (sample.reference < 200).any() and not torch.equal(sample.reference, sample.positive)


def test_captions_name_the_class_only(pool: DataConfig, tiny_base: BaseModel) -> None:
    """The looks must come from R: no colour or pattern of the subject may be in the text."""
    source = open_pool(pool, tiny_base, cached=False)
    for i, record in enumerate(source.records):
        pattern = record["subject"].split("-")[3]
        for target in range(2):
            for phrasing in range(adapter_pool.PHRASINGS):
                text = source.sample(i, target, 0, 1, phrasing).caption
                before_edit = text.split(" wearing ")[0].split(" with ")[0]
                assert pattern == "plain" or pattern not in before_edit


def test_no_heldout_subject_is_in_the_pool_and_the_benchmark_has_only_those() -> None:
    world = World.small()
    drawn = [sample_subject(random.Random(f"adapter-small-{i}"), world) for i in range(300)]
    assert not any(is_heldout(s) for s in drawn)
    assert all(is_heldout(sample_subject(random.Random(i), world, heldout=True)) for i in range(20))


def test_the_pool_equals_rendering_again(pool: DataConfig, tiny_base: BaseModel) -> None:
    source = open_pool(pool, tiny_base, cached=False)
    tensors, records = adapter_pool.pool_shard(0, pool, 64, references.crop_size(tiny_base))
    assert torch.equal(source.shards[0]["images"], tensors["images"])
    assert torch.equal(source.shards[0]["references"], tensors["references"])
    assert source.records == records


def test_a_pool_grows_and_refuses_other_settings(pool: DataConfig, tiny_base: BaseModel, tmp_path: Path) -> None:
    config = replace(SMALL, path=str(tmp_path), subjects=2)
    assert len(open_pool(config, tiny_base, cached=False)) == 2
    grown = open_pool(replace(config, subjects=3), tiny_base, cached=False)
    assert len(grown) == 3
    with pytest.raises(ValueError, match=r"another data.path"):
        open_pool(replace(config, reference_size=64), tiny_base, cached=False)


def test_toyland_as_it_is_eaten_is_a_function_of_index_and_rng(tiny_base: BaseModel) -> None:
    source = make_source(replace(SMALL, source="toyland"), tiny_base, progress=False)
    assert equal(source.draw(3, random.Random(7)), source.draw(3, random.Random(7)))
    a, b = source.draw(3, random.Random(7)), source.draw(3, random.Random(8))
    assert a.subject == b.subject and not torch.equal(a.image, b.image)


# ---- order


def test_samples_depend_on_seed_and_index_alone(pool: DataConfig, tiny_base: BaseModel) -> None:
    source = open_pool(pool, tiny_base, cached=False)
    first, again = Samples(source, seed=1), Samples(source, seed=1)
    ahead = [first[i] for i in range(12)]
    assert all(equal(again[i], ahead[i]) for i in reversed(range(12)))
    assert any(not equal(Samples(source, seed=2)[i], ahead[i]) for i in range(5))
    for epoch in range(2):  # every subject once an epoch
        assert len({s.subject for s in ahead[5 * epoch : 5 * epoch + 5]}) == 5


def test_captions_of_the_noun_alone(pool: DataConfig, tiny_base: BaseModel) -> None:
    """data.captions=noun: the same frames in the same order, and "a bear" for every caption."""
    source = open_pool(pool, tiny_base)
    config = AdapterTrainConfig(base="toyland", data=replace(pool, captions="noun"), seed=3)
    config = replace(config, optim=replace(config.optim, batch=4, steps=3))
    batches = list(batches_from(config, source, 0, Accelerator(cpu=True)))
    given = [Samples(source, seed=3)[i] for i in range(12)]
    assert all(torch.equal(b.latents, collate(given[4 * i : 4 * i + 4]).latents) for i, b in enumerate(batches))
    bare = [pair for b in batches for pair in zip(b.captions, b.nouns, strict=True)]
    for sample, (caption, (start, end)) in zip(given, bare, strict=True):
        noun = sample.caption[slice(*sample.noun)]
        assert caption[start:end] == noun and caption in (f"a {noun}", f"an {noun}")
    assert sampler.noun_alone(replace(_plain("none"), caption="two owls", noun=(4, 7))).caption == "an owl"
    with pytest.raises(ConfigError, match=r"data.captions is 'none'; choose given or noun"):
        DataConfig(captions="none")


def test_processes_share_one_sequence_and_a_resumed_one_goes_on() -> None:
    one = list(StepSampler(4, 0, 3))
    two = [list(StepSampler(2, 0, 3, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one
    assert list(StepSampler(4, 2, 3)) == one[2:]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_keeps_the_order_with_any_number_of_workers(
    pool: DataConfig, tiny_base: BaseModel, workers: int
) -> None:
    samples = Samples(open_pool(pool, tiny_base), seed=0)
    batches = list(make_loader(samples, StepSampler(2, 0, 3), workers))
    expected = [collate([samples[i] for i in rows]) for rows in StepSampler(2, 0, 3)]
    for got, wanted in zip(batches, expected, strict=True):
        assert got.captions == wanted.captions and torch.equal(got.latents, wanted.latents)


def test_drops_have_their_probabilities() -> None:
    rng = random.Random(0)
    counts = Counter(draw_drop(rng, 0.05) for _ in range(20_000))
    for kind in ("text", "subject", "both"):
        assert counts[kind] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert all(draw_drop(rng, 0) == "none" for _ in range(100))
    flags = collate([_plain("none"), _plain("text"), _plain("subject"), _plain("both")])
    assert flags.drop_text.tolist() == [False, True, False, True]
    assert flags.drop_subject.tolist() == [False, False, True, True]


def _plain(drop: str) -> Sample:
    return Sample("a", "a bear", (2, 6), torch.zeros(1, 4, 4, dtype=torch.bool), drop=drop)


# ---- features


def test_cached_features_equal_encoding_again(pool: DataConfig, tiny_base: BaseModel) -> None:
    plain = collate([Samples(open_pool(pool, tiny_base, cached=False), 0)[i] for i in range(4)])
    cached = collate([Samples(open_pool(pool, tiny_base), 0)[i] for i in range(4)])
    assert plain.latents is None and cached.latents is not None
    fresh = with_features(tiny_base, plain)
    kept = with_features(tiny_base, cached)
    for a, b in zip(fresh.reference_states, kept.reference_states, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)
    for a, b in zip(fresh.positive_states, kept.positive_states, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(fresh.embeddings, kept.embeddings, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(fresh.latents, kept.latents, atol=5e-3, rtol=5e-3)


def test_features_are_those_of_inference(pool: DataConfig, tiny_base: BaseModel) -> None:
    """Training's CLIP pass over uint8 tensors equals `image_features.extract` on the same pictures."""
    sample = open_pool(pool, tiny_base, cached=False).draw(0, random.Random(0))
    picture = Image.fromarray(sample.reference.permute(1, 2, 0).numpy())
    states, embedding = frozen_features.clip_features(tiny_base, sample.reference[None])
    for a, b in zip(states, image_features.extract(tiny_base, [picture]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedding, image_features.embed(tiny_base, [picture]), atol=1e-4, rtol=1e-4)


def test_the_cache_belongs_to_the_weights_that_made_it(
    pool: DataConfig, tiny_base: BaseModel, tiny_xl_base: BaseModel
) -> None:
    path = Path(pool.path)
    mine, other = adapter_pool.Cache.of(path, tiny_base), adapter_pool.Cache.of(path, tiny_xl_base)
    assert mine == adapter_pool.Cache.of(path, tiny_base)
    assert mine.latents != other.latents and mine.states != other.states
    decoder = tiny_base.vae.decoder.conv_out.bias
    with torch.no_grad():
        decoder.add_(1.0)
    assert adapter_pool.Cache.of(path, tiny_base) == mine  # a new decoder leaves the latents valid
    with torch.no_grad():
        decoder.sub_(1.0)


def test_batches_select_rows() -> None:
    batch = collate([replace(_plain("none"), subject=name, caption=f"a bear {name}") for name in "abc"])
    part = batch.select([2, 0])
    assert part.captions == ["a bear c", "a bear a"] and len(part) == 2
    assert part.subjects.tolist() == batch.subjects[[2, 0]].tolist()


# ---- a folder of your own


def write_subject(place: Path, seed: int, pictures: int, masks: bool = True) -> None:
    (place / "masks").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(pictures):
        pixels = np.full((60, 80, 3), 90, np.uint8)
        x = 10 + 15 * i
        pixels[20:45, x : x + 30] = rng.integers(120, 255, 3)
        mask = np.zeros((60, 80), np.uint8)
        mask[20:45, x : x + 30] = 255
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
        if masks:
            Image.fromarray(mask).save(place / "masks" / f"{i:02d}.png")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_subject(tmp_path / "robot_toy2", 0, 3)
    write_subject(tmp_path / "cat", 1, 2)
    (tmp_path / "cat" / "noun.txt").write_text("kitten\n")
    (tmp_path / "cat" / "00.txt").write_text("my <kitten> on a sofa\n")
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def test_a_folder_of_your_own(own: Path) -> None:
    source = folder.FolderSource(own, size=32, crop=24, progress=False)
    assert [name for name, _, _ in source.subjects] == ["cat", "robot_toy2"]
    assert len(source.skipped) == 1 and "broken.jpg of cat" in source.skipped[0]
    captions = set()
    for seed in range(30):
        for index in range(2):
            sample = source.draw(index, random.Random(seed))
            captions.add((sample.caption, sample.caption[slice(*sample.noun)]))
            assert sample.image.shape == (3, 32, 32) and sample.mask.any()
            assert sample.reference.shape == (3, 24, 24)
    assert captions == {
        ("my kitten on a sofa", "kitten"),
        ("a photo of a kitten", "kitten"),
        ("a photo of a robot toy", "robot toy"),
    }
    assert equal(source.draw(0, random.Random(4)), source.draw(0, random.Random(4)))


def test_target_reference_and_positive_are_three_frames_where_there_are_three(own: Path) -> None:
    source = folder.FolderSource(own, size=32, crop=24, progress=False)
    _name, _frames, references = source.subjects[1]
    order = {id(r): i for i, r in enumerate(references)}
    for seed in range(20):
        rng = random.Random(seed)
        sample = source.draw(1, rng)
        target = random.Random(seed).sample(range(3), 3)[0]
        chosen = {order[id(sample.reference)], order[id(sample.positive)]}
        assert len(chosen) == 2 and target not in chosen


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no usable subject"):
        folder.FolderSource(tmp_path, 32, 24, progress=False)
    with pytest.raises(ValueError, match="is not a folder"):
        folder.FolderSource(tmp_path / "nowhere", 32, 24, progress=False)


def test_masks_are_made_and_kept_when_absent(tmp_path: Path) -> None:
    place = tmp_path / "bear"
    place.mkdir()
    scene = toyland_source.reference_scene(
        random.Random(0), World.small(), sample_subject(random.Random(1), World.small())
    )
    pixels = toyland_source.render([scene], 160).images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(place / "00.png")
    source = folder.FolderSource(tmp_path, 32, 24, progress=False)
    kept = place / "masks" / "00.png"
    assert kept.is_file() and len(source) == 1
    kept_mask = np.asarray(Image.open(kept)) > 127
    assert kept_mask.shape == (160, 160) and 0.03 < kept_mask.mean() < 0.8


def test_a_branch_is_dropped_with_its_own_probability() -> None:
    rng = random.Random(0)
    counts = Counter(draw_drop(rng, 0.05, 0.1) for _ in range(20_000))
    for kind, p in (("text", 0.05), ("subject", 0.05), ("both", 0.05), ("token", 0.1), ("visual", 0.1), ("none", 0.65)):
        assert counts[kind] / 20_000 == pytest.approx(p, abs=0.01)
    with pytest.raises(ConfigError, match="drop_branch"):
        DataConfig(drop=0.2, drop_branch=0.25)


def test_pool_and_live_source_say_where_the_subject_is(pool, tiny_base: BaseModel) -> None:
    sample = open_pool(pool, tiny_base).sample(1, 0, 0, 1)
    rows = sample.mask[0].any(1).nonzero().flatten()
    assert sample.layout[4] * len(sample.mask[0]) == pytest.approx(int(rows[0]))
    assert collate([sample, sample]).layouts.shape == (2, len(sample.layout))


# ---- what folders of other people hold


def test_hidden_names_are_no_subjects_and_no_pictures(own: Path) -> None:
    write_subject(own / ".ipynb_checkpoints", 2, 1)
    (own / "cat" / "._00.png").write_bytes(b"resource fork")
    assert [place.name for place in folder_layout.subject_places(own)] == ["cat", "robot_toy2"]
    assert [path.name for path in folder_layout.pictures_in(own / "cat")] == ["00.png", "01.png", "broken.jpg"]


@pytest.mark.parametrize("suffix", sorted(loading.SUFFIXES))
def test_every_kind_of_picture_is_listed_and_read(tmp_path: Path, suffix: str) -> None:
    """A folder takes the kinds of files that the page takes, whatever the letter case of their names."""
    kind = Image.registered_extensions().get(suffix)
    if suffix in (".heic", ".heif", ".hif"):
        pytest.importorskip("pillow_heif", reason="pip install pillow-heif").register_heif_opener()
        kind = "HEIF"
    assert kind in loading.FORMATS
    write_subject(tmp_path / "cat", 1, 1)
    own = tmp_path / "cat" / f"00{suffix.upper()}"
    with Image.open(tmp_path / "cat" / "00.png") as picture:
        pixels = picture.convert("RGB")
    (tmp_path / "cat" / "00.png").unlink()
    pixels.save(own, format=kind)
    assert [path.name for path in folder_layout.pictures_in(tmp_path / "cat")] == [own.name]
    found = folder.segment(own, Segmenter())
    assert found.image.size == (80, 60) and found.method == "given"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_texts_in_the_encodings_of_other_systems(own: Path, encoding: str) -> None:
    (own / "cat" / "noun.txt").write_bytes("café cat".encode(encoding))
    (own / "cat" / "00.TXT").write_bytes("my Café Cat on a sofa <lora:x:1>".encode(encoding))
    (own / "cat" / "00.txt").unlink()
    noun = folder_layout.class_noun(own / "cat")
    assert noun == "café cat"
    assert folder.caption_of(own / "cat" / "00.png", noun) == ("my Café Cat on a sofa", (3, 11))
    (own / "cat" / "noun.txt").write_bytes("cafe\u0301 cat".encode())
    assert folder_layout.class_noun(own / "cat") == "café cat"


def test_pictures_without_sub_folders_are_told_how_to_lie(own: Path) -> None:
    with pytest.raises(ConfigError, match="one sub-folder for each subject"):
        folder.FolderSource(own / "cat", 32, 24, progress=False)


def test_a_text_that_is_none_is_named(own: Path) -> None:
    (own / "cat" / "00.txt").write_bytes(b"\x81\x8d\x8f")
    with pytest.raises(ConfigError, match=r"00.txt of cat"):
        folder.FolderSource(own, 32, 24, progress=False)


def test_two_pictures_of_one_stem_have_a_mask_each(own: Path) -> None:
    place = own / "cat"
    Image.open(place / "00.png").convert("RGB").save(place / "00.jpg")
    assert folder_layout.mask_path(place / "00.jpg").name == "00.jpg.png"
    assert (
        folder_layout.mask_path(place / "00.png").name == "00.png.png"
        and folder_layout.mask_path(place / "01.png").name == "01.png"
    )


def test_a_replaced_picture_gets_a_mask_of_its_own(tmp_path: Path) -> None:
    place, segmenter = tmp_path / "bear", folder.Segmenter()
    place.mkdir()
    rng, world = random.Random(0), World.small()
    for size in (160, 120):
        scene = toyland_source.reference_scene(rng, world, sample_subject(rng, world))
        pixels = toyland_source.render([scene], size).images[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / "00.png")
        found = folder.segment(place / "00.png", segmenter)
        assert found.method != "given" and found.mask.shape == (size, size)
        assert folder.segment(place / "00.png", segmenter).method == "given"
    mended = np.zeros((120, 120), np.uint8)
    mended[10:60, 10:60] = 255
    Image.fromarray(mended).save(place / "masks" / "00.png")  # by hand: it stays, whatever the picture
    assert folder.segment(place / "00.png", segmenter).mask.sum() == 2500


def test_masks_of_every_kind_and_of_another_shape(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 8:30] = 1
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0, 0, 0, 10, 10, 10])
    clear = Image.new("RGBA", (40, 30), (9, 9, 9, 0))
    clear.paste((9, 9, 9, 255), (8, 5, 30, 20))
    kinds = {"grey": Image.fromarray(mask * 255), "labels": Image.fromarray(mask), "palette": palette, "alpha": clear}
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(folder.read_mask(tmp_path / f"{name}.png", (40, 30)), mask > 0), name
    with pytest.raises(folder.PictureError, match=r"grey.png is 40 x 30, of another shape"):
        folder.read_mask(tmp_path / "grey.png", (30, 40))


def test_what_is_left_out_is_said_once(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.FolderSource(own, size=32, crop=24, progress=False)
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("1 pictures") and "broken.jpg of cat" in said[0]
