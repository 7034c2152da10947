"""One subject: its references looked at once, ready for any number of generations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from customcontrast.bases import BaseModel
from customcontrast.checkpoint import Adapter
from customcontrast.encoder.image_features import extract


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


@torch.no_grad()
def look_at(
    base: BaseModel,
    adapter: Adapter | None,
    segmentations: Segmented | Sequence[Segmented],
    noun: str,
    strength: float = 1.0,
) -> Subject:
    """References of one subject -> CLIP features of three layers -> f_I. Raises ValueError with one sentence."""
    if adapter is None:
        raise ValueError(
            f"subject: no adapter is loaded for base {base.name!r}, so it cannot take a subject; "
            "pass adapter=FILE to CustomContrast.load, or generate from text alone."
        )
    references = tuple(segmentations) if isinstance(segmentations, Sequence) else (segmentations,)
    noun = " ".join(re.sub(r"[<>*|]", " ", str(noun)).split())
    if not references or not noun:
        raise ValueError(
            f"subject: got {len(references)} segmentations and noun={noun!r}; give at least one segmentation "
            'and the class noun of the subject, such as "bear".'
        )
    hidden = extract(base, [reference.on_plain() for reference in references], adapter.config.image_layers)
    f_I = adapter.encoder.encode_image(hidden)  # (references, 3N, d)
    f_I = f_I.reshape(1, -1, f_I.shape[-1])
    digest = hashlib.sha256(f_I.float().cpu().numpy().tobytes()).hexdigest()
    return Subject(noun, references, f_I, float(strength), digest)
