"""Grounded SAM (section 4.1): a class noun → Grounding DINO's box → SAM's mask. Finds the subject at SD scale."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn

from customcontrast.segmentation import Segmentation

DETECTOR, SAM = "IDEA-Research/grounding-dino-base", "facebook/sam-vit-huge"


class GroundedSAM:
    """Find the subject named by a noun. Both models are transformers' and frozen."""

    def __init__(
        self, detector: nn.Module, processor: Any, sam: nn.Module, sam_processor: Any, threshold: float = 0.3
    ) -> None:
        self.detector, self.processor = detector.eval(), processor
        self.sam, self.sam_processor = sam.eval(), sam_processor
        self.threshold = threshold  # of the box's score, in [0, 1]

    @classmethod
    def load(
        cls, detector: str = DETECTOR, sam: str = SAM, device: torch.device | str = "cpu", threshold: float = 0.3
    ) -> GroundedSAM:
        """detector, sam: hub ids or folders. Raises OSError, naming it, where one cannot be read."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

        return cls(
            AutoModelForZeroShotObjectDetection.from_pretrained(detector).to(device),
            AutoProcessor.from_pretrained(detector),
            SamModel.from_pretrained(sam).to(device),
            SamProcessor.from_pretrained(sam),
            threshold,
        )

    @torch.no_grad()
    def segment(self, picture: Image.Image, noun: str) -> Segmentation | None:
        """The mask of the best box for `noun`, at the picture's size; None when there is no box above threshold."""
        picture = picture.convert("RGB")
        device = next(self.detector.parameters()).device
        inputs = self.processor(images=picture, text=f"a {noun.lower()}.", return_tensors="pt").to(device)
        found = self.processor.post_process_grounded_object_detection(
            self.detector(**inputs),
            inputs.input_ids,
            threshold=self.threshold,
            text_threshold=self.threshold,
            target_sizes=[picture.size[::-1]],
        )[0]
        if len(found["scores"]) == 0:
            return None
        best = int(found["scores"].argmax())
        box = [[found["boxes"][best].tolist()]]
        asked = self.sam_processor(picture, input_boxes=box, return_tensors="pt").to(device)
        masks = self.sam(**asked, multimask_output=False).pred_masks.cpu()
        sizes = asked["original_sizes"].cpu(), asked["reshaped_input_sizes"].cpu()
        mask = self.sam_processor.image_processor.post_process_masks(masks, *sizes)[0][0, 0].numpy().astype(bool)
        if not mask.any():
            return None
        return Segmentation(image=picture, mask=mask, score=float(found["scores"][best]), method="grounded-sam")
