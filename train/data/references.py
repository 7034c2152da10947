"""The segmented reference R, cropped as at inference (`Segmentation.on_plain`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from customcontrast.segmentation import Segmentation

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel


def crop_size(base: BaseModel) -> int:
    """Side of a segmented subject R in px: what the base's CLIP reads."""
    size = base.image_processor.size
    return int(size.get("shortest_edge") or size.get("height"))


def segmented(image: Tensor, mask: Tensor, crop: int) -> Tensor:
    """Picture uint8 (3, H, W) and mask bool (H, W) → R, uint8 (3, crop, crop), by the crop used at inference."""
    picture = to_pil_image(image)
    plain = Segmentation(image=picture, mask=mask.numpy(), score=1.0, method="exact").on_plain(size=crop)
    return pil_to_tensor(plain.convert("RGB"))
