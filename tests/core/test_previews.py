"""previews: colours by a linear map of the latents, fitted through the autoencoder itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from customcontrast.base_model import BaseModel, load_base
from customcontrast.output import Step
from customcontrast.pipeline import CustomContrast
from customcontrast.previews import colour_fields, fit_latent_rgb
from tests.support.tiny_models import random_adapter


def cells(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    return F.avg_pool2d(pixels.float(), factor)


def explained(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """R² of the cells' colours."""
    return float(1 - (found - wanted).pow(2).mean() / (wanted - wanted.mean((0, 2, 3), keepdim=True)).pow(2).mean())


@pytest.fixture(scope="module")
def toyland() -> BaseModel:
    return load_base("toyland", device="cpu")


def test_a_trained_autoencoder_is_nearly_linear_in_colour(toyland: BaseModel) -> None:
    """Fitted on random fields of colour, it explains the colours of fields it never saw."""
    f, fit = toyland.scale_factor, fit_latent_rgb(toyland)
    unseen = colour_fields(4, 16 * f, seed=9)
    z = toyland.encode(unseen)
    assert explained(cells(fit.pixels(z, f), f), cells(unseen, f)) > 0.95
    assert explained(cells(fit.pixels(z, f), f), cells(toyland.decode(z), f)) > 0.95
    assert fit.pixels(z, f).shape == unseen.shape


def test_it_is_the_least_squares_solution(any_base: BaseModel) -> None:
    """No other linear map of these latents is nearer to the cells' colours of these pictures."""
    f, pictures = any_base.scale_factor, colour_fields(3, 64, seed=4)
    fit, z = fit_latent_rgb(any_base, pictures), any_base.encode(pictures)

    def error(weight: torch.Tensor, bias: torch.Tensor) -> float:
        found = torch.einsum("nchw,cd->ndhw", z, weight) + bias[:, None, None]
        return float((found - cells(pictures, f)).double().pow(2).mean())

    least = error(fit.weight, fit.bias)
    for seed in range(3):
        other = torch.randn(fit.weight.shape, generator=torch.Generator().manual_seed(seed))
        assert least <= error(fit.weight + 0.05 * other, fit.bias) and least <= error(fit.weight, fit.bias + 0.05)


def test_the_autoencoder_decodes_the_last_picture_alone(
    tiny_xl_base: BaseModel, cutout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CustomContrast(tiny_xl_base, random_adapter(tiny_xl_base))
    subject, decoded = model.subject(cutout(0), "bear"), []
    plain = type(tiny_xl_base).decode
    monkeypatch.setattr(type(tiny_xl_base), "decode", lambda self, z: decoded.append(len(z)) or plain(self, z))
    options = {"num_inference_steps": 4, "num_images": 2, "height": 64, "width": 48}
    *steps, result = model.stream("a bear", subject, preview_every=2, **options)
    previews = [step.preview for step in steps if isinstance(step, Step)]
    assert [preview is not None for preview in previews] == [False, True, False, True]
    assert previews[1].size == (96, 64) and decoded == [2]
    unseen = model.generate("a bear", subject, **options)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(result.images, unseen.images, strict=True))


def test_embedded_bases_show_what_they_decode(tiny_custom: CustomContrast) -> None:
    """At step T the preview is the picture: their autoencoders are small, and their latents have few cells."""
    *_, last, result = tiny_custom.stream("a bear", preview_every=3, num_inference_steps=3, scheduler="ddim")
    gaps = np.asarray(last.preview, np.int16) - np.asarray(result.images[0], np.int16)
    assert np.abs(gaps).max() <= 4, "but for the noise that DDIM's last step leaves"
