"""Captions for photographs that have none: BLIP goes on from "a photo of a NOUN", so that S* has its place.

    python -m train.data prepare --source mvimgnet --input FOLDER --output FOLDER --captions FOLDER_OR_HUB_ID

A caption that names the subject alone leaves the place, the light and what the subject wears to S*: Eq. 1 then asks S*
for what an edit should be free to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from train.toyland.captions import article

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration, BlipProcessor

LENGTH = 24  # tokens BLIP may add; "a photo of a NOUN", these and S* stay within CLIP's 77


class Captioner:
    """Writes captions around a given noun. The model is transformers' BLIP, frozen; no sampling."""

    def __init__(self, model: BlipForConditionalGeneration, processor: BlipProcessor, name: str = "") -> None:
        self.model, self.processor, self.name = model.eval(), processor, name

    @classmethod
    def load(cls, name: str, device: torch.device | str | None = None) -> Captioner:
        """name: hub id or folder of a BLIP. Raises OSError, naming it, where it cannot be read."""
        from transformers import BlipForConditionalGeneration, BlipProcessor

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = BlipForConditionalGeneration.from_pretrained(name).to(device)
        return cls(model, BlipProcessor.from_pretrained(name), name)

    @torch.no_grad()
    def captions(self, pictures: Sequence[Image.Image], noun: str) -> list[tuple[str, tuple[int, int]]]:
        """A caption of each picture and the span of `noun` in it: ("a photo of a bear on a sofa", (13, 17))."""
        text = f"a photo of {article(noun)}"
        span = (len(text) - len(noun), len(text))
        device = next(self.model.parameters()).device
        inputs = self.processor(
            images=[picture.convert("RGB") for picture in pictures], text=[text] * len(pictures), return_tensors="pt"
        ).to(device)
        given = inputs.input_ids.shape[1] - 1  # BLIP goes on before the end token
        tokens = self.model.generate(**inputs, max_new_tokens=LENGTH, num_beams=3)[:, given:]
        added = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [(f"{text} {' '.join(words.split())}".strip(" ."), span) for words in added]
