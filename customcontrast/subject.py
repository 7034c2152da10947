"""One subject: its references encoded once, ready for any number of generations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from customcontrast.adapter import Adapter
from customcontrast.attention.layers import layer_scales as checked_scales
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import clean_noun
from customcontrast.config import LIMITS, MOST_ENLARGED, ROLES, whole_number
from customcontrast.errors import ConfigError
from customcontrast.ip_adapter import FORMAT, IPAdapter, role_scales
from customcontrast.placement import Box, Placement
from customcontrast.warm_start import WarmAdapter

SAMPLED = 4096  # values of each weight that tell adapters apart
MAX_STRENGTH = 1000  # |λ|; more is no use, and too much for 16-bit numbers


class Segmented(Protocol):
    """A reference that can be encoded; `segmentation.Segmentation` is one."""

    def on_plain(self) -> Image.Image:
        """The segmented subject on white, RGB."""


@dataclass(frozen=True)
class WholePicture:
    """A reference that is not cut out: all of the picture is encoded."""

    picture: Image.Image  # any mode and size

    def on_plain(self) -> Image.Image:
        """The picture as it is, RGB."""
        return self.picture.convert("RGB")


@dataclass(frozen=True, eq=False)
class Subject:
    """An encoded subject, or an encoded style picture; `CustomContrast.subject` and `.style` return it."""

    noun: str  # class noun; S* comes right after it in the prompt
    segmentations: tuple[Segmented, ...]  # its reference pictures
    features: Tensor  # f_I (1, tokens, d): all references joined along the tokens
    strength: float = 1.0  # λ of this subject, times the generation's subject_scale
    key: str = ""  # digest of the features
    placement: Placement = field(default_factory=Placement)  # where it may stand in the picture
    role: str = "subject"  # "style", "layout": a whole picture that acts everywhere, in the layers that carry this
    layer_scales: tuple[float, ...] | None = None  # what λ is multiplied by in each layer l; None = 1 in all
    kind: str = "customcontrast"  # of the adapter that made the features
    image_tokens: Tensor | None = None  # (1, tokens, C), where the adapter started as an IP-Adapter (`warm_start`)
    maker: str = ""  # digest of that adapter, see `maker_of`; "" = unknown
    resolution: int | None = None  # px at which its references were seen; None = the image encoder's own

    def placed(self, box: Box | None = None, mask: np.ndarray | None = None, location: bool = True) -> Subject:
        """The same subject in a place of your choice; without arguments, where its location masks say.

        box, mask, location: see `Placement`. Raises ValueError.
        """
        return replace(self, placement=Placement(location, box, mask))


_MAKERS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def maker_of(model: nn.Module) -> str:
    """Digest of the weights of an adapter or another model, the first values of each, computed once for each in memory.

    It stays when the model is moved or changes its type, so that its subjects do. "" where the weights are not at
    hand, as under sequential offloading.
    """
    known = _MAKERS.get(model)
    if known is None:
        weights = list(model.parameters())
        if any(weight.is_meta for weight in weights):
            return ""
        digest = hashlib.sha256()
        for weight in weights:
            digest.update(weight.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
        known = _MAKERS[model] = digest.hexdigest()
    return known


def check_makers(adapter: Adapter | IPAdapter | None, subjects: Sequence[Subject]) -> None:
    """Features of one adapter say nothing to another, even of the same width. Raises ConfigError."""
    if adapter is None or not subjects:
        return
    here = maker_of(adapter)
    if here and any(subject.maker not in ("", here) for subject in subjects):
        raise ConfigError(
            "generate: these subjects come from another adapter; make them again with this CustomContrast's `subject`."
        )


@torch.no_grad()
def look_at(
    base: BaseModel,
    adapter: Adapter | IPAdapter | None,
    segmentations: Segmented | Sequence[Segmented],
    noun: str,
    strength: float = 1.0,
    placement: Placement | None = None,
    role: str = "subject",
    layer_scales: Mapping[int | str, float] | Sequence[float] | None = None,
    reference_resolution: int | None = None,
) -> Subject:
    """Encode references of one subject: CLIP features projected to f_I, or an IP-Adapter's image tokens.

    Arguments: see `CustomContrast.subject`; role: one of `config.ROLES`. Raises ValueError with one sentence.
    """
    if adapter is None:
        raise ValueError(
            f"subject: no adapter is loaded for base {base.name!r}, so it cannot take a subject; "
            "pass adapter=FILE to CustomContrast.load, or generate from text alone."
        )
    if role not in ROLES:
        raise ValueError(f"subject: role={role!r} must be one of {', '.join(ROLES)}.")
    if role != "subject" and adapter.kind != FORMAT:
        raise ValueError(
            f"style: this adapter was trained on subjects and takes no {role} picture; load an IP-Adapter for that."
        )
    references = tuple(segmentations) if isinstance(segmentations, list | tuple) else (segmentations,)
    noun = clean_noun(noun) if role == "subject" else ""
    if not references or not all(hasattr(reference, "on_plain") for reference in references):
        kinds = ", ".join(f"'{type(reference).__name__}'" for reference in references) or "nothing"
        raise ValueError(
            f"subject: segmentations holds {kinds}; give at least one segmentation, as a Segmenter makes it."
        )
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) <= MAX_STRENGTH:
        raise ValueError(f"subject: strength={strength!r} must be a number from -{MAX_STRENGTH} to {MAX_STRENGTH}.")
    if placement is not None and not isinstance(placement, Placement):
        raise ValueError(f"subject: placement={placement!r} must be a Placement, or None.")
    resolution = checked_resolution(base, reference_resolution)
    scales = checked_scales(base.cross_attention_layers, layer_scales)
    if role != "subject":
        placement, scales = Placement(location=False), scales or role_scales(base, role)
    pictures = [reference.on_plain() for reference in references]
    features = adapter.look(base, pictures, resolution)
    tokens = adapter.image_tokens(base, pictures, resolution) if isinstance(adapter, WarmAdapter) else None
    digest = hashlib.sha256(features.float().cpu().numpy().tobytes()).hexdigest()
    placement = placement or Placement()
    return Subject(
        noun,
        references,
        features,
        float(strength),
        digest,
        placement,
        role,
        scales,
        adapter.kind,
        tokens,
        maker_of(adapter),
        resolution,
    )


def checked_resolution(base: BaseModel, side: int | None) -> int | None:
    """A reference resolution in px as this base's image encoder takes it; None for its own. Raises ConfigError."""
    if side is None:
        return None
    limit, own = LIMITS["reference_resolution"], base.image_side
    most = min(int(limit.high), MOST_ENLARGED * own)
    given = whole_number(side)
    if isinstance(given, bool) or not isinstance(given, int) or not limit.low <= given <= most:
        raise ConfigError(
            f"subject: reference_resolution={side!r} must be {limit.low} to {most} px for base {base.name!r}, whose "
            f"image encoder reads {own} px, or None for that.",
            "reference_resolution",
        )
    return None if given == own else given
