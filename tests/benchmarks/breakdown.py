"""Where our time goes, S+ contexts plain against kept, and what a second picture of the same subject pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from customcontrast import CustomContrast, Segmenter
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.images.loading import load_picture
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.request import SubjectRequest
from customcontrast.ui.service.service import Service
from tests.benchmarks.generation import EXAMPLE, PROMPT, forget
from tests.benchmarks.report import Options, Report, Target, table

PARTS = ("segment", "encode", "S+ contexts", "UNet", "maps in attention", "masks and scheduler", "decode")
COLORS = ("#0f766e", "#14b8a6", "#f59e0b", "#334155", "#818cf8", "#c4b5fd", "#e11d48")


@contextmanager
def watched(*modules: nn.Module) -> Iterator[list[float]]:
    """[seconds inside, calls] of these modules' forwards."""
    total, began = [0.0, 0], []

    def enter(*_: object) -> None:
        began.append(time.perf_counter())

    def leave(*_: object) -> None:
        total[0] += time.perf_counter() - began.pop()
        total[1] += 1

    hooks = [h for m in modules for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def one_round(custom: CustomContrast, segmenter: Segmenter, steps: int) -> dict[str, float]:
    """Seconds of each part of one picture from the file to the pixels, all maps recorded."""
    picture, start = load_picture(EXAMPLE), time.perf_counter()
    found = segmenter.auto(picture)
    segmented = time.perf_counter()
    subject = custom.subject(found, "bear")
    encoded = time.perf_counter()
    forget(custom)
    with watched(custom.base.unet) as bare:
        off = {"location": LocationConfig(enabled=False), "record": RecordConfig(maps=False)}
        custom.generate(PROMPT, [subject], num_inference_steps=steps, **off)
    forget(custom)
    with watched(custom.base.unet) as full:
        spent = custom.generate(PROMPT, [subject], num_inference_steps=steps).seconds
    plain = min(bare[0], full[0])
    values = (segmented - start, encoded - segmented, spent["conditioning"], plain, full[0] - plain,
              max(0.0, spent["denoising"] - full[0]), spent["decoding"])  # fmt: skip
    return dict(zip(PARTS, values, strict=True))


def contexts(custom: CustomContrast, steps: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the conditioning, made anew and kept, turn by turn."""
    subject = custom.subject(Segmenter().auto(load_picture(EXAMPLE)), "bear")
    plain, kept = [], []
    for seed in range(rounds):
        forget(custom)
        for times in (plain, kept):
            made = custom.generate(PROMPT, [subject], num_inference_steps=steps, seed=seed)
            times.append(made.seconds["conditioning"])
    return plain, kept


def second_picture(steps: int, device: str) -> dict[str, float]:
    """Through the page's own service: calls and seconds of segmenter and image encoder, first picture and second."""
    service = Service(ServiceConfig(device=device))
    model, segmenter = service.models.model(), service.cutouts._get_segmenter()
    calls, original = [], segmenter.auto
    segmenter.auto = lambda *a, **k: calls.append(1) or original(*a, **k)
    figures = {}
    cut = None
    for turn in ("first", "second"):
        before, start = len(calls), time.perf_counter()
        with watched(model.base.image_encoder.vision_model) as encoder:
            cut = cut or service.cutouts.open(EXAMPLE)
            service.subject(model, SubjectRequest((cut.current,), "bear"))
        figures[f"{turn}: segmenter calls"] = len(calls) - before
        figures[f"{turn}: image encoder calls"] = encoder[1]
        figures[f"{turn}: seconds"] = time.perf_counter() - start
    return figures


def stacked_bar(parts: dict[str, float], title: str, path: Path) -> None:
    """One bar, its parts labelled with their share."""
    figure = Figure(figsize=(10, 2.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes, left, total = figure.subplots(), 0.0, sum(parts.values())
    for (name, seconds), color in zip(parts.items(), COLORS, strict=True):
        axes.barh(0, seconds, left=left, color=color, label=f"{name} {seconds * 1000:.0f} ms")
        if seconds > 0.06 * total:
            axes.text(left + seconds / 2, 0, f"{seconds / total:.0%}", ha="center", va="center", color="white")
        left += seconds
    axes.set(yticks=[], xlabel="seconds", xlim=(0, total))
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.35), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def run(options: Options) -> Report:
    custom, segmenter = CustomContrast.load("toyland", device=options.device), Segmenter()
    one_round(custom, segmenter, options.steps)
    rounds = [one_round(custom, segmenter, options.steps) for _ in range(options.rounds)]
    parts = {name: statistics.median(r[name] for r in rounds) for name in PARTS}
    total = sum(parts.values())
    spread = {name: float(np.subtract(*np.percentile([r[name] for r in rounds], (75, 25)))) for name in PARTS}
    plain, kept = contexts(custom, options.steps, options.rounds)
    ratio = statistics.median(k / p for k, p in zip(kept, plain, strict=True))
    second = second_picture(options.steps, options.device)
    rows = [(n, f"{parts[n] * 1000:.1f}", f"{spread[n] * 1000:.1f}", f"{parts[n] / total:.1%}") for n in PARTS]
    lines = table(("first picture of a subject, all maps", "ms", "± quartiles", "share"), rows)
    anew, again = (statistics.median(times) * 1000 for times in (plain, kept))
    lines.append(f"S+ contexts anew {anew:.1f} ms, kept {again:.1f} ms: {ratio:.3f} ×")
    lines += [f"{name}: {value:.4g}" for name, value in second.items()]
    if options.pictures:
        stacked_bar(parts, f"One Toyland picture, {options.steps} steps, all maps", options.pictures / "breakdown.png")
        lines.append(f"stacked bar: {options.pictures / 'breakdown.png'}")
    again = second["second: segmenter calls"] + second["second: image encoder calls"]
    picture = total - parts["segment"] - parts["encode"]
    targets = [
        Target("S+ contexts, share of a picture of a known subject", parts["S+ contexts"] / picture, 0.10),
        Target("second picture: calls of segmenter and image encoder", again, 0),
    ]
    figures = {"parts": parts, "spread": spread, "contexts": {"plain": plain, "kept": kept}, "second": second}
    return Report("Where our time goes", lines, figures, targets)
