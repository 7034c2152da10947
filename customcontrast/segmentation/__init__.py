"""From a picture to the mask of its subject, and the segmented subject.

u2net.py finds the salient object, clean.py turns its map into a mask, sam.py or grabcut.py answer clicks and boxes (on
windows.py's maps), brush.py lays painted strokes over it, segmenter.py puts them together, result.py is the result.
"""

from customcontrast.segmentation.brush import Stroke, check_stroke, painted
from customcontrast.segmentation.result import Segmentation, SegmentationError, from_mask
from customcontrast.segmentation.segmenter import SAM_VARIABLE, Segmenter

__all__ = [
    "SAM_VARIABLE", "Segmentation", "SegmentationError", "Segmenter", "Stroke", "check_stroke", "from_mask", "painted"
]  # fmt: skip
