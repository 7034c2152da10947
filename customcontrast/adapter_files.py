"""Adapter files: ours and published IP-Adapters, one safetensors file each."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from customcontrast.adapter import ABLATIONS, FORMAT, Adapter, check_weights
from customcontrast.base_model import BaseModel, encoder_config, same_encoder
from customcontrast.config import EncoderConfig
from customcontrast.errors import CheckpointError
from customcontrast.hub import is_ip_adapter
from customcontrast.ip_adapter import IPAdapter, load_ip_adapter, read_config, save_ip_adapter
from customcontrast.tensor_files import write_tensors
from customcontrast.warm_start import WarmAdapter, sizes_in


def git_revision() -> str:
    """Revision of the working tree this package lies in; "" where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def save_adapter(adapter: Adapter | IPAdapter, path: str | Path, dtype: torch.dtype | None = None, **meta: Any) -> Path:
    """Write an adapter to one safetensors file; an IP-Adapter in its published layout. Returns the path.

    path: must end in .safetensors; its folder is created. dtype: store weights in this type; None = as they are.
    meta: further metadata, anything JSON can hold, such as step=1000.
    Raises CheckpointError for another kind of path, OSError where the file cannot be written; one that was there before
    is then still whole.
    """
    if not isinstance(adapter, Adapter):
        return save_ip_adapter(adapter, path, dtype, **meta)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"save_adapter: path={str(path)!r} must end in .safetensors.")
    about = (
        {
            "format": FORMAT,
            "base": adapter.base_name,
            "config": adapter.config.to_dict(),
            "ablation": {flag: getattr(adapter.config, flag) for flag in ABLATIONS},
            "revision": git_revision(),
        }
        | ({"image_encoder": adapter.image_encoder} if adapter.image_encoder else {})
        | meta
    )
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in adapter.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_tensors(weights, path, {key: json.dumps(value) for key, value in about.items()})
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"save_adapter: {str(path)!r} could not be written ({error}); make room and try again."
        ) from error
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of an adapter file: base, config, ablation, step, revision, … Raises CheckpointError."""
    return read_config(path)[1] if is_ip_adapter(Path(path)) else _open(Path(path))[0]


def load_adapter(path: str | Path, base: BaseModel) -> Adapter | IPAdapter:
    """Read an adapter file for `base`: frozen, in evaluation mode, in base.dtype on base.device.

    path: .safetensors; a published IP-Adapter is recognised by its keys.
    Raises CheckpointError, in one sentence, where format, base, image encoder, a key or a shape does not fit.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and is_ip_adapter(path):
        return load_ip_adapter(path, base)
    about, weights = _open(path)
    if not isinstance(about["base"], str):
        raise CheckpointError(f"load_adapter: the base in {path.name} is {about['base']!r}; it must be a model's name.")
    if about["base"] and about["base"] != base.name:
        raise CheckpointError(f"load_adapter: {path.name} was trained for base {about['base']!r}, not {base.name!r}.")
    try:
        config = EncoderConfig.from_dict(about["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"load_adapter: the config in {path.name} cannot be used: {error}.") from error
    sizes = sizes_in({key: tuple(weight.shape) for key, weight in weights.items()}, path.name)
    _check_base(config, base if sizes is None else replace(base, penultimate=True), path.name)
    if not same_encoder(about.get("image_encoder"), base.encoder_id):
        raise CheckpointError(
            f"load_adapter: {path.name} was trained with the image encoder {about['image_encoder'].get('id')!r}, this "
            f"base has {(base.encoder_id or {}).get('id')!r}; pass image_encoder= the first of them."
        )

    with torch.device("meta"):
        specs, name = base.cross_attention_layers, base.name
        adapter = Adapter(config, specs, name) if sizes is None else WarmAdapter(config, specs, name, sizes)
    check_weights(adapter.state_dict(), weights, path.name)
    adapter.load_state_dict(weights, assign=True)
    adapter.metadata, adapter.image_encoder = about, about.get("image_encoder")
    return adapter.to(base.device, base.dtype).requires_grad_(False).eval()


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"load_adapter: there is no file {str(path)!r}.")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"load_adapter: {path.name} is not a .safetensors file; other formats are refused.")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"load_adapter: {path.name} cannot be read as safetensors ({error}).") from error
    if about.get("format") != FORMAT or not {"base", "config"} <= set(about):
        raise CheckpointError(f"load_adapter: {path.name} is not a CustomContrast adapter (format {FORMAT}).")
    return about, weights


def _check_base(config: EncoderConfig, base: BaseModel, name: str) -> None:
    """The facts of the base that the adapter was made for must be those of this base."""
    here = encoder_config(base)
    for fact in ("image_width", "image_layers", "text_widths", "num_layers"):
        needed, found = getattr(config, fact), getattr(here, fact)
        if needed != found:
            raise CheckpointError(f"load_adapter: {name} needs a base with {fact}={needed}; {base.name} has {found}.")
