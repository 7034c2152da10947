"""The validation strip: for a few subjects the reference, and for a few prompts the picture and its location mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel
from customcontrast.config import RecordConfig
from customcontrast.pipeline import CustomContrast
from customcontrast.ui.service.figures import stack
from train.adapter.adapter_config import AdapterTrainConfig
from train.evaluation.tasks import Case, folder_cases, toyland_cases
from train.toyland import World

SHOWN = ("reconstruction", "style", "scene", "accessorisation")  # columns of the strip
CELL, TEXT = 128, 16  # px


def validation_cases(config: AdapterTrainConfig) -> list[Case]:
    """Held-out Toyland subjects, or the first subjects of your folder."""
    count = config.log.validate_subjects
    if config.data.source == "folder":
        return folder_cases(Path(config.data.path), count)
    return toyland_cases(count, World.named(config.data.world), seed=1)


def validation_strip(base: BaseModel, adapter: Adapter, config: AdapterTrainConfig) -> Image.Image:
    """One row per subject: R, then for each of SHOWN the generated picture and the location mask of its middle step."""
    custom = CustomContrast.from_parts(base, adapter)
    return stack([_row(custom, case, config.log.validate_steps) for case in validation_cases(config)])


def _row(custom: CustomContrast, case: Case, steps: int) -> Image.Image:
    subject = custom.subject(case.reference, case.noun)
    cells: list[tuple[Image.Image, str]] = [(case.reference.on_plain(), case.subject)]
    for task in (t for t in case.tasks if t.category in SHOWN):
        result = custom.generate(
            task.prompt, subject, seed=0, num_inference_steps=steps, record=RecordConfig(maps=False)
        )
        masks = result.location_masks  # (1, T, K, h, w)
        cells.append((result.images[0], task.text))
        cells.append((grey(masks[0, masks.shape[1] // 2, 0]), "mask"))
    row = Image.new("RGB", (CELL * len(cells), CELL + TEXT), "white")
    draw = ImageDraw.Draw(row)
    for i, (picture, text) in enumerate(cells):
        row.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC), (i * CELL, 0))
        draw.text((i * CELL + 2, CELL + 2), text[: CELL // 6], fill="black")
    return row


def grey(mask: np.ndarray) -> Image.Image:
    """A map (h, w) in [0, 1] as a grey picture."""
    return Image.fromarray((mask.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
