"""warm_start: before its first step the adapter is the published IP-Adapter it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from customcontrast.adapter import AdapterOutput
from customcontrast.adapter_files import load_adapter, save_adapter
from customcontrast.attention import unet_forward
from customcontrast.attention.state import SubjectBranch
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.conditioner import VisualConditioner
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt, subject_state
from customcontrast.config import LocationConfig
from customcontrast.errors import CheckpointError
from customcontrast.integrations.diffusers_pipeline import CustomContrastPipeline
from customcontrast.ip_adapter import IPAdapter
from customcontrast.pipeline import CustomContrast, Result
from customcontrast.warm_start import WarmAdapter
from tests.support.ip_files import random_ip_file
from tests.support.tiny_models import ENCODER, random_adapter

OPEN = LocationConfig(enabled=False)
PROMPT = "a <bear> on the beach"


@dataclass(frozen=True)
class Pair:
    """The published adapter as it is, and ours made from it, which draws without S* in its prompt."""

    file: Path
    published: CustomContrast
    ours: CustomContrast

    @property
    def warm(self) -> WarmAdapter:
        assert isinstance(self.ours.adapter, WarmAdapter)
        return self.ours.adapter


def without_s_star(base: BaseModel, adapter: WarmAdapter) -> CustomContrast:
    model = CustomContrast(base, adapter.requires_grad_(False).eval())
    model.conditioner = VisualConditioner(base, adapter)
    return model


@pytest.fixture(scope="module")
def pair(any_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    file = tmp_path_factory.mktemp("start") / "plus.safetensors"
    random_ip_file(file, "plus", any_base.unet, any_base.image_encoder.config)
    adapter = WarmAdapter.from_file(any_base, file, **ENCODER)
    return Pair(file, CustomContrast(any_base, load_adapter(file, any_base)), without_s_star(any_base, adapter))


def drawn(model: CustomContrast, cutouts: list, location: LocationConfig = OPEN, **options: Any) -> Result:
    subject = model.subject(cutouts, "bear").placed(options.pop("box", None))
    given = {"num_inference_steps": 3, "guidance_scale": 5.0, "scheduler": "ddim", "output_type": "latent"}
    given |= {"subject_scale": 1.0} | options  # each has a default of its own
    return model.generate(PROMPT, subject, location=location, **given)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(("references", "options"), [(1, {}), (2, {"subject_scale": 0.6, "num_images": 2})])
def test_step_0_is_ip_adapter(pair: Pair, cutout: Callable, references: int, options: dict) -> None:
    """The same pictures with guidance, several references and λ, and so diffusers' own (`test_ip_adapter`)."""
    cutouts = [cutout(i) for i in range(references)]
    wanted = drawn(pair.published, cutouts, **options).images
    assert gap(drawn(pair.ours, cutouts, **options).images, wanted) < 1e-4
    assert gap(drawn(pair.ours, cutouts, **options | {"subject_scale": 0.0}).images, wanted) > 0.5, "the picture acts"


def test_masks_hold_for_its_image_tokens(pair: Pair, cutout: Callable) -> None:
    box = (0.0, 0.25, 0.5, 1.0)
    found = [drawn(model, [cutout(0)], LocationConfig(), box=box).images for model in (pair.ours, pair.published)]
    assert gap(*found) < 1e-4 < gap(found[0], drawn(pair.ours, [cutout(0)]).images)


def test_with_s_star_in_the_text_eq_3_is_the_same_sum(pair: Pair, cutout: Callable) -> None:
    """Given the text contexts of S*, the UNet says what it says with the published keys and values alone."""
    base, warm, ip = pair.ours.base, pair.warm, pair.published.adapter
    assert isinstance(ip, IPAdapter)
    picture = [cutout(0).on_plain()]
    size = (8, 8)
    z = torch.randn(1, base.latent_channels, *size, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([400])
    with torch.no_grad():
        out = warm.joined(warm.at(warm.look(base, picture), t), warm.image_tokens(base, picture), ip.nothing(base))
        prompt = encode_prompt(base, PROMPT, ["bear"], ENCODER["text_queries"])
        context = encode_contexts(base, [prompt], [out.mfi.text_tokens])

        def predicted(outputs: list[AdapterOutput]) -> torch.Tensor:
            state = subject_state(base, context, [prompt], outputs, size=size)
            return unet_forward(base, z, t, state)

        keys = ip.at(ip.look(base, picture))
        state = subject_state(base, context, [prompt], size=size)
        alone = SubjectBranch(keys.keys, keys.values, sink=False)
        wanted = unet_forward(base, z, t, replace(state, branches=(alone,)))
        assert gap(predicted([out]), wanted) < 1e-4
        loud = replace(out, values=[torch.randn_like(v) for v in out.values])
        assert gap(predicted([loud]), wanted) > 1e-2, "what f_tv says comes on top"


def test_it_is_saved_and_read_back(pair: Pair, cutout: Callable, tmp_path: Path) -> None:
    base = pair.ours.base
    warm = pair.warm.alike()
    warm.load_state_dict(random_weights(pair.warm))
    file = save_adapter(warm, tmp_path / "warm.safetensors", step=5)
    again = load_adapter(file, base)
    assert isinstance(again, WarmAdapter) and again.metadata["step"] == 5
    assert all(torch.equal(a, b) for a, b in zip(warm.parameters(), again.parameters(), strict=True))
    subject = CustomContrast(base, again).subject(cutout(0), "bear")
    pictures = [
        model.generate(PROMPT, subject, num_inference_steps=2, output_type="latent", seed=3).images
        for model in (CustomContrast(base, warm.requires_grad_(False).eval()), CustomContrast(base, again))
    ]
    assert torch.equal(*pictures)
    pipe = CustomContrastPipeline.from_parts(base, again)
    bear = pipe.subject(cutout(0), "bear")
    made = pipe(PROMPT, subjects=[bear], num_inference_steps=2, output_type="latent", seed=3).images
    assert torch.equal(made, pictures[0])


def random_weights(adapter: WarmAdapter) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: v + 0.05 * torch.randn(v.shape, generator=g) for k, v in adapter.state_dict().items()}


def test_files_that_it_cannot_start_from(tiny_base: BaseModel, tiny_xl_base: BaseModel, tmp_path: Path) -> None:
    made = {
        kind: random_ip_file(tmp_path / f"{kind}.safetensors", kind, base.unet, base.image_encoder.config)
        for kind, base in (("pooled", tiny_base), ("plus", tiny_xl_base))
    }
    with pytest.raises(CheckpointError, match=r"pooled.safetensors reads image embeddings.*take an IP-Adapter-plus"):
        WarmAdapter.from_file(tiny_base, made["pooled"], **ENCODER)
    with pytest.raises(CheckpointError, match="choose the file of your base"):
        WarmAdapter.from_file(tiny_base, made["plus"], **ENCODER)
    own = save_adapter(random_adapter(tiny_base), tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="no known IP-Adapter layout"):
        WarmAdapter.from_file(tiny_base, own, **ENCODER)


def test_a_file_whose_published_part_is_damaged_is_named(pair: Pair, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = save_adapter(pair.warm, tmp_path / "warm.safetensors")
    with safe_open(str(file), "pt") as opened:
        about, weights = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    del weights["published.image_proj.norm_out.bias"]
    save_file(weights, file, metadata=about)
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        load_adapter(file, pair.ours.base)
    save_file({k: v for k, v in weights.items() if "image_proj" not in k}, file, metadata=about)
    with pytest.raises(CheckpointError, match="no known IP-Adapter layout"):
        load_adapter(file, pair.ours.base)
