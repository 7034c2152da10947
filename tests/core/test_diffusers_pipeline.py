"""CustomContrastPipeline: the habits of a diffusers pipeline, and the memory savers and LoRA beside our attention."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import Tensor, nn

from customcontrast import CustomContrast, CustomContrastPipeline
from customcontrast.adapter_files import save_adapter
from customcontrast.attention import SubjectProcessor
from customcontrast.base_model import load_base
from customcontrast.config import RecordConfig
from customcontrast.integrations.diffusers_pipeline import CustomContrastXLPipeline, infer_base
from customcontrast.sampling import on_device, starting_noise
from customcontrast.subject import Subject
from customcontrast.toyland.autoencoder import PatchAutoencoder
from tests.conftest import Cutout
from tests.support.tiny_models import random_adapter, save_tiny_sd15

BEAR, TWO = "a bear on the beach", "a bear S1* and a cat S2*"
RUN = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 64, "width": 96}
NAMES = ("toyland", "sd15", "sdxl")
NO_MAPS = RecordConfig(maps=False)
MAPS = ("location_masks", "text_maps", "visual_maps", "subject_maps")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_xl_folder: Path) -> dict[str, Path]:
    sd15 = tmp_path_factory.mktemp("sd15")
    save_tiny_sd15(sd15)
    return {"toyland": tiny_folder, "sd15": sd15, "sdxl": tiny_xl_folder}


def make(folders: dict[str, Path], name: str, dtype: torch.dtype = torch.float32) -> CustomContrastPipeline:
    base = load_base(name, weights=folders[name], device="cpu", dtype=dtype)
    pipe = CustomContrastPipeline.from_parts(base, random_adapter(base).to(dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=NAMES)
def pipe(request: pytest.FixtureRequest, folders: dict[str, Path]) -> CustomContrastPipeline:
    """One for each base; tests leave it as they found it."""
    return make(folders, request.param)


@pytest.fixture(params=NAMES)
def own(request: pytest.FixtureRequest, folders: dict[str, Path]) -> CustomContrastPipeline:
    """A fresh one for each test, that may be changed."""
    return make(folders, request.param)


def bear(pipe: CustomContrastPipeline) -> Subject:
    return pipe.subject(blob(1), "bear")


def pair(pipe: CustomContrastPipeline) -> list[Subject]:
    return [bear(pipe), pipe.subject([blob(2), blob(3)], "cat")]


def blob(seed: int) -> Cutout:
    colours = np.random.default_rng(seed).integers(0, 255, (32, 32, 3))
    pixels = np.pad(colours, ((8, 8), (8, 8), (0, 0)), constant_values=255)
    return Cutout(Image.fromarray(pixels.astype(np.uint8)))


def latents_of(pipe: CustomContrastPipeline, prompt: str = BEAR, **options: object) -> Tensor:
    """Final latents of a run with one bear."""
    subjects = options.pop("subjects", None) or bear(pipe)
    given = RUN | {"seed": 7, "output_type": "latent", "record": NO_MAPS} | options
    return pipe(prompt, subjects, **given).images


def kinds(pipe: CustomContrastPipeline) -> set[str]:
    """Classes of the cross-attention layers' processors."""
    return {type(p).__name__ for name, p in pipe.unet.attn_processors.items() if "attn2" in name}


# ---- the call ------------------------------------------------------------------------------------------


def test_it_is_generate_to_the_bit(pipe: CustomContrastPipeline) -> None:
    custom, subjects = CustomContrast.from_parts(pipe.model.base, pipe.adapter), pair(pipe)
    wanted = custom.generate(TWO, subjects, seed=7, num_images=2, **RUN)
    by_seed = pipe(TWO, subjects, seed=7, num_images_per_prompt=2, **RUN)
    generators = [torch.Generator().manual_seed(7 + i) for i in range(2)]
    by_generators = pipe(TWO, subjects, generator=generators, num_images_per_prompt=2, **RUN)
    for out in (by_seed, by_generators):
        assert [x.tobytes() for x in out.images] == [x.tobytes() for x in wanted.images]
        assert out.images[0].size == (96, 64) and len(out.results) == 1
        for kind in MAPS:
            assert np.array_equal(np.stack(getattr(out, kind)), getattr(wanted, kind)), kind
    assert by_seed.results[0].recipe["seed"] == 7 and by_generators.results[0].recipe["seed"] is None
    images, results = pipe(TWO, subjects, seed=7, num_images_per_prompt=2, return_dict=False, **RUN)
    assert images[1].tobytes() == wanted.images[1].tobytes() and results[0].prompt == wanted.prompt


def test_without_subjects_it_is_the_stock_pipeline(pipe: CustomContrastPipeline, tmp_path: Path) -> None:
    """Opened by diffusers from our folder; one generator for two pictures."""
    pipe.save_pretrained(tmp_path)
    stock = DiffusionPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    for model in (stock.unet, stock.vae):
        model.requires_grad_(False)  # PyTorch picks other convolution kernels for weights that may want gradients
    options = RUN | {"num_images_per_prompt": 2, "negative_prompt": "a red car", "output_type": "np"}
    wanted = stock(BEAR, generator=torch.Generator().manual_seed(3), **options).images
    assert np.array_equal(pipe(BEAR, generator=torch.Generator().manual_seed(3), **options).images, wanted)


def test_prompts_of_a_batch_are_their_single_runs(pipe: CustomContrastPipeline) -> None:
    both = pair(pipe)
    lists, prompts, negatives = [both, [both[1]]], [TWO, "a cat in a city"], ["a car", "a robot"]
    options = RUN | {"num_images_per_prompt": 2, "output_type": "latent"}
    together = pipe(prompts, lists, negatives, seed=7, **options)
    assert together.images.shape[0] == 4 == len(together.location_masks)
    for i in range(2):
        alone = pipe(prompts[i], lists[i], negatives[i], seed=7 + 2 * i, **options)
        assert torch.equal(alone.images, together.images[2 * i : 2 * i + 2])
        assert np.array_equal(alone.visual_maps[1], together.visual_maps[2 * i + 1])
        assert together.results[i].prompt == alone.results[0].prompt
    shared = pipe([BEAR, BEAR], both[0], seed=7, **RUN).images
    assert len(shared) == 2 and shared[0].tobytes() != shared[1].tobytes()


@pytest.mark.parametrize("scheduler", [None, "euler", "euler_ancestral"])
def test_latents_in_give_the_picture_of_their_seed(pipe: CustomContrastPipeline, scheduler: str | None) -> None:
    generators, base = [torch.Generator().manual_seed(7)], pipe.model.base
    size = (64 // base.scale_factor, 96 // base.scale_factor)
    start = starting_noise(generators, pipe.unet.config.in_channels, size, base.device, base.dtype)
    given = latents_of(pipe, seed=None, generator=generators, latents=start, scheduler=scheduler)
    assert torch.equal(given, latents_of(pipe, scheduler=scheduler))


def test_a_seed_of_torch_is_used_where_none_is_given(pipe: CustomContrastPipeline) -> None:
    torch.manual_seed(5)
    first, other = (latents_of(pipe, seed=None) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(first, latents_of(pipe, seed=None)) and not torch.equal(first, other)


def test_the_callback_sees_every_step_and_may_change_the_latents(pipe: CustomContrastPipeline) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def watch(p: object, step: int, t: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        assert p is pipe and not torch.is_grad_enabled()
        seen.append((step, int(t), tuple(kwargs["latents"].shape)))
        return kwargs

    plain = pipe(BEAR, bear(pipe), seed=7, output_type="latent", num_images_per_prompt=2, **RUN)
    watched = pipe(
        BEAR, bear(pipe), seed=7, output_type="latent", num_images_per_prompt=2, callback_on_step_end=watch, **RUN
    )
    assert torch.equal(plain.images, watched.images)
    T = plain.results[0].timesteps
    assert seen == [(i, t, tuple(plain.images.shape)) for i, t in enumerate(T)] and pipe.num_timesteps == len(T)

    halved = lambda p, step, t, kwargs: {"latents": kwargs["latents"] / 2} if step == 0 else None  # noqa: E731
    assert not torch.equal(latents_of(pipe), latents_of(pipe, callback_on_step_end=halved))
    zeros = lambda p, step, t, kwargs: {"latents": torch.zeros_like(kwargs["latents"])}  # noqa: E731
    assert not latents_of(pipe, callback_on_step_end=zeros).any()


def test_interrupt_stops_after_the_step(pipe: CustomContrastPipeline) -> None:
    kept: list[Tensor] = []

    def stop(p: CustomContrastPipeline, step: int, t: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append(kwargs["latents"])
        p._interrupt = step == 0
        return {}

    out = pipe([BEAR, BEAR], bear(pipe), seed=7, callback_on_step_end=stop, output_type="latent", **RUN)
    assert pipe.interrupt and len(kept) == len(out.results) == 1
    assert torch.equal(out.images, kept[0]) and len(out.results[0].timesteps) == 1 == out.location_masks[0].shape[0]
    assert len(pipe(BEAR, bear(pipe), seed=7, **RUN).results[0].timesteps) >= 2 and not pipe.interrupt


def test_output_types_agree(pipe: CustomContrastPipeline) -> None:
    kinds = ("pil", "np", "pt", "latent")
    outs = {k: pipe(BEAR, bear(pipe), seed=7, num_images_per_prompt=2, output_type=k, **RUN).images for k in kinds}
    assert outs["np"].shape == (2, 64, 96, 3) and outs["pt"].shape == (2, 3, 64, 96)
    assert np.array_equal(outs["np"], outs["pt"].permute(0, 2, 3, 1).numpy())
    pixels = np.stack([np.asarray(picture) for picture in outs["pil"]])
    assert np.array_equal(pixels, (outs["np"] * 255).round().astype("uint8"))
    decoded = (pipe.model.base.decode(outs["latent"]) * 0.5 + 0.5).clamp(0, 1)
    assert torch.equal(decoded, outs["pt"])


def test_the_scheduler_may_be_assigned(own: CustomContrastPipeline) -> None:
    by_name = latents_of(own, scheduler="euler")
    before = latents_of(own)
    own.scheduler = EulerDiscreteScheduler.from_config(own.scheduler.config)
    assert torch.equal(latents_of(own), by_name) and not torch.equal(by_name, before)
    assert own(BEAR, seed=1, **RUN).results[0].recipe["scheduler"] == "EulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": 3}, "prompt=3 must be text"),
        ({"prompt": []}, "prompt="),
        ({"prompt": [BEAR, None]}, "prompt="),
        ({"subjects": "bear"}, "subjects='bear' must be subjects"),
        ({"subjects": [[], []]}, "one list of them for each of 1"),
        ({"subjects": ["bear"]}, "subjects must come from"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt=.* a list of 1"),
        ({"height": 65}, "height=65 must be a multiple of"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1, "generator": torch.Generator()}, "seed=1 came with a generator"),
        ({"generator": [torch.Generator()] * 2}, "2 generators"),
        ({"generator": 5}, "generator=5 must be a torch.Generator"),
        ({"latents": torch.zeros(2, 8, 8, 8)}, r"latents=\(2, 8, 8, 8\) must be a tensor \(1, C, h, w\)"),
        ({"latents": torch.zeros(1, 8, 8, 9)}, r"latents is \(1, 8, 8, 9\); .* \(1, 8, 8, 8\)"),
        ({"latents": "noise"}, "latents='noise'"),
        ({"scheduler": "none"}, "scheduler='none' is unknown"),
        ({"output_type": "jpg"}, "output_type='jpg' must be one of pil, np, pt, latent"),
        ({"callback_on_step_end": 1}, "callback_on_step_end=1 must be a function"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "may name .'latents'. only"),
    ],
)
def test_wrong_arguments_are_named_at_once(folders: dict[str, Path], options: dict, sentence: str) -> None:
    base = load_base("toyland", weights=folders["toyland"], device="cpu")
    with pytest.raises(ValueError, match=sentence):
        CustomContrastPipeline.from_parts(base, random_adapter(base))(**{"prompt": BEAR} | options)


def test_wrong_settings_are_named(pipe: CustomContrastPipeline) -> None:
    for size in (0, 99, True, "half"):
        with pytest.raises(ValueError, match=r"slice_size=.* must be 'auto', 'max'"):
            pipe.enable_attention_slicing(size)
    shrunk = lambda p, step, t, kwargs: {"latents": kwargs["latents"][..., 1:]}  # noqa: E731
    with pytest.raises(ValueError, match="returned as latents, must be a tensor"):
        latents_of(pipe, callback_on_step_end=shrunk)
    plain = CustomContrastPipeline.from_parts(pipe.model.base)
    with pytest.raises(ValueError, match="no adapter is loaded"):
        plain(BEAR, bear(pipe))
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="needs an accelerator"):
            pipe.enable_model_cpu_offload()


# ---- loading and saving --------------------------------------------------------------------------------


def test_save_and_load_give_the_same_pictures(pipe: CustomContrastPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = CustomContrastPipeline.from_pretrained(tmp_path, device="cpu")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.base_name == pipe.base_name and type(loaded) is type(pipe)
    assert isinstance(loaded, CustomContrastXLPipeline) == (pipe.base_name == "sdxl")
    a = pipe(TWO, pair(pipe), seed=7, output_type="np", **RUN)
    b = loaded(TWO, pair(loaded), seed=7, output_type="np", **RUN)
    assert np.array_equal(a.images, b.images) and np.array_equal(a.location_masks[0], b.location_masks[0])
    assert loaded.vocabulary == pipe.vocabulary and loaded.adapter.config == pipe.adapter.config
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    loaded.save_pretrained(tmp_path / "again")
    names = {p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*")}
    assert names == {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if "again" not in p.parts}


def test_the_base_is_inferred(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {name: infer_base(str(folder)) for name, folder in folders.items()} == {name: name for name in NAMES}
    with pytest.raises(ValueError, match=r"cannot read model_index.json"):
        CustomContrastPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline"):
        CustomContrastPipeline.from_pretrained(tmp_path)
    plain = CustomContrastPipeline.from_pretrained(folders["sd15"], device="cpu", torch_dtype=torch.bfloat16)
    assert plain.base_name == "sd15" and plain.adapter is None and plain.dtype == torch.bfloat16


def test_to_moves_the_adapter_and_old_subjects_too(own: CustomContrastPipeline) -> None:
    subject, before = bear(own), latents_of(own)
    assert own.to("cpu", torch.bfloat16) is own
    assert {p.dtype for p in own.adapter.parameters()} == {own.unet.dtype} == {torch.bfloat16}
    halved = latents_of(own, subjects=[subject])
    assert halved.dtype == torch.bfloat16 and halved.isfinite().all()
    own.to(torch.float32)
    assert latents_of(own).dtype == torch.float32 == before.dtype
    own.to(dtype=torch.float16)
    assert own.vae.dtype == (torch.float32 if own.base_name == "sdxl" else torch.float16)


# ---- attention slicing, tiling -------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", "max", 2])
def test_slicing_gives_the_same_numbers_and_keeps_the_processors(pipe: CustomContrastPipeline, size: str | int) -> None:
    subjects = pair(pipe)
    options = RUN | {"seed": 7, "output_type": "np", "num_images_per_prompt": 2}
    whole = pipe(TWO, subjects, **options)
    pipe.enable_attention_slicing(size)
    assert kinds(pipe) == {"SubjectProcessor"}
    assert "SlicedAttnProcessor" in {type(p).__name__ for p in pipe.unet.attn_processors.values()}
    sliced = pipe(TWO, subjects, **options)
    unmapped = pipe(TWO, subjects, record=NO_MAPS, **options)
    without = pipe(TWO, subjects, subject_scale=0.0, **options)
    pipe.disable_attention_slicing()
    assert "SlicedAttnProcessor" not in {type(p).__name__ for p in pipe.unet.attn_processors.values()}
    assert np.allclose(whole.images, sliced.images, atol=1e-5) and np.allclose(whole.images, unmapped.images, atol=1e-5)
    assert np.abs(sliced.images - without.images).max() > 0.01, "the subject is still there"
    for kind in MAPS:
        assert np.allclose(np.float32(getattr(whole, kind)), np.float32(getattr(sliced, kind)), atol=2e-3)
    assert np.array_equal(whole.images, pipe(TWO, subjects, **options).images)


def test_diffusers_own_switches_do_not_lose_the_subject(own: CustomContrastPipeline) -> None:
    whole = latents_of(own)
    own.unet.set_attention_slice("max")  # past the pipeline
    assert kinds(own) == {"SlicedAttnProcessor"}
    assert torch.allclose(latents_of(own), whole, atol=1e-5 * float(whole.abs().max()))
    assert kinds(own) == {"SubjectProcessor"}
    sizes = {p.slice_size for p in own.unet.attn_processors.values() if isinstance(p, SubjectProcessor)}
    assert sizes == {1}
    own.unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(latents_of(own), whole)


def test_a_sliced_processor_serves_plain_text_too(own: CustomContrastPipeline) -> None:
    layer = next(m for n, m in own.unet.named_modules() if n.endswith("attn2"))
    torch.manual_seed(0)
    x, text = torch.randn(2, 12, layer.to_q.in_features), torch.randn(2, 5, layer.to_k.in_features)
    own.disable_attention_slicing()
    whole = layer(x, encoder_hidden_states=text)
    own.enable_attention_slicing("max")
    assert torch.allclose(layer(x, encoder_hidden_states=text), whole, atol=1e-5)


def test_vae_tiling_and_slicing(own: CustomContrastPipeline) -> None:
    options = {"seed": 7, "num_inference_steps": 1, "height": 64, "width": 128, "num_images_per_prompt": 2}
    draw = lambda: own(BEAR, bear(own), output_type="np", **options).images  # noqa: E731
    whole = draw()
    own.enable_vae_slicing()
    assert np.allclose(draw(), whole, atol=1e-5)
    own.disable_vae_slicing()
    own.enable_vae_tiling()
    tiled = draw()
    assert tiled.shape == whole.shape and np.isfinite(tiled).all() and not np.array_equal(tiled, whole)
    own.disable_vae_tiling()
    assert np.array_equal(draw(), whole)


def test_toylands_own_autoencoder_has_no_tiles(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    pipe = make(folders, "toyland")
    pipe.vae = PatchAutoencoder((8, 8, 8), 1, 8, 4, block_out_channels=(8, 8, 8, 8)).requires_grad_(False).eval()
    whole = pipe(BEAR, bear(pipe), seed=7, output_type="np", **RUN).images
    with caplog.at_level(logging.WARNING):
        pipe.enable_vae_tiling()
    assert "PatchAutoencoder" in caplog.text
    assert np.array_equal(pipe(BEAR, bear(pipe), seed=7, output_type="np", **RUN).images, whole)


# ---- LoRA ----------------------------------------------------------------------------------------------


def lora(pipe: CustomContrastPipeline, parts: tuple[str, ...] = ("unet",), std: float = 0.5) -> dict[str, Tensor]:
    """A rank-2 LoRA on the attention projections of these models, not zero."""
    torch.manual_seed(3)
    weights = {}
    for part in parts:
        for name, module in getattr(pipe, part).named_modules():
            if isinstance(module, nn.Linear) and name.split(".")[-1] in ("to_q", "to_k", "to_v", "q_proj", "v_proj"):
                weights[f"{part}.{name}.lora_A.weight"] = torch.randn(2, module.in_features) * std
                weights[f"{part}.{name}.lora_B.weight"] = torch.randn(module.out_features, 2) * std
    return weights


def test_lora_changes_the_picture_and_leaves_no_trace(own: CustomContrastPipeline) -> None:
    subject = bear(own)
    plain = latents_of(own, subjects=[subject])
    own.load_lora_weights(lora(own), adapter_name="style")
    out = own(BEAR, subject, seed=7, output_type="latent", **RUN)
    assert not torch.allclose(out.images, plain, atol=1e-2), "LoRA is in the UNet"
    assert kinds(own) == {"SubjectProcessor"}
    assert out.visual_maps[0].shape[1] == 1 and out.visual_maps[0].min() > 0 and out.visual_maps[0].std() > 0
    assert not torch.equal(out.images, latents_of(own, subjects=[subject], subject_scale=0.0)), "and so is the subject"
    own.set_adapters(["style"], [0.0])
    assert torch.equal(latents_of(own, subjects=[subject]), plain)
    own.set_adapters(["style"], [0.5])
    half = latents_of(own, subjects=[subject])
    assert not torch.equal(half, plain) and not torch.equal(half, out.images)
    own.unload_lora_weights()
    assert torch.equal(latents_of(own, subjects=[subject]), plain)


def test_lora_in_the_text_encoders_from_a_folder(own: CustomContrastPipeline, tmp_path: Path) -> None:
    plain, encoders = latents_of(own), tuple(own._lora_loadable_modules[1:])
    layers = {f"{part}_lora_layers": lora(own, (part,)) for part in encoders}
    layers = {name: {k.split(".", 1)[1]: v for k, v in weights.items()} for name, weights in layers.items()}
    own.save_lora_weights(tmp_path, **layers)
    own.load_lora_weights(tmp_path, adapter_name="words", weight_name="pytorch_lora_weights.safetensors")
    assert set(own.get_list_adapters()) == set(encoders)
    assert not torch.allclose(latents_of(own), plain, atol=1e-3)
    own.unload_lora_weights()
    assert torch.equal(latents_of(own), plain)


def test_lora_fused_is_lora_and_can_be_saved(own: CustomContrastPipeline, tmp_path: Path) -> None:
    own.load_lora_weights(lora(own, std=0.2), adapter_name="style")
    with_lora = latents_of(own)
    with pytest.raises(ValueError, match="LoRA layers are loaded"):
        own.save_pretrained(tmp_path)
    own.fuse_lora()
    own.unload_lora_weights()
    fused = latents_of(own)
    assert torch.allclose(fused, with_lora, atol=1e-4 * float(fused.abs().max()))
    own.save_pretrained(tmp_path)
    loaded = CustomContrastPipeline.from_pretrained(tmp_path, device="cpu")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents_of(loaded), fused)


def test_a_lora_that_does_not_fit_says_so(folders: dict[str, Path], own: CustomContrastPipeline) -> None:
    plain = latents_of(own)
    with pytest.raises(ValueError, match="load_lora_weights="):
        own.load_lora_weights({})
    with pytest.raises(ValueError, match="nothing in it fits"):
        own.load_lora_weights({f"other.{name}": value for name, value in lora(own).items()})
    wrong = {name: torch.cat([x, x], dim=1 if "lora_A" in name else 0) for name, x in lora(own).items()}
    with pytest.raises(ValueError, match="does not fit base"):
        own.load_lora_weights(wrong)
    assert torch.equal(latents_of(own), plain)


# ---- CPU offload ---------------------------------------------------------------------------------------


def plain_cpu(pipe: CustomContrastPipeline) -> None:
    """diffusers writes "cpu:0"; accelerate's hooks do not see that it is where the weights lie."""
    modules = [m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    for hook in (hook for m in modules if (hook := getattr(m, "_hf_hook", None)) is not None):
        for each in getattr(hook, "hooks", [hook]):
            each.execution_device = torch.device("cpu")


def test_model_offload_with_the_cpu_as_execution_device(own: CustomContrastPipeline) -> None:
    plain = latents_of(own)
    own.enable_model_cpu_offload(device="cpu")
    assert hasattr(own.unet, "_hf_hook") and hasattr(own.vae, "_hf_hook")
    assert torch.equal(latents_of(own), plain)
    assert hasattr(own.unet, "_hf_hook"), "the hooks are there for the next call"
    own.load_lora_weights(lora(own), adapter_name="style")
    assert hasattr(own.unet, "_hf_hook") and not torch.equal(latents_of(own), plain)
    own.unload_lora_weights()
    own.remove_all_hooks()
    assert torch.equal(latents_of(own), plain)


def test_sequential_offload_from_meta(own: CustomContrastPipeline, tmp_path: Path) -> None:
    subjects = pair(own)
    options = RUN | {"seed": 7, "output_type": "np"}
    plain = own(TWO, subjects, **options).images
    own.enable_sequential_cpu_offload(device="cpu")
    plain_cpu(own)
    assert {p.device.type for p in (*own.unet.parameters(), *own.vae.parameters())} == {"meta"}
    assert own._execution_device.type == "cpu" == next(own.adapter.parameters()).device.type
    assert np.array_equal(own(TWO, pair(own), **options).images, plain)
    own.enable_attention_slicing("max")
    assert np.allclose(own(TWO, subjects, **options).images, plain, atol=1e-5) and kinds(own) == {"SubjectProcessor"}
    with pytest.raises(ValueError, match="weights are offloaded"):
        own.save_pretrained(tmp_path)


def test_models_that_rest_elsewhere_come_and_go() -> None:
    class Travelling(nn.Linear):
        """Says where it is sent; there is no second device here to go to."""

        def to(self, device: torch.device) -> Travelling:
            went.append(device.type)
            return self

    went: list[str] = []
    resting, meta = Travelling(2, 2), nn.Linear(2, 2, device="meta")
    with on_device(torch.device("cpu"), resting, meta, None):
        pass
    assert went == []
    with pytest.raises(ZeroDivisionError), on_device(torch.device("cuda"), resting, meta, None):
        assert went == ["cuda"]
        _ = 1 / 0
    assert went == ["cuda", "cpu"] and meta.weight.device.type == "meta"


# ---- all together --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_with_slicing_tiling_and_lora(folders: dict[str, Path], name: str) -> None:
    pipe = make(folders, name, torch.bfloat16)
    subjects = pair(pipe)
    options = RUN | {"height": 128, "seed": 7, "output_type": "np"}
    plain = pipe([TWO, TWO], subjects, **options)
    pipe.load_lora_weights(lora(pipe, tuple(pipe._lora_loadable_modules)), adapter_name="style")
    pipe.enable_attention_slicing("max")
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    out = pipe([TWO, TWO], subjects, **options)
    assert out.images.shape == (2, 128, 96, 3) and np.isfinite(out.images).all() and out.images.std() > 0
    assert np.abs(out.images - plain.images).max() > 0.01, "the LoRA shows"
    without = pipe([TWO, TWO], subjects, subject_scale=0.0, **options)
    assert np.abs(out.images - without.images).max() > 0.01, "the subjects show"
    assert all(np.isfinite(maps).all() and maps.shape[1] == 2 for maps in (*out.visual_maps, *out.location_masks))
    assert kinds(pipe) == {"SubjectProcessor"} and pipe.unet.dtype == torch.bfloat16


# ---- sharing parts ------------------------------------------------------------------------------------


def latents_as(pipe: CustomContrastPipeline) -> Tensor:
    """Latents of a subject that this very pipeline looked at."""
    pipe.set_progress_bar_config(disable=True)
    return latents_of(pipe, subjects=[pipe.subject(blob(1), "bear")])


def test_parts_are_shared_in_diffusers_three_ways(pipe: CustomContrastPipeline) -> None:
    """S1: `Class(**pipe.components)`, `from_pipe` and deepcopy give the same picture; only the last copies modules."""
    wanted = latents_as(pipe)
    for again in (type(pipe)(**pipe.components), CustomContrastPipeline.from_pipe(pipe)):
        assert again.unet is pipe.unet and again.adapter is pipe.adapter and type(again) is type(pipe)
        assert again.base_name == pipe.base_name and torch.equal(latents_as(again), wanted)
    copied = copy.deepcopy(pipe)
    assert copied.unet is not pipe.unet and copied.adapter is not pipe.adapter
    assert torch.equal(latents_as(copied), wanted)


def test_a_stock_pipeline_becomes_ours(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = make(folders, "sd15")
    save_adapter(pipe.adapter, tmp_path / "adapter.safetensors")
    stock = StableDiffusionPipeline.from_pretrained(folders["sd15"], safety_checker=None)
    again = CustomContrastPipeline.from_pipe(stock, adapter=tmp_path / "adapter.safetensors")
    assert again.unet is stock.unet and torch.equal(latents_as(again), latents_as(pipe))
    plain = StableDiffusionPipeline(**{**stock.components, "image_encoder": None}, requires_safety_checker=False)
    with pytest.raises(ValueError, match="from_pipe: this pipeline has no image_encoder; pass them by these names"):
        CustomContrastPipeline.from_pipe(plain)
    with pytest.raises(ValueError, match="must be names of parts"):
        CustomContrastPipeline.from_pipe(pipe, nothing=1)
