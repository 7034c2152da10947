"""Schedulers, starting noise, predicted pictures: the parts of a denoising loop that do not depend on subjects."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from customcontrast.specs import SCHEDULERS

# Classes of diffusers that walk the noise schedule of a latent diffusion model, as this base was trained with.
FITTING = frozenset(spec.class_name for spec in SCHEDULERS.values()) | frozenset(
    f"{stem}Scheduler"
    for stem in (
        "DDIMParallel", "DDPMParallel", "DEISMultistep", "DPMSolverSDE", "DPMSolverSinglestep", "KDPM2Discrete",
        "KDPM2AncestralDiscrete", "LCM", "LMSDiscrete", "SASolver", "TCD",
    )
)  # fmt: skip
_SOLVER_KINDS = ("algorithm_type", "solver_type")  # what DPM-Solver's relatives call their variants, each differently


def make_scheduler(own: Any, name: str | None = None) -> Any:
    """Make a scheduler for one run, from the base's own config: its noise schedule, and whether it predicts ε or v.

    own: the base's scheduler. name: a key of `specs.SCHEDULERS` or a diffusers class name; None = the base's own class.
    Options of the base's config that another class does not accept (the kind of a DPM-Solver) are left out for it.
    Raises ValueError for a name that is unknown, of another family of models, or needs a package that is not installed.
    """
    if name is None:
        return type(own).from_config(own.config)
    spec = SCHEDULERS.get(name) if isinstance(name, str) else None
    title, options = (spec.class_name, spec.options) if spec else (name if isinstance(name, str) else "", {})
    if title not in FITTING and title != type(own).__name__:
        other = title.endswith("Scheduler") and hasattr(diffusers, title)
        why = "is for another family of models (flow matching, other noise, tokens)" if other else "is unknown"
        raise ValueError(f"scheduler={name!r} {why}; choose one of {', '.join(SCHEDULERS)} or a diffusers class name.")
    cls = getattr(diffusers, title)
    takes = inspect.signature(cls.__init__).parameters
    # Some classes clip the predicted latents to [−1, 1] by default, which greys a picture of wider ones.
    unclipped = {"clip_sample": False} if "clip_sample" in takes and "clip_sample" not in own.config else {}
    config = dict(own.config)
    try:
        return cls.from_config(config, **unclipped, **options)
    except NotImplementedError:  # DEIS and SA-Solver of a base whose own scheduler is a DPM-Solver
        return cls.from_config({k: v for k, v in config.items() if k not in _SOLVER_KINDS}, **unclipped, **options)
    except ImportError as error:
        raise ValueError(f"scheduler={name!r} needs a package that is not here: pip install torchsde.") from error


def step_options(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Keyword arguments for this scheduler's `step`: one generator per picture, if it draws noise."""
    takes = inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if "generator" in takes else {}


def starting_noise(
    generators: Sequence[torch.Generator],
    channels: int,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Gaussian noise (N, C, h, w) on `device`, one picture's from each generator.

    It is drawn on the generator's own device: from generators on the CPU it is the same everywhere. size: (h, w).
    """
    parts = [torch.randn((1, channels, *size), generator=g, device=g.device, dtype=dtype) for g in generators]
    return torch.cat(parts).to(device)


def predicted_x0(scheduler: Any, stepped: Any, prediction: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """The finished latents x_0 that one step predicts, (N, C, h, w).

    stepped: what the scheduler's `step` returned; its own x_0 where it has one, else by α_t and σ_t of a
    variance-preserving process. prediction: the UNet's output at t; z: the latents before the step.
    """
    x_0 = getattr(stepped, "pred_original_sample", None)
    if x_0 is not None:
        return x_0
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return stepped.prev_sample
    alpha = alphas.to(z.device)[int(t)].sqrt()
    sigma = (1 - alpha**2).sqrt()
    if scheduler.config.prediction_type == "v_prediction":
        return alpha * z - sigma * prediction
    if scheduler.config.prediction_type == "sample":
        return prediction
    return (z - sigma * prediction) / alpha


def rescaled(mixed: Tensor, with_prompt: Tensor, share: float) -> Tensor:
    """Rescale a guided prediction (N, …): bring its spread back to that of the prompt's half, by this share.

    share in [0, 1]: 0 changes nothing (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps Are Flawed",
    section 3.4, there φ = 0.7).
    """
    if share == 0:
        return mixed
    axes = tuple(range(1, mixed.ndim))
    ratio = with_prompt.std(dim=axes, keepdim=True) / mixed.std(dim=axes, keepdim=True)
    return share * (mixed * ratio) + (1 - share) * mixed


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Convert pixels (N, 3, H, W) in [−1, 1] to N PIL pictures."""
    return [Image.fromarray(picture) for picture in (_arrays(_unit(pixels)) * 255).round().astype("uint8")]


def to_output(pixels: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Convert pixels (N, 3, H, W) in [−1, 1] to the requested form.

    output_type: "pil" = pictures, "np" = float32 (N, H, W, 3) in [0, 1], "pt" = (N, 3, H, W) in [0, 1].
    """
    if output_type == "pil":
        return to_pictures(pixels)
    return _unit(pixels) if output_type == "pt" else _arrays(_unit(pixels))


def _unit(pixels: Tensor) -> Tensor:
    """[−1, 1] -> [0, 1]."""
    return (pixels * 0.5 + 0.5).clamp(0, 1)


def _arrays(pixels: Tensor) -> np.ndarray:
    """(N, 3, H, W) -> float32 (N, H, W, 3)."""
    return pixels.permute(0, 2, 3, 1).cpu().float().numpy()


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side in one."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * width, 0))
    return row


@contextmanager
def on_device(device: torch.device, *models: nn.Module | None) -> Iterator[None]:
    """Move models that are on another device (CPU offload) to `device` for this block, and back after the last such.

    Accelerate's hooks move a model when its `forward` is called; here parts of models are called directly. A model
    whose weights are offloaded layer by layer (its own are on "meta") is left to those hooks. Threads may use one model
    at the same time.
    """
    away: list[nn.Module] = []
    try:
        for model in models:
            if model is not None and _arrives(model, device):
                away.append(model)  # noqa: PERF401 - one by one, so that what came is sent home where the next fails
        yield
    finally:
        for model in away:
            _leaves(model)


@dataclass
class _Visit:
    """A model that is away from home."""

    home: torch.device
    guests: int = 1  # blocks of `on_device` that use it


_visits: WeakKeyDictionary[nn.Module, _Visit] = WeakKeyDictionary()
_moving = threading.Lock()


def _arrives(model: nn.Module, device: torch.device) -> bool:
    """Bring a model to a device, or find it brought there already; False where it is at home there."""
    with _moving:
        if (visit := _visits.get(model)) is not None:
            visit.guests += 1
            return True
        home = next((p.device for p in model.parameters()), device)
        if home.type in (device.type, "meta"):
            return False
        model.to(device)
        _visits[model] = _Visit(home)
        return True


def _leaves(model: nn.Module) -> None:
    """The last block that used a model sends it home."""
    with _moving:
        visit = _visits[model]
        visit.guests -= 1
        if not visit.guests:
            del _visits[model]
            model.to(visit.home)
