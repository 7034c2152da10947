"""Properties that a generation has on each of the three bases: diffusers' and transformers' classes at toy width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.output import Result
from customcontrast.pipeline import CustomContrast, Subject
from tests.conftest import Cutout
from tests.support.threads import at_once
from tests.support.tiny_models import LENGTH, random_adapter, save_tiny_sd15

ONE, TWO = "a bear on the beach", "a bear S1* and a cat S2*"


RUN = {"num_inference_steps": 3, "guidance_scale": 4.0, "seed": 7}


OFF = LocationConfig(enabled=False)


NO_MAPS = RecordConfig(maps=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_xl_folder: Path) -> dict[str, Path]:
    sd15 = tmp_path_factory.mktemp("sd15")
    save_tiny_sd15(sd15)
    return {"toyland": tiny_folder, "sd15": sd15, "sdxl": tiny_xl_folder}


@pytest.fixture(scope="module", params=["toyland", "sd15", "sdxl"])
def base(request: pytest.FixtureRequest, folders: dict[str, Path]) -> BaseModel:
    return load_base(request.param, weights=folders[request.param], device="cpu")


@pytest.fixture(scope="module")
def custom(base: BaseModel) -> CustomContrast:
    return CustomContrast.from_parts(base, random_adapter(base))


@pytest.fixture(scope="module")
def bear(custom: CustomContrast, cutout: Callable[[int], Cutout]) -> Subject:
    return custom.subject(cutout(1), "bear")


@pytest.fixture(scope="module")
def cat(custom: CustomContrast, cutout: Callable[[int], Cutout]) -> Subject:
    return custom.subject([cutout(2), cutout(3)], "cat")


def pixels(result: Result | list) -> np.ndarray:
    images = result.images if isinstance(result, Result) else result
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def apart(a: Result | list, b: Result | list) -> int:
    """The largest difference between two results' pixels, of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


@pytest.mark.parametrize("images", [1, 2])
def test_lambda_zero_without_s_star_is_the_base_pipeline(
    base: BaseModel, folders: dict[str, Path], cutout: Callable[[int], Cutout], images: int
) -> None:
    """Bit for bit, with a subject at λ = 0 whose adapter puts no S* into the prompt, and without any subject."""
    pipeline = StableDiffusionXLPipeline if base.spec.pooled else StableDiffusionPipeline
    pipe = pipeline.from_pretrained(folders[base.name])
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.unet, pipe.vae):
        model.requires_grad_(False)  # PyTorch picks other convolution kernels for weights that may want gradients
    generators = [torch.Generator().manual_seed(RUN["seed"] + i) for i in range(images)]
    options = {name: value for name, value in RUN.items() if name != "seed"}
    wanted = pipe(ONE, height=64, width=96, generator=generators, num_images_per_prompt=images, **options).images

    custom = CustomContrast.from_parts(base, random_adapter(base, textual=False, tv_fusion=False))
    subject = custom.subject(cutout(1), "bear")
    options = RUN | {"height": 64, "width": 96, "num_images": images}
    assert apart(custom.generate(ONE, subject, subject_scale=0.0, **options), wanted) == 0
    assert apart(custom.generate(ONE, replace(subject, strength=0.0), record=NO_MAPS, **options), wanted) == 0
    assert apart(custom.generate(ONE, **options), wanted) == 0
    assert apart(custom.generate(ONE, subject, **options), wanted) > 0


def test_a_large_lambda_changes_the_picture(custom: CustomContrast, bear: Subject) -> None:
    results = [custom.generate(ONE, bear, subject_scale=scale, **RUN) for scale in (0.0, 1.0, 8.0)]
    without, one, eight = (np.asarray(result.images[0], np.float32) for result in results)
    assert apart(results[0], results[1]) > 0
    assert np.abs(eight - without).mean() > max(1.0, np.abs(one - without).mean())


def test_swapped_slots_swap_the_maps(custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    a = custom.generate(TWO, [bear, cat], **RUN)
    b = custom.generate("a bear S2* and a cat S1*", [cat, bear], **RUN)
    assert apart(a, b) <= 1
    for kind in ("location_masks", "visual_maps", "subject_maps"):
        x, y = (getattr(result, kind).astype(np.float32) for result in (a, b))
        assert np.allclose(x, y[:, :, ::-1], atol=3e-3)
    assert not np.allclose(a.visual_maps[:, :, 0], a.visual_maps[:, :, 1], atol=1e-2)


def test_a_mask_of_ones_changes_nothing(custom: CustomContrast, bear: Subject) -> None:
    free = custom.generate(ONE, bear, location=OFF, record=NO_MAPS, subject_scale=3.0, **RUN)
    ones = custom.generate(ONE, bear.placed(mask=np.ones((2, 3))), record=NO_MAPS, subject_scale=3.0, **RUN)
    assert apart(free, ones) <= 1
    assert apart(free, custom.generate(ONE, bear.placed(box=(0, 0, 0.4, 0.4)), subject_scale=3.0, **RUN)) > 1


def test_a_mask_of_zeros_removes_the_subject(custom: CustomContrast, bear: Subject) -> None:
    """The branch alone with mask_text off; with it on, S* leaves the text as well, whatever the subject is."""
    nowhere, branch_only = np.zeros((2, 3)), LocationConfig(mask_text=False)
    options = RUN | {"record": NO_MAPS}
    zeros = custom.generate(ONE, bear.placed(mask=nowhere), location=branch_only, subject_scale=3.0, **options)
    assert apart(zeros, custom.generate(ONE, bear, location=OFF, subject_scale=0.0, **options)) <= 1
    both = custom.generate(ONE, bear.placed(mask=nowhere), subject_scale=3.0, **options)
    assert apart(zeros, both) > 1


def test_the_other_subject_fills_a_slot_that_is_masked_out(custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    """Two subjects, one of them nowhere: its λ makes no difference any more."""
    gone = [bear.placed(box=(0, 0, 1, 1)), cat.placed(mask=np.zeros((2, 2)))]
    loud = [gone[0], replace(gone[1], strength=9.0)]
    options = RUN | {"record": NO_MAPS}
    assert apart(custom.generate(TWO, gone, **options), custom.generate(TWO, loud, **options)) == 0
    loud = [replace(gone[0], strength=9.0), gone[1]]
    assert apart(custom.generate(TWO, gone, **options), custom.generate(TWO, loud, **options)) > 0


def test_a_batch_is_its_runs(custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    placed = [bear.placed(box=(0, 0, 0.5, 1)), cat]
    together = custom.generate(TWO, placed, num_images=3, **RUN)
    for i in range(3):
        alone = custom.generate(TWO, placed, **RUN | {"seed": RUN["seed"] + i})
        assert apart(alone, together.images[i : i + 1]) <= 1
        for kind in ("location_masks", "text_maps", "visual_maps"):
            assert np.allclose(getattr(alone, kind)[0], getattr(together, kind)[i], atol=3e-3)


def test_a_seed_is_a_picture_whatever_ran_before(custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    first = custom.generate(ONE, bear, **RUN)
    custom.generate("a cat in a city", cat.placed(box=(0, 0, 0.3, 1)), num_inference_steps=2, seed=1, height=96)
    custom.generate("a red car", num_inference_steps=2, num_images=2)
    custom.generate(ONE, bear, record=RecordConfig(layers=(0,), looked_at=True), **RUN | {"num_inference_steps": 2})
    for again in (custom, CustomContrast.from_parts(custom.base, custom.adapter)):
        result = again.generate(ONE, bear, **RUN)
        assert apart(first, result) == 0 and np.array_equal(first.location_masks, result.location_masks)


def test_threads_with_different_subjects_do_not_meet(custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    fresh = CustomContrast.from_parts(custom.base, custom.adapter)
    jobs = [(ONE, bear), (ONE.replace("bear", "cat"), cat), (ONE, bear.placed(box=(0, 0, 0.5, 0.5)))]
    alone = [custom.generate(prompt, subject, **RUN) for prompt, subject in jobs]
    found = at_once(lambda i: fresh.generate(*jobs[i], **RUN), len(jobs))
    for i, wanted in enumerate(alone):
        assert apart(found[i], wanted) == 0
        assert np.array_equal(found[i].location_masks, wanted.location_masks)
        assert np.array_equal(found[i].visual_maps, wanted.visual_maps)
    assert len({pixels(result).tobytes() for result in found}) == 3


def test_masks_of_512_by_768(custom: CustomContrast, bear: Subject, cat: Subject) -> None:
    height, width = 512, 768
    box = (0, 0, width // 2, height)  # in pixels: the left half
    placed = [bear.placed(box=box), cat]
    options = {"height": height, "width": width, "num_inference_steps": 1, "guidance_scale": 1.0}
    r = custom.generate(TWO, placed, **options)
    f = custom.base.scale_factor << min(layer.level for layer in custom.base.cross_attention_layers)
    assert r.images[0].size == (width, height)
    assert r.location_masks.shape == (1, len(r.timesteps), 2, height // f, width // f)
    drawn = np.zeros((height // f, width // f), np.float32)
    drawn[:, : width // f // 2] = 1
    assert np.array_equal(r.location_masks[0, 0, 0], drawn)
    assert (r.location_masks[0, :, 1] * drawn).max() == 0 and r.location_masks[0, :, 1].max() > 0
    assert r.text_maps.shape[-2:] == drawn.shape and r.text_maps.shape[2] == len(r.tokens) < LENGTH
    sizes = {tuple(int(side) for side in name.split("x")) for name in r.by_resolution}
    assert all(abs(h / w - height / width) < 0.05 for h, w in sizes)
