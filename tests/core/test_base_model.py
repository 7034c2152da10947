"""bases: loading, what is refused and how, and the facts read from the weights."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel, encoder_config, load_base
from customcontrast.errors import BaseModelError
from customcontrast.specs import BASES
from tests.support.threads import at_once


def test_registry_has_the_bases() -> None:
    assert list(BASES) == ["toyland", "toyland2", "sd15", "sdxl"]
    assert [spec.pooled for spec in BASES.values()] == [False, False, False, True]


def test_unknown_base_lists_the_known_ones() -> None:
    with pytest.raises(BaseModelError, match="toyland, toyland2, sd15, sdxl"):
        load_base("sd3")


def test_missing_toyland_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = dataclasses.replace(BASES["toyland"], weights=str(tmp_path / "none"))
    monkeypatch.setitem(BASES, "toyland", spec)
    with pytest.raises(BaseModelError, match=r"toyland weights are missing.*pretrain.py"):
        load_base("toyland")


@pytest.mark.parametrize("weights", ["/nowhere/at/all", "./nowhere", "nowhere"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(weights: str) -> None:
    with pytest.raises(BaseModelError, match="there is no folder"):
        load_base("sd15", weights=weights)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "text_encoder", "image_encoder", "tokenizer"])
def test_a_missing_part_is_named_in_one_sentence(tiny_folder: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    shutil.rmtree(folder / part)
    with pytest.raises(BaseModelError, match=part) as caught:
        load_base("toyland", weights=folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BaseModelError, match="unet"):
        load_base("toyland", weights=folder, device="cpu")


def test_loaded_models_are_frozen(any_base: BaseModel) -> None:
    for model in (*any_base.text_encoders, any_base.unet, any_base.vae, any_base.image_encoder):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert next(model.parameters()).dtype == any_base.dtype == torch.float32


def test_facts_come_from_the_weights(tiny_base: BaseModel, tiny_xl_base: BaseModel) -> None:
    assert (tiny_base.scale_factor, tiny_base.default_size, len(tiny_base.cross_attention_names)) == (8, 64, 4)
    assert (tiny_xl_base.scale_factor, tiny_xl_base.default_size) == (4, 64)
    assert tiny_base.image_layers == (6, 4, 2), "coarse to fine"
    config = encoder_config(tiny_xl_base, width=64)
    assert (config.text_widths, config.num_layers, config.width) == ((32, 40), 8, 64)
    tables = [encoder.get_input_embeddings().weight for encoder in tiny_xl_base.text_encoders]
    assert config.text_scales == pytest.approx([float(table.square().mean().sqrt()) for table in tables])


def test_vocabulary_is_optional(tiny_base: BaseModel, tiny_xl_base: BaseModel) -> None:
    assert "beach" in tiny_base.vocabulary
    assert tiny_xl_base.vocabulary is None


def test_encode_and_decode_shapes_and_scale(any_base: BaseModel) -> None:
    f = any_base.scale_factor
    pixels = torch.rand(2, 3, 64, 32) * 2 - 1
    z = any_base.encode(pixels)
    assert z.shape == (2, any_base.vae.config.latent_channels, 64 // f, 32 // f)
    again = any_base.encode(pixels)
    assert torch.equal(z, again)
    assert torch.allclose(any_base.decode(z), any_base.vae.decode(z / any_base.vae.config.scaling_factor).sample)


def test_added_conditions_only_for_sdxl(tiny_base: BaseModel, tiny_xl_base: BaseModel) -> None:
    assert tiny_base.added_conditions(None, 64, 64) is None
    added = tiny_xl_base.added_conditions(torch.zeros(3, 24), 64, 96)
    assert added["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 3


def test_sdxl_weights_in_a_sd_base_are_refused_in_a_sentence(tiny_folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"tokenizer_2|text_encoder_2"):
        load_base("sdxl", weights=tiny_folder, device="cpu")


def test_types_have_names(tiny_folder: Path) -> None:
    for name, dtype in {"fp16": torch.float16, "torch.bfloat16": torch.bfloat16}.items():
        base = load_base("toyland", tiny_folder, "cpu", dtype=name)
        assert base.dtype == dtype == next(base.unet.parameters()).dtype
    for wrong in ("float8", 16, torch.int64):
        with pytest.raises(BaseModelError, match=r"dtype=.* must be float32, float16 or bfloat16"):
            load_base("toyland", tiny_folder, "cpu", dtype=wrong)


def test_models_made_in_several_threads_have_their_weights(tiny_folder: Path, tiny_base: BaseModel) -> None:
    """diffusers and transformers patch torch for the whole process while they read a model."""
    register = torch.nn.Module.register_parameter

    def make(i: int) -> list[torch.nn.Module]:
        if i:
            return [Adapter.create(tiny_base, width=32, heads=2) for _ in range(12)]
        return [load_base("toyland", tiny_folder, "cpu").unet for _ in range(4)]

    for model in (model for made in at_once(make, 3) for model in made):
        assert not any(weight.is_meta for weight in model.parameters())
        assert all(weight.std() > 0 for weight in model.parameters() if weight.dim() > 1), "left as memory was"
    assert torch.nn.Module.register_parameter is register
