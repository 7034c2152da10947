"""Options that diffusers' users know: guidance_rescale, clip_skip and FreeU do what they do there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.errors import ConfigError
from customcontrast.integrations.diffusers_pipeline import CustomContrastPipeline
from customcontrast.output import Result
from customcontrast.pipeline import CustomContrast
from customcontrast.sampling import rescaled
from customcontrast.subject import Subject

PROMPT = "a bear on the beach"
FAST: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 6.0, "height": 64, "width": 64}


def watched() -> tuple[list[torch.Tensor], Callable]:
    """A list and what fills it, as `on_step`: the latents after each step."""
    kept: list[torch.Tensor] = []

    def keep(step: int, t: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, bool]:
        kept.append(z.clone())
        return z, True

    return kept, keep


@pytest.fixture(scope="module")
def stock(tiny_folder: Path, tiny_xl_folder: Path) -> Callable[..., torch.Tensor]:
    def draw(base: BaseModel, prepare: Callable = lambda pipe: None, **options: Any) -> torch.Tensor:
        if base.spec.pooled:
            pipe = StableDiffusionXLPipeline.from_pretrained(tiny_xl_folder, add_watermarker=False)
        else:
            pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
        pipe.set_progress_bar_config(disable=True)
        prepare(pipe)
        generator = torch.Generator().manual_seed(3)
        return pipe(PROMPT, generator=generator, output_type="latent", **FAST, **options).images

    return draw


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_guidance_rescale_is_that_of_diffusers(any_base: BaseModel, stock: Callable, share: float) -> None:
    model = CustomContrast(any_base)
    found = model.generate(PROMPT, seed=3, output_type="latent", guidance_rescale=share, **FAST).images
    assert torch.allclose(found, stock(any_base, guidance_rescale=share), atol=1e-5)
    plain = model.generate(PROMPT, seed=3, output_type="latent", **FAST)
    assert not torch.allclose(found, plain.images, atol=1e-3) and "guidance_rescale" not in plain.recipe
    pipe = CustomContrastPipeline.from_parts(any_base)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(PROMPT, seed=3, output_type="latent", guidance_rescale=share, **FAST).images, found)


@pytest.mark.parametrize("negative", [False, True])
def test_prompt_embeds_are_those_of_diffusers(any_base: BaseModel, stock: Callable, negative: bool) -> None:
    """Two encoded prompts that no text gives, with and without encoded texts to avoid, pooled ones on SDXL."""
    g = torch.Generator().manual_seed(0)
    widths = [encoder.config.hidden_size for encoder in any_base.text_encoders]
    shape = (2, any_base.tokenizers[0].model_max_length, sum(widths))
    given = {"prompt_embeds": torch.randn(shape, generator=g)}
    given |= {"negative_prompt_embeds": torch.randn(shape, generator=g)} if negative else {}
    if any_base.spec.pooled:
        pooled = (2, any_base.text_encoders[-1].config.projection_dim)
        names = [name.replace("prompt", "pooled_prompt") for name in given]
        given |= {name: torch.randn(pooled, generator=g) for name in names}
    options = FAST | given | {"output_type": "latent"}
    wanted = []

    def draw(pipe: Any) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        wanted.append(pipe(generator=generators, **options).images)

    stock(any_base, prepare=draw)
    pipe = CustomContrastPipeline.from_parts(any_base)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(seed=3, **options)
    assert torch.allclose(found.images, wanted[0], atol=1e-4)
    assert found.images.std() > 0.1 and not torch.allclose(found.images[0], found.images[1], atol=0.1)
    assert all("prompt_embeds" in result.notes[0] for result in found.results)
    assert torch.equal(pipe(PROMPT, seed=3, **FAST, output_type="latent").images, pipe.model.generate(
        PROMPT, seed=3, **FAST, output_type="latent").images), "the pipeline is what it was"  # fmt: skip


def test_prompt_embeds_that_are_not_taken(any_base: BaseModel, any_custom: CustomContrast, cutout: Callable) -> None:
    """With subjects, with the text too, of another shape, without its pooled part: one sentence each."""
    pipe, length = CustomContrastPipeline.from_parts(any_base), any_base.tokenizers[0].model_max_length
    embeds = torch.zeros(1, length, sum(encoder.config.hidden_size for encoder in any_base.text_encoders))
    xl = any_base.spec.pooled
    whole = {"prompt_embeds": embeds}
    if xl:
        whole["pooled_prompt_embeds"] = torch.zeros(1, any_base.text_encoders[-1].config.projection_dim)
    bear = any_custom.subject(cutout(), "bear")
    for given, says in (
        (whole | {"subjects": [bear]}, "cannot say where S\\* of the subjects stands; give the prompt as text"),
        (whole | {"prompt": PROMPT}, "prompt='a bear on the beach' came with prompt_embeds"),
        (whole | {"prompt_embeds": embeds[..., 1:]}, r"prompt_embeds=\(1, .*must be a tensor \(1, "),
        (whole | {"prompt_embeds": embeds[:, 1:]}, "negative_prompt_embeds=None must be a tensor with"),
        ({"negative_prompt_embeds": embeds}, "came without prompt_embeds"),
        ({"prompt_embeds": embeds} if xl else whole | {"pooled_prompt_embeds": embeds[0]}, "pooled_prompt_embeds"),
        ({}, "prompt=None must be text"),
    ):
        with pytest.raises(ValueError, match=says):
            pipe(**given)


def test_freeu_is_that_of_diffusers(any_base: BaseModel, stock: Callable) -> None:
    weights = {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
    pipe = CustomContrastPipeline.from_parts(any_base)
    pipe.set_progress_bar_config(disable=True)
    draw = lambda: pipe(PROMPT, seed=3, output_type="latent", **FAST).images  # noqa: E731
    plain = draw()
    pipe.enable_freeu(**weights)
    try:
        found = draw()
    finally:
        pipe.disable_freeu()
    wanted = stock(any_base, prepare=lambda stock_pipe: stock_pipe.enable_freeu(**weights))
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(draw(), plain)


def test_all_of_the_spread_comes_back() -> None:
    g = torch.Generator().manual_seed(0)
    mixed, half = 5 * torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
    assert torch.allclose(rescaled(mixed, half, 1.0).std(dim=(1, 2, 3)), half.std(dim=(1, 2, 3)))
    assert rescaled(mixed, half, 0.0) is mixed


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_reads_earlier_layers(any_base: BaseModel, skip: int) -> None:
    """diffusers' rule: hidden state −(skip + 1), normed; of SDXL −(skip + 2), not normed; the pooled text stays."""
    prompt = encode_prompt(any_base, PROMPT)
    found, plain = encode_contexts(any_base, [prompt], clip_skip=skip), encode_contexts(any_base, [prompt])
    parts = []
    for encoder, ids in zip(any_base.text_encoders, prompt.ids, strict=True):
        states = encoder(ids[None], output_hidden_states=True).hidden_states
        if any_base.spec.pooled:
            parts.append(states[-(skip + 2)])
        else:
            core = getattr(encoder, "text_model", encoder)
            parts.append(core.final_layer_norm(states[-(skip + 1)]))
        assert not torch.equal(states[-1], states[-2])
    assert torch.allclose(found.hidden[:, 0], torch.cat(parts, dim=-1), atol=1e-5)
    assert not torch.allclose(found.hidden, plain.hidden, atol=1e-3)
    assert (found.pooled is None) == (plain.pooled is None)
    assert found.pooled is None or torch.equal(found.pooled, plain.pooled)


def test_clip_skip_of_a_generation(tiny_xl_base: BaseModel, stock: Callable) -> None:
    """The negative prompt is read as always, as there."""
    model = CustomContrast(tiny_xl_base)
    options = FAST | {"negative_prompt": "a red car"}
    found = model.generate(PROMPT, seed=3, output_type="latent", clip_skip=1, **options).images
    assert torch.allclose(found, stock(tiny_xl_base, clip_skip=1, negative_prompt="a red car"), atol=1e-5)
    none = [model.generate(PROMPT, seed=3, output_type="latent", clip_skip=s, **options).images for s in (None, 0)]
    assert torch.equal(*none) and not torch.equal(none[0], found)


def test_clip_skip_with_a_subject(any_custom: CustomContrast, cutout: Callable) -> None:
    """The fast way of S+ contexts is for the base's own layer; with clip_skip each row is encoded in full."""
    subject = any_custom.subject(cutout(0), "bear")
    plain, skipped = (
        any_custom.generate(PROMPT, subject, seed=3, output_type="latent", clip_skip=skip, **FAST).images
        for skip in (None, 1)
    )
    assert skipped.isfinite().all() and not torch.allclose(plain, skipped, atol=1e-3)


@pytest.mark.parametrize(("wrong", "most"), [(9, "2 for base 'toyland'"), (-1, "100"), (0.5, "100"), (True, "100")])
def test_limits_of_clip_skip(tiny_custom: CustomContrast, wrong: object, most: str) -> None:
    """What no base takes is refused by the settings, what this base does not take by the run."""
    with pytest.raises(ConfigError, match=f"clip_skip={wrong!r} must be 0 to {most}"):
        tiny_custom.stream(PROMPT, clip_skip=wrong)


@pytest.mark.parametrize("wrong", [1.5, -0.1, "much", float("nan")])
def test_limits_of_guidance_rescale(tiny_custom: CustomContrast, wrong: Any) -> None:
    with pytest.raises(ValueError, match="guidance_rescale"):
        tiny_custom.stream(PROMPT, guidance_rescale=wrong)


def test_the_visual_branch_acts_in_its_steps_alone(tiny_custom: CustomContrast, cutout: Callable) -> None:
    """λ holds from subject_start to subject_end, shares of the steps, and is 0 elsewhere; passes of their own too."""
    pair = [tiny_custom.subject(cutout(seed), noun) for seed, noun in enumerate(("bear", "cat"))]

    def latents(apart: bool = False, **options: Any) -> list[torch.Tensor]:
        seen, keep = watched()
        run = {"num_inference_steps": 4, "on_step": keep, "output_type": "latent", "record": RecordConfig(maps=False)}
        location = LocationConfig(apart=apart)
        about = tiny_custom.generate("a bear and a cat", pair, location=location, **run | options).recipe
        assert ("subject_start" in about, "subject_end" in about) == (
            "subject_start" in options,
            "subject_end" in options,
        )
        return seen

    for apart in (False, True):
        on, off = latents(apart), latents(apart, subject_scale=0.0)
        early, late = latents(apart, subject_end=0.5), latents(apart, subject_start=0.5)
        assert torch.equal(early[1], on[1]) and not torch.equal(early[2], on[2])
        assert torch.equal(late[1], off[1]) and not torch.equal(late[2], off[2])


@pytest.mark.parametrize("cutoff", [{"cutoff_step_ratio": 0.5}, {"cutoff_step_ratio": None, "cutoff_step_index": 0}])
def test_official_callbacks_are_those_of_diffusers(any_base: BaseModel, stock: Callable, cutoff: dict) -> None:
    """After the cut-off there is no guidance, there as here; beside it another callback is called as ever."""
    official = (SDXLCFGCutoffCallback if any_base.spec.pooled else SDCFGCutoffCallback)(**cutoff)
    wanted = stock(any_base, callback_on_step_end=official)
    pipe = CustomContrastPipeline.from_parts(any_base)
    pipe.set_progress_bar_config(disable=True)
    draw = lambda **options: pipe(PROMPT, seed=3, output_type="latent", **FAST, **options)  # noqa: E731
    found, plain = draw(callback_on_step_end=official), draw()
    assert torch.allclose(found.images, wanted, atol=1e-5) and not torch.allclose(found.images, plain.images, atol=1e-4)
    end = found.results[0].recipe["guidance_end"]
    assert end == pytest.approx(1 / 3 if cutoff.get("cutoff_step_index") == 0 else 2 / 3)
    assert plain.results[0].recipe["guidance_end"] == 1
    seen: list[int] = []

    class Counts(PipelineCallback):
        tensor_inputs: ClassVar = ["latents"]

        def callback_fn(self, pipeline: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            seen.append(step)
            return kwargs

    both = MultiPipelineCallbacks([official, Counts()])
    assert torch.equal(draw(callback_on_step_end=both).images, found.images) and seen == [0, 1, 2]
    with pytest.raises(ValueError, match=r"callback_on_step_end_tensor_inputs=\['prompt_embeds'\] may name"):
        draw(callback_on_step_end=lambda *_: {}, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_the_official_callback_of_the_visual_branch(tiny_custom: CustomContrast, cutout: Callable) -> None:
    pipe = CustomContrastPipeline.from_parts(tiny_custom.base, tiny_custom.adapter)
    pipe.set_progress_bar_config(disable=True)
    options = FAST | {"subjects": pipe.subject(cutout(), "bear"), "seed": 3, "output_type": "latent"}
    official = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    found = pipe(PROMPT, callback_on_step_end=official, **options)
    assert torch.equal(found.images, pipe(PROMPT, subject_end=2 / 3, **options).images)
    assert not torch.equal(found.images, pipe(PROMPT, **options).images)


def test_guidance_ends(tiny_custom: CustomContrast, cutout: Callable) -> None:
    """Ended at once, a run is one without guidance; ended later, its first steps are as they were."""
    subjects = [tiny_custom.subject(cutout(k), noun) for k, noun in enumerate(("bear", "cat"))]

    def latents(**options: Any) -> list[torch.Tensor]:
        kept, keep = watched()
        apart = LocationConfig(apart=True)
        tiny_custom.generate("a bear and a cat", subjects, seed=1, on_step=keep, location=apart, **(FAST | options))
        return kept

    on, off = latents(), latents(guidance_scale=1.0)
    assert all(torch.equal(a, b) for a, b in zip(latents(guidance_end=0), off, strict=True))
    late = latents(guidance_end=0.67)
    assert torch.equal(late[1], on[1]) and not torch.allclose(late[2], on[2], atol=1e-3)


def test_guidance_on_subjects_is_away_from_the_prompt_without_them(
    any_custom: CustomContrast, cutout: Callable
) -> None:
    """The same prompt as a negative prompt does that in every step."""
    everywhere = LocationConfig(enabled=False)
    options = FAST | {"seed": 3, "output_type": "latent", "subject_scale": 1.3, "location": everywhere}
    subject = any_custom.subject(cutout(), "bear")
    draw = lambda **more: any_custom.generate("a bear S* on the beach", subject, **options | more).images  # noqa: E731
    wanted = draw(guidance_scale=5.0, negative_prompt="a bear on the beach")
    found = draw(guidance_scale=2.0, subject_guidance_scale=5.0, subject_guidance_end=1.0)
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(found, draw(), atol=1e-3)
    assert torch.equal(draw(guidance_scale=5.0, subject_guidance_end=1.0), found)  # without a scale of its own
    for off in ({"guidance_scale": 1.0}, {"guidance_end": 0.0}):
        assert torch.equal(draw(subject_guidance_end=1.0, **off), draw(**off))
    alone = any_custom.generate("a bear on the beach", subject_guidance_end=1.0, **options).images
    assert torch.equal(alone, any_custom.generate("a bear on the beach", **options).images)


def test_guidance_on_subjects_comes_first(tiny_custom: CustomContrast, cutout: Callable) -> None:
    """Up to its share of the steps, and then guidance is as ever; in passes of their own too."""
    pair = [tiny_custom.subject(cutout(seed), noun) for seed, noun in enumerate(("bear", "cat"))]

    def latents(apart: bool, **options: Any) -> list[torch.Tensor]:
        kept, keep = watched()
        more = {"on_step": keep, "location": LocationConfig(apart=apart), "subject_guidance_scale": 5.0}
        about = tiny_custom.generate("a bear and a cat", pair, seed=1, **FAST | more | options).recipe
        assert about["subject_guidance_scale"] == 5.0
        assert about["subject_guidance_end"] == options.get("subject_guidance_end", 0.0)
        return kept

    for apart in (False, True):
        off, part, whole = latents(apart), *(latents(apart, subject_guidance_end=share) for share in (0.67, 1.0))
        assert torch.equal(part[0], off[0])  # there are no location masks yet
        assert torch.equal(part[1], whole[1]) and not torch.allclose(part[1], off[1], atol=1e-3)
        assert not torch.allclose(part[2], whole[2], atol=1e-3)


def test_guidance_on_a_subject_acts_where_it_is(tiny_custom: CustomContrast, cutout: Callable) -> None:
    """p + (1 + (w − 1) M)(s − p) in the place that was drawn for it: linear in w, and s outside of the mask M."""
    subject = tiny_custom.subject(cutout(), "bear").placed(box=(0, 0, 0.5, 1))
    options = FAST | {"seed": 1, "output_type": "latent", "on_step": lambda step, t, z: (z, False)}  # one step

    def first(subject: Subject, scale: float) -> Result:
        more = {"subject_guidance_scale": scale, "subject_guidance_end": 1.0}
        return tiny_custom.generate("a bear", subject, **options | more)

    unguided, doubled, more = (first(subject, scale) for scale in (1.0, 2.0, 4.0))
    M = torch.from_numpy(unguided.location_masks[0, 0]).float()[None]
    M = F.interpolate(M, unguided.images.shape[-2:], mode="bilinear", antialias=True)
    once, thrice = doubled.images - unguided.images, more.images - unguided.images
    assert torch.allclose(thrice, 3 * once, atol=1e-4) and float(once.abs().mean()) > 1e-3
    outside = (M == 0).expand_as(once)
    assert outside.any() and float(once[outside].abs().max()) == 0.0
    free = subject.placed(location=False)  # it may be anywhere, and so may its guidance
    anywhere = first(free, 2.0).images - first(free, 1.0).images
    assert float(anywhere[outside].abs().mean()) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"guidance_end": 1.5},
        {"subject_guidance_end": -0.5},
        {"subject_guidance_scale": "much"},
        {"guidance_end": "late"},
        {"subject_start": -0.1},
        {"subject_end": 2},
        {"subject_start": 0.5, "subject_end": 0.5},
    ],
)
def test_limits_of_the_steps_of_the_visual_branch(tiny_custom: CustomContrast, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        tiny_custom.stream(PROMPT, **wrong)
