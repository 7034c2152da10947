"""pipeline: the properties a generation must have, on every base, with real classes at toy width."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.output import Result, Step
from customcontrast.pipeline import CustomContrast, Subject
from tests.conftest import Cutout
from tests.support.threads import at_once
from tests.support.tiny_models import random_adapter

PROMPT = "a bear on the beach"
FAST = {"num_inference_steps": 3, "guidance_scale": 4.0}
BARE = {"record": RecordConfig(maps=False), "location": LocationConfig(enabled=False)}


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def same(a: list[Image.Image], b: list[Image.Image], tolerance: int = 0) -> bool:
    return pixels(a).shape == pixels(b).shape and np.abs(pixels(a) - pixels(b)).max() <= tolerance


@pytest.fixture(scope="session")
def stock(any_base: BaseModel, tiny_folder: Path, tiny_xl_folder: Path) -> Callable[..., list[Image.Image]]:
    """diffusers' own pipeline on the same weights, seeds from 7."""
    xl = any_base.spec.pooled
    pipe = (
        StableDiffusionXLPipeline.from_pretrained(tiny_xl_folder)
        if xl
        else StableDiffusionPipeline.from_pretrained(tiny_folder)
    )
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.unet, pipe.vae):
        model.requires_grad_(False)  # PyTorch picks other convolution kernels for weights that may want gradients

    def draw(images: int = 1, negative: str | None = None) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(7 + i) for i in range(images)]
        options = {"negative_prompt": negative, "num_images_per_prompt": images, "generator": generators}
        return pipe(PROMPT, height=64, width=96, **options, **FAST).images

    return draw


# ---- the base stays itself --------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("negative", [None, "a red car"])
def test_without_subject_it_is_the_base_pipeline_to_the_bit(
    any_custom: CustomContrast, stock: Callable[..., list[Image.Image]], images: int, negative: str | None
) -> None:
    wanted = stock(images, negative)
    options = FAST | {"seed": 7, "height": 64, "width": 96, "num_images": images, "negative_prompt": negative or ""}
    assert same(any_custom.generate(PROMPT, **options).images, wanted), "with maps recorded, which is the default"
    assert same(any_custom.generate(PROMPT, **options, **BARE).images, wanted)


def test_lambda_zero_without_s_star_is_the_base_pipeline_to_the_bit(
    any_base: BaseModel, stock: Callable[..., list[Image.Image]], cutout: Callable[[int], Cutout]
) -> None:
    custom = CustomContrast.from_parts(any_base, random_adapter(any_base, textual=False, tv_fusion=False))
    subject = custom.subject(cutout(1), "bear")
    options = FAST | {"seed": 7, "height": 64, "width": 96}
    wanted = stock()
    assert same(custom.generate(PROMPT, subject, subject_scale=0.0, **options).images, wanted)
    assert same(custom.generate(PROMPT, replace(subject, strength=0.0), **options, **BARE).images, wanted)
    assert not same(custom.generate(PROMPT, subject, subject_scale=3.0, **options).images, wanted)


def test_lambda_and_subject_change_the_picture(any_custom: CustomContrast, bear: Subject, cutout: Callable) -> None:
    pictures = [any_custom.generate(PROMPT, bear, subject_scale=scale, **FAST).images for scale in (0.0, 1.0, 5.0)]
    other = any_custom.generate(PROMPT, any_custom.subject(cutout(9), "bear"), **FAST).images
    assert not same(pictures[0], pictures[1]) and not same(pictures[1], pictures[2]) and not same(pictures[1], other)
    strong = any_custom.generate(PROMPT, replace(bear, strength=5.0), **FAST).images
    assert same(strong, pictures[2]), "strength multiplies subject_scale"


# ---- seeds, batches, order ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [None, "euler_ancestral"])
def test_batch_of_n_equals_n_runs(
    any_custom: CustomContrast, bear: Subject, cat: Subject, scheduler: str | None
) -> None:
    options = FAST | {"scheduler": scheduler}
    both = any_custom.generate("a bear and a cat", [bear, cat], seed=5, num_images=2, **options)
    for i in range(2):
        one = any_custom.generate("a bear and a cat", [bear, cat], seed=5 + i, **options)
        assert same(one.images, both.images[i : i + 1], tolerance=1)
        assert np.allclose(one.location_masks[0], both.location_masks[i], atol=1e-3)
        assert np.allclose(one.text_maps[0], both.text_maps[i], atol=2e-3)


def test_same_seed_same_picture_whatever_ran_before(any_custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    first = any_custom.generate(PROMPT, bear, seed=3, **FAST)
    any_custom.generate("a cat in a city", cat, seed=4, subject_scale=4.0, num_inference_steps=2, height=32)
    any_custom.generate("a bear", seed=3, num_inference_steps=2)
    fresh = CustomContrast.from_parts(any_custom.base, any_custom.adapter)
    for custom in (any_custom, fresh):
        again = custom.generate(PROMPT, bear, seed=3, **FAST)
        assert same(first.images, again.images)
        assert np.array_equal(first.location_masks, again.location_masks)


def test_two_threads_with_different_subjects_do_not_meet(
    any_custom: CustomContrast, bear: Subject, cat: Subject
) -> None:
    custom = CustomContrast.from_parts(any_custom.base, any_custom.adapter)
    jobs = [(PROMPT, bear), ("a cat in a city", cat), ("a red car", ())]
    alone = [custom.generate(prompt, subject, **FAST) for prompt, subject in jobs]
    custom.conditioner.cache.clear()
    found = at_once(lambda i: [custom.generate(*jobs[i], **FAST) for _ in range(2)][-1], len(jobs))
    for i, wanted in enumerate(alone):
        assert same(found[i].images, wanted.images)
        assert np.array_equal(found[i].location_masks, wanted.location_masks)
        assert np.array_equal(found[i].text_maps, wanted.text_maps)


def test_contexts_are_kept_for_the_next_seed(any_custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    custom = CustomContrast.from_parts(any_custom.base, any_custom.adapter)
    a, _ = custom.generate(PROMPT, bear, **FAST), custom.generate(PROMPT, replace(bear, strength=2.0), seed=9, **FAST)
    assert sorted(custom.conditioner.cache.kinds()) == ["contexts", "subject", "text"], "text: the empty prompt"
    custom.generate(PROMPT, replace(cat, noun="bear"), **FAST)
    custom.generate(PROMPT, bear, num_inference_steps=2)
    assert custom.conditioner.cache.kinds().count("contexts") == 3
    custom.generate("a red bear", bear, **FAST)
    assert custom.conditioner.cache.kinds().count("contexts") == 4
    assert custom.conditioner.cache.kinds().count("subject") == 3, "a new prompt asks nothing new of the adapter"
    assert same(custom.generate(PROMPT, bear, **FAST).images, a.images)


# ---- masks and maps ----------------------------------------------------------------------------------


def test_location_masks_are_injected_from_the_second_step(any_custom: CustomContrast, bear: Subject) -> None:
    options = FAST | {"subject_scale": 3.0}
    on = any_custom.generate(PROMPT, bear, **options)
    off = any_custom.generate(PROMPT, bear, location=LocationConfig(enabled=False), **options)
    assert not same(on.images, off.images)
    assert np.array_equal(on.location_masks[:, 0], off.location_masks[:, 0]), "step 1 has no mask"
    assert not np.array_equal(on.location_masks[:, -1], off.location_masks[:, -1])
    late = any_custom.generate(PROMPT, bear, location=LocationConfig(start_step=4), **options)
    assert same(late.images, off.images), "three steps, masks from the fourth"


def test_frozen_masks_stay(any_custom: CustomContrast, bear: Subject) -> None:
    masks = any_custom.generate(PROMPT, bear, location=LocationConfig(freeze_step=1), **FAST).location_masks
    assert np.array_equal(masks[:, 0], masks[:, 1]) and np.array_equal(masks[:, 0], masks[:, 2])


def test_swapping_two_subjects_swaps_their_masks_and_maps(
    any_custom: CustomContrast, bear: Subject, cat: Subject
) -> None:
    a = any_custom.generate("a bear S1* and a cat S2*", [bear, cat], **FAST)
    b = any_custom.generate("a bear S2* and a cat S1*", [cat, bear], **FAST)
    assert same(a.images, b.images, tolerance=1)
    assert np.allclose(a.location_masks, b.location_masks[:, :, ::-1], atol=1e-3)
    assert np.allclose(a.visual_maps, b.visual_maps[:, :, ::-1], atol=2e-3)
    assert not np.allclose(a.visual_maps[:, :, 0], a.visual_maps[:, :, 1], atol=1e-2)


def test_numbers_of_other_libraries_are_numbers(tiny_custom: CustomContrast) -> None:
    """NumPy's and torch's scalars make the picture that Python's own numbers make."""
    own = {"num_inference_steps": 2, "seed": 3, "height": 64, "width": 64, "guidance_scale": 3.0}
    record = RecordConfig(maps=False)
    wanted = tiny_custom.generate("a cat", **own, record=record, output_type="np").images
    for kinds in ((np.int64, np.float32), (lambda x: torch.tensor(int(x)), lambda x: torch.tensor(x))):
        whole, real = kinds
        given = {name: (real if isinstance(value, float) else whole)(value) for name, value in own.items()}
        assert np.array_equal(tiny_custom.generate("a cat", **given, record=record, output_type="np").images, wanted)
    for name, wrong in {
        "seed": np.float64(1.5),
        "height": torch.tensor([64, 64]),
        "guidance_scale": np.ones(2),
    }.items():
        with pytest.raises(ValueError, match=name):
            tiny_custom.stream("a cat", **(own | {name: wrong}))


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (40, 72)])
def test_maps_of_any_aspect_ratio(
    any_custom: CustomContrast, bear: Subject, cat: Subject, size: tuple[int, int]
) -> None:
    height, width = size
    r = any_custom.generate("a bear and a cat", [bear, cat], height=height, width=width, num_images=2, **FAST)
    assert r.images[0].size == (width, height)
    h, w = r.text_maps.shape[-2:]
    assert (h > w) == (height > width) and (h < w) == (height < width)
    assert r.location_masks.shape == (2, 3, 2, h, w) and r.location_masks.dtype == np.float32
    assert r.text_maps.shape == (2, 3, len(r.tokens), h, w) and r.text_maps.dtype == np.float16
    assert r.visual_maps.shape == (2, 3, 2, h, w) == r.subject_maps.shape
    assert r.location_masks.min() >= 0 and r.location_masks.max() <= 1
    assert (r.text_maps.astype(np.float32).sum(axis=2) <= 1.01).all(), "padding takes the rest"


def test_words_point_at_their_tokens(any_custom: CustomContrast, bear: Subject) -> None:
    r = any_custom.generate(PROMPT, bear, **FAST)
    assert r.prompt == "a bear S* on the beach"
    assert [word for word, _ in r.words] == r.prompt.split()
    places = dict(r.words)["S*"]
    assert [r.tokens[i] for i in places] == ["S*"] * 3
    of_s = r.text_maps[:, :, places].astype(np.float32).sum(axis=2)
    assert np.allclose(of_s, r.subject_maps[:, :, 0], atol=5e-3)


def test_record_config_is_honoured(any_custom: CustomContrast, bear: Subject) -> None:
    full = any_custom.generate(PROMPT, bear, **FAST)
    some = any_custom.generate(PROMPT, bear, record=RecordConfig(steps=(1, 3), by_resolution=False), **FAST)
    none = any_custom.generate(PROMPT, bear, record=RecordConfig(maps=False), **FAST)
    assert same(full.images, some.images) and same(full.images, none.images), "recording never changes the picture"
    assert some.map_steps == [1, 3] and np.array_equal(some.text_maps, full.text_maps[:, [0, 2]])
    assert some.by_resolution == {} == none.by_resolution
    assert none.text_maps.size == 0 and np.array_equal(none.location_masks, full.location_masks)
    finest = max(full.by_resolution, key=lambda name: int(name.split("x")[0]))
    assert set(full.by_resolution[finest]) == {"text", "visual", "subject"}
    h, w = (int(x) for x in finest.split("x"))
    assert full.by_resolution[finest]["text"].shape == (1, len(full.tokens), h, w)


def test_ablations_generate(any_base: BaseModel, cutout: Callable[[int], Cutout]) -> None:
    for flags in ({"textual": False, "tv_fusion": False, "sink": False}, {"tv_fusion": False}, {"sink": False}):
        custom = CustomContrast.from_parts(any_base, random_adapter(any_base, **flags))
        subject = custom.subject(cutout(1), "bear")
        r = custom.generate(PROMPT, subject, num_inference_steps=2)
        assert r.visual_maps.shape[:3] == (1, 2, 1)
        if "sink" in flags:
            assert (r.visual_maps == 1).all(), "without a sink all the mass is on the subject"
        custom.generate(PROMPT, subject, num_inference_steps=2, record=RecordConfig(maps=False))


# ---- the stream --------------------------------------------------------------------------------------


def test_stream_yields_steps_and_the_result_last(any_custom: CustomContrast, bear: Subject) -> None:
    *steps, result = any_custom.stream(PROMPT, bear, preview_every=2, num_images=2, **FAST)
    assert all(isinstance(step, Step) for step in steps) and isinstance(result, Result)
    assert [(step.index, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [step.timestep for step in steps] == result.timesteps
    assert [step.preview is not None for step in steps] == [False, True, False]
    assert steps[1].preview.size == (128, 64), "two pictures side by side"
    assert np.array_equal(np.stack([step.masks for step in steps], axis=1), result.location_masks)
    assert any_custom.generate(PROMPT, **FAST).location_masks.shape[2] == 0
    assert set(result.seconds) == {"conditioning", "denoising", "decoding"}


def test_closing_the_stream_stops_it_and_leaves_no_trace(any_custom: CustomContrast, bear: Subject) -> None:
    wanted = any_custom.generate(PROMPT, bear, **FAST)
    stream = any_custom.stream(PROMPT, bear, **FAST)
    next(stream)
    assert torch.is_grad_enabled(), "between steps the caller's own gradient mode holds"
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert same(any_custom.generate(PROMPT, bear, **FAST).images, wanted.images)


@pytest.mark.parametrize("scheduler", ["dpm", "ddim", "euler", "unipc", "pndm", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_schedulers(any_custom: CustomContrast, bear: Subject, scheduler: str, guidance: float) -> None:
    r = any_custom.generate(PROMPT, bear, scheduler=scheduler, num_inference_steps=4, guidance_scale=guidance)
    assert len(r.timesteps) == r.location_masks.shape[1] == r.text_maps.shape[1] >= 4
    assert np.isfinite(r.location_masks).all() and pixels(r.images).std() > 0


def test_recipe_makes_the_picture_again(any_custom: CustomContrast, bear: Subject) -> None:
    first = any_custom.generate(PROMPT, bear, seed=11, negative_prompt="a red car", scheduler="dpm", **FAST)
    recipe = first.recipe
    names = ("negative_prompt", "num_inference_steps", "guidance_scale", "subject_scale", "seed", "height", "width")
    options = {name: recipe[name] for name in names} | {"location": LocationConfig(**recipe["location"])}
    again = any_custom.generate(recipe["prompt"], bear, scheduler=recipe["scheduler"], **options)
    assert same(first.images, again.images)


# ---- prompts, arguments, loading ---------------------------------------------------------------------


def test_long_and_empty_prompts(any_custom: CustomContrast, bear: Subject) -> None:
    long = any_custom.generate("a bear on the beach " + "red " * 2000, bear, num_inference_steps=1)
    assert long.truncated.startswith("red red") and "S*" in long.prompt
    assert any_custom.generate("", bear, num_inference_steps=1).prompt == "a bear S*"
    noted = any_custom.generate("on the beach", bear, num_inference_steps=1)
    assert noted.prompt == "a bear S* on the beach" and "'bear'" in noted.notes[0]
    assert any_custom.generate("", num_inference_steps=1).prompt == ""


def test_unknown_words(tiny_custom: CustomContrast, tiny_xl_base: BaseModel) -> None:
    assert tiny_custom.unknown_words("a Bear S* on the beach, wearing hats") == []
    assert tiny_custom.unknown_words("a bera S1* on Mars mars") == [("bera", "bear"), ("mars", "car")] or (
        tiny_custom.unknown_words("a bera S1* on Mars mars")[0][0] == "bera"
    )
    assert CustomContrast.from_parts(tiny_xl_base).unknown_words("xyzzy") == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"height": 65}, "height=65 must be a multiple of"),
        ({"width": 0}, "width=0"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": True}, "num_inference_steps=True"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"subject_scale": float("inf")}, "subject_scale=inf"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"num_images": 0}, "num_images=0"),
        ({"preview_every": -1}, "preview_every=-1"),
        ({"subjects": ["bear"]}, "subjects must come from"),
    ],
)
def test_wrong_arguments_are_named_at_once(tiny_custom: CustomContrast, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_custom.stream(PROMPT, **options)


def test_subject_wants_a_noun_a_picture_and_an_adapter(tiny_custom: CustomContrast, cutout: Callable) -> None:
    with pytest.raises(ValueError, match="class noun"):
        tiny_custom.subject(cutout(0), " <> ")
    with pytest.raises(ValueError, match="at least one segmentation"):
        tiny_custom.subject([], "bear")
    bear = tiny_custom.subject(cutout(0), "bear")
    with pytest.raises(ValueError, match="at most 4"):
        tiny_custom.stream(PROMPT, [bear] * 5)
    plain = CustomContrast.from_parts(tiny_custom.base)
    with pytest.raises(ValueError, match="no adapter is loaded"):
        plain.subject(cutout(0), "bear")
    with pytest.raises(ValueError, match="no adapter is loaded"):
        plain.stream(PROMPT, bear)
    assert plain.generate(PROMPT, num_inference_steps=1).images


def test_references_are_joined_along_tokens(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> None:
    one, two = any_custom.subject(cutout(2), "cat"), any_custom.subject([cutout(2), cutout(3)], "cat")
    assert one.features.shape == (1, 30, 32) and two.features.shape == (1, 60, 32)
    assert torch.allclose(two.features[:, :30], one.features, atol=1e-5)
    assert one.key != two.key and one.key == any_custom.subject(cutout(2), "dog").key


def test_four_subjects(any_custom: CustomContrast, cutout: Callable[[int], Cutout]) -> None:
    nouns = ["bear", "cat", "bird", "car"]
    subjects = [any_custom.subject(cutout(i), noun) for i, noun in enumerate(nouns)]
    r = any_custom.generate("a bear, a cat, a bird and a car", subjects, num_inference_steps=2)
    assert r.location_masks.shape[2] == 4
    assert r.prompt.count("*") == 4
    assert ((r.location_masks > 0).sum(axis=2) <= 1).all() or (r.location_masks == 1).any(), "one owner for each pixel"


def test_load_finds_the_adapter_beside_the_weights(
    tiny_folder: Path, tmp_path: Path, tiny_custom: CustomContrast
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_folder, folder)
    assert CustomContrast.load("toyland", weights=folder, device="cpu").adapter is None
    save_adapter(tiny_custom.adapter, folder / "adapter.safetensors", step=5)
    loaded = CustomContrast.load("toyland", weights=folder, device="cpu")
    assert loaded.adapter.metadata["step"] == 5
    subject = loaded.subject(Cutout(Image.new("RGB", (40, 40), "red")), "bear")
    mine = tiny_custom.subject(Cutout(Image.new("RGB", (40, 40), "red")), "bear")
    a, b = loaded.generate(PROMPT, subject, **FAST), tiny_custom.generate(PROMPT, mine, **FAST)
    assert same(a.images, b.images) and a.recipe["adapter"]["step"] == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["toyland", "sdxl"])
def test_half_precision(
    tiny_folder: Path, tiny_xl_folder: Path, cutout: Callable[[int], Cutout], name: str, dtype: torch.dtype
) -> None:
    folder = tiny_folder if name == "toyland" else tiny_xl_folder
    base = load_base(name, weights=folder, device="cpu", dtype=dtype)
    adapter = random_adapter(base)
    custom = CustomContrast.from_parts(base, adapter.to(dtype))
    r = custom.generate(
        "a bear and a cat", [custom.subject(cutout(i), n) for i, n in enumerate(("bear", "cat"))], **FAST
    )
    assert np.isfinite(r.location_masks).all() and np.isfinite(r.text_maps).all() and pixels(r.images).std() > 0
    mixed = CustomContrast.from_parts(base, random_adapter(base))  # a float32 adapter in training, on a half base
    assert mixed.generate(PROMPT, mixed.subject(cutout(1), "bear"), num_inference_steps=1).images


def test_a_subject_of_another_adapter_of_the_same_width_is_refused(
    tiny_custom: CustomContrast, cutout: Callable
) -> None:
    """Also where the adapter was moved or changed its type since; a copy of it is the same."""
    other = CustomContrast.from_parts(tiny_custom.base, random_adapter(tiny_custom.base, seed=9))
    subject = other.subject(cutout(1), "bear")
    with pytest.raises(ValueError, match="from another adapter"):
        tiny_custom.stream("a bear", subject)
    other.adapter.to(torch.bfloat16).to(torch.float32)
    copied = CustomContrast.from_parts(tiny_custom.base, random_adapter(tiny_custom.base, seed=9))
    for model in (other, copied):
        model.stream("a bear", subject)
