"""Output of a generation: a `Step` after each denoising step, and the `Result`. Arrays and pictures, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Step:
    """One denoising step that has just been taken."""

    index: int  # from 1
    total: int  # steps of the run
    timestep: int  # t, falling
    preview: Image.Image | None  # the pictures as this step predicts them, side by side; every `preview_every` steps
    masks: np.ndarray | None  # location masks M_t of this step, float32 (images, K, h, w); None without subjects


@dataclass(frozen=True)
class Result:
    """Pictures, their masks and maps, and every setting that generates them again.

    T: denoising steps; T': those of them whose maps were recorded, `map_steps`. K: subjects. h, w: the finest map grid.
    """

    images: Any  # list of PIL pictures; with another `output_type` an array or a tensor, see `sampling.to_output`
    prompt: str  # as the model read it, with S*; several have a line each
    tokens: list[str]  # readable tokens (of the first prompt) from <start> to <end>; the token axis of text_maps
    words: list[tuple[str, list[int]]]  # each word with its places in `tokens`
    timesteps: list[int]  # T denoising steps
    location_masks: np.ndarray  # M_t, float32 (images, T, K, h, w)
    text_maps: np.ndarray  # float16 (images, T', tokens, h, w), mean over layers and heads; tokens: see map_tokens
    visual_maps: np.ndarray  # float16 (images, T', K, h, w), the mass on each subject's tokens
    subject_maps: np.ndarray  # float16 (images, T', K, h, w), text mass on each subject's S*
    by_resolution: dict[
        str, dict[str, np.ndarray]
    ]  # {"12x12": {"text" | "visual" | "subject": float16 (images, c, h, w)}}
    map_steps: list[int]  # the T' recorded steps, from 1
    recipe: dict[str, Any]  # every setting, as plain values for JSON
    map_tokens: list[int] = field(default_factory=list)  # places in `tokens` of the token axis of the text maps
    map_layers: list[int] = field(default_factory=list)  # cross-attention layers the maps average over, from 0
    looked_at: list[np.ndarray] = field(
        default_factory=list
    )  # per subject: see `MapCollector.looked_at`; [] = not requested
    truncated: str = ""  # words of the prompt that did not fit
    notes: list[str] = field(default_factory=list)  # sentences for the user
    seconds: dict[str, float] = field(default_factory=dict)  # where the time went
    flagged: list[bool] = field(default_factory=list)  # per picture: withheld by the safety checker; [] = without one
