"""What `CustomContrastPipeline` is given, checked and put in order: the base, a value for each prompt, randomness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import read_metadata
from customcontrast.base_model import FACTS
from customcontrast.ip_adapter import IPAdapter
from customcontrast.specs import BASES
from customcontrast.subject import Subject

ADAPTER, VOCABULARY, BASE_KEY = "adapter.safetensors", "vocabulary.json", "_customcontrast_base"


def infer_base(source: str, adapter: str | Path | Adapter | IPAdapter | None = None) -> str:
    """Name of the base in a diffusers folder or hub id: as its index says, else its adapter, else by its parts.

    Two text encoders: "sdxl"; facts of an embedded base: "toyland2"; a list of known words or Toyland's own
    autoencoder: "toyland"; else "sd15".
    Raises ValueError where it is no Stable Diffusion, or cannot be read.
    """
    try:
        index = DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"from_pretrained: cannot read model_index.json of {source[:100]!r} ({reason}); give a diffusers pipeline "
            f"folder, a hub id, or one of {', '.join(BASES)}."
        ) from error
    trained_for = ""
    if adapter is not None:
        trained_for = read_metadata(adapter)["base"] if isinstance(adapter, str | Path) else adapter.base_name
    said = index.get(BASE_KEY) or trained_for
    if said in BASES:
        return said
    if not str(index.get("_class_name", "")).startswith("StableDiffusion"):
        raise ValueError(
            f"from_pretrained: {source[:100]!r} holds a {index.get('_class_name')}, which is none of "
            f"{', '.join(BASES)}; pass base=NAME if it is one nevertheless."
        )
    if (index.get("text_encoder_2") or [None])[0] is not None:
        return "sdxl"
    own = index.get("vae", ["", ""])[1] == "PatchAutoencoder"
    if (Path(source) / FACTS).is_file():
        return "toyland2"
    return "toyland" if own or (Path(source) / VOCABULARY).is_file() else "sd15"


def wrong(name: str, value: Any, remedy: str) -> ValueError:
    """An error in one sentence: the argument, its value, what it must be."""
    return ValueError(f"CustomContrastPipeline: {name}={repr(value)[:100]} {remedy}.")


def one_each(name: str, value: Any, count: int) -> list[str]:
    """One text for each of `count` prompts, from one text or a list; None is the empty text. Raises ValueError."""
    several = [value or ""] * count if value is None or isinstance(value, str) else value
    if not isinstance(several, list | tuple) or len(several) != count or not all(isinstance(v, str) for v in several):
        raise wrong(name, value, f"must be a text, a list of {count}, one per prompt, or None")
    return list(several)


def subject_lists(subjects: Any, count: int) -> list[list[Any]]:
    """The subjects of each of `count` prompts, from one list for all or a list each. Raises ValueError."""
    if isinstance(subjects, Subject):
        return [[subjects]] * count
    if not isinstance(subjects, list | tuple):
        raise wrong("subjects", subjects, "must be subjects from `subject`, or a list of them for each prompt")
    nested = [isinstance(subject, list | tuple) for subject in subjects]
    if not any(nested):
        return [list(subjects)] * count
    if not all(nested) or len(subjects) != count:
        lengths = f"{len(subjects)} entries, {sum(nested)} of them lists"
        raise wrong("subjects", lengths, f"must be subjects for all prompts, or one list of them for each of {count}")
    return [list(several) for several in subjects]


def randomness(seed: Any, generator: Any, total: int) -> tuple[int, list[torch.Generator] | None]:
    """The seed of the first picture, and one generator for each of `total` pictures.

    The generators are None where seeds make them: from `seed`, else from PyTorch's global generator. Raises ValueError.
    """
    if generator is None:
        seed = int(torch.randint(2**31, (1,))) if seed is None else seed
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise wrong("seed", seed, "must be a whole number from 0, or None")
        return seed, None
    if seed is not None:
        raise wrong("seed", seed, "came with a generator; give one of the two")
    given = [generator] * total if isinstance(generator, torch.Generator) else generator
    if not isinstance(given, list | tuple) or not all(isinstance(g, torch.Generator) for g in given):
        raise wrong("generator", generator, f"must be a torch.Generator, or {total}, one per picture")
    if len(given) != total:
        raise wrong(
            "generator", f"{len(given)} generators", f"must be one torch.Generator, or {total}, one per picture"
        )
    return 0, list(given)


def joined(parts: Sequence[Any]) -> list[Image.Image] | np.ndarray | Tensor:
    """Pictures of several prompts as one list, array or tensor."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [picture for part in parts for picture in part]
