"""A base model, toyland, toyland2, sd15 or sdxl, and how it is loaded; `specs.BASES` has what differs between them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from customcontrast.attention.layers import LayerSpec, cross_attention_layers
from customcontrast.building import alone
from customcontrast.config import EncoderConfig
from customcontrast.encoder.image_features import evenly_spaced, tokens_on_a_side
from customcontrast.errors import BaseModelError, HubError, out_of_memory
from customcontrast.hub import HUB_ID, encoder_folder, fp16_only, is_file, is_folder, pipeline_folder
from customcontrast.layout import LAYOUT_CHANNELS, LayoutPrior
from customcontrast.precision import is_half, read_dtype
from customcontrast.specs import BASES, BaseSpec, TextPart
from customcontrast.toyland.autoencoder import PatchAutoencoder

FACTS = "base.json"  # beside an embedded base's weights: facts of its training that its use depends on
_SIGNATURE = ("class_embedding", "position_embedding.weight", "post_layernorm.weight", "visual_projection.weight")


@dataclass
class BaseModel:
    """A frozen text-to-image model and the CLIP image encoder beside it. Threads may share one; nothing mutates it."""

    name: str  # a key of `specs.BASES`
    tokenizers: list[CLIPTokenizer]
    text_encoders: list[Any]  # CLIPTextModel, for SDXL a CLIPTextModelWithProjection too
    unet: UNet2DConditionModel
    vae: AutoencoderKL | PatchAutoencoder
    scheduler: Any  # the base's own scheduler; runs make theirs from its config
    image_encoder: CLIPVisionModelWithProjection
    image_processor: CLIPImageProcessor
    default_size: int  # px, side of the square it was trained on
    default_steps: int  # denoising steps
    default_guidance: float  # classifier-free guidance scale
    default_guidance_end: float  # share of the steps after which there is no guidance
    dtype: torch.dtype
    device: torch.device
    vocabulary: frozenset[str] | None = None  # words the base was trained on; None = no list
    zero_empty_prompt: bool = False  # the unconditional text is all zeros, not the empty prompt's (SDXL)
    masks_padding: bool = False  # trained with the prompt's own tokens alone: text attention sees no padding
    layout_prior: LayoutPrior | None = None  # layouts where none is requested; None = it takes none, or has none
    encoder_name: str = ""  # hub id of the image encoder ("owner/name:folder"), if it came from there
    penultimate: bool = False  # f_I's coarsest layer is the one before the last, for an adapter that starts as an
    # IP-Adapter (`warm_start`)

    @property
    def spec(self) -> BaseSpec:
        """What differs between base models and cannot be read from their weights."""
        return BASES[self.name]

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.unet.config.out_channels

    @property
    def layout_channels(self) -> int:
        """Input channels of the UNet beside the latents: `layout.LAYOUT_CHANNELS`, or 0."""
        return self.unet.config.in_channels - self.unet.config.out_channels

    @property
    def scale_factor(self) -> int:
        """f: pixels per latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @cached_property
    def cross_attention_layers(self) -> tuple[LayerSpec, ...]:
        """The UNet's cross-attention layers in execution order; the place in it is the S+ index l."""
        return cross_attention_layers(self.unet)

    @property
    def cross_attention_names(self) -> list[str]:
        """Module paths of the cross-attention layers in execution order."""
        return [layer.name for layer in self.cross_attention_layers]

    @property
    def image_layers(self) -> tuple[int, ...]:
        """The three CLIP image layers of f_I, coarse to fine."""
        last, *others = evenly_spaced(self.image_encoder.config.num_hidden_layers)
        return (last - self.penultimate, *others)

    @property
    def image_side(self) -> int:
        """The side of what the CLIP image encoder was trained to read, px."""
        return self.image_encoder.config.image_size

    @property
    def image_patches(self) -> tuple[int, int]:
        """Rows and columns of patches that the CLIP image encoder divides a picture into."""
        side = tokens_on_a_side(self)
        return side, side

    @cached_property
    def encoder_id(self) -> dict[str, Any] | None:
        """Identity of the image encoder for adapter files: its name, and the RMS of a few of its weights.

        {"id": name, "signature": numbers}; None where the weights are not in memory. Compare with `same_encoder`.
        """
        model = self.image_encoder
        weights = [p for name, p in model.named_parameters() if name.endswith(_SIGNATURE)]
        if not weights or any(p.device.type == "meta" for p in weights):
            return None
        c = model.config
        name = self.encoder_name or f"CLIP of width {c.hidden_size}, {c.num_hidden_layers} layers"
        return {"id": name, "signature": [float(p.detach().double().pow(2).mean().sqrt()) for p in weights]}

    def added_conditions(
        self, pooled: Tensor | None, height: int, width: int, origins: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """SDXL's extra conditions of the UNet; None for a base that has none.

        pooled: pooled text (B, P). height, width: of the picture, px.
        origins: (B, 4), each picture's size before it was resized and the corner of its crop after that (height, width,
        top, left), px; None = it was as large as it is and is whole.
        """
        if not self.spec.pooled or pooled is None:
            return None
        size = pooled.new_tensor([height, width])
        if origins is None:
            origins = torch.cat([size, torch.zeros_like(size)])
        rows = (len(pooled), -1)
        time_ids = torch.cat([origins.to(pooled).expand(*rows), size.expand(*rows)], dim=1)
        return {"text_embeds": pooled, "time_ids": time_ids}

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in [−1, 1] to scaled latents (B, C, H/f, W/f), float32: the posterior's mode.

        The mode, not a sample: Toyland's autoencoder has no meaningful posterior width, Stable Diffusion's is
        negligible, and what training caches is then exactly what encoding again would give.
        """
        z = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist.mode().float()
        mean, std = self._latent_statistics(z)
        return (z - mean) * self.vae.config.scaling_factor / std

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to pixels (B, 3, h·f, w·f), about [−1, 1]."""
        z = z.to(self.vae.dtype)
        mean, std = self._latent_statistics(z)
        return self.vae.decode(z * std / self.vae.config.scaling_factor + mean, return_dict=False)[0]

    def _latent_statistics(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Per-channel mean and std that some autoencoders carry; 0 and 1 otherwise."""
        mean, std = (getattr(self.vae.config, key, None) for key in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return 0.0, 1.0
        return z.new_tensor(mean)[None, :, None, None], z.new_tensor(std)[None, :, None, None]


def load_base(
    name: str = "toyland",
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    image_encoder: str | Path | None = None,
) -> BaseModel:
    """Load a base model for inference or adapter training: frozen, in evaluation mode.

    name: a key of `specs.BASES`. weights: a diffusers pipeline folder, a hub id (default: the spec's own), or one
        checkpoint file (.safetensors), the form in which finetunes of Stable Diffusion are published.
    device: default CUDA where there is one. dtype: torch's or its name; default float16 on CUDA, float32 on a CPU.
    image_encoder: folder or hub id ("owner/name", "owner/name:folder") of the CLIP image encoder, if `weights` has no
        `image_encoder` folder; one without preprocessor_config.json gets CLIP's own statistics at its picture size.
    In half precision, half-precision weight files are taken where there are any. Only safetensors are read, never
    pickles. Raises BaseModelError with one sentence.
    """
    if not isinstance(name, str) or name not in BASES:
        raise BaseModelError(f"load_base: there is no base model {name!r}; choose one of {', '.join(BASES)}.")
    spec = BASES[name]
    source = str(weights or spec.weights)
    single = source.endswith(".safetensors") and is_file(source)
    local = single or (len(source) <= 1000 and is_folder(source))
    _check_source(spec, source, weights is not None, local)
    device = chosen_device(device)
    dtype = read_dtype(dtype or usual_dtype(device))
    half = is_half(dtype)
    if not local or single:
        source = _fetched(spec, spec.weights if single else source, half, settings_only=single)
    pipe = _read_single_file(spec, str(weights), source, dtype) if single else None
    parts = _Parts(spec, source, dtype, device, pipe)

    vae, unet = parts.autoencoder(), parts.unet()
    facts = _json(Path(source) / FACTS, dict) if (Path(source) / FACTS).is_file() else {}
    vision, processor, encoder_name = parts.image_encoder(image_encoder)
    texts = [parts.text(text) for text in spec.text_parts]
    return BaseModel(
        name=name,
        tokenizers=[tokenizer for tokenizer, _ in texts],
        text_encoders=[encoder for _, encoder in texts],
        unet=unet,
        vae=vae,
        scheduler=_scheduler(source, name),
        image_encoder=vision,
        image_processor=processor,
        encoder_name=encoder_name,
        default_size=unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1),
        default_steps=spec.steps,
        default_guidance=spec.guidance,
        default_guidance_end=spec.guidance_end,
        dtype=dtype,
        device=device,
        vocabulary=_vocabulary(Path(source)),
        masks_padding=facts.get("masks_padding", False) is True,
        layout_prior=LayoutPrior.from_dict(facts["layout"]) if facts.get("layout") else None,
        zero_empty_prompt=spec.pooled and _zero_empty_prompt(source),
    )


def _check_source(spec: BaseSpec, source: str, chosen: bool, local: bool) -> None:
    """Whether there may be weights at `source`. chosen: the user named it; local: it is on this machine."""
    if not chosen and spec.embedded and not Path(source).is_dir():
        raise BaseModelError(
            f"load_base: the {spec.name} weights are missing from customcontrast/weights/{spec.name}; "
            "train them with train/base/pretrain.py, or pass weights=FOLDER."
        )
    if chosen and not local and not HUB_ID.fullmatch(source):
        shown = source[:100]
        raise BaseModelError(
            f"load_base: there is no folder {shown!r}; pass weights=FOLDER, a .safetensors checkpoint or a hub id "
            "(owner/name)."
        )


@dataclass(frozen=True)
class _Parts:
    """Reads the parts of one base, frozen and on the device, from its folder or a checkpoint file's pipeline."""

    spec: BaseSpec
    source: str  # the folder of the weights, or of a checkpoint file's settings alone
    dtype: torch.dtype
    device: torch.device
    pipe: Any = None  # diffusers' pipeline of a checkpoint file

    @property
    def half(self) -> bool:
        """Whether half-precision weight files are taken where there are any."""
        return is_half(self.dtype)

    def read(self, cls: Any, folder: str, source: str | None = None, **options: Any) -> Any:
        """One `from_pretrained` of a sub-folder. Raises BaseModelError where it is not there."""
        source = self.source if source is None else source
        if Path(source).is_dir() and not (Path(source) / folder).is_dir():
            raise BaseModelError(
                f"load_base: {source!r} has no folder {folder!r}, which base {self.spec.name!r} needs."
            )
        load = functools.partial(cls.from_pretrained, source, subfolder=folder, **options)
        return _read(load, folder, source, self.spec.name)

    def transformer(self, cls: Any, folder: str, source: str | None = None) -> Any:
        """A model of transformers."""
        if self.pipe is not None and source in (None, self.source):
            return self._frozen(self.pipe.components[folder].to(self.dtype))
        weights: dict[str, Any] = {"dtype": self.dtype, "use_safetensors": True}
        weights |= self._variant(folder, source or self.source)
        return self._frozen(self.read(cls, folder, source, **weights))

    def diffuser(self, cls: Any, folder: str, dtype: torch.dtype) -> Any:
        """A model of diffusers."""
        if self.pipe is not None:
            return self._frozen(self.pipe.components[folder].to(dtype))
        weights: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True} | self._variant(folder, self.source)
        return self._frozen(self.read(cls, folder, **weights))

    def autoencoder(self) -> Any:
        """The autoencoder; SDXL's overflows in float16 and stays float32 where its config says so."""
        config = _config(AutoencoderKL, "vae", self.source, self.spec.name)
        upcast = self.dtype == torch.float16 and config.get("force_upcast", True) and self.spec.pooled
        cls = PatchAutoencoder if config.get("_class_name") == "PatchAutoencoder" else AutoencoderKL
        return self.diffuser(cls, "vae", torch.float32 if upcast else self.dtype)

    def unet(self) -> Any:
        """The UNet. Raises BaseModelError for one whose input is neither latents nor latents and a layout."""
        unet = self.diffuser(UNet2DConditionModel, "unet", self.dtype)
        takes, gives = unet.config.in_channels, unet.config.out_channels
        if takes - gives not in (0, LAYOUT_CHANNELS):
            raise BaseModelError(
                f"load_base: the UNet of {self.source!r} takes {takes} channels for {gives} of latents (for "
                "inpainting, editing?); pass weights=FOLDER of a text-to-image model."
            )
        return unet

    def image_encoder(self, given: str | Path | None) -> tuple[Any, CLIPImageProcessor, str]:
        """The CLIP image encoder, what prepares its pictures, and its hub id ("" where it came from none).

        given: a folder or hub id; None = the weights' own, else the spec's.
        """
        source, folder, processor_folder, name = self.source, "image_encoder", "feature_extractor", ""
        elsewhere = given is not None or (not _has(source, "image_encoder") and self.spec.image_encoder)
        if elsewhere or self.pipe is not None:
            name = str(given or self.spec.image_encoder)
            try:
                source, folder, processor_folder = str(encoder_folder(name, self.half)), "", ""
            except HubError as error:
                raise BaseModelError(f"load_base: {error}") from error
            name = "" if is_folder(name) else name
        vision = self.transformer(CLIPVisionModelWithProjection, folder, source)
        if processor_folder or (Path(source) / processor_folder / "preprocessor_config.json").is_file():
            return vision, self.read(CLIPImageProcessor, processor_folder, source), name
        side = vision.config.image_size
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return vision, processor, name

    def text(self, part: TextPart) -> tuple[CLIPTokenizer, Any]:
        """One tokenizer and its text encoder, which must fit each other."""
        tokenizer = self.read(CLIPTokenizer, part.tokenizer)
        encoder = self.transformer(getattr(transformers, part.encoder_class), part.encoder)
        _check_tokenizer(tokenizer, encoder, f"{part.tokenizer!r} of {self.source!r}")
        return tokenizer, encoder

    def _frozen(self, model: nn.Module) -> Any:
        return model.requires_grad_(False).eval().to(self.device)

    def _variant(self, folder: str, source: str) -> dict[str, str]:
        return {"variant": "fp16"} if fp16_only(Path(source) / folder, self.half) else {}


def _check_tokenizer(tokenizer: CLIPTokenizer, encoder: Any, where: str) -> None:
    """Without its files transformers makes a tokenizer that knows no word, or no end. Raises BaseModelError."""
    words, places = encoder.config.vocab_size, encoder.config.max_position_embeddings
    if len(tokenizer) < words // 2 or tokenizer.model_max_length > places:
        raise BaseModelError(
            f"load_base: {where} does not fit its text encoder ({len(tokenizer)} tokens for {words}, prompts of "
            f"{tokenizer.model_max_length} for {places}); put the model's own tokenizer files there."
        )


def same_encoder(known: Any, here: dict[str, Any] | None) -> bool:
    """Whether two image encoders (`BaseModel.encoder_id`) are one, as far as both are known.

    By their weights, not their names: one encoder lies in many folders. Half precision rounds by less than the 2e-3
    that are let through (bfloat16: 2⁻⁹ of a weight).
    """
    theirs = known.get("signature") if isinstance(known, dict) else None
    if here is None or not isinstance(theirs, list) or not all(isinstance(x, float) for x in theirs):
        return True
    ours = here["signature"]
    return len(ours) == len(theirs) and all(math.isclose(a, b, rel_tol=2e-3) for a, b in zip(ours, theirs, strict=True))


def _fetched(spec: BaseSpec, repo: str, half: bool, settings_only: bool) -> str:
    """A hub id's files on this machine, as a folder."""
    weights = ["unet", "vae", *(text.encoder for text in spec.text_parts)]
    settings = ["scheduler", *(text.tokenizer for text in spec.text_parts)]
    try:
        if settings_only:
            return str(pipeline_folder(repo, (), [*weights, *settings]))
        return str(pipeline_folder(repo, weights, settings, half))
    except HubError as error:
        raise BaseModelError(f"load_base: {error}") from error


def _read_single_file(spec: BaseSpec, file: str, settings: str, dtype: torch.dtype) -> Any:
    """The pipeline that diffusers reads from one checkpoint file, with the settings of the base's own repository."""
    cls = diffusers.StableDiffusionXLPipeline if spec.pooled else diffusers.StableDiffusionPipeline
    options = dict.fromkeys(("image_encoder", "feature_extractor", *(() if spec.pooled else ("safety_checker",))))

    def load() -> Any:
        return cls.from_single_file(file, config=settings, torch_dtype=dtype, local_files_only=True, **options)

    return _read(load, "", file, spec.name)


def encoder_config(base: BaseModel, **overrides: Any) -> EncoderConfig:
    """The EncoderConfig that fits `base`; overrides replace any of its fields. Raises ConfigError."""
    tables = [encoder.get_input_embeddings().weight for encoder in base.text_encoders]
    facts: dict[str, Any] = {
        "image_width": base.image_encoder.config.hidden_size,
        "image_layers": base.image_layers,
        "text_widths": tuple(table.shape[1] for table in tables),
        "text_scales": tuple(float(table.detach().float().pow(2).mean().sqrt()) for table in tables),
        "num_layers": len(base.cross_attention_layers),
        "num_train_timesteps": base.scheduler.config.num_train_timesteps,
        "fusion": "pa",
    }
    return EncoderConfig.from_dict(facts | base.spec.encoder | overrides)


def _read(load: Callable[[], Any], folder: str, source: str, name: str) -> Any:
    """Run one `from_pretrained`; its failures in one sentence."""
    try:
        return alone(load)()
    except Exception as error:  # damaged files make the two libraries raise a dozen kinds of error
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"load_base: cannot read {folder or 'the model'!r} of {source!r} for base {name!r} ({reason}); "
            "pass weights=FOLDER, a diffusers pipeline folder with safetensors weights."
        ) from error


def usual_dtype(device: torch.device) -> torch.dtype:
    """What a base is loaded in by default: float16 on CUDA, else float32."""
    return torch.float16 if device.type == "cuda" else torch.float32


def chosen_device(requested: str | torch.device | None) -> torch.device:
    """The device, tried out; None = CUDA where there is one. Raises BaseModelError where there is none of that name."""
    try:
        device = torch.device(requested or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
        return device
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise BaseModelError(f"load_base: device={requested!r} is not on this machine; choose {here}.") from error


def _json(file: Path, kind: type) -> Any:
    """What a JSON file of a base holds. Raises BaseModelError when it is damaged or holds another kind of value."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"load_base: {str(file)!r} is damaged; put the model's own file there.") from error
    if not isinstance(value, kind):
        raise BaseModelError(f"load_base: {str(file)!r} must hold a JSON {kind.__name__}; put the model's own there.")
    return value


def _has(source: str, folder: str) -> bool:
    return (Path(source) / folder).is_dir()


def _scheduler(source: str, name: str) -> Any:
    config = _config(diffusers.DDIMScheduler, "scheduler", source, name)
    cls = getattr(diffusers, str(config.get("_class_name", "")), None)
    if cls is None:
        raise BaseModelError(f"load_base: {source!r} names the scheduler {config.get('_class_name')!r}, unknown here.")
    return _read(lambda: cls.from_config(config), "scheduler", source, name)


def _config(cls: Any, folder: str, source: str, name: str) -> dict[str, Any]:
    config = _read(lambda: cls.load_config(source, subfolder=folder), folder, source, name)
    if not isinstance(config, dict):
        raise BaseModelError(f"load_base: the configuration of {folder!r} in {source!r} is damaged; put its own there.")
    return config


def _vocabulary(folder: Path) -> frozenset[str] | None:
    file = folder / "vocabulary.json"
    if not file.is_file():
        return None
    return frozenset(str(word).lower() for word in _json(file, list))


def _zero_empty_prompt(source: str) -> bool:
    """SDXL's pipeline takes zeros for the empty prompt unless its index says otherwise."""
    index = Path(source) / "model_index.json"
    return not index.is_file() or _json(index, dict).get("force_zeros_for_empty_prompt", True)
