"""A request for pictures, checked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import parse_prompt
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.layout import Layout
from customcontrast.sampling import OUTPUT_TYPES
from customcontrast.subject import Subject

# (step from 1, timestep, latents (N, C, h, w) after it) -> the latents to go on with, and whether to go on at all
OnStep = Callable[[int, Tensor, Tensor], tuple[Tensor, bool]]

MAX_SUBJECTS = 4
MAX_SCALE = 1000  # |guidance| and |λ|; more is no use, and too much for 16-bit numbers


@dataclass(frozen=True)
class Plan:
    """Every setting of one run, with the base's defaults filled in. See `CustomContrast.stream` for the meanings."""

    prompt: str
    subjects: tuple[Subject, ...]
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    subject_scale: float
    seed: int
    height: int
    width: int
    num_images: int
    location: LocationConfig
    record: RecordConfig
    preview_every: int
    scheduler: str | None
    generator: tuple[torch.Generator, ...] | None = None  # one per picture; None = seeded by `seed`
    latents: Tensor | None = field(default=None, compare=False)  # starting noise (N, C, h, w); None = from generator
    on_step: OnStep | None = None
    layout: Layout | None = None  # where subjects are and how they are seen; None = drawn from the base's prior
    output_type: str = "pil"  # what Result.images are: one of `sampling.OUTPUT_TYPES`
    guidance_rescale: float = 0.0  # see `sampling.rescaled`
    clip_skip: int = 0  # layers of the text encoders that are left out at their end
    pictures: tuple[Subject, ...] = ()  # style and layout pictures among the subjects given: they have no place

    @classmethod
    def make(cls, base: BaseModel, prompt: str, subjects: Subject | Sequence[Subject], options: dict[str, Any]) -> Plan:
        """Fill in the defaults (None = the base's own) and check. Raises ValueError naming argument and remedy."""
        defaults = {
            "num_inference_steps": base.default_steps,
            "guidance_scale": base.default_guidance,
            "height": base.default_size,
            "width": base.default_size,
            "negative_prompt": "",
            "location": LocationConfig(),
            "record": RecordConfig(),
            "guidance_rescale": 0.0,
            "clip_skip": 0,
        }
        filled = {name: defaults.get(name) if value is None else value for name, value in options.items()}
        for name in ("guidance_scale", "subject_scale", "guidance_rescale"):
            if name not in filled:
                continue
            filled[name] = _number(name, filled[name])
        for name in ("num_inference_steps", "seed", "height", "width", "num_images", "preview_every", "clip_skip"):
            if name in filled:
                filled[name] = _plain(filled[name])
        for name, kind in (("location", LocationConfig), ("record", RecordConfig)):
            if not isinstance(filled[name], kind):
                raise ValueError(f"generate: {name}={filled[name]!r} must be a {kind.__name__}.")
        if isinstance(filled.get("generator"), list | tuple | torch.Generator):
            given = filled["generator"]
            filled["generator"] = (given,) if isinstance(given, torch.Generator) else tuple(given)
        several = tuple(subjects) if isinstance(subjects, list | tuple) else (subjects,)
        pictures = tuple(s for s in several if getattr(s, "role", "subject") != "subject")
        several = tuple(s for s in several if getattr(s, "role", "subject") == "subject")
        plan = cls(prompt, several, **filled, pictures=pictures)
        for wrong, sentence in plan._complaints(base.scale_factor, base.default_size, len(base.cross_attention_layers)):
            if wrong:
                raise ValueError(f"generate: {sentence}")
        plan._check_start(base)
        deepest = min(encoder.config.num_hidden_layers for encoder in base.text_encoders) + base.spec.hidden_layer
        if not _whole(plan.clip_skip, 0, deepest):
            raise ValueError(f"generate: clip_skip={plan.clip_skip!r} must be 0 to {deepest} for base {base.name!r}.")
        if plan.layout is not None and not base.layout_channels:
            raise ValueError(
                f"generate: layout is given, and base {base.name!r} takes none; leave it out, or give "
                "each subject a place with Subject.placed."
            )
        for subject in plan.subjects:
            subject.placement.in_fractions(plan.height, plan.width)  # raises where a box leaves the picture
        return plan

    def _complaints(self, factor: int, example: int, layers: int) -> list[tuple[bool, str]]:
        """What may be wrong, each with its sentence. factor: pixels per latent; layers: of cross-attention."""
        return [
            (not isinstance(self.prompt, str), f"prompt={self.prompt!r} must be text."),
            (not isinstance(self.negative_prompt, str), f"negative_prompt={self.negative_prompt!r} must be text."),
            (not isinstance(self.location, LocationConfig), f"location={self.location!r} must be a LocationConfig."),
            (
                not isinstance(self.layout, Layout | None),
                f"layout={self.layout!r} must be a customcontrast.layout.Layout, or None.",
            ),
            (not isinstance(self.record, RecordConfig), f"record={self.record!r} must be a RecordConfig."),
            (
                not isinstance(self.scheduler, str | None),
                f"scheduler={self.scheduler!r} must be a name such as 'ddim', or None for the base's own.",
            ),
            (not all(isinstance(s, Subject) for s in self.subjects), "subjects must come from CustomContrast.subject."),
            (
                any(not abs(getattr(s, "strength", 0)) <= MAX_SCALE for s in (*self.subjects, *self.pictures)),
                f"subjects: each strength must be a number from -{MAX_SCALE} to {MAX_SCALE}.",
            ),
            (
                len(self.subjects) > MAX_SUBJECTS,
                f"got {len(self.subjects)} subjects; at most {MAX_SUBJECTS} are taken.",
            ),
            (
                len(self.pictures) > MAX_SUBJECTS,
                f"got {len(self.pictures)} style pictures; at most {MAX_SUBJECTS} are taken.",
            ),
            (
                self.record.layers is not None and max(self.record.layers) >= layers,
                f"record.layers={self.record.layers}; this model's cross-attention layers are 0 to {layers - 1}.",
            ),
            (
                not 0 <= self.guidance_rescale <= 1,
                f"guidance_rescale={self.guidance_rescale!r} must be a number from 0 to 1.",
            ),
            (
                self.output_type not in OUTPUT_TYPES,
                f"output_type={self.output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.",
            ),
            *[
                (not _whole(getattr(self, name), low, high), f"{name}={getattr(self, name)!r} must be {low} to {high}.")
                for name, low, high in (
                    ("num_inference_steps", 1, 1000),
                    ("seed", 0, 2**62),
                    ("num_images", 1, 64),
                    ("preview_every", 0, 1000),
                )
            ],
            *[
                (
                    not _whole(px, factor, 8192) or px % factor != 0,
                    f"{side}={px!r} must be a multiple of {factor} px, for example {example}.",
                )
                for side, px in (("height", self.height), ("width", self.width))
            ],
        ]

    def _check_start(self, base: BaseModel) -> None:
        """latents and generator must be of this many pictures, of this size. Raises ValueError."""
        N, f = self.num_images, base.scale_factor
        wanted = (N, base.latent_channels, self.height // f, self.width // f)
        if self.latents is not None and tuple(getattr(self.latents, "shape", ())) != wanted:
            shape = tuple(getattr(self.latents, "shape", ())) or repr(self.latents)
            raise ValueError(f"generate: latents is {shape}; {N} pictures of this size start from a tensor {wanted}.")
        given = self.generator
        right = given is None or isinstance(given, tuple) and all(isinstance(g, torch.Generator) for g in given)
        if not right or given is not None and len(given) != N:
            got = f"{len(given)} of them" if right else repr(given)
            raise ValueError(f"generate: generator is {got}; give one torch.Generator per picture ({N}), or None.")

    def picture_layouts(self, base: BaseModel) -> list[Layout | None]:
        """The layout of each picture: as asked, else drawn from the base's prior by the picture's seed."""
        if self.layout is not None or base.layout_prior is None:
            return [self.layout] * self.num_images
        words = parse_prompt(self.prompt, [s.noun for s in self.subjects]).words
        order = [word.subject for word in words if word.subject is not None]  # as the prompt names them
        boxes = [self.subjects[k].placement.in_fractions(self.height, self.width) for k in order]
        return [
            base.layout_prior.draw(self.prompt, self.seed + i, boxes, self.width / self.height)
            for i in range(self.num_images)
        ]

    def layouts(self, grid: tuple[int, int], device: torch.device) -> list[Tensor | None]:
        """What the user drew for each subject, as a soft mask on the grid (h, w); None where nothing was drawn."""
        drawn = [subject.placement.layout(grid, self.height, self.width) for subject in self.subjects]
        return [None if layout is None else layout.to(device) for layout in drawn]

    def recipe(self) -> dict[str, Any]:
        """The settings as plain values; with the same subjects they make the same picture."""
        layout = {} if self.layout is None else {"layout": asdict(self.layout)}
        pictures = {"pictures": [_about(picture) for picture in self.pictures]} if self.pictures else {}
        changed = {"guidance_rescale": self.guidance_rescale, "clip_skip": self.clip_skip}
        return (
            layout
            | pictures
            | {name: value for name, value in changed.items() if value}
            | {
                "prompt": self.prompt,
                "subjects": [_about(subject) for subject in self.subjects],
                "negative_prompt": self.negative_prompt,
                "num_inference_steps": self.num_inference_steps,
                "guidance_scale": self.guidance_scale,
                "subject_scale": self.subject_scale,
                "seed": self.seed if self.generator is None and self.latents is None else None,
                "height": self.height,
                "width": self.width,
                "num_images": self.num_images,
                "location": asdict(self.location),
            }
        )


def _about(subject: Subject) -> dict[str, Any]:
    about = {"noun": subject.noun, "strength": subject.strength, "key": subject.key}
    if subject.layer_scales is not None:
        about["layer_scales"] = list(subject.layer_scales)
    if subject.role != "subject":
        return about | {"role": subject.role}
    placement = subject.placement
    return about if placement.location and not placement.drawn else about | {"placement": placement.to_dict()}


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _plain(value: Any) -> Any:
    """A whole number of NumPy's, torch's or another library's as Python's own; anything else as it is."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor or array of several, or of fractions
        return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float | bool) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_SCALE:
        raise ValueError(f"generate: {name}={value!r} must be a number from -{MAX_SCALE} to {MAX_SCALE}.")
    return float(value)
