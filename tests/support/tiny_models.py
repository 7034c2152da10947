"""Real classes at toy width, with random weights: folders as published, in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from customcontrast.adapter import Adapter
from customcontrast.base_model import FACTS, BaseModel
from customcontrast.building import alone
from customcontrast.layout import LAYOUT_CHANNELS
from train.common.true_models import word_tokens

LENGTH = 32  # tokens of the tiny text encoders
WORDS = "a an the photo of bear cat robot bird car on in at beach forest city red blue green wearing hat scarf and with"
ENCODER = {"width": 32, "heads": 2, "depth": 2, "visual_queries": 5, "text_queries": 3, "fourier_bands": 3}
PRIOR = {
    "nouns": {"bear": "bear", "teddy": "bear", "cat": "cat"},
    "kinds": {
        "bear": [[0.2, 0.1, 0.7, 0.9, 10.0, "standing", "normal"], [0.3, 0.2, 0.8, 0.9, -20.0, "sitting", "normal"]],
        "cat": [[0.2, 0.2, 0.6, 0.9, 5.0, "standing", "normal"], [0.2, 0.1, 0.5, 0.9, 5.0, "standing", "tall"]],
    },
    "shapes": {"tall": "tall"},
}


def make_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIPTokenizer made offline: bytes, a few merges, and the words above as merges of their letters.

    pad: the padding token; SDXL's second tokenizer has "!".
    """
    tokens, merges = word_tokens(WORDS)
    vocabulary = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {token: i for i, token in enumerate(vocabulary)}, merges, model_max_length=LENGTH, pad_token=pad
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )


def _vision() -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=6, num_attention_heads=2, image_size=24, patch_size=8
    )
    size = {"height": 24, "width": 24}
    return CLIPVisionModelWithProjection(config), CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=size)


def _vae(channels: int, levels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.5,
        sample_size=64,
    )


def _latents(channels: int) -> dict[str, int]:
    """What the UNets share, by their latent channels."""
    return {"in_channels": channels, "out_channels": channels, "layers_per_block": 1, "norm_num_groups": 8}


def _save_pipeline(
    folder: Path, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, latents: int, scheduler: SchedulerMixin
) -> None:
    """A StableDiffusionPipeline of this UNet, with an autoencoder of f = 8, a text and an image encoder."""
    encoder, processor = _vision()
    StableDiffusionPipeline(
        vae=_vae(latents, 4),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 32, 16)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=processor,
        image_encoder=encoder,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@alone
def save_tiny_toyland(folder: Path, prediction: str = "v_prediction") -> None:
    """A StableDiffusionPipeline folder shaped like toyland: 8 latent channels, f = 8, two levels."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        **_latents(8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    _save_pipeline(folder, tokenizer, unet, 8, scheduler)
    (folder / "vocabulary.json").write_text(json.dumps(WORDS.split()))


@alone
def save_tiny_layouts(folder: Path) -> None:
    """The tiny Toyland with layout channels at its UNet's input, a prior, and no padding in its texts."""
    save_tiny_toyland(folder)
    config = UNet2DConditionModel.load_config(folder / "unet")
    shutil.rmtree(folder / "unet")
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(config, in_channels=8 + LAYOUT_CHANNELS)
    unet.conv_in.weight.data *= 2
    unet.save_pretrained(folder / "unet")
    (folder / FACTS).write_text(json.dumps({"masks_padding": True, "layout": PRIOR}))


@alone
def save_tiny_xl(folder: Path) -> None:
    """A StableDiffusionXLPipeline folder: two text encoders, pooled text, several transformer blocks a layer."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        **_latents(4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        cross_attention_dim=32 + 40,
        use_linear_projection=True,
    )
    encoder, processor = _vision()
    StableDiffusionXLPipeline(
        vae=_vae(4, 3),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 32, 16)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, 40, 24)),
        tokenizer=tokenizer,
        tokenizer_2=make_tokenizer(pad="!"),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        feature_extractor=processor,
        image_encoder=encoder,
        add_watermarker=False,
    ).save_pretrained(folder)


def random_adapter(base: BaseModel, seed: int = 0, **overrides: object) -> Adapter:
    """A small adapter with random weights, loud enough that what it says shows in the picture."""
    torch.manual_seed(seed)
    adapter = Adapter.create(base, **(ENCODER | overrides)).requires_grad_(False).eval()
    for linear in adapter.attention.to_v:
        torch.nn.init.normal_(linear.weight, std=0.3)
    for linear in adapter.attention.to_k:
        torch.nn.init.normal_(linear.weight, std=0.5)
    return adapter


@alone
def save_tiny_sd15(folder: Path) -> None:
    """A StableDiffusionPipeline folder like SD-1.5: four levels, 4 latent channels, f = 8, ε-prediction, PNDM."""
    torch.manual_seed(2)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    _save_pipeline(folder, tokenizer, unet, 4, scheduler)
