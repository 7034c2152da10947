"""Figure 7 for one subject: its features among those of held-out subjects whose places were found by t-SNE before.

t-SNE does not extend to new points. An `Atlas` holds the features and places of known subjects, and a new subject is
put at the mean of the places of its nearest neighbours, weighted by similarity.
`python -m train.evaluation.atlas … --atlas FILE` makes the file that lies beside the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from customcontrast.adapter import Adapter
from customcontrast.errors import AtlasError
from customcontrast.tensor_files import write_tensors

FILE = "features.safetensors"  # name of an atlas beside its adapter
TIMES = (100, 300, 500, 700, 900)  # steps t at which u is read, of 1000
NEIGHBOURS = 5
SHARPNESS = 20.0  # of the weights exp(SHARPNESS · cosine)


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32."""
    return torch.nn.functional.normalize(x.float(), dim=-1)


@torch.no_grad()
def encoder_features(adapter: Adapter, f_I: Tensor, times: Sequence[int] = TIMES) -> Tensor:
    """Unit features of subjects from f_I (B, tokens, d): [v] or [v, u] -> (B, d or 2d); u: mean over t, layers."""
    _, v = adapter.encoder.visual(f_I)
    parts = [unit(v)]
    if adapter.config.textual:
        u = [adapter.encoder.textual(f_I, torch.full((len(f_I),), t, device=f_I.device))[1].mean(1) for t in times]
        parts.append(unit(torch.stack(u).mean(0)))
    return unit(torch.cat(parts, 1)).cpu()


@dataclass(frozen=True, eq=False)
class Atlas:
    """Known subjects, each in several views: N pictures."""

    features: np.ndarray  # float32 (N, d), rows of length 1
    places: np.ndarray  # float32 (N, 2), by t-SNE
    subjects: np.ndarray  # int64 (N,), number of the subject, from 0
    pictures: np.ndarray  # uint8 (subjects, side, side, 3), the first view of each subject
    names: tuple[str, ...]  # one for each subject

    def write(self, path: Path) -> None:
        """Write a safetensors file. Raises SafetensorError or OSError."""
        arrays = {key: np.ascontiguousarray(getattr(self, key)) for key in _ARRAYS}
        write_tensors(arrays, path, {"names": json.dumps(self.names)})

    @classmethod
    def read(cls, path: Path) -> Atlas:
        """Read what `write` wrote. Raises AtlasError where there is no such file, or it is damaged."""
        if not path.is_file():
            raise AtlasError(
                f"There is no “{path.name}” beside this adapter; `python -m train.evaluation.atlas --adapter NAME=FILE "
                f"--atlas {path.name}` makes it."
            )
        try:
            with safe_open(path, "np") as file:
                atlas = cls(
                    **{key: file.get_tensor(key) for key in _ARRAYS}, names=tuple(json.loads(file.metadata()["names"]))
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise AtlasError(f"The file “{path.name}” beside this adapter is damaged; make it again.") from error
        N = len(atlas.features)
        if not (
            atlas.places.shape == (N, 2) and atlas.subjects.shape == (N,) and len(atlas.names) == len(atlas.pictures)
        ):
            raise AtlasError(f"The file “{path.name}” beside this adapter is damaged; make it again.")
        return atlas

    def locate(self, feature: np.ndarray) -> tuple[np.ndarray, list[tuple[int, float]]]:
        """Where a new subject (d,) lies: its place (2,), and the nearest subjects with their cosine, nearest first.

        The place is the mean over its NEIGHBOURS nearest pictures, weighted by exp(SHARPNESS · cosine).
        Raises AtlasError where the features are of another width.
        """
        if feature.shape != self.features.shape[1:]:
            raise AtlasError("The features beside this adapter were made with another adapter; make them again.")
        cosines = self.features @ (feature / max(float(np.linalg.norm(feature)), 1e-12))
        order = np.argsort(-cosines, kind="stable")
        near = order[:NEIGHBOURS]
        weights = np.exp(SHARPNESS * (cosines[near] - cosines[near[0]]))
        best: dict[int, float] = {}
        for i in order:
            best.setdefault(int(self.subjects[i]), float(cosines[i]))
        return weights @ self.places[near] / weights.sum(), list(best.items())[:NEIGHBOURS]

    def picture(self, subject: int) -> Image.Image:
        """The first view of a subject."""
        return Image.fromarray(self.pictures[subject])


_ARRAYS = ("features", "places", "subjects", "pictures")
