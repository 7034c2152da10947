"""Picture -> subject mask -> segmented subject.

u2net.py finds what stands out, clean.py turns its map into a mask, sam.py or grabcut.py answer clicks and
boxes, brush.py lays painted strokes over it, segmenter.py puts them together, result.py is what comes out.
"""

from customcontrast.segmentation.brush import Stroke, check_stroke, painted
from customcontrast.segmentation.result import Segmentation, SegmentationError, from_mask
from customcontrast.segmentation.segmenter import SAM_VARIABLE, Segmenter

__all__ = [
    "SAM_VARIABLE", "Segmentation", "SegmentationError", "Segmenter", "Stroke", "check_stroke", "from_mask", "painted"
]  # fmt: skip
