"""A Stable Diffusion 1 pipeline as one checkpoint file, in the layout its finetunes are handed around in."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str, layers: int) -> str:
    """Name of a UNet's tensor there. layers: `layers_per_block`."""
    for ours, theirs in _ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    where, block, kind, j, rest = re.fullmatch(
        r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+)\.(\d+)\.(.*)", key
    ).groups()
    if kind == "resnets":
        head, _, tail = rest.partition(".")
        rest = f"{_RESNET[head]}.{tail}"
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(j)}.{rest}"
    at = int(block) * (layers + 1)
    if where == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{1 + at + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + at + int(j)}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{at + layers}.{1 if block == '0' else 2}.{rest}"
    return f"output_blocks.{at + int(j)}.{int(kind == 'attentions')}.{rest}"


def vae_key(key: str, levels: int) -> str:
    """Name of an autoencoder's tensor there."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        head, tail = key.split("mid_block.attentions.0.")
        name, _, part = tail.rpartition(".")
        return f"{head}mid.attn_1.{_ATTENTION[name]}.{part}"
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)


def save_checkpoint(folder: Path, path: Path) -> Path:
    """All weights of the pipeline in `folder` as one file."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, image_encoder=None, feature_extractor=None)
    unet, vae, tensors = pipe.unet, pipe.vae, {}
    for key, value in unet.state_dict().items():
        tensors[f"model.diffusion_model.{unet_key(key, unet.config.layers_per_block)}"] = value
    levels = len(vae.config.block_out_channels)
    for key, value in vae.state_dict().items():
        tensors[f"first_stage_model.{vae_key(key, levels)}"] = _as_convolution(key, value)
    for key, value in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def _as_convolution(key: str, value: Tensor) -> Tensor:
    """The autoencoder's attention is made of 1 × 1 convolutions there."""
    return value[:, :, None, None] if ".attentions.0.to_" in key and value.ndim == 2 else value
