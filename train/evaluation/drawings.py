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
from customcontrast.subject import Segmented, maker_of

PORTION = 16  # pictures for which one more process is worth its start
TOGETHER = 5  # pictures of one subject, with one seed, that are drawn in one call
LARGE = 768  # px a side from which on a picture fills a device by itself


@dataclass(frozen=True, eq=False)
class Drawing:
    """One picture that is wanted."""

    name: str  # its file's begins with it
    prompt: str
    seed: int
    subjects: tuple[tuple[Segmented, str], ...] = ()  # each reference and its class noun
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of `CustomContrast.generate`

    def beside(self, other: Drawing) -> bool:
        """Whether both can be drawn in one call: of one subject at most, they differ in their prompts alone."""
        if len(self.subjects) > 1 or len(self.subjects) != len(other.subjects):
            return False
        pairs = zip(self.subjects, other.subjects, strict=True)
        same = all(a is b and noun == other_noun for (a, noun), (b, other_noun) in pairs)
        return same and (self.seed, self.options) == (other.seed, other.options)

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
    calls = in_calls(custom.base, dict(zip(paths, drawings, strict=True)))
    calls = [call for call in calls if not all(path.exists() for path in call)]  # each is drawn as if none were there
    made, awaited = (path for done in _made(custom, calls) for path in done), {path for call in calls for path in call}
    for path in tqdm(paths, desc=label, unit="picture"):
        while path in awaited:
            awaited.remove(next(made))
        yield load_picture(path)


def processes(base: BaseModel, count: int) -> int:
    """How many processes draw `count` pictures: of a small base on a CPU one for each of torch's threads.

    Else this one alone: activations of a large base fill the memory, and only on Linux processes share its weights.
    """
    if base.device.type != "cpu" or not base.spec.embedded or sys.platform != "linux":
        return 1
    return max(1, min(torch.get_num_threads(), count // PORTION))


def draw(custom: CustomContrast, drawings: Sequence[Drawing]) -> list[Image.Image]:
    """The pictures of drawings that can be drawn in one call."""
    first = drawings[0]
    subjects = [custom.subject(reference, noun) for reference, noun in first.subjects]
    prompts = [drawing.prompt for drawing in drawings]
    options = {"seed": first.seed, "record": RecordConfig(maps=False)} | first.options
    return custom.generate(prompts, subjects, **options).images


def in_calls(base: BaseModel, wanted: dict[Path, Drawing]) -> list[dict[Path, Drawing]]:
    """The drawings, those of each call together, in their order."""
    calls: list[dict[Path, Drawing]] = []
    most = TOGETHER if base.default_size < LARGE else 1
    for path, drawing in wanted.items():
        latest = calls[-1] if calls else {}
        if latest and len(latest) < most and next(iter(latest.values())).beside(drawing):
            latest[path] = drawing
        else:
            calls.append({path: drawing})
    return calls


_inherited: tuple[CustomContrast, list[dict[Path, Drawing]]]  # what forked processes draw, and with what


def _made(custom: CustomContrast, calls: list[dict[Path, Drawing]]) -> Iterator[list[Path]]:
    """The files of each call when they are there, in their order."""
    global _inherited
    several = processes(custom.base, sum(map(len, calls)))
    if several == 1:
        yield from (_keep(custom, call) for call in calls)
        return
    _inherited = (custom, calls)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(several, fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(_keep_inherited, range(len(calls)))


def _keep_inherited(number: int) -> list[Path]:
    custom, calls = _inherited
    return _keep(custom, calls[number])


def _keep(custom: CustomContrast, call: dict[Path, Drawing]) -> list[Path]:
    """Draw what is to be drawn in one call into the files that are missing, each whole or not there; the call's files.

    A picture depends in its last bits on what is drawn beside it, but never on where a run was stopped.
    """
    for path, picture in zip(call, draw(custom, list(call.values())), strict=True):
        if not path.exists():
            part = path.with_suffix(".part")
            picture.save(part, format="png")
            part.replace(path)
    return list(call)


def sampler(base: BaseModel) -> tuple[str, list[tuple[str, object]]]:
    """The scheduler's name and settings: another one makes other pictures."""
    settings = sorted((k, v) for k, v in base.scheduler.config.items() if not k.startswith("_"))
    return type(base.scheduler).__name__, settings


def base_digest(base: BaseModel) -> str:
    """A base's models, scheduler and drawn layouts in a few letters: with others, pictures are others."""
    total = hashlib.sha256(repr(sampler(base)).encode())
    if base.layout_prior is not None:
        layouts = [base.layout_prior.draw(f"a {kind}", seed=0) for kind in base.layout_prior.kinds]
        total.update(repr(layouts).encode())
    for model in (base.unet, base.vae, *base.text_encoders, base.image_encoder):
        total.update(b"" if model is None else maker_of(model).encode())
    return total.hexdigest()[:12]


def weights_digest(custom: CustomContrast, adapter: bool = True) -> str:
    """`base_digest` and, where it is wanted, all of the adapter's weights in a few letters."""
    total = hashlib.sha256(base_digest(custom.base).encode())
    weights = custom.adapter.state_dict() if adapter and custom.adapter is not None else {}
    for name, tensor in sorted(weights.items()):
        total.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()[:12]
