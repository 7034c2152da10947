"""U²-Net-p on a window of the picture: in a box, or around clicks."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from customcontrast.segmentation.clean import resize
from customcontrast.segmentation.clicks import Box, box_mask
from customcontrast.segmentation.u2net import U2Net

REACHES = (0.25, 0.6)  # half sides of the windows tried around clicks, shares of the longer side
CUT_OFF = 0.06  # a subject that fills more of the window's inner border than this goes on outside it
Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in whole pixels


def look_into(net: U2Net, picture: Image.Image, box: Box, at: tuple[int, int]) -> np.ndarray:
    """Probability map of a box of the picture: (h, w) of the size `at`, zero outside.

    Where the network finds nothing in it, an ellipse of 0.6.
    """
    x0, y0, x1, y1 = box
    pad_x, pad_y = 0.08 * (x1 - x0), 0.08 * (y1 - y0)
    window = _window(picture, x0 - pad_x, y0 - pad_y, x1 + pad_x, y1 + pad_y)
    inside = box_mask(box, picture.size, at)
    values = _paste(net.probability(picture.crop(window)), window, picture.size, at) * inside
    if (values > 0.5).sum() >= 0.1 * inside.sum():
        return values
    rows, columns = np.mgrid[: at[1], : at[0]] + 0.5
    x = (columns * picture.width / at[0] - (x0 + x1) / 2) / (x1 - x0) * 2
    y = (rows * picture.height / at[1] - (y0 + y1) / 2) / (y1 - y0) * 2
    return 0.6 * ((x**2 + y**2 < 0.9) & inside).astype(np.float32)


def look_around(
    net: U2Net, picture: Image.Image, clicks: list[tuple[float, float]], at: tuple[int, int]
) -> np.ndarray | None:
    """Probability map of the salient object under the clicks: (h, w) of the size `at`, or None where there is none.

    Windows around the clicks are tried from small to large, until one holds the whole of it.
    """
    values = np.array(clicks)
    low, high = values.min(0), values.max(0)
    found = None
    for share in REACHES:
        reach = share * max(picture.size)
        window = _window(picture, *(low - reach), *(high + reach))
        seen = net.probability(picture.crop(window), looks=1)
        under = [_at(seen, window, click) > 0.5 for click in clicks]
        if all(under):
            found = _paste(seen, window, picture.size, at)
        if all(under) and not _goes_on(seen, window, picture.size):
            break
        if window == (0, 0, *picture.size):
            break
    return found


def _at(seen: np.ndarray, window: Window, click: tuple[float, float]) -> float:
    height, width = seen.shape
    x = (click[0] - window[0]) / (window[2] - window[0]) * width
    y = (click[1] - window[1]) / (window[3] - window[1]) * height
    return float(seen[min(int(y), height - 1), min(int(x), width - 1)])


def _goes_on(seen: np.ndarray, window: Window, size: tuple[int, int]) -> bool:
    """Whether what is seen is cut by a side of the window that is not a side of the picture."""
    sides = (
        (seen[:, :3], window[0] > 0),
        (seen[:3], window[1] > 0),
        (seen[:, -3:], window[2] < size[0]),
        (seen[-3:], window[3] < size[1]),
    )
    return any(inner and (side > 0.5).mean() > CUT_OFF for side, inner in sides)


def _window(picture: Image.Image, x0: float, y0: float, x1: float, y1: float) -> Window:
    """Float corners -> the whole pixels of the picture that they cover."""
    low = max(0, math.floor(x0)), max(0, math.floor(y0))
    return *low, min(picture.width, math.ceil(x1)), min(picture.height, math.ceil(y1))


def _paste(seen: np.ndarray, window: Window, size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """Map of a window of a picture of `size` -> (h, w) at the size `at`, zero outside the window."""
    sx, sy = at[0] / size[0], at[1] / size[1]
    left, top = int(window[0] * sx), int(window[1] * sy)
    right, bottom = max(left + 1, round(window[2] * sx)), max(top + 1, round(window[3] * sy))
    canvas = Image.new("F", at, 0.0)
    canvas.paste(Image.fromarray(resize(seen, (right - left, bottom - top))), (left, top))
    return np.asarray(canvas)
