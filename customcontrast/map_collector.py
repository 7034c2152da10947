"""Collecting the maps of one generation, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from customcontrast.attention.maps import Size
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.config import RecordConfig
from customcontrast.denoiser import MapRequest, Maps


class MapCollector:
    """Collects the maps of one run, as float16 on the CPU: those that RecordConfig requests, and no others.

    `request` before each step, `write` after it, `arrays` and `looked_at` at the end.
    """

    def __init__(
        self,
        record: RecordConfig,
        prompt: TokenizedPrompt,
        images: int,
        subjects: int,
        grid: Size,
        layers: int,
        normalize: str | None = None,
    ) -> None:
        """grid: (h, w) of all that is recorded; layers: of cross-attention; normalize: see MapRecorder."""
        self.normalize = normalize
        self.record = record
        self.tokens = chosen_tokens(record.tokens, prompt)
        self.layers = list(range(layers)) if record.layers is None else sorted(set(record.layers))
        self.images = images
        self.subjects = subjects
        self.grid = grid
        self.masks: list[np.ndarray] = []
        self.maps: dict[str, list[np.ndarray]] = {"text": [], "visual": [], "subject": []}
        self.map_steps: list[int] = []
        self.sums: dict[Size, dict[str, Tensor]] = {}
        self.looked: list[Tensor] = []
        self.looks_taken = 0

    def looks(self, step: int) -> bool:
        """Whether at this step (from 1) it is recorded which reference patches each place attends to."""
        requested = self.record.looked_at and self.subjects > 0 and (step - 1) % self.record.looked_at_every == 0
        return requested and self.record.keeps(step)

    def request(self, step: int, for_masks: bool, sources: Sequence[Tensor] = ()) -> MapRequest | None:
        """The maps to compute at this step (from 1); None where none are needed.

        They are those of the requested tokens if the step is recorded, and the subjects' alone if only a mask needs
        them. for_masks: whether one does. sources: see `MapRecorder`.
        """
        if self.record.keeps(step):
            return MapRequest(self.tokens, self.record.layers, for_masks, sources, self.normalize)
        return MapRequest(normalize=self.normalize) if for_masks else None

    def write(self, step: int, maps: Maps | None, masks: Tensor | None) -> np.ndarray | None:
        """Add the maps of a finished step (from 1). Returns its masks (images, K, h, w), float32, or None."""
        array = None if masks is None else masks.float().cpu().numpy()
        if array is not None:
            self.masks.append(array)
        if maps is None or not self.record.keeps(step):
            return array
        self.map_steps.append(step)
        for kind, recorded in self.maps.items():
            mean = maps.mean(kind, self.grid)
            if mean is not None:
                recorded.append(mean.half().cpu().numpy())
        if self.record.by_resolution:
            self._add_resolutions(maps)
        if self.looks(step):
            looked = [found for k in range(self.subjects) if (found := maps.looked(k, self.grid)) is not None]
            self.looks_taken += 1
            self.looked = [a + b for a, b in zip(self.looked, looked, strict=True)] if self.looked else looked
        return array

    def looked_at(self, patches: Sequence[Size]) -> list[np.ndarray]:
        """Per subject, which of its reference patches each place attends to: the mean over recorded steps and layers.

        float16 (images, h, w, references, patches high, patches wide). At each place it sums to the mean over those
        steps of the visual map, which is the mass on this subject's tokens (1 for an adapter without a sink).
        patches: per subject, how its references are divided, rows and columns.
        """
        T = max(self.looks_taken, 1)
        both = zip(self.looked, patches, strict=False)  # nothing where nothing was recorded
        return [(looked / T).unflatten(-1, divided).half().cpu().numpy() for looked, divided in both]

    def _add_resolutions(self, step: Maps) -> None:
        for size, kinds in step.by_resolution().items():
            sums = self.sums.setdefault(size, {})
            for kind, maps in kinds.items():
                sums[kind] = sums[kind] + maps.float() if kind in sums else maps.float()

    def arrays(self) -> dict[str, Any]:
        """The fields of `Result` that hold maps; axes of length 0 where nothing was recorded."""
        T, size = len(self.map_steps), self.grid
        text = self._stacked("text", (self.images, T, len(self.tokens), *size))
        by_resolution = {
            f"{h}x{w}": {kind: (maps / T).half().cpu().numpy() for kind, maps in sums.items()}
            for (h, w), sums in sorted(self.sums.items(), reverse=True)
        }
        masks = (
            np.stack(self.masks, axis=1) if self.masks else np.zeros((self.images, 0, self.subjects, *size), np.float32)
        )
        return {
            "location_masks": masks,
            "text_maps": text,
            "visual_maps": self._stacked("visual", (self.images, T, self.subjects, *size)),
            "subject_maps": self._stacked("subject", (self.images, T, self.subjects, *size)),
            "by_resolution": by_resolution,
            "map_steps": self.map_steps,
            "map_tokens": self.tokens,
            "map_layers": self.layers,
        }

    def _stacked(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """(images, T', …); ones where this adapter has no such map: without a sink all mass is on the subject."""
        recorded = self.maps[kind]
        return np.stack(recorded, axis=1) if recorded else np.full(shape, kind == "visual", np.float16)


def chosen_tokens(requested: Sequence[int | str] | None, prompt: TokenizedPrompt) -> list[int]:
    """Positions of the tokens whose maps are recorded, sorted.

    requested: None = all; else positions (from 0, the start token) and words of the prompt. Raises ValueError naming
    what the prompt does not have.
    """
    if requested is None:
        return list(range(len(prompt.tokens)))
    places: set[int] = set()
    for token in requested:
        if isinstance(token, str):
            found = [i for word, at in prompt.words for i in at if word.strip(",.;:!?").lower() == token.lower()]
        else:
            found = [token] if 0 <= token < len(prompt.tokens) else []
        if not found:
            raise ValueError(
                f"RecordConfig: tokens has {token!r}; the prompt is {prompt.text!r} of {len(prompt.tokens)} tokens. "
                "Name its words, or places from 0."
            )
        places.update(found)
    return sorted(places)
