"""A generation on one base: its settings filled in and checked against the base, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import parse_prompt
from customcontrast.config import LIMITS, MAX_SUBJECTS, GenerationConfig, ResolvedConfig
from customcontrast.errors import ConfigError
from customcontrast.layout import Layout
from customcontrast.subject import Subject


def resolve(
    base: BaseModel, config: GenerationConfig, subjects: Sequence[Subject], default_scale: float = 1.0
) -> ResolvedConfig:
    """Fill in the base's own values where there are none, and check all against base and subjects.

    default_scale: the adapter's own λ. Raises ConfigError naming the argument, what came and what is taken.
    """
    guidance = base.default_guidance if config.guidance_scale is None else config.guidance_scale
    on_subjects = base.spec.subject_guidance
    own: dict[str, Any] = {
        "num_inference_steps": base.default_steps,
        "guidance_scale": guidance,
        "guidance_end": base.default_guidance_end,
        "subject_guidance_scale": guidance if on_subjects is None else on_subjects,
        "subject_guidance_end": base.spec.subject_guidance_end,
        "subject_scale": default_scale,
        "height": base.default_size,
        "width": base.default_size,
    }
    given = {f.name: getattr(config, f.name) for f in fields(config)}
    filled = ResolvedConfig(**given | {name: value for name, value in own.items() if given[name] is None})
    for wrong, sentence in _complaints(base, filled, subjects):
        if wrong:
            raise ConfigError(f"generate: {sentence}")
    _check_start(base, filled)
    for subject in subjects:
        subject.placement.in_fractions(filled.height, filled.width)  # raises where a box leaves the picture
    return filled


def _complaints(base: BaseModel, config: ResolvedConfig, subjects: Sequence[Subject]) -> list[tuple[bool, str]]:
    """What may be wrong, each with its sentence."""
    factor, layers = base.scale_factor, len(base.cross_attention_layers)
    strength, side, record = LIMITS["strength"], LIMITS["side"], config.record
    pictures = [s for s in subjects if getattr(s, "role", "subject") != "subject"]
    located = [s for s in subjects if getattr(s, "role", "subject") == "subject"]
    deepest = min(_depth(encoder) for encoder in base.text_encoders) + base.spec.hidden_layer
    return [
        (not all(isinstance(s, Subject) for s in subjects), "subjects must come from CustomContrast.subject."),
        (
            any(not strength.low <= getattr(s, "strength", 0) <= strength.high for s in subjects),
            f"subjects: each strength must be a number from {strength.low} to {strength.high}.",
        ),
        *[
            (len(some) > MAX_SUBJECTS, f"got {len(some)} {what}; at most {MAX_SUBJECTS} are taken.")
            for what, some in (("subjects", located), ("style pictures", pictures))
        ],
        (
            not 0 <= config.clip_skip <= deepest,
            f"clip_skip={config.clip_skip!r} must be 0 to {deepest} for base {base.name!r}.",
        ),
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
        (
            bool(config.further_prompts) and config.location.apart and len(located) > 1,
            "several prompts in one call take no subjects in passes of their own; pass "
            "location=LocationConfig(apart=False), or call once for each prompt.",
        ),
    ]


def _depth(text_encoder: Any) -> int:
    return text_encoder.config.num_hidden_layers


def _check_start(base: BaseModel, config: ResolvedConfig) -> None:
    """Check that latents and generators are for this many pictures of this size. Raises ConfigError."""
    N, f = config.pictures, base.scale_factor
    expected = (N, base.latent_channels, config.height // f, config.width // f)
    if config.latents is not None and tuple(getattr(config.latents, "shape", ())) != expected:
        shape = tuple(getattr(config.latents, "shape", ())) or repr(config.latents)
        raise ConfigError(f"generate: latents is {shape}; {N} pictures of this size start from a tensor {expected}.")
    given = config.generator
    if given is None:
        return
    right = isinstance(given, tuple) and all(isinstance(g, torch.Generator) for g in given)
    if not right or len(given) != N:
        got = f"{len(given)} of them" if right else repr(given)
        raise ConfigError(f"generate: generator is {got}; give one torch.Generator per picture ({N}), or None.")


RARE = ("guidance_rescale", "clip_skip", "subject_start", "subject_end", "further_prompts")
"""Settings that a recipe names only where they are not their defaults."""


def picture_layouts(base: BaseModel, config: ResolvedConfig, subjects: Sequence[Subject]) -> list[Layout | None]:
    """The layout of each picture: the requested one, else drawn from the base's prior by the picture's seed."""
    if config.layout is not None or base.layout_prior is None:
        return [config.layout] * config.pictures
    found, aspect = [], config.width / config.height
    for prompt in config.prompts:
        words = parse_prompt(prompt, [s.noun for s in subjects]).words
        order = [word.subject for word in words if word.subject is not None]  # as the prompt names them
        boxes = [subjects[k].placement.in_fractions(config.height, config.width) for k in order]
        found += [base.layout_prior.draw(prompt, config.seed + i, boxes, aspect) for i in range(config.num_images)]
    return found


def drawn_masks(
    config: ResolvedConfig, subjects: Sequence[Subject], grid: tuple[int, int], device: torch.device
) -> list[Tensor | None]:
    """The place given to each subject, as a soft mask on the grid (h, w); None where none was given."""
    drawn = [subject.placement.layout(grid, config.height, config.width) for subject in subjects]
    return [None if mask is None else mask.to(device) for mask in drawn]


def recipe(config: ResolvedConfig, subjects: Sequence[Subject]) -> dict[str, Any]:
    """The settings as plain values; with the same subjects and style pictures they make the same picture."""
    located = [_about(s) for s in subjects if s.role == "subject"]
    whole = {
        "layout": None if config.layout is None else asdict(config.layout),
        "pictures": [_about(s) for s in subjects if s.role != "subject"],
    }
    rare = {name: getattr(config, name) for name in RARE if getattr(config, name) != getattr(GenerationConfig, name)}
    return (
        {name: value for name, value in whole.items() if value}
        | rare
        | {
            "prompt": config.prompt,
            "subjects": located,
            "negative_prompt": config.negative_prompt,
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
            "guidance_end": config.guidance_end,
            "subject_guidance_scale": config.subject_guidance_scale,
            "subject_guidance_end": config.subject_guidance_end,
            "subject_scale": config.subject_scale,
            "seed": config.seed if config.generator is None and config.latents is None else None,
            "height": config.height,
            "width": config.width,
            "num_images": config.num_images,
            "location": asdict(config.location),
        }
    )


def _about(subject: Subject) -> dict[str, Any]:
    about: dict[str, Any] = {"noun": subject.noun, "strength": subject.strength, "key": subject.key}
    if subject.resolution is not None:
        about["reference_resolution"] = subject.resolution
    if subject.layer_scales is not None:
        about["layer_scales"] = list(subject.layer_scales)
    if subject.role != "subject":
        return about | {"role": subject.role}
    placement = subject.placement
    return about if placement.location and not placement.drawn else about | {"placement": placement.to_dict()}
