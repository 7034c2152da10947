"""Validation while training: a strip of pictures, and numbers, of subjects that training does not see.

Of folders and shards `data.holdout` keeps subjects back; Toyland has held-out subjects of its own. For each subject one
prompt that only names it (R-) and one edit of each kind (E-), as at evaluation. Numbers go to TensorBoard, Weights &
Biases and validation/metrics.jsonl:

    R-CI, E-CI   cosine of reference and generated picture in CLIP's image space; the picture is whole, not cut out
    R-CT, E-CT   cosine of prompt and picture, where a CLIP has both sides (`log.validate_clip`; Toyland's own)
    diffusion, location   Eq. 1 and Eq. 8 on `log.validate_samples` held-out samples, with the same noise every time
"""

from __future__ import annotations

import functools
import json
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel
from customcontrast.config import RecordConfig
from customcontrast.errors import ConfigError
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation
from customcontrast.ui.service.figures import stack
from train.adapter.adapter_config import AdapterTrainConfig
from train.adapter.step import AdapterLoss, Noise
from train.common.log import Log
from train.data.frozen_features import clip_features, with_features
from train.data.mixture import Mixture, Part
from train.data.sampler import Samples
from train.data.samples import collate, required
from train.data.sources import PHOTOGRAPHS, held_out_sources, make_source
from train.evaluation.metrics import ClipSpaces, clip_spaces, cosine, toyland_spaces
from train.evaluation.tasks import Case, Task, photograph_tasks, toyland_cases
from train.toyland import World

LOG = logging.getLogger(__name__)
SHOWN = ("reconstruction", "style", "scene", "accessorisation")  # columns of the strip
CELL, TEXT = 128, 16  # px


@dataclass(frozen=True, eq=False)
class Cutout(Segmentation):
    """A segmented subject on white, as a source gives it: it is not cut out again."""

    @classmethod
    def of(cls, picture: Image.Image) -> Cutout:
        return cls(image=picture, mask=np.ones((picture.height, picture.width), bool), method="given")

    def on_plain(
        self, color: tuple[int, int, int] = (255, 255, 255), margin: float = 0.1, size: int | None = None
    ) -> Image.Image:
        """The picture as it is, in white and with its own margin whatever is asked for; size: px, None = its own."""
        return self.image if size is None else self.image.resize((size, size))


class Validation:
    """Cases, spaces and held-out samples of a run, made when they are first needed."""

    def __init__(self, base: BaseModel, config: AdapterTrainConfig) -> None:
        self.base, self.config = base, config

    def run(self, step: int, adapter: Adapter, log: Log) -> dict[str, float]:
        """The strip and the numbers of `adapter`, into the log. Only the main process may call it."""
        strip, metrics = self.strip(adapter)
        metrics |= self.losses(adapter)
        log.picture(step, strip)
        record(log, step, metrics)
        return metrics

    @functools.cached_property
    def held_out(self) -> list[Part]:
        """The parts whose subjects validation is about; [] on Toyland alone."""
        found = held_out_sources(self.config.data, self.base)
        photographs = [own for _, _, own in self.config.data.parts() if own.source in PHOTOGRAPHS]
        if not found and photographs:
            LOG.warning("validation shows subjects of the training data; set data.holdout=0.01 to keep some from it")
            whole = make_source(
                replace(photographs[0], holdout=0.0, sources=[], shard_cache="none"), self.base, progress=False
            )
            assert not isinstance(whole, Mixture)  # it is of one set
            found = [Part("", whole, 1.0)]
        return found

    @functools.cached_property
    def cases(self) -> list[Case]:
        """`log.validate_subjects` subjects, taken from the parts in turn."""
        count = self.config.log.validate_subjects
        if not self.held_out:
            return toyland_cases(count, World.named(self.config.data.world), seed=1)
        found = []
        for i in range(count):
            part = self.held_out[i % len(self.held_out)]
            row = i // len(self.held_out)
            if row < len(part.source):
                rng = random.Random(f"validation-{i}")
                sample = part.named(part.source.pair(row, rng))
                noun = sample.caption[slice(*sample.noun)]
                reference = required(sample.reference, "Sample.reference")
                picture = to_pil_image(reference)
                found.append(Case(sample.subject, noun, Cutout.of(picture), photograph_tasks(noun, rng)))
        return found

    @functools.cached_property
    def spaces(self) -> ClipSpaces | None:
        """Where prompts and pictures are compared; None where nothing was named and the base has no text side.

        Raises ConfigError where `log.validate_clip` cannot be read.
        """
        name = self.config.log.validate_clip
        if name:
            try:
                return clip_spaces(name, self.base.device)
            except (OSError, ValueError) as error:
                why = str(error).splitlines()[0]
                raise ConfigError(
                    f"log.validate_clip {name!r} cannot be read ({why}); pass a CLIP or nothing"
                ) from error
        try:
            return toyland_spaces(self.base, Path(self.config.weights or self.base.spec.weights))
        except FileNotFoundError:
            return None

    @torch.no_grad()
    def strip(self, adapter: Adapter) -> tuple[Image.Image, dict[str, float]]:
        """One row per subject: R, then for each of SHOWN the picture and the location mask of its middle step; and the
        cosines of the pictures."""
        custom = CustomContrast.from_parts(self.base, adapter)
        made = [_made(custom, case, self.config.log.validate_steps) for case in self.cases]
        values: dict[str, list[float]] = defaultdict(list)
        for case, pictures in zip(self.cases, made, strict=True):
            tasks, images = [task for task, _, _ in pictures], [image for _, image, _ in pictures]
            for name, scores in self._scores(case, tasks, images).items():
                for task, score in zip(tasks, scores.tolist(), strict=True):
                    values[f"{'R' if task.category == 'reconstruction' else 'E'}-{name}"].append(score)
        rows = [_row(case, pictures) for case, pictures in zip(self.cases, made, strict=True)]
        return stack(rows), {name: sum(found) / len(found) for name, found in sorted(values.items())}

    def _scores(self, case: Case, tasks: Sequence[Task], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        reference = case.reference.on_plain()
        if self.spaces is None:
            side = reference.width
            pixels = [pil_to_tensor(image.convert("RGB").resize((side, side))) for image in (reference, *images)]
            embedded = clip_features(self.base, torch.stack(pixels))[1].float().cpu()
            return {"CI": cosine(embedded[1:], embedded[:1].expand(len(images), -1))}
        seen = self.spaces.image([reference, *images])
        return {
            "CI": cosine(seen[1:], seen[:1].expand(len(images), -1)),
            "CT": cosine(self.spaces.text([task.text for task in tasks]), seen[1:]),
        }

    @torch.no_grad()
    def losses(self, adapter: Adapter) -> dict[str, float]:
        """Eq. 1 and Eq. 8 on held-out samples. Eq. 4 and 7 speak to the other processes, which are not here."""
        count, batch = self.config.log.validate_samples, self.config.optim.batch
        if not count or not self.held_out:
            return {}
        model = AdapterLoss(self.base, adapter, replace(self.config.loss, cscl=False, macl=False))
        samples = Samples(Mixture(self.held_out), seed=1, drop=0.0)
        sums: dict[str, float] = defaultdict(float)
        for k in range(-(-count // batch)):
            rows = with_features(self.base, collate([samples[i] for i in range(k * batch, (k + 1) * batch)]))
            timesteps = self.base.scheduler.config.num_train_timesteps
            noise = Noise.draw(required(rows.latents, "Batch.latents").shape, timesteps, (1, k), self.base.device)
            with torch.autocast(self.base.device.type, self.base.dtype, enabled=self.base.dtype != torch.float32):
                found = model(rows, noise)
            for name in ("diffusion", "location"):
                sums[name] += float(getattr(found, name))
        return {name: total / -(-count // batch) for name, total in sums.items()}


def record(log: Log, step: int, metrics: dict[str, float]) -> None:
    """Numbers of one validation: metrics.jsonl, TensorBoard, Weights & Biases."""
    if log.board is None or not metrics:
        return
    named = {f"validation/{name}": value for name, value in metrics.items()}
    for name, value in named.items():
        log.board.add_scalar(name, value, step)
    if log.wandb is not None:
        log.wandb.values(named, step)
    place = log.output / "validation"
    place.mkdir(exist_ok=True)
    with (place / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step} | {name: round(value, 5) for name, value in metrics.items()}) + "\n")


def _made(custom: CustomContrast, case: Case, steps: int) -> list[tuple[Task, Image.Image, np.ndarray]]:
    """(task, picture, location mask (h, w) of the middle step) of a subject."""
    subject = custom.subject(case.reference, case.noun)
    found = []
    for task in (t for t in case.tasks if t.category in SHOWN):
        result = custom.generate(
            task.prompt, subject, seed=0, num_inference_steps=steps, record=RecordConfig(maps=False)
        )
        masks = result.location_masks  # (1, T, K, h, w)
        found.append((task, result.images[0], masks[0, masks.shape[1] // 2, 0]))
    return found


def _row(case: Case, made: Sequence[tuple[Task, Image.Image, np.ndarray]]) -> Image.Image:
    cells: list[tuple[Image.Image, str]] = [(case.reference.on_plain(), case.subject)]
    for task, picture, mask in made:
        cells += [(picture, task.text), (grey(mask), "mask")]
    row = Image.new("RGB", (CELL * len(cells), CELL + TEXT), "white")
    draw = ImageDraw.Draw(row)
    for i, (picture, text) in enumerate(cells):
        row.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC), (i * CELL, 0))
        draw.text((i * CELL + 2, CELL + 2), text[: CELL // 6], fill="black")
    return row


def grey(mask: np.ndarray) -> Image.Image:
    """A map (h, w) in [0, 1] as a grey picture."""
    return Image.fromarray((mask.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
