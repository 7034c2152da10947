"""Toyland's autoencoder: the linear path is PCA, the network beside it starts silent, diffusers can use it."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from customcontrast.toyland.autoencoder import PATCH, PatchAutoencoder

SIZES = {"channels": (8, 16, 16), "layers": 1, "latent_channels": 6, "groups": 4}


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """(24, 3, 32, 32) smooth random pictures."""
    coarse = torch.rand(24, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=False)


def _started(pictures: torch.Tensor, evenness: float = 0.5, **sizes: int) -> PatchAutoencoder:
    torch.manual_seed(0)
    model = PatchAutoencoder(**(SIZES | sizes)).eval()
    model.start_from_components(pictures, evenness)
    return model


def _best_linear_error(pictures: torch.Tensor, components: int) -> float:
    """Mean squared error of the best rank-`components` description of the 8 x 8 patches, by SVD."""
    n, _, h, w = pictures.shape
    cells = pictures.view(n, 3, h // PATCH, PATCH, w // PATCH, PATCH)
    rows = cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * PATCH * PATCH).double()
    values = torch.linalg.svdvals(rows - rows.mean(0))
    return (values[components:].square().sum() / rows.numel()).item()


def test_starts_at_the_principal_components(pictures: torch.Tensor) -> None:
    model = _started(pictures)
    with torch.no_grad():
        z = model.encode(pictures).latent_dist.mode()
        error = (model.decode(z).sample - pictures).square().mean().item()
    best = _best_linear_error(pictures, 6)
    assert best * 0.999 <= error <= best * 1.1 + 1e-5  # the mean of a patch is kept only by colour


@pytest.mark.parametrize("evenness", [0.0, 0.5, 1.0])
def test_evenness_sets_the_spread_of_the_channels(pictures: torch.Tensor, evenness: float) -> None:
    def spread(power: float) -> torch.Tensor:
        return _started(pictures, power).encode(pictures).latent_dist.mode().std((0, 2, 3), correction=0).detach()

    torch.testing.assert_close(spread(evenness), spread(0.0) ** (1 - evenness), rtol=2e-2, atol=1e-3)


def test_latent_scale_cancels(pictures: torch.Tensor) -> None:
    model = _started(pictures)
    plain = model.decode(model.encode(pictures).latent_dist.mode()).sample
    model.latent_scale.copy_(torch.linspace(0.5, 2.0, 6))
    scaled = model.decode(model.encode(pictures).latent_dist.mode()).sample
    torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_after_one_step(pictures: torch.Tensor) -> None:
    model = _started(pictures).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(4):  # the silent layers must move before the ones before them can
        optimizer.zero_grad()
        (model.decode(model.encode(pictures).latent_dist.mode()).sample - pictures).square().mean().backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_sides_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 30 x 32"):
        PatchAutoencoder(**SIZES).encode(torch.zeros(1, 3, 30, 32))


def test_the_posterior_is_a_point(pictures: torch.Tensor) -> None:
    posterior = _started(pictures).encode(pictures).latent_dist
    torch.testing.assert_close(posterior.sample(), posterior.mode(), rtol=0, atol=1e-4)


def test_serves_a_plain_diffusers_pipeline(tmp_path, pictures: torch.Tensor) -> None:
    model = _started(pictures)
    model.save_pretrained(tmp_path / "vae")
    vae = PatchAutoencoder.from_pretrained(tmp_path / "vae").eval()
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=6, out_channels=6, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    parts = {"vae": vae, "unet": unet, "scheduler": DDIMScheduler(), "text_encoder": None, "tokenizer": None}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    assert pipe.vae_scale_factor == PATCH
    embeds = torch.randn(1, 5, 8)
    out = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=embeds,
        num_inference_steps=1,
        output_type="np",
        height=24,
        width=40,
    )
    assert out.images.shape == (1, 24, 40, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            vae.decode(vae.encode(pictures).latent_dist.mode()).sample,
            model.decode(model.encode(pictures).latent_dist.mode()).sample,
        )
