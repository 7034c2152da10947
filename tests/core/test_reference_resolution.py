"""reference_resolution: at how many pixels references are seen, from the encoder's input to recipe and maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customcontrast.base_model import BaseModel
from customcontrast.config import LIMITS, RecordConfig
from customcontrast.encoder.image_features import extract, preprocess, tokens_on_a_side
from customcontrast.errors import ConfigError
from customcontrast.ip_adapter import load_ip_adapter
from customcontrast.pipeline import CustomContrast
from tests.support.ip_files import random_ip_file

OWN, PATCH = 24, 8  # px, of the tiny image encoder


def picture(side: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (side, side, 3), np.uint8))


def test_its_own_resolution_is_none_to_the_bit(any_custom: CustomContrast, cutout: Callable) -> None:
    subjects = [any_custom.subject(cutout(0), "bear", reference_resolution=side) for side in (None, OWN, np.int64(OWN))]
    assert all(torch.equal(subject.features, subjects[0].features) for subject in subjects)
    assert [subject.resolution for subject in subjects] == [None] * 3


def test_fewer_pixels_are_less_detail_in_as_many_tokens(tiny_base: BaseModel) -> None:
    """Below its own side the encoder sees the reduced picture, enlarged, in which neighbouring pixels differ less."""
    by_hand = picture().resize((16, 16), Image.Resampling.LANCZOS)
    seen = preprocess(tiny_base, [picture()], 16)
    assert torch.equal(seen, preprocess(tiny_base, [by_hand]))
    own = preprocess(tiny_base, [picture()])
    assert seen.shape == own.shape and seen.diff(dim=-1).abs().mean() < 0.8 * own.diff(dim=-1).abs().mean()
    small = picture(12)  # never enlarged to be reduced
    assert torch.equal(preprocess(tiny_base, [small], 16), preprocess(tiny_base, [small]))
    wide = Image.new("RGB", (90, 30))  # a style picture, which need not be square
    assert preprocess(tiny_base, [wide], 16).shape == own.shape


def test_more_pixels_are_more_tokens(tiny_base: BaseModel) -> None:
    """Above it, whole patches more; against the encoder with its position embeddings resized by hand."""
    for side, patches in ((25, 4), (32, 4), (33, 5), (48, 6)):
        assert tokens_on_a_side(tiny_base, side) == patches
        assert preprocess(tiny_base, [picture()], side).shape[-2:] == (patches * PATCH,) * 2
    states = extract(tiny_base, [picture()], side=48)
    vision = tiny_base.image_encoder.vision_model
    embeddings = vision.embeddings
    table = embeddings.position_embedding.weight
    grid = table[1:].unflatten(0, (3, 3)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    patches = embeddings.patch_embedding(preprocess(tiny_base, [picture()], 48)).flatten(2).mT + resized.flatten(2).mT
    first = torch.cat([(embeddings.class_embedding + table[0])[None, None], patches], dim=1)
    hidden = [vision.pre_layrnorm(first)]
    for layer in vision.encoder.layers:
        hidden.append(layer(hidden[-1], None))
    for i, state in zip(tiny_base.image_layers, states, strict=True):
        assert state.shape == (1, 37, 24)
        torch.testing.assert_close(state, hidden[i], atol=1e-5, rtol=1e-4)


def test_a_generation_with_it(tiny_custom: CustomContrast, cutout: Callable) -> None:
    """f_v keeps its shape and changes; pictures, recipe and what was looked at follow, each subject by itself."""
    sides = (16, None, 48)
    subjects = [tiny_custom.subject(cutout(0), "bear", reference_resolution=side) for side in sides]
    f_v = [tiny_custom.adapter.encoder.visual(subject.features)[0] for subject in subjects]
    assert f_v[0].shape == f_v[1].shape == f_v[2].shape
    assert not torch.allclose(f_v[0], f_v[1], atol=1e-3) and not torch.allclose(f_v[2], f_v[1], atol=1e-3)
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "record": RecordConfig(looked_at=True)}
    made = [tiny_custom.generate("a bear", [subject], **options) for subject in subjects]
    assert len({result.images[0].tobytes() for result in made}) == 3
    assert [result.looked_at[0].shape[-2:] for result in made] == [(3, 3), (3, 3), (6, 6)]
    assert [result.recipe["subjects"][0].get("reference_resolution") for result in made] == list(sides)
    other = tiny_custom.subject([cutout(1), cutout(2)], "cat")
    both = tiny_custom.generate("a bear and a cat", [subjects[2], other], **options)
    assert [looked.shape[-3:] for looked in both.looked_at] == [(1, 6, 6), (2, 3, 3)]


@pytest.mark.parametrize("kind", ["plus", "pooled", "full"])
def test_published_adapters_take_it(tiny_xl_base: BaseModel, tmp_path: Path, cutout: Callable, kind: str) -> None:
    file = random_ip_file(tmp_path / "ip.safetensors", kind, tiny_xl_base.unet, tiny_xl_base.image_encoder.config)
    custom = CustomContrast.from_parts(tiny_xl_base, load_ip_adapter(file, tiny_xl_base))
    seen = [custom.subject(cutout(0), "bear", reference_resolution=side).features for side in (None, 16, 48)]
    per_picture = (10, 10, 37) if kind == "full" else (seen[0].shape[1],) * 3  # full: a token for each patch
    assert tuple(x.shape[1] for x in seen) == per_picture
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert kind == "full" or not torch.allclose(seen[0], seen[2], atol=1e-3)
    assert custom.generate("a bear", custom.subject(cutout(0), "bear", reference_resolution=48), num_inference_steps=1)


@pytest.mark.parametrize("wrong", [15, 49, 10**9, 24.5, "48", True, -1])
def test_what_it_cannot_be(tiny_custom: CustomContrast, cutout: Callable, wrong: object) -> None:
    least = LIMITS["reference_resolution"].low
    with pytest.raises(ConfigError, match=rf"reference_resolution={wrong!r} must be {least} to 48 px .* reads 24 px"):
        tiny_custom.subject(cutout(0), "bear", reference_resolution=wrong)
