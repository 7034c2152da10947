"""Boxes to crop a picture to: faces, and boxes with a margin."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in px of a picture, x1 and y1 exclusive."""

LEAST_FACE = 0.08  # of the picture's shorter side; what is smaller is mostly a pattern
CASCADE = "haarcascade_frontalface_default.xml"
SURE = 6  # neighbouring windows that must agree on a face


def find_faces(picture: Image.Image) -> list[Box]:
    """Frontal faces of a picture (RGB), largest first.

    Source: the boosted cascade of Haar features that OpenCV ships (Viola and Jones 2001; Lienhart and Maydt 2002).
    """
    grey = cv2.equalizeHist(np.asarray(picture.convert("L")))
    least = max(16, round(LEAST_FACE * min(picture.size)))
    detector = cv2.CascadeClassifier(
        str(Path(cv2.__file__).parent / "data" / CASCADE)
    )  # one for each call: it has a state
    found = detector.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=SURE, minSize=(least, least))
    boxes = [(int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in found]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))


def widened(box: Box, margin: float, size: tuple[int, int]) -> Box:
    """A box with a margin on each side, as a share of that side, inside a picture of `size` (W, H)."""
    x0, y0, x1, y1 = box
    wide, high = margin * (x1 - x0), margin * (y1 - y0)
    return (
        max(0, round(x0 - wide)), max(0, round(y0 - high)),
        min(size[0], round(x1 + wide)), min(size[1], round(y1 + high)),
    )  # fmt: skip
