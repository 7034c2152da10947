"""Small frozen settings of the inference core, each field commented. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from customcontrast.errors import ConfigError
from customcontrast.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
            raise ConfigError(f"{type(config).__name__}: {name}={getattr(config, name)!r} must be True or False.")


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the MFI encoder (section 3.2) and of the trainable keys and values of Eq. 3.

    The first six fields are facts about the base model, and `base_model.encoder_config` fills them in.
    Raises ConfigError naming the field.
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
    fusion_values: bool = True  # Eq. 2's V = W_v [f, q]; False: K and V are of f_v alone, f_t gives Q
    tv_fusion: bool = True  # False = the paper's ablation 1: the visual branch sees f_v, not f_tv
    sink: bool = True  # a null key in front of K_v: the mass on the other keys says where the subject is

    def __post_init__(self) -> None:
        for name in ("image_width", "num_layers", "num_train_timesteps", *_SIZES):
            value = getattr(self, name)
            if not _is(value, int) or not 1 <= value <= MAX_SIZE:
                raise ConfigError(
                    f"EncoderConfig: {name}={value!r} must be a whole number, at least one and at most {MAX_SIZE}."
                )
        for name, least in (("text_widths", 1), ("image_layers", -MAX_SIZE)):
            if not _are_whole(getattr(self, name), least):
                raise ConfigError(f"EncoderConfig: {name}={getattr(self, name)!r} must be a tuple of whole numbers.")
        scales = self.text_scales
        if not isinstance(scales, list | tuple) or not all(_is(s, int | float) and abs(s) < MAX_SIZE for s in scales):
            raise ConfigError(f"EncoderConfig: text_scales={scales!r} must be a tuple of numbers.")
        _check_switches(self, "textual", "tv_fusion", "sink", "fusion_values")
        for wrong, sentence in self._complaints():
            if wrong:
                raise ConfigError(f"EncoderConfig: {sentence}")

    def _complaints(self) -> list[tuple[bool, str]]:
        """How fields of the right kind may not fit each other, each with its sentence."""
        return [
            (self.fusion not in ("pa", "block"), f"fusion={self.fusion!r} must be 'pa' or 'block'."),
            (self.width % self.heads != 0, f"width={self.width} is not a multiple of heads={self.heads}."),
            (
                self.tv_fusion and not self.textual,
                "tv_fusion=True needs textual=True; set tv_fusion=False as well.",
            ),
            (
                not self.text_widths or not self.image_layers,
                f"text_widths={self.text_widths}, num_layers={self.num_layers} and "
                f"image_layers={self.image_layers} must each name at least one.",
            ),
            (
                bool(self.text_scales) and len(self.text_scales) != len(self.text_widths),
                f"text_scales={self.text_scales} must have one entry for each of text_widths={self.text_widths}, "
                "or none.",
            ),
        ]

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
        """Rebuild from `to_dict` (lists become tuples). Raises ConfigError for an unknown or a missing field."""
        known = {field.name for field in dataclasses.fields(cls)}
        needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        missing = [name for name in needed if name not in values] if isinstance(values, dict) else ["any field"]
        if missing:
            raise ConfigError(f"EncoderConfig: the values lack {', '.join(missing)}; give what `to_dict` wrote.")
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"EncoderConfig has no field {', '.join(unknown)}; its fields are {sorted(known)}.")
        values = {"fusion": "block"} | values  # of a file older than the field
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class LocationConfig:
    """Timestep-specific subject location at inference (section 3.4). Steps count from 1.

    Raises ConfigError naming the field.
    """

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
    apart: bool = False  # several subjects: each in a pass of its own (`multi_subject`), K times the UNet's work

    def __post_init__(self) -> None:
        if not _is(self.threshold, int | float) or not 0.0 <= self.threshold < 1.0:
            raise ConfigError(f"LocationConfig: threshold={self.threshold!r} must be a number in [0, 1).")
        if not _is(self.start_step, int) or self.start_step < 2:
            raise ConfigError(f"LocationConfig: start_step={self.start_step!r} must be 2 or more; step 1 has no mask.")
        if self.freeze_step is not None and (not _is(self.freeze_step, int) or self.freeze_step < 1):
            raise ConfigError(f"LocationConfig: freeze_step={self.freeze_step!r} must be 1 or more, or None.")
        if self.normalize not in (None, *NORMALIZATIONS):
            raise ConfigError(
                f"LocationConfig: normalize={self.normalize!r} must be one of {', '.join(NORMALIZATIONS)}, or None."
            )
        _check_switches(self, "enabled", "mask_visual", "mask_text", "mask_unconditional", "apart")


@dataclass(frozen=True)
class RecordConfig:
    """Which attention maps a generation records. Memory is used only for what is requested here.

    Raises ConfigError naming the field.
    """

    maps: bool = True  # text maps per token and visual maps per subject
    steps: tuple[int, ...] | None = None  # record these steps only (from 1); None = all
    layers: tuple[int, ...] | None = None  # average over these cross-attention layers only (from 0); None = all
    tokens: tuple[int | str, ...] | None = None  # text maps of these only: places in the prompt, or words; None = all
    by_resolution: bool = True  # also the means over the recorded steps, one set per layer resolution
    looked_at: bool = False  # also which reference patches each place attended to, mean over the recorded steps
    looked_at_every: int = 1  # … of steps 1, 1 + n, 1 + 2n … alone: each costs another pass over the references

    def __post_init__(self) -> None:
        if self.steps is not None and not _are_whole(self.steps, 1):
            raise ConfigError(f"RecordConfig: steps={self.steps!r} must be step numbers that count from 1, or None.")
        _check_switches(self, "maps", "by_resolution", "looked_at")
        if not _places(self.layers, int):
            raise ConfigError(
                f"RecordConfig: layers={self.layers!r} must name some, counted from 0; None = all of them."
            )
        if not _places(self.tokens, int | str):
            raise ConfigError(
                f"RecordConfig: tokens={self.tokens!r} must be places from 0 or words; None = all of them."
            )
        if not _is(self.looked_at_every, int) or self.looked_at_every < 1:
            raise ConfigError(f"RecordConfig: looked_at_every={self.looked_at_every!r} must be a whole number from 1.")
        if self.looked_at and not self.maps:
            raise ConfigError("RecordConfig: looked_at=True needs maps=True.")

    def keeps(self, step: int) -> bool:
        """Whether the maps of this step (from 1) are recorded."""
        return self.maps and (self.steps is None or step in self.steps)


def _places(values: object, kind: Any) -> bool:
    """None, or a tuple (or list) of some values of this kind, whole numbers from 0."""
    if values is None:
        return True
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and all(isinstance(v, kind) and not isinstance(v, bool) and (isinstance(v, str) or v >= 0) for v in values)
    )


@dataclass(frozen=True)
class Limit:
    """The range of a number: for the library, and for what a visitor of the page, the API or a recipe may request."""

    low: float
    high: float
    public_low: float
    public_high: float
    whole: bool = False  # only whole numbers


# One table for library, page, API and recipe: the page's sliders end where its checks end, so what the API accepts can
# be shown. A public server's time is shared, hence its own columns.
LIMITS: dict[str, Limit] = {
    "num_inference_steps": Limit(1, 1000, 1, 100, whole=True),
    "guidance_scale": Limit(-1000, 1000, 0, 30),  # beyond this, too much for 16-bit numbers
    "subject_scale": Limit(-1000, 1000, 0, 5),
    "subject_start": Limit(0, 1, 0, 1),  # shares of the steps between which the visual branch acts
    "subject_end": Limit(0, 1, 0, 1),
    "guidance_end": Limit(0, 1, 0, 1),  # share of the steps after which there is no classifier-free guidance
    "subject_guidance_scale": Limit(-1000, 1000, 0, 30),
    "subject_guidance_end": Limit(0, 1, 0, 1),  # share of the steps in which guidance is on the subjects
    "strength": Limit(-1000, 1000, 0, 3),
    "seed": Limit(0, 2**62, 0, 2**31 - 1, whole=True),
    "num_images": Limit(1, 64, 1, 4, whole=True),
    "preview_every": Limit(0, 1000, 0, 100, whole=True),
    "guidance_rescale": Limit(0, 1, 0, 1),
    "clip_skip": Limit(0, 100, 0, 12, whole=True),
    "side": Limit(8, 8192, 32, 2048, whole=True),  # px, of a generated picture
    "area": Limit(64, 8192**2, 32**2, 1536**2, whole=True),  # px, of a generated picture
    "reference_resolution": Limit(16, 1024, 16, 448, whole=True),  # px, see `image_features.preprocess`
    "azimuth": Limit(-180, 180, -180, 180),  # degrees, see `layout.SubjectLayout`
    "elevation": Limit(-90, 90, 3, 40),  # degrees of the camera above the ground; the base was trained with 3 to 40
}
MAX_SUBJECTS = 4  # in one picture
ROLES = ("subject", "style", "layout")  # of a reference; the last two are of whole pictures, see `ip_adapter`
MOST_ENLARGED = 2  # reference_resolution is at most so many times the image encoder's own side
# λ where none is requested, by the kind of the visual branch: ours is trained with 1. With an IP-Adapter at 1 the
# prompt has little say; its authors' demos with a prompt take 0.6 or so.
DEFAULT_SCALES = {"customcontrast": 1.0, "ip-adapter": 0.6}
OUTPUT_TYPES = ("pil", "np", "pt", "latent")  # as in diffusers; "latent" = not decoded

# (step from 1, timestep, latents (N, C, h, w) after it) -> the latents to go on with, and whether to go on at all
OnStep = Callable[[int, "Tensor", "Tensor"], "tuple[Tensor, bool]"]


@dataclass(frozen=True)
class GenerationConfig:
    """Every setting of one generation beside its subjects. None stands for the base's or the adapter's own.

    What depends on the base (multiples of its factor, number of layers, shape of the latents) is checked when the run
    starts. Raises ConfigError naming the argument, what came and what is taken.
    """

    prompt: str  # see `conditioning.prompt.parse_prompt` for the accepted forms
    negative_prompt: str = ""
    num_inference_steps: int | None = None  # denoising steps
    guidance_scale: float | None = None  # classifier-free guidance; 1 or less turns it off
    subject_scale: float | None = None  # λ of Eq. 3; 0 = the visual branch off, S* stays; None = the adapter's own
    seed: int = 0  # picture i starts from the noise of seed + i
    height: int | None = None  # px, a multiple of the autoencoder's factor
    width: int | None = None  # px, likewise
    num_images: int = 1
    location: LocationConfig = LocationConfig()
    record: RecordConfig = RecordConfig()
    preview_every: int = 0  # steps between two previews; 0 = none
    scheduler: str | None = None  # a key of `specs.SCHEDULERS`, or a scheduler class of diffusers by name
    generator: tuple[torch.Generator, ...] | None = None  # one per picture, in place of `seed`
    latents: Tensor | None = field(default=None, compare=False)  # starting noise (N, C, h, w) of unit variance
    on_step: OnStep | None = None  # called after each step, see `OnStep`
    layout: Layout | None = None  # where subjects are and how they are seen, for a base that takes layouts
    output_type: str = "pil"  # what `Result.images` are: one of OUTPUT_TYPES
    guidance_rescale: float = 0.0  # see `sampling.rescaled`
    clip_skip: int = 0  # layers of the text encoders that are left out at their end
    subject_start: float = 0.0  # λ is 0 in the steps before this share of them, as diffusers' control_guidance_start
    subject_end: float = 1.0  # … and in those after this share; the masks and S* stay as they are
    guidance_end: float | None = None  # after this share of the steps there is no guidance, which halves their work
    # In the first steps, where colours and shapes are decided, guidance may be away from the same prompt without the
    # subjects (no S*, λ = 0) in place of the empty prompt: it then holds to the subjects, at the same work, and acts in
    # their location masks alone once there are some (without any, everywhere).
    subject_guidance_scale: float | None = None  # of that guidance
    subject_guidance_end: float | None = None  # share of the steps in which it holds; 0 = none
    # Drawn in the same call, num_images of each after those of `prompt`: what a call for each, with these settings and
    # this seed, would draw.
    further_prompts: tuple[str, ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts."""
        return (self.prompt, *self.further_prompts)

    @property
    def pictures(self) -> int:
        """N, the pictures of all prompts."""
        return self.num_images * len(self.prompts)

    def __post_init__(self) -> None:
        if isinstance(self.generator, list):
            object.__setattr__(self, "generator", tuple(self.generator))
        optional = ("guidance_scale", "subject_scale", "guidance_end", "subject_guidance_scale", "subject_guidance_end")
        for name in optional:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_number(name, getattr(self, name)))
        for name in ("num_inference_steps", "seed", "num_images", "preview_every", "height", "width", "clip_skip"):
            object.__setattr__(self, name, whole_number(getattr(self, name)))
        for name in ("guidance_rescale", "subject_start", "subject_end"):
            object.__setattr__(self, name, checked_number(name, getattr(self, name)))
        for wrong, sentence in self._complaints():
            if wrong:
                raise ConfigError(f"generate: {sentence}")

    def _complaints(self) -> list[tuple[bool, str]]:
        """What may be wrong, each with its sentence."""
        kinds = (("location", LocationConfig), ("record", RecordConfig))
        counts = ("num_inference_steps", "seed", "num_images", "preview_every", "clip_skip")
        open_ended = {"num_inference_steps"} if self.num_inference_steps is None else set()
        return [
            *[
                (not isinstance(prompt, str), f"prompt={prompt!r} must be text, or a list of texts.")
                for prompt in self.prompts
            ],
            (not isinstance(self.negative_prompt, str), f"negative_prompt={self.negative_prompt!r} must be text."),
            (
                self.subject_start >= self.subject_end,
                f"subject_start={self.subject_start} must be below subject_end={self.subject_end}.",
            ),
            *[
                (
                    not isinstance(getattr(self, name), kind),
                    f"{name}={getattr(self, name)!r} must be a {kind.__name__}.",
                )
                for name, kind in kinds
            ],
            (
                not isinstance(self.layout, Layout | None),
                f"layout={self.layout!r} must be a customcontrast.layout.Layout, or None.",
            ),
            (
                not isinstance(self.scheduler, str | None),
                f"scheduler={self.scheduler!r} must be a name such as 'ddim', or None for the base's own.",
            ),
            (
                self.output_type not in OUTPUT_TYPES,
                f"output_type={self.output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.",
            ),
            *[
                (
                    name not in open_ended and not _in_range(getattr(self, name), LIMITS[name]),
                    f"{name}={getattr(self, name)!r} must be {LIMITS[name].low} to {LIMITS[name].high}.",
                )
                for name in counts
            ],
            (
                bool(self.further_prompts)
                and _in_range(self.num_images, LIMITS["num_images"])
                and self.pictures > LIMITS["num_images"].high,
                f"{len(self.prompts)} prompts with num_images={self.num_images!r}; a call makes up to "
                f"{LIMITS['num_images'].high:.0f} pictures.",
            ),
            (
                bool(self.further_prompts) and getattr(self.record, "maps", False),
                "several prompts in one call have no maps; pass record=RecordConfig(maps=False), or call for each.",
            ),
        ]


@dataclass(frozen=True)
class ResolvedConfig(GenerationConfig):
    """A `GenerationConfig` with the base's own values where there were none; see `run_settings.resolve`."""

    num_inference_steps: int = 1
    guidance_scale: float = 1.0
    subject_scale: float = 1.0
    guidance_end: float = 1.0
    subject_guidance_scale: float = 1.0
    subject_guidance_end: float = 0.0
    height: int = 8
    width: int = 8


def checked_number(name: str, value: Any) -> float:
    """A number of Python, NumPy or torch as float, checked against LIMITS[name]. Raises ConfigError."""
    limit = LIMITS[name]
    if not isinstance(value, int | float | bool) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not limit.low <= value <= limit.high:
        raise ConfigError(f"generate: {name}={value!r} must be a number from {limit.low} to {limit.high}.", name)
    return float(value)


def _in_range(value: Any, limit: Limit) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and limit.low <= value <= limit.high


def whole_number(value: Any) -> Any:
    """A whole number of NumPy's, torch's or another library's as Python's own; anything else as it is."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor or array of several, or of fractions
        return value
