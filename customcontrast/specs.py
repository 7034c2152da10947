"""Tables of the base models and schedulers by name, read before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"  # of the embedded bases
DEFAULT_BASE = "toyland2"  # what the page starts with


@dataclass(frozen=True)
class TextPart:
    """A tokenizer and its text encoder: folders of a diffusers pipeline, and a class of transformers by name."""

    tokenizer: str
    encoder: str
    encoder_class: str


@dataclass(frozen=True)
class BaseSpec:
    """What differs between base models and cannot be read from their weights."""

    name: str
    title: str  # as the page lists it
    weights: str  # default: a folder inside the package, or a hub id
    text_parts: tuple[TextPart, ...]
    hidden_layer: int  # which text hidden state the UNet reads: -1 = the last, normed; -2 = before it, not normed
    steps: int  # default number of denoising steps
    guidance: float  # default classifier-free guidance scale
    sizes: tuple[str, ...]  # "WIDTHxHEIGHT" in px that suit it
    encoder: dict[str, Any] = field(default_factory=dict)  # EncoderConfig fields that suit this size
    image_encoder: str | None = None  # hub id of the CLIP image encoder where the weights bring none
    embedded: bool = False  # its weights come with the package
    guidance_end: float = 1.0  # share of the steps after which there is no guidance
    subject_guidance: float | None = None  # default scale of the guidance on subjects; None = that of all guidance
    subject_guidance_end: float = 0.0  # default share of the steps with it
    kinds: tuple[str, ...] = ()  # what an embedded base can draw: one noun each; () = anything

    @property
    def pooled(self) -> bool:
        """Whether the UNet also takes the pooled text and the picture's size (SDXL)."""
        return len(self.text_parts) > 1

    @property
    def hub(self) -> str | None:
        """Hub id of its weights; None where they come with the package."""
        return None if self.embedded else self.weights


_CLIP = TextPart("tokenizer", "text_encoder", "CLIPTextModel")
_CLIP_2 = TextPart("tokenizer_2", "text_encoder_2", "CLIPTextModelWithProjection")
_CLIP_L = "openai/clip-vit-large-patch14"
_KINDS = ("bear", "cat", "rabbit", "elephant", "duck", "robot", "car", "knight")


def _embedded(
    name: str,
    title: str,
    sizes: tuple[str, ...],
    kinds: tuple[str, ...],
    steps: int,
    guidance: float,
    guidance_end: float = 1.0,
    subject_guidance: tuple[float | None, float] = (None, 0.0),
) -> BaseSpec:
    """A base whose weights come with the package. subject_guidance: its scale and its end."""
    return BaseSpec(
        name,
        title,
        str(WEIGHTS / name),
        (_CLIP,),
        hidden_layer=-1,
        steps=steps,
        guidance=guidance,
        sizes=sizes,
        encoder={"width": 192, "heads": 6},
        embedded=True,
        guidance_end=guidance_end,
        subject_guidance=subject_guidance[0],
        subject_guidance_end=subject_guidance[1],
        kinds=kinds,
    )


BASES: dict[str, BaseSpec] = {
    spec.name: spec
    for spec in (
        _embedded(
            "toyland",
            "Toyland (small, ships with CustomContrast)",
            ("96x96", "96x128", "128x96", "128x128"),
            _KINDS,
            steps=20,
            guidance=4.0,
        ),
        _embedded(
            "toyland2",
            "Toyland 2 (new: 192 px, ships with CustomContrast)",
            ("192x192", "192x256", "256x192"),
            (*_KINDS, "dog", "backpack", "teapot", "vase"),
            steps=12,  # as good as 20 against renders of the same scenes, see docs/toyland2.md
            guidance=2.5,  # nearer to references and renders than 4 is, see docs/toyland2.md
            guidance_end=0.75,  # as good as to the end, there too
            subject_guidance=(4.0, 0.35),  # more like the subject, as obedient: there too
        ),
        BaseSpec(
            "sd15",
            "Stable Diffusion 1.5",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            (_CLIP,),
            hidden_layer=-1,
            steps=50,
            guidance=7.5,
            sizes=("512x512", "512x768", "768x512", "640x640"),
            image_encoder=_CLIP_L,
        ),
        BaseSpec(
            "sdxl",
            "Stable Diffusion XL",
            "stabilityai/stable-diffusion-xl-base-1.0",
            (_CLIP, _CLIP_2),
            hidden_layer=-2,
            steps=30,
            guidance=5.0,
            sizes=("1024x1024", "832x1216", "1216x832", "896x1152", "1152x896"),
            encoder={"width": 1024, "heads": 16},
            image_encoder=_CLIP_L,
        ),
    )
}


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler: its class in diffusers, and its options beside the base's own config."""

    title: str  # as the page lists it
    class_name: str
    options: dict[str, Any] = field(default_factory=dict)


SCHEDULERS: dict[str, SchedulerSpec] = {
    "ddim": SchedulerSpec("DDIM", "DDIMScheduler"),
    "ddpm": SchedulerSpec("DDPM", "DDPMScheduler"),
    "dpm": SchedulerSpec("DPM-Solver++", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm_sde": SchedulerSpec(
        "DPM-Solver++, stochastic", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    ),
    "euler": SchedulerSpec("Euler", "EulerDiscreteScheduler"),
    "euler_ancestral": SchedulerSpec("Euler ancestral", "EulerAncestralDiscreteScheduler"),
    "heun": SchedulerSpec("Heun", "HeunDiscreteScheduler"),
    "pndm": SchedulerSpec("PNDM", "PNDMScheduler"),
    "unipc": SchedulerSpec("UniPC", "UniPCMultistepScheduler"),
}
