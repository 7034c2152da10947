"""Pictures of an evaluation: each drawn once and kept as a file; where there is no GPU, by a process for each core."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from customcontrast.base_model import BaseModel
from customcontrast.config import GenerationConfig, RecordConfig
from customcontrast.folders import make_folder
from customcontrast.images.loading import load_picture
from customcontrast.pipeline import CustomContrast
from customcontrast.run_settings import recipe, resolve
from customcontrast.subject import Segmented

PORTION = 16  # pictures for which one more process is worth its start


@dataclass(frozen=True, eq=False)
class Drawing:
    """One picture that is wanted."""

    name: str  # its file's begins with it
    prompt: str
    seed: int
    subjects: tuple[tuple[Segmented, str], ...] = ()  # each reference and its class noun
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of `CustomContrast.generate`

    def make(self, custom: CustomContrast) -> Image.Image:
        """Draw it."""
        subjects = [custom.subject(reference, noun) for reference, noun in self.subjects]
        result = custom.generate(self.prompt, subjects, seed=self.seed, record=RecordConfig(maps=False), **self.options)
        return result.images[0]

    def file(self, custom: CustomContrast, weights: str) -> str:
        """Its file's name, which says all that it depends on. weights: `weights_digest` of the models."""
        scale = custom.adapter.default_scale if custom.adapter and self.subjects else 1.0
        config = GenerationConfig(self.prompt, seed=self.seed, **self.options)
        total = hashlib.sha256(repr((weights, recipe(resolve(custom.base, config, (), scale), ()))).encode())
        for reference, noun in self.subjects:
            total.update(noun.encode() + reference.on_plain().tobytes())
        return f"{self.name}-{total.hexdigest()[:10]}.png"


def drawn(custom: CustomContrast, drawings: Sequence[Drawing], folder: Path, label: str) -> Iterator[Image.Image]:
    """The picture of each drawing, in their order; those whose files are in `folder` are read, not drawn again."""
    make_folder(folder, "--out")
    base = weights_digest(custom, adapter=False)
    whole = weights_digest(custom) if any(drawing.subjects for drawing in drawings) else ""
    paths = [folder / drawing.file(custom, whole if drawing.subjects else base) for drawing in drawings]
    missing = {path: drawing for path, drawing in zip(paths, drawings, strict=True) if not path.exists()}
    made, awaited = _made(custom, missing), set(missing)
    for path in tqdm(paths, desc=label, unit="picture"):
        if path in awaited:
            awaited.remove(next(made))
        yield load_picture(path)


def processes(base: BaseModel, count: int) -> int:
    """How many processes draw `count` pictures: of a small base on a CPU one for each of torch's threads.

    Else this one alone: activations of a large base fill the memory, and only on Linux processes share its weights.
    """
    if base.device.type != "cpu" or not base.spec.embedded or sys.platform != "linux":
        return 1
    return max(1, min(torch.get_num_threads(), count // PORTION))


_inherited: tuple[CustomContrast, list[tuple[Path, Drawing]]]  # what forked processes draw, and with what


def _made(custom: CustomContrast, wanted: dict[Path, Drawing]) -> Iterator[Path]:
    """The files of the drawings, each when it is there, in their order."""
    global _inherited
    several = processes(custom.base, len(wanted))
    if several == 1:
        for path, drawing in wanted.items():
            yield _keep(custom, drawing, path)
        return
    _inherited = (custom, list(wanted.items()))
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(several, fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(_keep_inherited, range(len(wanted)))


def _keep_inherited(number: int) -> Path:
    custom, wanted = _inherited
    path, drawing = wanted[number]
    return _keep(custom, drawing, path)


def _keep(custom: CustomContrast, drawing: Drawing, path: Path) -> Path:
    """Draw it into its file, which is whole or not there; the file."""
    part = path.with_suffix(".part")
    drawing.make(custom).save(part, format="png")
    return part.replace(path)


def sampler(base: BaseModel) -> tuple[str, list[tuple[str, object]]]:
    """The scheduler's name and settings: another one makes other pictures."""
    settings = sorted((k, v) for k, v in base.scheduler.config.items() if not k.startswith("_"))
    return type(base.scheduler).__name__, settings


def base_digest(base: BaseModel) -> str:
    """UNet (its last layer), scheduler and drawn layouts in a few letters: with others, pictures are others."""
    total = hashlib.sha256(repr(sampler(base)).encode())
    if base.layout_prior is not None:
        layouts = [base.layout_prior.draw(f"a {kind}", seed=0) for kind in base.layout_prior.kinds]
        total.update(repr(layouts).encode())
    total.update(base.unet.conv_out.weight.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()[:12]


def weights_digest(custom: CustomContrast, adapter: bool = True) -> str:
    """`base_digest` and, where it is wanted, all of the adapter's weights in a few letters."""
    total = hashlib.sha256(base_digest(custom.base).encode())
    weights = custom.adapter.state_dict() if adapter and custom.adapter is not None else {}
    for name, tensor in sorted(weights.items()):
        total.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()[:12]
