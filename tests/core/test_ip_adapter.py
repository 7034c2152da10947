"""ip_adapter: public files through Eq. 3 give what diffusers' own pipelines give, and what masks and roles add."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from customcontrast.adapter_files import load_adapter, read_metadata, save_adapter
from customcontrast.attention import MapRecorder, aggregate, install_processors, slice_attention, unet_forward
from customcontrast.attention.layers import layer_scales
from customcontrast.base_model import BaseModel, load_base
from customcontrast.conditioning.text_context import TextContext, encode_prompt, subject_state
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.errors import CheckpointError
from customcontrast.integrations.diffusers_pipeline import CustomContrastPipeline
from customcontrast.ip_adapter import (
    BIG_G,
    ROLE_BLOCKS,
    VIT_H,
    IPAdapter,
    IPAdapterConfig,
    published_names,
    role_scales,
)
from customcontrast.pipeline import CustomContrast, Subject
from customcontrast.sampling import make_scheduler
from customcontrast.subject import WholePicture
from tests.conftest import Cutout
from tests.support.ip_files import KINDS, file_shapes, random_ip_file
from tests.support.tiny_models import random_adapter
from train.common.true_models import base_model as true_base
from train.common.true_models import unet as true_unet

PROMPT = "a bear on the beach"
OPEN = LocationConfig(enabled=False)  # as the published adapter: no masks
FAST: dict[str, Any] = {
    "num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent", "scheduler": "ddim", "subject_scale": 1.0,
}  # fmt: skip
BASES = ("toyland", "sdxl")


@pytest.fixture(scope="module")
def files(tiny_base: BaseModel, tiny_xl_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A file of every kind for each tiny base."""
    folder, made = tmp_path_factory.mktemp("ip"), {}
    for name, base in (("toyland", tiny_base), ("sdxl", tiny_xl_base)):
        for kind in KINDS:
            path = folder / f"{name}-{kind}.safetensors"
            made[name, kind] = random_ip_file(path, kind, base.unet, base.image_encoder.config)
    return made


@pytest.fixture(scope="module")
def models(tiny_base: BaseModel, tiny_xl_base: BaseModel, files: dict) -> dict[tuple[str, str], CustomContrast]:
    bases = {"toyland": tiny_base, "sdxl": tiny_xl_base}
    return {key: CustomContrast(bases[key[0]], load_adapter(file, bases[key[0]])) for key, file in files.items()}


@pytest.fixture(scope="module")
def stock(tiny_folder: Path, tiny_xl_folder: Path) -> Callable[..., torch.Tensor]:
    """diffusers' own pipeline with its own `load_ip_adapter`: final latents."""

    pipes = {
        "toyland": StableDiffusionPipeline.from_pretrained(tiny_folder),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(tiny_xl_folder, add_watermarker=False),
    }

    def draw(name: str, file: Path, pictures: list, scale: Any, z: torch.Tensor, **options: Any) -> torch.Tensor:
        pipe = pipes[name]
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = make_scheduler(pipe.scheduler, "ddim")
        pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
        pipe.set_ip_adapter_scale(scale)
        f = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        given = {"num_inference_steps": 3, "guidance_scale": 5.0} | options
        return pipe(
            PROMPT,
            ip_adapter_image=[pictures] if len(pictures) > 1 else pictures[0],
            num_images_per_prompt=len(z),
            latents=z.clone(),
            height=z.shape[-2] * f,
            width=z.shape[-1] * f,
            output_type="latent",
            **given,
        ).images

    return draw


def noise(base: BaseModel, images: int = 2) -> torch.Tensor:
    size = (16, 12) if base.spec.pooled else (8, 12)
    return torch.randn(images, base.latent_channels, *size, generator=torch.Generator().manual_seed(5))


def run(model: CustomContrast, subjects: Any, z: torch.Tensor, prompt: str = PROMPT, **options: Any) -> Any:
    f = model.base.scale_factor
    given = FAST | {"latents": z, "num_images": len(z), "height": z.shape[-2] * f, "width": z.shape[-1] * f} | options
    return model.generate(prompt, subjects, **given)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


# ---- the same numbers as diffusers --------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(
    ("kind", "references", "scale"),
    [("plus", 1, 1.0), ("plus", 2, 0.7), ("pooled", 1, 0.5), ("pooled", 2, 1.0), ("full", 1, 0.6)],
)
def test_it_is_diffusers_own_pipeline(
    models: dict, files: dict, stock: Callable, cutout: Callable, name: str, kind: str, references: int, scale: float
) -> None:
    """Batch of two, non-square, classifier-free guidance; recorded, since recording changes nothing."""
    model, cutouts = models[name, kind], [cutout(i) for i in range(references)]
    z = noise(model.base)
    wanted = stock(name, files[name, kind], [c.on_plain() for c in cutouts], scale, z)
    subject = model.subject(cutouts, "bear")
    found = run(model, subject, z, location=OPEN, subject_scale=scale).images
    assert gap(found, wanted) < 1e-4
    assert gap(run(model, subject, z, location=OPEN, subject_scale=0.0).images, wanted) > 0.5, "the picture acts"


@pytest.mark.parametrize("name", BASES)
def test_what_must_not_be_the_same(models: dict, files: dict, stock: Callable, cutout: Callable, name: str) -> None:
    """No picture in the unconditional half, the last hidden state, layers in another order: each is another result."""
    model = models[name, "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    wanted = stock(name, files[name, "plus"], [cutout(0).on_plain()], 1.0, z)
    own, adapter = model.adapter, load_adapter(files[name, "plus"], model.base)

    adapter.nothing = lambda base: None
    assert gap(run(CustomContrast(model.base, adapter), subject, z, location=OPEN).images, wanted) > 0.1

    pixels = model.base.image_processor(images=[cutout(0).on_plain()], return_tensors="pt")["pixel_values"]
    last = own.image_proj(model.base.image_encoder(pixels, output_hidden_states=True).hidden_states[-1])
    assert gap(run(model, replace(subject, features=last, key="last"), z, location=OPEN).images, wanted) > 1e-3

    order = [name for name in model.base.unet.attn_processors if name.endswith("attn2.processor")]
    listed = [layer.removesuffix(".processor") for layer in order]
    assert listed != model.base.cross_attention_names, "down, up, mid is not the order of execution"


def test_layers_keep_their_published_numbers(models: dict) -> None:
    """i counts `unet.attn_processors`, whatever the order of execution."""
    for (name, kind), model in models.items():
        listed, names = list(model.base.unet.attn_processors), published_names(model.adapter)
        for at, layer in enumerate(model.base.cross_attention_names):
            i = listed.index(f"{layer}.processor")
            assert names[f"ip_adapter.{i}.to_k_ip.weight"] == f"to_k.{at}.weight", (name, kind)


@pytest.mark.parametrize("name", BASES)
def test_saved_it_is_read_by_diffusers(
    models: dict, stock: Callable, cutout: Callable, tmp_path: Path, name: str
) -> None:
    model = models[name, "plus"]
    file = save_adapter(model.adapter, tmp_path / "again.safetensors", note="mine")
    z = noise(model.base, 1)
    found = run(model, model.subject(cutout(0), "bear"), z, location=OPEN).images
    assert gap(stock(name, file, [cutout(0).on_plain()], 1.0, z), found) < 1e-4
    again = load_adapter(file, model.base)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.adapter.parameters(), strict=True))
    assert (again.metadata["note"], again.metadata["kind"]) == ("mine", "plus")
    assert str(tmp_path) not in file.read_bytes().decode("latin-1"), "no path of this machine"


# ---- published sizes -----------------------------------------------------------------------------------


def file_bytes(shapes: dict[str, tuple]) -> int:
    """Size of a safetensors file of these half-precision tensors: length, header padded to eight, data."""
    header, at = {}, 0
    for name in sorted(shapes):
        size = 2 * int(np.prod(shapes[name]))
        header[name] = {"dtype": "F16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
        at += size
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + at


VIT_H_CONFIG = SimpleNamespace(hidden_size=1280, projection_dim=1024)


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "tensors", "parameters", "size"),
    [
        ("sd15", "plus", {"dim": 768, "heads": 12}, 83, 49_087_488, 98_183_288),
        ("sdxl", "plus", {"dim": 1280, "heads": 20}, 191, 423_748_864, 847_517_512),
        ("sd15", "pooled", {}, 36, None, 44_642_768),
        ("sdxl", "pooled", {}, 144, None, 698_391_064),
        ("sd15", "full", {}, 38, None, 43_592_352),
    ],
)
def test_the_published_files_have_our_shapes(
    name: str, kind: str, sizes: dict, tensors: int, parameters: int | None, size: int
) -> None:
    """Shapes from the key tables, bytes of the files on the hub, and the modules they are loaded into."""
    with torch.device("meta"):
        unet = true_unet(name)
    shapes = file_shapes(kind, unet, VIT_H_CONFIG, **sizes)
    assert len(shapes) == tensors
    assert parameters is None or sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    assert file_bytes(shapes) == size
    config = IPAdapterConfig.from_shapes(shapes, "file")
    with torch.device("meta"):
        adapter = IPAdapter(config, install_processors(unet), name)
    own = {published: tuple(weight.shape) for published, weight in adapter.published().items()}
    assert own == shapes
    assert config.image_encoder == VIT_H


def test_where_execution_meets_the_published_numbers() -> None:
    """SD-1.5: i = 31 is the middle block, l 6. SDXL: 121 to 139 are l 24 to 33."""
    wanted = {
        "sd15": [(range(1, 12, 2), range(0, 6)), (range(13, 30, 2), range(7, 16)), ([31], [6])],
        "sdxl": [
            (range(1, 8, 2), range(0, 4)), (range(9, 48, 2), range(4, 24)), (range(49, 108, 2), range(34, 64)),
            (range(109, 120, 2), range(64, 70)), (range(121, 140, 2), range(24, 34)),
        ],
    }  # fmt: skip
    for name, pairs in wanted.items():
        with torch.device("meta"):
            unet = true_unet(name)
            sizes = {"dim": 64, "heads": 1, "queries": 1, "depth": 1}
            config = IPAdapterConfig.from_shapes(file_shapes("plus", unet, VIT_H_CONFIG, **sizes), "file")
            names = published_names(IPAdapter(config, install_processors(unet)))
        for published, places in pairs:
            for i, at in zip(published, places, strict=True):
                assert names[f"ip_adapter.{i}.to_v_ip.weight"] == f"to_v.{at}.weight", name


# ---- what must hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_lambda_zero_is_the_base_to_the_bit(models: dict, cutout: Callable, name: str) -> None:
    model = models[name, "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    wanted = run(model, (), z).images
    assert torch.equal(run(model, subject, z, subject_scale=0.0).images, wanted)
    zero = model.subject(cutout(0), "bear", layer_scales={0: 0.0})
    assert torch.equal(run(model, zero, z).images, wanted)


@pytest.mark.parametrize("name", BASES)
def test_masks_of_ones_are_no_masks(models: dict, cutout: Callable, name: str) -> None:
    model = models[name, "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    ones = subject.placed(mask=np.ones((4, 4), bool))
    assert gap(run(model, ones, z).images, run(model, subject, z, location=OPEN).images) < 1e-5


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("apart", [False, True])
def test_recording_changes_nothing(models: dict, cutout: Callable, name: str, apart: bool) -> None:
    model = models[name, "plus"]
    z, location = noise(model.base), LocationConfig(apart=apart)
    two = [model.subject(cutout(0), "bear"), model.subject(cutout(1), "cat")]
    options = {"prompt": "a bear and a cat", "location": location}
    seen = run(model, two, z, record=RecordConfig(looked_at=True), **options)
    unseen = run(model, two, z, record=RecordConfig(maps=False), **options)
    assert torch.equal(seen.images, unseen.images)
    assert np.array_equal(seen.location_masks, unseen.location_masks)
    assert seen.location_masks.shape[2] == 2 and seen.looked_at == []


def test_the_noun_says_where_the_subject_is(models: dict, cutout: Callable) -> None:
    model = models["toyland", "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    result = run(model, subject, z)
    assert result.prompt == PROMPT and "S*" not in result.tokens
    places = dict(result.words)["bear"]
    mass = result.text_maps[:, :, places].astype(np.float32).sum(axis=2)
    assert np.allclose(mass, result.subject_maps[:, :, 0], atol=5e-3)
    assert (result.visual_maps == 1).all(), "without a null key all mass is on the picture"
    masks = result.location_masks
    assert masks.shape[:3] == (2, 3, 1) and masks.max() == 1 and masks.min() == 0
    assert not torch.equal(result.images, run(model, subject, z, location=OPEN).images), "masks act"


def test_the_text_of_a_noun_is_never_masked(models: dict, cutout: Callable) -> None:
    model = models["toyland", "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    on, off = (run(model, subject, z, location=LocationConfig(mask_text=m)).images for m in (True, False))
    assert torch.equal(on, off)


def test_both_halves_are_masked_alike(models: dict, cutout: Callable) -> None:
    """Outside the mask nothing of either picture is left, so guidance is the text's alone there."""
    model = models["toyland", "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    nowhere = subject.placed(mask=np.zeros((4, 4), bool))
    assert torch.equal(run(model, nowhere, z).images, run(model, (), z).images)
    one_half = run(model, nowhere, z, location=LocationConfig(mask_unconditional=False)).images
    assert gap(one_half, run(model, (), z).images) > 0.1


def test_maps_are_brought_to_one_scale_before_their_average(models: dict, cutout: Callable) -> None:
    model = models["toyland", "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    default, layer, raw = (run(model, subject, z, location=LocationConfig(normalize=n)) for n in (None, "layer", "raw"))
    assert torch.equal(default.images, layer.images) and default.recipe["location"]["normalize"] == "layer"
    assert not np.allclose(layer.location_masks, raw.location_masks, atol=1e-3)
    assert np.array_equal(layer.text_maps[:, 0], raw.text_maps[:, 0]), "the maps that are shown stay as they are"
    ours = CustomContrast(model.base, random_adapter(model.base))
    recipe = run(ours, ours.subject(cutout(0), "bear"), z).recipe
    assert recipe["location"]["normalize"] == "raw"


def test_without_guidance_there_is_no_unconditional_half(models: dict, cutout: Callable) -> None:
    model = models["toyland", "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    found = run(model, subject, z, guidance_scale=1.0, location=OPEN).images
    assert found.isfinite().all() and gap(found, run(model, (), z, guidance_scale=1.0).images) > 0.1


def test_guidance_on_a_subject_is_away_from_the_text_with_no_picture(models: dict, cutout: Callable) -> None:
    """As the same text as a negative prompt, whose half sees the picture of nothing too."""
    model = models["toyland", "plus"]
    subject, z = model.subject(cutout(), "bear"), noise(model.base)
    options = {"location": LocationConfig(enabled=False), "guidance_scale": 3.0}
    found = run(model, subject, z, subject_guidance_end=1.0, **options).images
    assert gap(found, run(model, subject, z, negative_prompt=PROMPT, **options).images) < 1e-4
    assert gap(found, run(model, subject, z, **options).images) > 5e-3


def test_two_subjects_each_in_its_place(models: dict, cutout: Callable) -> None:
    """Drawn side by side: places matter, the order of the list does not."""
    model = models["toyland", "plus"]
    z = noise(model.base, 1)
    left, right = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    bear, cat = model.subject(cutout(0), "bear").placed(left), model.subject(cutout(1), "cat").placed(right)
    swapped = [bear.placed(right), cat.placed(left)]
    for apart in (False, True):
        location = LocationConfig(apart=apart)
        a = run(model, [bear, cat], z, "a bear and a cat", location=location)
        b = run(model, swapped, z, "a bear and a cat", location=location)
        assert a.location_masks.shape[2] == 2 and gap(a.images, b.images) > 5e-3
        again = run(model, [cat, bear], z, "a bear and a cat", location=location)
        assert gap(again.images, a.images) < 1e-4, "their order is no matter"


def test_one_model_takes_other_image_tokens_of_its_kind_only(models: dict, cutout: Callable) -> None:
    model = models["toyland", "plus"]
    ours = CustomContrast(model.base, random_adapter(model.base))
    for mine, theirs in ((model, ours), (ours, model)):
        with pytest.raises(ValueError, match="do not fit"):
            mine.generate(PROMPT, theirs.subject(cutout(0), "bear"))


def test_attention_a_few_heads_at_a_time(models: dict, cutout: Callable) -> None:
    model = models["sdxl", "plus"]
    z, subject = noise(model.base), model.subject(cutout(0), "bear")
    whole = run(model, subject, z).images
    slice_attention(model.base.unet, "max")
    try:
        assert gap(run(model, subject, z).images, whole) < 1e-4
    finally:
        slice_attention(model.base.unet, None)


def test_in_half_precision(files: dict, tiny_folder: Path, models: dict, cutout: Callable) -> None:
    base = load_base("toyland", tiny_folder, "cpu", torch.bfloat16)
    model = CustomContrast(base, load_adapter(files["toyland", "plus"], base))
    z, subject = noise(base), model.subject(cutout(0), "bear")
    found = run(model, [subject, model.subject(cutout(1), "cat")], z.bfloat16(), "a bear and a cat").images
    assert found.dtype == torch.bfloat16 and found.isfinite().all()
    alone = run(model, subject, z.bfloat16(), location=OPEN).images.float()
    full = models["toyland", "plus"]
    wanted = run(full, full.subject(cutout(0), "bear"), z, location=OPEN).images
    assert gap(alone, wanted) < 0.1 * float(wanted.abs().max())


def test_as_a_diffusers_pipeline(models: dict, cutout: Callable, tmp_path: Path) -> None:
    """The same pictures; saved and read again, base and adapter are recognised."""
    model = models["sdxl", "plus"]
    pipe = CustomContrastPipeline.from_parts(model.base, model.adapter)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "latent", "seed": 4}
    given = [pipe.subject(cutout(0), "bear"), pipe.style(cutout(3).on_plain(), strength=0.7)]
    images = pipe(PROMPT, given, **options).images
    assert torch.equal(images, model.generate(PROMPT, given, **options).images)
    pipe.save_pretrained(tmp_path / "saved")
    again = CustomContrastPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    again.set_progress_bar_config(disable=True)
    given = [again.subject(cutout(0), "bear"), again.style(cutout(3).on_plain(), strength=0.7)]
    assert again.base_name == "sdxl" and torch.equal(again(PROMPT, given, **options).images, images)


@pytest.mark.parametrize(("name", "sizes"), [("sd15", {"dim": 768, "heads": 12}), ("sdxl", {"dim": 1280, "heads": 20})])
@torch.no_grad()
def test_a_call_at_true_size(name: str, sizes: dict) -> None:
    """On the meta device: guided, masked, all maps recorded."""
    base = true_base(name, dtype=torch.float16)
    shapes = file_shapes("plus", base.unet, VIT_H_CONFIG, **sizes)
    with torch.device("meta"):
        adapter = IPAdapter(IPAdapterConfig.from_shapes(shapes, "file"), base.cross_attention_layers, name).half()
        tokens = torch.empty(1, 32, adapter.config.width, dtype=torch.float16)
        text = torch.empty(1, 1, 77, adapter.config.width, dtype=torch.float16)
        context = TextContext(text, text.new_empty(1, 1280) if base.spec.pooled else None)
        z, masks, t = torch.empty(4, 4, 64, 96, dtype=torch.float16), torch.empty(2, 1, 64, 96), torch.empty(())
    out, recorder = adapter.at(tokens, nothing=tokens[:, :16]), MapRecorder(normalize="layer")
    prompt = encode_prompt(base, "a dog on the beach", ["dog"], 0)
    state = subject_state(
        base, context, [prompt], [out], size=(64, 96), unconditional=context, repeat=2, masks=masks, recorder=recorder
    )
    assert unet_forward(base, z, t, state).shape == z.shape
    finest = min(layer.level for layer in base.cross_attention_layers)
    assert aggregate(recorder).shape == (2, 1, 64 >> finest, 96 >> finest)


def test_the_adapters_own_lambda(models: dict, tiny_custom: CustomContrast, cutout: Callable) -> None:
    """Where none is given: 0.6 for an IP-Adapter, 1 for ours, in library and diffusers pipeline."""
    own = {"num_inference_steps": 2, "output_type": "latent", "seed": 3}
    for model, scale in ((models["toyland", "plus"], 0.6), (tiny_custom, 1.0)):
        subject = model.subject(cutout(0), "bear")
        left, given = (model.generate(PROMPT, subject, **own, **more) for more in ({}, {"subject_scale": scale}))
        assert left.recipe["subject_scale"] == scale == model.adapter.default_scale
        assert torch.equal(left.images, given.images)
        pipe = CustomContrastPipeline.from_parts(model.base, model.adapter)
        pipe.set_progress_bar_config(disable=True)
        assert torch.equal(pipe(PROMPT, pipe.subject(cutout(0), "bear"), **own).images, left.images)
    assert next(iter(CustomContrast(tiny_custom.base).stream(PROMPT, num_inference_steps=1))).index == 1


@pytest.mark.parametrize("name", ["toyland", "sdxl"])
def test_several_prompts_are_drawn_as_a_call_for_each(models: dict, cutout: Callable, name: str) -> None:
    model, prompts = models[name, "plus"], ["a <bear> on the beach", "a photo of a red <bear> wearing a hat"]
    subjects = [model.subject(cutout(0), "bear"), model.style(cutout(1).on_plain())]
    options = {"num_inference_steps": 3, "output_type": "latent", "record": RecordConfig(maps=False), "num_images": 2}
    together = model.generate(prompts, subjects, **options).images
    alone = torch.cat([model.generate(prompt, subjects, **options).images for prompt in prompts])
    assert gap(together, alone) < 1e-4


# ---- style and layout ------------------------------------------------------------------------------------


def test_a_style_picture_acts_as_in_diffusers(models: dict, files: dict, stock: Callable, cutout: Callable) -> None:
    model, picture = models["sdxl", "plus"], cutout(3).on_plain()
    z = noise(model.base)
    wanted = stock("sdxl", files["sdxl", "plus"], [picture], {"up": {"block_0": [0.0, 0.8]}}, z)
    style = model.style(picture, strength=0.8)
    found = run(model, style, z, subject_scale=0.0)
    assert gap(found.images, wanted) < 1e-4, "its λ is its own"
    assert gap(run(model, (), z).images, wanted) > 0.1
    assert found.location_masks.size == 0 and found.prompt == PROMPT
    assert found.recipe["pictures"][0]["role"] == "style" and found.recipe["subjects"] == []


@pytest.mark.parametrize("apart", [False, True])
def test_a_style_picture_beside_subjects(models: dict, cutout: Callable, apart: bool) -> None:
    """It takes no place and no mask, and an absent one changes no bit."""
    model = models["sdxl", "plus"]
    z, location = noise(model.base), LocationConfig(apart=apart)
    two = [model.subject(cutout(0), "bear"), model.subject(cutout(1), "cat")]
    prompt, style = "a bear and a cat", model.style(cutout(3).on_plain())
    without = run(model, two, z, prompt, location=location)
    styled = run(model, [style, *two], z, prompt, location=location)
    assert styled.location_masks.shape == without.location_masks.shape and gap(styled.images, without.images) > 0.05
    silent = model.style(cutout(3).on_plain(), strength=0.0)
    assert torch.equal(run(model, [*two, silent], z, prompt, location=location).images, without.images)


def test_style_layers_of_the_true_models() -> None:
    """InstantStyle's blocks as numbers l."""
    wanted = {
        ("sdxl", "style"): range(44, 54),
        ("sdxl", "layout"): range(14, 24),
        ("sd15", "style"): range(7, 10),
        ("sd15", "layout"): range(4, 7),
    }
    for (name, role), layers in wanted.items():
        with torch.device("meta"):
            specs = install_processors(true_unet(name))
        base = SimpleNamespace(cross_attention_layers=specs, spec=SimpleNamespace(pooled=name == "sdxl"), name=name)
        scales = role_scales(base, role)
        assert [at for at, scale in enumerate(scales) if scale] == list(layers)
    assert {role for role, _ in ROLE_BLOCKS} == {"style", "layout"}


def test_who_takes_no_style_picture_says_so(models: dict, tiny_custom: CustomContrast, cutout: Callable) -> None:
    with pytest.raises(ValueError, match="load an IP-Adapter"):
        tiny_custom.style(cutout(0).on_plain())
    with pytest.raises(ValueError, match="no cross-attention there"):
        models["sdxl", "plus"].style(cutout(0).on_plain(), role="layout")
    with pytest.raises(ValueError, match="role='mood'"):
        models["sdxl", "plus"].style(cutout(0).on_plain(), role="mood")
    with pytest.raises(ValueError, match="make it with `subject`"):
        models["sdxl", "plus"].style(cutout(0).on_plain(), role="subject")


def test_lambda_of_each_layer(models: dict, cutout: Callable) -> None:
    model = models["toyland", "plus"]
    specs, z = model.base.cross_attention_layers, noise(model.base)
    halves = model.subject(cutout(0), "bear", layer_scales=[0.5] * len(specs))
    plain = model.subject(cutout(0), "bear")
    assert torch.equal(run(model, halves, z).images, run(model, plain, z, subject_scale=0.5).images)
    assert layer_scales(specs, None) is None
    assert layer_scales(specs, {"mid_block": 2, 0: 0.5})[0] == 0.5
    assert sum(layer_scales(specs, {"down_blocks.0": 1})) == sum(s.name.startswith("down_blocks.0.") for s in specs)
    for wrong in ([1.0], {"up_blocks.9": 1.0}, {0: "much"}, "all", {-1: 1.0}, [float("nan")] * len(specs)):
        with pytest.raises(ValueError, match="layer_scales"):
            layer_scales(specs, wrong)


# ---- files that do not fit ---------------------------------------------------------------------------------


def refused(file: Path, base: BaseModel) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_adapter(file, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_of_another_base(files: dict, tiny_base: BaseModel, tiny_xl_base: BaseModel) -> None:
    assert "choose the file of your base" in refused(files["sdxl", "plus"], tiny_base)
    assert "choose the file of your base" in refused(files["toyland", "pooled"], tiny_xl_base)


@pytest.mark.parametrize("kind", KINDS)
def test_of_another_image_encoder(tiny_base: BaseModel, tmp_path: Path, kind: str) -> None:
    file = random_ip_file(tmp_path / "big.safetensors", kind, tiny_base.unet, VIT_H_CONFIG)
    assert f"pass image_encoder={VIT_H!r}" in refused(file, tiny_base)
    big_g = IPAdapterConfig("pooled", 1280, 768, 16, 4).image_encoder
    assert big_g == BIG_G == IPAdapterConfig("plus", 1664, 768, 16, 16).image_encoder


def test_an_adapter_knows_its_image_encoder(
    models: dict, tiny_base: BaseModel, tiny_folder: Path, tmp_path: Path
) -> None:
    """Written on save, compared by weights on load; half precision of the same encoder passes."""
    ours = save_adapter(random_adapter(tiny_base), tmp_path / "ours.safetensors")
    theirs = save_adapter(models["toyland", "plus"].adapter, tmp_path / "theirs.safetensors")
    half = load_base("toyland", tiny_folder, "cpu", torch.bfloat16)
    other = load_base("toyland", tiny_folder, "cpu")
    torch.manual_seed(9)
    other.image_encoder.visual_projection.weight.data.normal_()
    for file in (ours, theirs):
        assert read_metadata(file)["image_encoder"]["id"] == "CLIP of width 24, 6 layers"
        load_adapter(file, half)
        assert "pass image_encoder=" in refused(file, other)


def test_damaged_and_foreign_files(files: dict, tiny_base: BaseModel, tmp_path: Path) -> None:
    weights = load_file(files["toyland", "plus"])
    file = tmp_path / "x.safetensors"
    changes: dict[str, Callable[[dict], Any]] = {
        "lacks 1 weights": lambda w: w.pop("ip_adapter.3.to_v_ip.weight"),
        "3 layers": lambda w: w.pop("ip_adapter.3.to_k_ip.weight"),
        "unknown weights": lambda w: w.update({"image_proj.more": torch.ones(1)}),
        "has shape": lambda w: w.update({"ip_adapter.1.to_v_ip.weight": torch.ones(3, 32)}),
        "not finite": lambda w: w.update({"image_proj.latents": torch.full_like(w["image_proj.latents"], torch.nan)}),
        "no known IP-Adapter layout": lambda w: [w.pop(k) for k in list(w) if k.startswith("image_proj")],
        "FaceID": lambda w: w.update({"image_proj.perceiver_resampler.proj_in.weight": torch.ones(1, 1)}),
    }
    for sentence, change in changes.items():
        damaged = dict(weights)
        change(damaged)
        save_file(damaged, file)
        assert sentence in refused(file, tiny_base)
    save_file(weights, file, metadata={"customcontrast": "{not json"})
    assert "cannot be read" in refused(file, tiny_base)
    save_file(weights, file, metadata={"customcontrast": '{"image_encoder": {"signature": ["x"]}}', "format": "pt"})
    assert load_adapter(file, tiny_base).config.kind == "plus", "what says nothing of use is no hindrance"


def test_metadata_of_a_published_file(files: dict) -> None:
    with safe_open(str(files["toyland", "plus"]), "pt") as file:
        assert not file.metadata(), "as on the hub"
    about = read_metadata(files["toyland", "plus"])
    assert (about["format"], about["kind"], about["base"]) == ("ip-adapter", "plus", "")


def test_a_whole_picture_as_reference(models: dict, cutout: Callable) -> None:
    """As the published weights were trained: nothing is cut out."""
    model = models["toyland", "plus"]
    subject = model.subject(WholePicture(Image.new("RGBA", (40, 30), (9, 99, 200, 255))), "bear")
    assert isinstance(subject, Subject) and subject.features.shape == (1, 16, 32)
    assert subject.key != model.subject(Cutout(Image.new("RGB", (40, 30), "white")), "bear").key
