"""Toyland's autoencoder: f = 8, all convolutions at a quarter of the picture's resolution or below.

An `AutoencoderKL` of diffusers spends most of its time at full resolution, too much for training on a CPU. Here a
linear patch projection, started from the principal components of the data, carries the picture, and a small
convolutional network beside it adds the nonlinear rest (the residual autoencoding of Chen et al. 2024, "Deep
Compression Autoencoder"). It has the interface that diffusers' pipelines expect of a VAE.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

PATCH = 8  # f, pixels per latent
CERTAIN = -30.0  # log-variance of a posterior that is a point


class ResidualBlock(nn.Module):
    """A residual block: x + conv(SiLU(conv(SiLU(norm(x)))))."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _silent(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, channels, h, w)."""
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


def _blocks(channels: int, count: int, groups: int) -> list[nn.Module]:
    return [ResidualBlock(channels, groups) for _ in range(count)]


class PatchEncoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, H/8, W/8)."""

    def __init__(self, channels: tuple[int, int, int], layers: int, latents: int, groups: int):
        super().__init__()
        _, middle, deep = channels
        self.linear = nn.Conv2d(3, latents, PATCH, PATCH)
        self.net = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, middle, 3, padding=1),
            *_blocks(middle, layers, groups),
            nn.Conv2d(middle, deep, 2, 2),
            *_blocks(deep, layers, groups),
            nn.GroupNorm(groups, deep),
            nn.SiLU(),
            _silent(nn.Conv2d(deep, latents, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode pixels x."""
        return self.linear(x) + self.net(x)


class PatchDecoder(nn.Module):
    """Latents (B, C, h, w) to pixels (B, 3, 8h, 8w)."""

    def __init__(self, channels: tuple[int, int, int], layers: int, latents: int, groups: int):
        super().__init__()
        fine, middle, deep = channels
        self.linear = nn.ConvTranspose2d(latents, 3, PATCH, PATCH)
        self.net = nn.Sequential(
            nn.Conv2d(latents, deep, 3, padding=1),
            *_blocks(deep, layers + 1, groups),
            nn.Conv2d(deep, 4 * middle, 1),
            nn.PixelShuffle(2),
            *_blocks(middle, layers + 1, groups),
            nn.Conv2d(middle, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            *_blocks(fine, layers, groups),
            nn.GroupNorm(groups, fine),
            nn.SiLU(),
            _silent(nn.Conv2d(fine, 12, 3, padding=1)),
            nn.PixelShuffle(2),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents z."""
        return self.linear(z) + self.net(z)


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    """`layer` with its parameters set to zero, so that the linear path alone acts at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """A deterministic autoencoder: its posterior is a point.

    channels: widths at 1/2, 1/4 and 1/8 of the picture's resolution. layers: residual blocks at each.
    latent_channels: C. groups: of every GroupNorm. block_out_channels only says f to diffusers: 2^(len - 1).
    Picture sides must be multiples of 8.
    """

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, int, int] = (32, 96, 160),
        layers: int = 2,
        latent_channels: int = 16,
        groups: int = 8,
        scaling_factor: float = 1.0,
        sample_size: int = 96,
        block_out_channels: tuple[int, ...] = (32, 32, 96, 160),
        force_upcast: bool = False,
    ):
        super().__init__()
        self.encoder = PatchEncoder(channels, layers, latent_channels, groups)
        self.decoder = PatchDecoder(channels, layers, latent_channels, groups)
        self.register_buffer("latent_scale", torch.ones(latent_channels))

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...

    @overload
    def encode(self, x: Tensor, return_dict: Literal[False]) -> tuple[DiagonalGaussianDistribution]: ...

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode pixels (B, 3, H, W) in [-1, 1] to the (point) posterior over latents (B, C, H/8, W/8).

        Raises:
            ValueError: H or W is not a multiple of 8.
        """
        height, width = x.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"x: sides must be multiples of {PATCH}, got {height} x {width}; resize the picture")
        mean = self.encoder(x) * self.latent_scale[:, None, None]
        posterior = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, CERTAIN)], 1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @overload
    def decode(self, z: Tensor, return_dict: Literal[True] = True, generator: object = None) -> DecoderOutput: ...

    @overload
    def decode(self, z: Tensor, return_dict: Literal[False], generator: object = None) -> tuple[Tensor]: ...

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """Decode latents (B, C, h, w) to pixels (B, 3, 8h, 8w), about [-1, 1]. generator: for diffusers, unused."""
        pixels = self.decoder(z / self.latent_scale[:, None, None])
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    @torch.no_grad()
    def start_from_components(self, pictures: Tensor, evenness: float = 0.5) -> None:
        """Set the linear path to the principal components of 8 x 8 patches.

        pictures (N, 3, H, W) in [-1, 1]. evenness: 0 leaves each component its own variance in the latents, 1 makes
        all variances equal; in between, coarse components vary more than fine ones, as in natural pictures.
        """
        patches = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH).double()
        mean = patches.mean(0)
        covariance = (patches - mean).T @ (patches - mean) / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        count = self.config.latent_channels
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count].T  # (C, 192), strongest first
        scale = values.clamp(min=1e-8).pow(-evenness / 2)
        to_latent, to_pixel = vectors * scale[:, None], vectors / scale[:, None]
        shape = (count, 3, PATCH, PATCH)
        into, back = self.encoder.linear, self.decoder.linear
        assert into.bias is not None and back.bias is not None  # both are made with one
        into.weight.copy_(to_latent.view(shape))
        into.bias.copy_(-(to_latent @ mean))
        back.weight.copy_(to_pixel.view(shape))
        back.bias.copy_(mean.view(3, -1).mean(1))  # a bias has no place for the patch's own mean
        back.weight.data = back.weight.data.contiguous()
