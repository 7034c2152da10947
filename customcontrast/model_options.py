"""The options that name a model, once for every command that loads one: the page and `generate`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from customcontrast.hub import NAMES, is_name
from customcontrast.memory import CHOICES
from customcontrast.specs import BASES, DEFAULT_BASE

if TYPE_CHECKING:
    from customcontrast.pipeline import CustomContrast

OPTIONS = ("base", "weights", "adapter", "image_encoder", "device", "safety_checker", "memory")


# The default of an option, given its name and what it is otherwise: from the environment, say.
Defaults = Callable[[str, "str | None"], "str | None"]


def as_they_are(name: str, otherwise: str | None) -> str | None:
    """No other place that defaults come from."""
    return otherwise


def add_model_options(
    parser: argparse.ArgumentParser, defaults: Defaults = as_they_are, base: str = DEFAULT_BASE, checker: str = "off"
) -> None:
    """Add --base, --weights, --adapter, --image-encoder, --device, --safety-checker and --memory to a command.

    base: which one it is by default. checker: when there is a safety checker that nobody asked for, for the help.
    """
    parser.add_argument("--base", default=defaults("base", base), help=f"base model: {', '.join(BASES)} (%(default)s)")
    parser.add_argument(
        "--weights", default=defaults("weights", None), help="folder or hub id of the base model's weights"
    )
    parser.add_argument(
        "--adapter",
        default=defaults("adapter", None),
        help=f"adapter.safetensors to use with it, one of {', '.join(NAMES)}, or owner/name:path on the hub",
    )
    parser.add_argument(
        "--image-encoder",
        default=defaults("image_encoder", None),
        help="CLIP image encoder: folder, or owner/name:folder",
    )
    parser.add_argument("--device", default=defaults("device", None), help="cpu or cuda (the best one present)")
    parser.add_argument(
        "--safety-checker",
        default=defaults("safety_checker", None),
        metavar="on|off|FOLDER",
        help=f"withhold unsuitable pictures of sd15 and sdxl; a folder or hub id of a checker too ({checker})",
    )
    parser.add_argument(
        "--memory",
        choices=CHOICES,
        default=defaults("memory", "auto"),
        help="CPU offload of sd15 and sdxl: by what is free (%(default)s), or this one",
    )


def check_model_options(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """End with one sentence where a value cannot be used, whether it is of the command line or of `Defaults`."""
    if chosen.base not in BASES:  # argparse does not check what is from the environment
        parser.error(f"--base: there is no base model {chosen.base!r}; choose one of {', '.join(BASES)}.")
    if not (chosen.adapter and is_name(chosen.adapter)):
        check_path(parser, "--adapter", chosen.adapter)
    if chosen.weights and chosen.weights.startswith((".", "/")):  # else it may be a hub id
        check_path(parser, "--weights", chosen.weights)
    if chosen.device and not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", chosen.device):
        parser.error(f"--device: {chosen.device!r} is no device; give cpu or cuda.")


def check_path(parser: argparse.ArgumentParser, option: str, path: str | None) -> None:
    """End with one sentence where an option names a file or folder that is not there."""
    if path and not Path(path).exists():
        parser.error(f"{option}: there is nothing at {path!r}; check the path.")


def checker_source(requested: str | None) -> str | None:
    """What --safety-checker says, as `CustomContrast.load` takes it: None = without, "on", or a folder or hub id."""
    known = {"off": None, "on": "on"}
    return known.get(requested.lower(), requested) if requested else None


@dataclass(frozen=True)
class ModelChoice:
    """Which model a command loads; the fields are those of `CustomContrast.load`."""

    base: str
    weights: str | None = None
    adapter: str | None = None
    image_encoder: str | None = None
    device: str | None = None
    safety_checker: str | None = None  # None or "off" = without
    memory: str = "auto"

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> ModelChoice:
        """What `add_model_options` read."""
        return cls(**{name: getattr(chosen, name) for name in OPTIONS})

    def load(self) -> CustomContrast:
        """The model. The embedded bases have no safety checker, and are small enough to be all on the device."""
        from customcontrast.pipeline import CustomContrast

        embedded = BASES[self.base].embedded
        return CustomContrast.load(
            base=self.base,
            weights=self.weights,
            adapter=self.adapter,
            device=self.device,
            image_encoder=self.image_encoder,
            safety_checker=None if embedded else checker_source(self.safety_checker),
            memory=None if embedded else self.memory,
        )
