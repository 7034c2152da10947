"""Segment Anything (Kirillov et al. 2023) for clicks and boxes, when a checkpoint is at hand.

A picture's embedding is expensive (half a minute on two cores), a click is cheap: the embeddings of the last few
pictures are cached.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import SamPredictor
from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import Sam

from customcontrast.building import alone
from customcontrast.errors import SegmentationError
from customcontrast.precision import autocast
from customcontrast.segmentation.clicks import Box, Click

# How to build each published size, without weights.
SAM_TYPES: dict[str, Callable[[], Sam]] = {
    "vit_b": build_sam_vit_b,
    "vit_l": build_sam_vit_l,
    "vit_h": build_sam_vit_h,
}
CACHED = 4  # pictures whose embeddings are cached (4 MB each for the published sizes)


def load_sam(checkpoint: str | Path, sam_type: str = "vit_b", device: str | torch.device = "cpu") -> Sam:
    """Load SAM from a .safetensors file, frozen and in evaluation mode.

    The published .pth files are pickles: convert them once, where you trust them, with
    `safetensors.torch.save_file(torch.load("sam.pth", weights_only=True), "sam.safetensors")`.

    Raises:
        SegmentationError: no such file, not a safetensors file, or of another size than `sam_type`.
    """
    path = Path(checkpoint)
    if sam_type not in SAM_TYPES:
        raise SegmentationError(f"sam_type: got '{sam_type}'; choose one of {', '.join(SAM_TYPES)}.")
    if not path.is_file():
        raise SegmentationError(f"sam_checkpoint: there is no file '{checkpoint}'; check the path.")
    try:
        state = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise SegmentationError(
            f"sam_checkpoint: '{path.name}' is no safetensors file; convert a .pth once with "
            f'safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), "sam.safetensors").'
        ) from error
    sam = alone(SAM_TYPES[sam_type])()
    try:
        sam.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise SegmentationError(
            f"sam_checkpoint: '{path.name}' does not hold a {sam_type} model; "
            f"choose its sam_type among {', '.join(SAM_TYPES)}."
        ) from error
    return sam.eval().requires_grad_(False).to(device)


class SamClicks:
    """SAM over pictures and clicks; loads itself at the first use, safe to share between threads."""

    def __init__(self, checkpoint: str | Path, sam_type: str = "vit_b", device: str | None = None) -> None:
        self.checkpoint, self.sam_type = checkpoint, sam_type
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._sam: Sam | None = None
        self._embeddings: OrderedDict[str, dict] = OrderedDict()
        self._working = threading.Lock()

    @torch.no_grad()
    def predict(self, image: Image.Image, points: list[Click], box: Box | None) -> tuple[np.ndarray, float]:
        """The mask of the subject at the clicks and (or) in the box, and SAM's own score of it.

        image: RGB (W, H). points, box: in its pixels. One click alone is ambiguous: of SAM's three masks the one with
        the highest score is taken. Returns a mask (H, W) bool and a score in 0..1.
        """
        predictor = self._with_embedding(image)
        masks, scores, _ = predictor.predict(
            point_coords=np.array([p[:2] for p in points], np.float32) if points else None,
            point_labels=np.array([p[2] for p in points], np.int32) if points else None,
            box=np.array(box, np.float32) if box is not None else None,
            multimask_output=box is None and len(points) == 1,
        )
        best = int(np.argmax(scores))
        return masks[best].astype(bool), float(np.clip(scores[best], 0, 1))

    def _with_embedding(self, image: Image.Image) -> SamPredictor:
        """A predictor of this call's own, with the picture's embedding (made once) in it."""
        values = np.asarray(image)
        key = hashlib.sha256(values.tobytes()).hexdigest() + str(values.shape)
        with self._working:
            if self._sam is None:
                self._sam = load_sam(self.checkpoint, self.sam_type, self.device)
            predictor = SamPredictor(self._sam)
            if key not in self._embeddings:
                with autocast(predictor.device):
                    predictor.set_image(values)
                predictor.features = predictor.features.float()
                self._embeddings[key] = {
                    name: getattr(predictor, name) for name in ("features", "original_size", "input_size")
                }
                while len(self._embeddings) > CACHED:
                    self._embeddings.popitem(last=False)
            self._embeddings.move_to_end(key)
            for name, value in self._embeddings[key].items():
                setattr(predictor, name, value)
        predictor.is_image_set = True
        return predictor
