"""What a picture shows, in one word: from its file's name, or by CLIP among the nouns that a base knows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from customcontrast.segmentation import Segmentation
from customcontrast.specs import BASES
from customcontrast.ui.service.models import Models
from customcontrast.ui.service.phrases import noun_from_name, with_article

if TYPE_CHECKING:
    from torch import Tensor

    from customcontrast.base_model import BaseModel

log = logging.getLogger(__name__)

HEAD = "clip_head.safetensors"  # the text projection of CLIP, beside an embedded base's weights


@dataclass(frozen=True)
class Guess:
    """A noun for a picture; `sure` is False for CLIP's, which the visitor should look at."""

    noun: str = ""
    sure: bool = True
    others: tuple[str, ...] = ()  # the next likely ones


class NounGuesser:
    """Guesses nouns with the models of one server; caches the text features of each base's nouns."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._texts: dict[Path, tuple[Tensor, float]] = {}  # text projection → text features, CLIP's scale

    def guess(self, found: Segmentation | None, path: str | Path, base: str | None = None) -> Guess:
        """A noun from the file's name where that says one the base knows; else what CLIP sees in the cut-out.

        CLIP is consulted only where the model is loaded and its text projection is there. Never raises.
        """
        name = base or self.models.config.base
        kinds, written = BASES[name].kinds if name in BASES else (), noun_from_name(path)
        if written and (not kinds or written in kinds):
            return Guess(written)
        head = self.models.folder(name) / HEAD
        if found is None or not kinds or not self.models.ready(name) or not head.is_file():
            return Guess(written)
        try:
            (best, _), *rest = self.ranked(self.models.model(name).base, head, kinds, found)
        except Exception:  # a guess is a courtesy: the upload goes on without it
            log.warning("no guess of the noun", exc_info=True)
            return Guess(written)
        # Its probabilities say little: of the eight examples the small bases' CLIP names half, some wrongly with 0.9.
        return Guess(best, False, tuple(noun for noun, _ in rest[:2]))

    def ranked(self, base: BaseModel, head: Path, kinds: Sequence[str], found: Segmentation) -> list[tuple[str, float]]:
        """The kinds with their probability by CLIP, most likely first. head: the file of the text projection."""
        import torch

        with torch.no_grad():
            pixels = base.image_processor(images=[found.on_plain()], return_tensors="pt")["pixel_values"]
            image = base.image_encoder(pixels.to(base.device, base.image_encoder.dtype)).image_embeds.float().cpu()
            if head not in self._texts:
                self._texts[head] = text_features(base, head, kinds)
            text, scale = self._texts[head]
            image = torch.nn.functional.normalize(image, dim=-1)
            probabilities = (scale * image @ text.T).softmax(-1)[0]
        return sorted(zip(kinds, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


def text_features(base: BaseModel, head: Path, kinds: Sequence[str]) -> tuple[Tensor, float]:
    """Unit text features (kinds, d) of “a photo of a KIND”, and CLIP's scale of the logits."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(head)
    texts = [f"a photo of {with_article(kind)}" for kind in kinds]
    ids = base.tokenizers[0](texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    pooled = base.text_encoders[0](ids.to(base.device)).pooler_output.float().cpu()
    text = torch.nn.functional.normalize(pooled @ weights["text_projection.weight"].float().T, dim=-1)
    return text, float(weights["logit_scale"].exp()) if "logit_scale" in weights else 100.0
