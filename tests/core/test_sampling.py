"""sampling: seeds, schedulers, and the picture a step foresees."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from customcontrast.base_model import BaseModel
from customcontrast.config import RecordConfig
from customcontrast.pipeline import CustomContrast
from customcontrast.sampling import (
    FITTING,
    SCHEDULERS,
    make_scheduler,
    predicted_x0,
    side_by_side,
    starting_noise,
    to_pictures,
)


@pytest.mark.parametrize("name", [None, *SCHEDULERS, "DEISMultistepScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_scheduler_keeps_the_base_config(name: str | None, prediction: str) -> None:
    own = DDIMScheduler(prediction_type=prediction, beta_end=0.03, steps_offset=1)
    made = make_scheduler(own, name)
    assert made is not own
    assert (made.config.prediction_type, made.config.beta_end) == (prediction, 0.03)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_are_clipped_only_where_the_base_says_so(name: str) -> None:
    own = DPMSolverMultistepScheduler(prediction_type="v_prediction")  # says nothing of clipping
    assert not make_scheduler(own, name).config.get("clip_sample", False)
    if name in ("ddim", "ddpm"):
        assert make_scheduler(DDIMScheduler(clip_sample=True), name).config.clip_sample


def test_dpm_is_told_whether_to_draw_noise_whatever_the_base_does() -> None:
    for kind in ("dpmsolver++", "sde-dpmsolver++"):
        own = DPMSolverMultistepScheduler(prediction_type="v_prediction", algorithm_type=kind)
        types = [make_scheduler(own, name).config.algorithm_type for name in (None, "dpm", "dpm_sde")]
        assert types == [kind, "dpmsolver++", "sde-dpmsolver++"]


def test_unknown_scheduler_lists_the_known() -> None:
    for name in ("magic", "AutoencoderKL"):
        with pytest.raises(ValueError, match="ddim, ddpm, dpm"):
            make_scheduler(DDIMScheduler(), name)


def test_each_picture_has_its_own_seed() -> None:
    def noise(*seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return starting_noise(generators, 4, (8, 12), torch.device("cpu"), torch.float32)

    assert torch.equal(noise(3, 4, 5), torch.cat([noise(3), noise(4), noise(5)]))


CASES = [(name, kind) for name in ("ddim", "dpm", "unipc", "euler") for kind in ("epsilon", "v_prediction", "sample")]


@pytest.mark.parametrize(("name", "prediction"), [*CASES, ("pndm", "epsilon"), ("pndm", "v_prediction")])
def test_foreseen_latents_of_a_perfect_model(name: str, prediction: str) -> None:
    """If the prediction is exact, the foreseen latents are the clean ones at every step."""
    own = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler = make_scheduler(own, name)
    scheduler.set_timesteps(5)
    torch.manual_seed(0)
    clean, noise = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    t = scheduler.timesteps[0]
    alpha = own.alphas_cumprod[int(t)].sqrt()
    sigma = (1 - alpha**2).sqrt()
    z = alpha * clean + sigma * noise
    if name == "euler":
        z = z / alpha  # its latents are not scaled back
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}[prediction]
    if name == "euler":
        scheduler.scale_model_input(z, t)
    foreseen = predicted_x0(scheduler, scheduler.step(target, t, z), target, t, z)
    assert torch.allclose(foreseen, clean, atol=2e-3)


def test_pictures_from_pixels() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(1, 1, 1, 4).expand(2, 3, 1, 4)
    pictures = to_pictures(pixels)
    assert len(pictures) == 2 and [pictures[0].getpixel((x, 0))[0] for x in range(4)] == [0, 0, 128, 255]
    assert side_by_side(pictures).size == (8, 1)


EVERY = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))


@pytest.mark.parametrize("own", ["ddim", "sde-dpmsolver++"])
def test_every_class_of_diffusers_works_or_is_refused_in_a_sentence(tiny_base: BaseModel, own: str) -> None:
    scheduler = tiny_base.scheduler
    if own != "ddim":
        told = {"algorithm_type": own, "timestep_spacing": "trailing"}
        scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, **told)
    custom, worked = CustomContrast(replace(tiny_base, scheduler=scheduler)), set()
    options = {"num_inference_steps": 6, "record": RecordConfig(maps=False), "output_type": "latent"}
    for name in EVERY:
        try:
            latents = custom.generate("a cat", scheduler=name, **options).images
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            assert torch.isfinite(latents).all(), name
            worked.add(name)
    assert worked >= FITTING - {"DPMSolverSDEScheduler", "PNDMScheduler"} and len(worked) < len(EVERY) / 2


def test_too_few_steps_for_a_scheduler_get_a_sentence(tiny_base: BaseModel) -> None:
    told = {"timestep_spacing": "trailing"}
    custom = CustomContrast(replace(tiny_base, scheduler=DDIMScheduler.from_config(tiny_base.scheduler.config, **told)))
    with pytest.raises(ValueError, match="num_inference_steps=3"):
        custom.stream("a cat", scheduler="pndm", num_inference_steps=3)
