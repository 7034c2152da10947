"""A request for pictures, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from customcontrast.bases import BaseModel
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.subject import Subject

MAX_SUBJECTS = 4


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
        }
        filled = {name: defaults.get(name) if value is None else value for name, value in options.items()}
        for name in ("guidance_scale", "subject_scale"):
            filled[name] = _number(name, filled[name])
        plan = cls(prompt, (subjects,) if isinstance(subjects, Subject) else tuple(subjects), **filled)
        for wrong, sentence in plan._complaints(base.scale_factor, base.default_size):
            if wrong:
                raise ValueError(f"generate: {sentence}")
        return plan

    def _complaints(self, factor: int, example: int) -> list[tuple[bool, str]]:
        """What may be wrong, each with its sentence. factor: pixels per latent."""
        return [
            (not isinstance(self.prompt, str), f"prompt={self.prompt!r} must be text."),
            (not isinstance(self.negative_prompt, str), f"negative_prompt={self.negative_prompt!r} must be text."),
            (not all(isinstance(s, Subject) for s in self.subjects), "subjects must come from CustomContrast.subject."),
            (
                len(self.subjects) > MAX_SUBJECTS,
                f"got {len(self.subjects)} subjects; at most {MAX_SUBJECTS} are taken.",
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

    def recipe(self) -> dict[str, Any]:
        """The settings as plain values; with the same subjects they make the same picture."""
        return {
            "prompt": self.prompt,
            "subjects": [{"noun": s.noun, "strength": s.strength, "key": s.key} for s in self.subjects],
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "subject_scale": self.subject_scale,
            "seed": self.seed,
            "height": self.height,
            "width": self.width,
            "num_images": self.num_images,
            "location": asdict(self.location),
        }


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"generate: {name}={value!r} must be a finite number.")
    return float(value)
