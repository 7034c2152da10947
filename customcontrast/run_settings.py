"""A generation on one base: its settings filled in and checked against the base, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import parse_prompt
from customcontrast.config import LIMITS, MAX_SUBJECTS, GenerationConfig
from customcontrast.errors import ConfigError
from customcontrast.layout import Layout
from customcontrast.subject import Subject


def resolve(base: BaseModel, config: GenerationConfig, subjects: Sequence[Subject]) -> GenerationConfig:
    """The settings with the base's own values where there were none, checked against base and subjects.

    Raises ConfigError naming the argument, what came and what is taken.
    """
    filled = replace(
        config,
        num_inference_steps=config.num_inference_steps or base.default_steps,
        guidance_scale=base.default_guidance if config.guidance_scale is None else config.guidance_scale,
        height=base.default_size if config.height is None else config.height,
        width=base.default_size if config.width is None else config.width,
    )
    for wrong, sentence in _complaints(base, filled, subjects):
        if wrong:
            raise ConfigError(f"generate: {sentence}")
    _check_start(base, filled)
    for subject in subjects:
        subject.placement.in_fractions(filled.height, filled.width)  # raises where a box leaves the picture
    return filled


def _complaints(base: BaseModel, config: GenerationConfig, subjects: Sequence[Subject]) -> list[tuple[bool, str]]:
    """What may be wrong, each with its sentence."""
    factor, layers = base.scale_factor, len(base.cross_attention_layers)
    strength, side, record = LIMITS["strength"], LIMITS["side"], config.record
    return [
        (not all(isinstance(s, Subject) for s in subjects), "subjects must come from CustomContrast.subject."),
        (
            any(not strength.low <= getattr(s, "strength", 0) <= strength.high for s in subjects),
            f"subjects: each strength must be a number from {strength.low} to {strength.high}.",
        ),
        (len(subjects) > MAX_SUBJECTS, f"got {len(subjects)} subjects; at most {MAX_SUBJECTS} are taken."),
        (
            record.layers is not None and max(record.layers) >= layers,
            f"record.layers={record.layers}; this model's cross-attention layers are 0 to {layers - 1}.",
        ),
        *[
            (
                isinstance(px, bool) or not isinstance(px, int) or not factor <= px <= side.high or px % factor != 0,
                f"{name}={px!r} must be a multiple of {factor} px, for example {base.default_size}.",
            )
            for name, px in (("height", config.height), ("width", config.width))
        ],
        (
            config.layout is not None and not base.layout_channels,
            f"layout is given, and base {base.name!r} takes none; leave it out, or give "
            "each subject a place with Subject.placed.",
        ),
    ]


def _check_start(base: BaseModel, config: GenerationConfig) -> None:
    """latents and generator must be of this many pictures, of this size. Raises ConfigError."""
    N, f = config.num_images, base.scale_factor
    wanted = (N, base.latent_channels, config.height // f, config.width // f)
    if config.latents is not None and tuple(getattr(config.latents, "shape", ())) != wanted:
        shape = tuple(getattr(config.latents, "shape", ())) or repr(config.latents)
        raise ConfigError(f"generate: latents is {shape}; {N} pictures of this size start from a tensor {wanted}.")
    given = config.generator
    right = given is None or isinstance(given, tuple) and all(isinstance(g, torch.Generator) for g in given)
    if not right or given is not None and len(given) != N:
        got = f"{len(given)} of them" if right else repr(given)
        raise ConfigError(f"generate: generator is {got}; give one torch.Generator per picture ({N}), or None.")


def picture_layouts(base: BaseModel, config: GenerationConfig, subjects: Sequence[Subject]) -> list[Layout | None]:
    """The layout of each picture: the requested one, else drawn from the base's prior by the picture's seed."""
    if config.layout is not None or base.layout_prior is None:
        return [config.layout] * config.num_images
    words = parse_prompt(config.prompt, [s.noun for s in subjects]).words
    order = [word.subject for word in words if word.subject is not None]  # as the prompt names them
    boxes = [subjects[k].placement.in_fractions(config.height, config.width) for k in order]
    return [
        base.layout_prior.draw(config.prompt, config.seed + i, boxes, config.width / config.height)
        for i in range(config.num_images)
    ]


def drawn_masks(
    config: GenerationConfig, subjects: Sequence[Subject], grid: tuple[int, int], device: torch.device
) -> list[Tensor | None]:
    """The place given to each subject, as a soft mask on the grid (h, w); None where none was given."""
    drawn = [subject.placement.layout(grid, config.height, config.width) for subject in subjects]
    return [None if mask is None else mask.to(device) for mask in drawn]


def recipe(config: GenerationConfig, subjects: Sequence[Subject]) -> dict[str, Any]:
    """The settings as plain values; with the same subjects they make the same picture."""
    layout = {} if config.layout is None else {"layout": asdict(config.layout)}
    return layout | {
        "prompt": config.prompt,
        "subjects": [_about(subject) for subject in subjects],
        "negative_prompt": config.negative_prompt,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "subject_scale": config.subject_scale,
        "seed": config.seed if config.generator is None and config.latents is None else None,
        "height": config.height,
        "width": config.width,
        "num_images": config.num_images,
        "location": asdict(config.location),
    }


def _about(subject: Subject) -> dict[str, Any]:
    about = {"noun": subject.noun, "strength": subject.strength, "key": subject.key}
    placement = subject.placement
    return about if placement.location and not placement.drawn else about | {"placement": placement.to_dict()}
