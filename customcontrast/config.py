"""Small frozen settings of the inference core, each field commented. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

NORMALIZATIONS = ("raw", "layer")  # of the maps that make a location mask
MAX_SIZE = 65_536  # of any one size of an encoder: what is larger is a damaged file
_SIZES = ("width", "visual_queries", "text_queries", "depth", "heads", "feedforward", "fourier_bands")


def _is(value: object, kind: Any) -> bool:
    """isinstance, but a bool is no number."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _are_whole(values: object, least: int) -> bool:
    return isinstance(values, list | tuple) and all(_is(v, int) and least <= v <= MAX_SIZE for v in values)


def _check_switches(config: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{type(config).__name__}: {name}={getattr(config, name)!r} must be True or False.")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the MFI encoder (section 3.2) and of the trained keys and values of Eq. 3.

    The first five fields are facts about the base model, and `bases.encoder_config` fills them in.
    """

    image_width: int  # d_I, width of the CLIP image encoder's hidden states
    image_layers: tuple[int, ...]  # which CLIP hidden states make up f_I, coarse (last) to fine
    text_widths: tuple[int, ...]  # d_text, input width of each text encoder (SDXL has two)
    num_layers: int  # L, cross-attention layers of the UNet
    num_train_timesteps: int = 1000  # t is divided by this before the Fourier mapping
    text_scales: tuple[float, ...] = ()  # RMS of each text encoder's token table: S* starts there; () = 0.02
    width: int = 768  # d, width of both Q-Formers
    visual_queries: int = 16  # m, visual features handed to TV Fusion (one CLS comes on top)
    text_queries: int = 4  # n, S* tokens in the prompt (one CLS comes on top)
    depth: int = 4  # blocks in each Q-Former
    heads: int = 8  # attention heads in each block
    feedforward: int = 4  # the feed-forward part is this many times as wide as d
    fourier_bands: int = 8  # frequencies of the Fourier mapping of (t/T, l/L)
    textual: bool = True  # False = the paper's ablation 0: the visual branch alone, no S* in the prompt
    fusion: str = "pa"  # TV Fusion: pa = Eq. 2, then a norm; block = a Q-Former block, which carries f_t past it
    fusion_values: bool = True  # Eq. 2's V = W_v [f, q]; False: f_t only asks, all that TV Fusion says comes from f_v
    tv_fusion: bool = True  # False = the paper's ablation 1: the visual branch sees f_v, not f_tv
    sink: bool = True  # a null key in front of K_v: the mass on the other keys says where the subject is

    def __post_init__(self) -> None:
        for name in ("image_width", "num_layers", "num_train_timesteps", *_SIZES):
            value = getattr(self, name)
            if not _is(value, int) or not 1 <= value <= MAX_SIZE:
                raise ValueError(
                    f"EncoderConfig: {name}={value!r} must be a whole number, at least one and at most {MAX_SIZE}."
                )
        for name, least in (("text_widths", 1), ("image_layers", -MAX_SIZE)):
            if not _are_whole(getattr(self, name), least):
                raise ValueError(f"EncoderConfig: {name}={getattr(self, name)!r} must be a tuple of whole numbers.")
        scales = self.text_scales
        if not isinstance(scales, list | tuple) or not all(_is(s, int | float) and abs(s) < MAX_SIZE for s in scales):
            raise ValueError(f"EncoderConfig: text_scales={scales!r} must be a tuple of numbers.")
        _check_switches(self, "textual", "tv_fusion", "sink", "fusion_values")
        if self.fusion not in ("pa", "block"):
            raise ValueError(f"EncoderConfig: fusion={self.fusion!r} must be 'pa' or 'block'.")
        if self.width % self.heads:
            raise ValueError(f"EncoderConfig: width={self.width} is not a multiple of heads={self.heads}.")
        if self.tv_fusion and not self.textual:
            raise ValueError("EncoderConfig: tv_fusion=True needs textual=True; set tv_fusion=False as well.")
        if not self.text_widths or self.num_layers < 1 or len(self.image_layers) < 1:
            raise ValueError(
                f"EncoderConfig: text_widths={self.text_widths}, num_layers={self.num_layers} and "
                f"image_layers={self.image_layers} must each name at least one."
            )
        if self.text_scales and len(self.text_scales) != len(self.text_widths):
            raise ValueError(
                f"EncoderConfig: text_scales={self.text_scales} must have one entry for each of "
                f"text_widths={self.text_widths}, or none."
            )

    @property
    def visual_tokens(self) -> int:
        """Tokens each visual cross-attention sees: n after TV Fusion, m without it."""
        return self.text_queries if self.tv_fusion else self.visual_queries

    @property
    def placeholder_tokens(self) -> int:
        """Tokens that S* takes up in the prompt: n, or 0 when the textual branch is off."""
        return self.text_queries if self.textual else 0

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> EncoderConfig:
        """Rebuild from `to_dict` (lists become tuples). Raises ValueError on a field it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        missing = [name for name in needed if name not in values] if isinstance(values, dict) else ["any field"]
        if missing:
            raise ValueError(f"EncoderConfig: the values lack {', '.join(missing)}; give what `to_dict` wrote.")
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"EncoderConfig has no field {', '.join(unknown)}; its fields are {sorted(known)}.")
        values = {"fusion": "block"} | values  # of a file older than the field
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class LocationConfig:
    """Timestep-specific subject location at inference (section 3.4). Steps count from 1."""

    enabled: bool = True  # False = the maps are recorded, and nothing is masked
    threshold: float = 0.2  # values at or below this are set to 0 after the first min–max
    start_step: int = 2  # first step that is masked (by the map of the step before)
    freeze_step: int | None = None  # last step whose map makes a new mask; None = all of them
    mask_visual: bool = True  # M multiplies the visual branch's output
    mask_text: bool = True  # M multiplies the S* columns of the text map, then the row is renormalised
    # Before the average over layers: "raw" = maps as they are, "layer" = each layer's map to [0, 1] first (MoMA, Song
    # et al. 2024). Raw is the map of Eq. 8, which our adapters are trained on, so its scale means the same in training
    # and here. A noun's text map was never trained to say where: its mass differs from layer to layer, and raw the
    # heaviest would decide alone. None = the adapter's own: "raw" for ours, "layer" for an IP-Adapter.
    normalize: str | None = None
    # An IP-Adapter has pictures in the unconditional half too (a black one). Where M keeps the picture out of one half
    # alone, guidance would push those places away from the black picture: so M holds for both halves. Ours has none.
    mask_unconditional: bool = True
    apart: bool = False  # several subjects: each in a pass of its own (`passes`), K times the UNet's work

    def __post_init__(self) -> None:
        if not _is(self.threshold, int | float) or not 0.0 <= self.threshold < 1.0:
            raise ValueError(f"LocationConfig: threshold={self.threshold!r} must be a number in [0, 1).")
        if not _is(self.start_step, int) or self.start_step < 2:
            raise ValueError(f"LocationConfig: start_step={self.start_step!r} must be 2 or more; step 1 has no mask.")
        if self.freeze_step is not None and (not _is(self.freeze_step, int) or self.freeze_step < 1):
            raise ValueError(f"LocationConfig: freeze_step={self.freeze_step!r} must be 1 or more, or None.")
        if self.normalize not in (None, *NORMALIZATIONS):
            raise ValueError(
                f"LocationConfig: normalize={self.normalize!r} must be one of {', '.join(NORMALIZATIONS)}, or None."
            )
        _check_switches(self, "enabled", "mask_visual", "mask_text", "mask_unconditional", "apart")


@dataclass(frozen=True)
class RecordConfig:
    """What a generation keeps of its attention maps. Memory is taken only for what is asked here."""

    maps: bool = True  # text maps per token and visual maps per subject
    steps: tuple[int, ...] | None = None  # keep these steps only (from 1); None = all
    layers: tuple[int, ...] | None = None  # average over these cross-attention layers only (from 0); None = all
    tokens: tuple[int | str, ...] | None = None  # text maps of these only: places in the prompt, or words; None = all
    by_resolution: bool = True  # also the means over the kept steps, one set per layer resolution
    looked_at: bool = False  # also which reference patches each place looked at, mean over the kept steps
    looked_at_every: int = 1  # … of steps 1, 1 + n, 1 + 2n … alone: each costs another look at the references

    def __post_init__(self) -> None:
        if self.steps is not None and not _are_whole(self.steps, 1):
            raise ValueError(f"RecordConfig: steps={self.steps!r} must be step numbers that count from 1, or None.")
        _check_switches(self, "maps", "by_resolution", "looked_at")
        if not _places(self.layers, int):
            raise ValueError(
                f"RecordConfig: layers={self.layers!r} must name some, counted from 0; None = all of them."
            )
        if not _places(self.tokens, int | str):
            raise ValueError(
                f"RecordConfig: tokens={self.tokens!r} must be places from 0 or words; None = all of them."
            )
        if not _is(self.looked_at_every, int) or self.looked_at_every < 1:
            raise ValueError(f"RecordConfig: looked_at_every={self.looked_at_every!r} must be a whole number from 1.")
        if self.looked_at and not self.maps:
            raise ValueError("RecordConfig: looked_at=True needs maps=True.")

    def keeps(self, step: int) -> bool:
        """Whether the maps of this step (from 1) are kept."""
        return self.maps and (self.steps is None or step in self.steps)


def _places(values: object, kind: object) -> bool:
    """None, or a tuple (or list) of some values of this kind, whole numbers from 0."""
    if values is None:
        return True
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and all(isinstance(v, kind) and not isinstance(v, bool) and (isinstance(v, str) or v >= 0) for v in values)
    )
