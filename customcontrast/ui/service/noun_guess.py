"""What a picture shows, in one word: from its file's name, or by CLIP among the nouns that a base knows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from customcontrast.segmentation import Segmentation
from customcontrast.specs import BASES
from customcontrast.ui.service.models import Models
from customcontrast.ui.service.phrases import noun_from_name

if TYPE_CHECKING:
    from torch import Tensor

    from customcontrast.base_model import BaseModel

log = logging.getLogger(__name__)

HEAD = "clip_head.safetensors"  # the text projection of CLIP, beside an embedded base's weights
SURE = 0.6  # probability above which a guess is not questioned


@dataclass(frozen=True)
class Guess:
    """A noun for a picture; `sure` is False where the visitor should look at it."""

    noun: str = ""
    sure: bool = True
    others: tuple[str, ...] = ()  # the next likely ones


def guess_noun_of(models: Models, found: Segmentation | None, path: str | Path, base: str | None = None) -> Guess:
    """A noun from the file's name where that says one the base knows; else what CLIP sees in the cut-out.

    CLIP is consulted only where the model is loaded and its text projection is there. Never raises.
    """
    name = base or models.config.base
    kinds, written = BASES[name].kinds if name in BASES else (), noun_from_name(path)
    if written and (not kinds or written in kinds):
        return Guess(written)
    if found is None or not kinds or not models.ready(name) or not (models.folder(name) / HEAD).is_file():
        return Guess(written)
    try:
        ranked = _ranked(models.model(name).base, models.folder(name) / HEAD, kinds, found)
    except Exception:  # a guess is a courtesy: the upload goes on without it
        log.warning("no guess of the noun", exc_info=True)
        return Guess(written)
    (best, probability), *rest = ranked
    return Guess(best, probability >= SURE, tuple(noun for noun, _ in rest[:2]))


def _ranked(base: BaseModel, head: Path, kinds: tuple[str, ...], found: Segmentation) -> list[tuple[str, float]]:
    """The kinds with their probability by CLIP, most likely first."""
    import torch

    with torch.no_grad():
        pixels = base.image_processor(images=[found.on_plain()], return_tensors="pt")["pixel_values"]
        image = base.image_encoder(pixels.to(base.device, base.image_encoder.dtype)).image_embeds.float().cpu()
        text, scale = _texts(base, head, kinds)
        image = torch.nn.functional.normalize(image, dim=-1)
        probabilities = (scale * image @ text.T).softmax(-1)[0]
    return sorted(zip(kinds, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


@lru_cache(maxsize=4)
def _texts(base: BaseModel, head: Path, kinds: tuple[str, ...]) -> tuple[Tensor, float]:
    """Unit text features (kinds, d) of “a photo of a KIND”, and CLIP's logit scale."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(head)
    ids = base.tokenizers[0](
        [f"a photo of a {kind}" for kind in kinds], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    pooled = base.text_encoders[0](ids.to(base.device)).pooler_output.float().cpu()
    text = torch.nn.functional.normalize(pooled @ weights["text_projection.weight"].float().T, dim=-1)
    scale = float(weights["logit_scale"].exp()) if "logit_scale" in weights else 100.0
    return text, scale
