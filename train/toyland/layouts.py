"""The layout of a rendered scene: the denoiser's condition."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from customcontrast.layout import Box, Layout, SubjectLayout
from train.toyland.geometry import frame_box
from train.toyland.scene import ToyScene


def layout_of(scene: ToyScene, masks: Tensor) -> Layout:
    """The layout of a scene: box and view of each subject, camera and light.

    masks (K, H, W) bool: visible pixels of the scene's subjects, in their order. A subject that is hidden entirely gets
    the box that it would fill.
    """
    subjects = []
    for p, mask in zip(scene.placements, masks, strict=False):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):
            (top, left), (h, w) = (int(rows[0]), int(columns[0])), mask.shape
            box: Box = (left / w, top / h, (int(columns[-1]) + 1) / w, (int(rows[-1]) + 1) / h)
        else:
            low, high = (np.clip(c, -0.999, 0.999) for c in frame_box(p, scene.elevation))
            box = (
                float((low[0] + 1) / 2), float((1 - high[1]) / 2), float((high[0] + 1) / 2), float((1 - low[1]) / 2)
            )  # fmt: skip
        subjects.append(SubjectLayout(box, p.azimuth, p.pose))
    return Layout(tuple(subjects), scene.elevation, scene.light)
