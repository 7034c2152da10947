"""The trained thing, `Adapter`, and its file: one safetensors with everything about it in the metadata."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from customcontrast.attention.layers import LayerSpec, SubjectAttention
from customcontrast.base_model import BaseModel, encoder_config, same_encoder
from customcontrast.config import EncoderConfig
from customcontrast.encoder import MFIEncoder, MFIOutput
from customcontrast.encoder.image_features import extract
from customcontrast.errors import CheckpointError
from customcontrast.tensor_files import write_tensors

if TYPE_CHECKING:
    from customcontrast.ip_adapter import IPAdapter

FORMAT = "customcontrast-adapter-1"
ABLATIONS = ("textual", "tv_fusion", "sink")


@dataclass(frozen=True)
class AdapterOutput:
    """All that the trained parts say about a batch of subjects at their timesteps (see MFIOutput)."""

    mfi: MFIOutput
    keys: list[Tensor]  # K_v of Eq. 3 with the null key first: L × (B, n+1, width_l)
    values: list[Tensor]  # V_v, alike
    sink: bool  # whether the first key is the null key
    by_noun: bool = False  # there is no S*: where the subject is, its noun's text map says
    unconditional: tuple[list[Tensor], list[Tensor]] | None = None  # see `SubjectBranch.unconditional`

    def row(self, i: int) -> AdapterOutput:
        """The i-th sample (or timestep) alone; the only one there is, where all are the same."""
        i = min(i, len(self.keys[0]) - 1)
        keep = slice(i, i + 1)
        mfi = MFIOutput(
            [tokens[keep] for tokens in self.mfi.text_tokens],
            None if self.mfi.text_cls is None else self.mfi.text_cls[keep],
            self.mfi.visual_tokens[keep],
            self.mfi.visual_cls[keep],
        )
        keys, values = ([x[keep] for x in xs] for xs in (self.keys, self.values))
        return AdapterOutput(mfi, keys, values, self.sink, self.by_noun, self.unconditional)

    @staticmethod
    def cat(parts: Sequence[AdapterOutput]) -> AdapterOutput:
        """Samples (or timesteps) of several outputs in one."""
        mfis = [part.mfi for part in parts]
        mfi = MFIOutput(
            [torch.cat(tokens) for tokens in zip(*(m.text_tokens for m in mfis), strict=True)],
            None if mfis[0].text_cls is None else torch.cat([m.text_cls for m in mfis]),
            torch.cat([m.visual_tokens for m in mfis]),
            torch.cat([m.visual_cls for m in mfis]),
        )
        keys = [torch.cat(layer) for layer in zip(*(part.keys for part in parts), strict=True)]
        values = [torch.cat(layer) for layer in zip(*(part.values for part in parts), strict=True)]
        return AdapterOutput(mfi, keys, values, parts[0].sink)


class Adapter(nn.Module):
    """MFI encoder + W'_k, W'_v and null keys: everything that Eq. 9 trains, and nothing frozen.

    `forward` uses every parameter, so it can be wrapped in DistributedDataParallel as it is.
    """

    kind = "customcontrast"
    normalize = "raw"  # of its location maps; see LocationConfig

    def __init__(self, config: EncoderConfig, specs: tuple[LayerSpec, ...], base_name: str = "") -> None:
        super().__init__()
        self.config = config
        self.base_name = base_name
        self.encoder = MFIEncoder(config)
        self.attention = SubjectAttention(config, specs)
        self.metadata: dict[str, Any] = {}  # what the file said of itself: step, revision, …
        self.image_encoder: dict[str, Any] | None = None  # whose features it reads, `BaseModel.encoder_id`

    @classmethod
    def create(cls, base: BaseModel, **overrides: Any) -> Adapter:
        """An untrained adapter for `base`, float32 on its device; overrides are EncoderConfig fields."""
        adapter = cls(encoder_config(base, **overrides), base.cross_attention_layers, base.name).to(base.device)
        adapter.image_encoder = base.encoder_id
        return adapter

    @torch.no_grad()
    def look(self, base: BaseModel, pictures: Sequence[Image.Image]) -> Tensor:
        """f_I of one subject's references, joined along the tokens: (1, references · 3N, d)."""
        f_I = self.encoder.encode_image(extract(base, pictures, self.config.image_layers))  # (references, 3N, d)
        return f_I.reshape(1, -1, f_I.shape[-1])

    def forward(self, hidden_states: tuple[Tensor, ...], t: Tensor) -> AdapterOutput:
        """hidden_states: three CLIP layers, each (B, N, d_I) (`image_features.extract`); t: (B,)."""
        return self.at(self.encoder.encode_image(hidden_states), t)

    def at(self, f_I: Tensor, t: Tensor, visual: tuple[Tensor, Tensor] | None = None) -> AdapterOutput:
        """f_I: (B, 3N, d), or one subject's (1, 3N, d) at many timesteps t (B,). visual: see `MFIEncoder.forward`."""
        mfi = self.encoder(f_I, t, visual)
        keys, values = self.attention(mfi.visual_tokens)
        return AdapterOutput(mfi, keys, values, self.config.sink)


def git_revision() -> str:
    """Revision of the working tree this package lies in; "" where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def save_adapter(adapter: Adapter | IPAdapter, path: str | Path, dtype: torch.dtype | None = None, **meta: Any) -> Path:
    """Write `adapter` to one safetensors file; an IP-Adapter in its published layout.

    dtype: store weights in this type (default: as they are). meta: anything JSON can hold, such as step=1000.
    Raises OSError where it cannot be written; a file that was there before is then still whole.
    """
    if not isinstance(adapter, Adapter):
        from customcontrast.ip_adapter import save_ip_adapter  # it is built on this module

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
    """What an adapter file says of itself: base, config, ablation, step, revision, … Raises CheckpointError."""
    from customcontrast.ip_adapter import is_ip_adapter, read_config

    return read_config(path)[1] if is_ip_adapter(Path(path)) else _open(Path(path))[0]


def load_adapter(path: str | Path, base: BaseModel) -> Adapter | IPAdapter:
    """Read an adapter for `base`: float32 weights become base.dtype, on base.device, in evaluation mode.

    A published IP-Adapter file is recognised by its keys. Checks the format, the base, the image encoder, and every key
    and shape. Raises CheckpointError with one sentence.
    """
    from customcontrast.ip_adapter import is_ip_adapter, load_ip_adapter

    path = Path(path)
    if path.suffix == ".safetensors" and is_ip_adapter(path):
        return load_ip_adapter(path, base)
    about, weights = _open(path)
    if about["base"] and about["base"] != base.name:
        raise CheckpointError(f"load_adapter: {path.name} was trained for base {about['base']!r}, not {base.name!r}.")
    try:
        config = EncoderConfig.from_dict(about["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"load_adapter: the config in {path.name} cannot be used ({error}).") from error
    _check_base(config, base, path.name)
    if not same_encoder(about.get("image_encoder"), base.encoder_id):
        raise CheckpointError(
            f"load_adapter: {path.name} was trained with the image encoder {about['image_encoder'].get('id')!r}, this "
            f"base has {base.encoder_id['id']!r}; pass image_encoder= the first of them."
        )

    with torch.device("meta"):
        adapter = Adapter(config, base.cross_attention_layers, base.name)
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
        wanted, found = getattr(config, fact), getattr(here, fact)
        if wanted != found:
            raise CheckpointError(f"load_adapter: {name} needs a base with {fact}={wanted}; {base.name} has {found}.")


def check_weights(wanted: dict[str, Tensor], found: dict[str, Tensor], name: str) -> None:
    """Every key and shape is there, and no other; floats, all finite. Raises CheckpointError."""
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise CheckpointError(f"load_adapter: {name} lacks {len(missing)} weights, the first is {missing[0]!r}.")
    if unknown:
        raise CheckpointError(f"load_adapter: {name} has {len(unknown)} unknown weights, the first is {unknown[0]!r}.")
    for key, value in wanted.items():
        if value.shape != found[key].shape:
            raise CheckpointError(
                f"load_adapter: {key!r} in {name} has shape {tuple(found[key].shape)}; expected {tuple(value.shape)}."
            )
        if not found[key].is_floating_point():
            raise CheckpointError(f"load_adapter: {key!r} in {name} is of type {found[key].dtype}; expected floats.")
        if not found[key].isfinite().all():
            raise CheckpointError(f"load_adapter: {key!r} in {name} holds values that are not finite; train it again.")
