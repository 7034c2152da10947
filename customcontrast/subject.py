"""One subject: its references looked at once, ready for any number of generations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import clean_noun
from customcontrast.encoder.image_features import extract
from customcontrast.placement import Box, Placement

MAX_STRENGTH = 1000  # |λ|; more is no use, and too much for 16-bit numbers


class Segmented(Protocol):
    """What a subject is made from; `segmentation.Segmentation` is one."""

    def on_plain(self) -> Image.Image:
        """The segmented subject on white, RGB."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject. Made by `CustomContrast.subject`."""

    noun: str  # class noun; S* comes right after it in the prompt
    segmentations: tuple[Segmented, ...]  # its reference pictures
    features: Tensor  # f_I (1, tokens, d): all references joined along the tokens
    strength: float = 1.0  # λ of this subject, times the generation's subject_scale
    key: str = ""  # digest of the features
    placement: Placement = field(default_factory=Placement)  # where it may stand in the picture

    def placed(self, box: Box | None = None, mask: np.ndarray | None = None, location: bool = True) -> Subject:
        """The same subject in a place of the user's: see `Placement`. Without arguments: where its maps say."""
        return replace(self, placement=Placement(location, box, mask))


@torch.no_grad()
def look_at(
    base: BaseModel,
    adapter: Adapter | None,
    segmentations: Segmented | Sequence[Segmented],
    noun: str,
    strength: float = 1.0,
    placement: Placement | None = None,
) -> Subject:
    """References of one subject -> CLIP features of three layers -> f_I. Raises ValueError with one sentence."""
    if adapter is None:
        raise ValueError(
            f"subject: no adapter is loaded for base {base.name!r}, so it cannot take a subject; "
            "pass adapter=FILE to CustomContrast.load, or generate from text alone."
        )
    references = tuple(segmentations) if isinstance(segmentations, list | tuple) else (segmentations,)
    noun = clean_noun(noun)
    if not references or not all(hasattr(reference, "on_plain") for reference in references):
        kinds = ", ".join(f"'{type(reference).__name__}'" for reference in references) or "nothing"
        raise ValueError(
            f"subject: segmentations holds {kinds}; give at least one segmentation, as a Segmenter makes it."
        )
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) <= MAX_STRENGTH:
        raise ValueError(f"subject: strength={strength!r} must be a number from -{MAX_STRENGTH} to {MAX_STRENGTH}.")
    if placement is not None and not isinstance(placement, Placement):
        raise ValueError(f"subject: placement={placement!r} must be a Placement, or None.")
    hidden = extract(base, [reference.on_plain() for reference in references], adapter.config.image_layers)
    f_I = adapter.encoder.encode_image(hidden)  # (references, 3N, d)
    f_I = f_I.reshape(1, -1, f_I.shape[-1])
    digest = hashlib.sha256(f_I.float().cpu().numpy().tobytes()).hexdigest()
    return Subject(noun, references, f_I, float(strength), digest, placement or Placement())
