"""Settings of adapter training: frozen dataclasses, one per concern, and the YAML presets that fill them."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from customcontrast.errors import ConfigError
from train.toyland import World

PRESETS = Path(__file__).parent / "presets"


def _at_least(where: str, config: Any, **bounds: float) -> None:
    """Raises ConfigError for a field that is below its bound, or not finite."""
    for name, least in bounds.items():
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{where}.{name} is {value}; it must be {least:g} or more")


@dataclass(frozen=True)
class DataConfig:
    """Where frames of subjects come from and how samples are made of them (`train.data`)."""

    source: str = "pool"  # pool = Toyland rendered once; toyland = rendered as it is eaten; folder = your own pictures;
    # shards = photographs packed by `python -m train.data prepare`
    path: str = "runs/adapter-pool"  # folder of shards (pool, shards) or of your subjects, a sub-folder each (folder)
    world: str = "small"  # part of Toyland: a classmethod of train.toyland.World
    size: int = 0  # side of a target picture, px; 0 = the base's own
    reference_size: int = 160  # side at which reference frames are rendered before the subject is cut out, px
    subjects: int = 2000  # distinct subjects in the pool (pool), or before the source repeats (toyland)
    targets: int = 3  # frames of each subject that can be x, in every scene, style, shape and accessory
    references: int = 3  # frames of each subject that can be r or r⁺ (at least 2)
    same_frame: bool = False  # r is cut out of x itself, as where a subject has one picture; needs references = targets
    photographs: bool = False  # references of Toyland are distorted towards photographs (`train.data.augment`)
    captions: str = "given"  # given = as the source words them; noun = "a bear" alone, as of pictures without any
    drop: float = 0.05  # p of dropping the text, the subject, or both: each of the three
    drop_branch: float = 0.0  # p of leaving the subject to one branch: to the visual one (no S*), or to S* (λ = 0)
    workers: int = 0  # loader processes; 0 = load in the training process
    cache: bool = True  # keep what the frozen VAE and CLIP say of a pool beside its shards (16-bit)
    sources: list[dict[str, Any]] = field(default_factory=list)  # several sets in one run, each {name, weight, …}: the
    # fields of `data` that it changes (source, path, …), beside its name and its share of the samples
    holdout: float = 0.0  # share of the subjects of folders and shards that validates, by hash of their ids
    shard_cache: str = "none"  # none, latents, clip or both: of shards, 16-bit, kept beside them; latents fix x's crop

    def __post_init__(self) -> None:
        if self.source not in ("pool", "toyland", "folder", "shards"):
            raise ConfigError(f"data.source is {self.source!r}; choose pool, toyland, folder or shards")
        if self.captions not in ("given", "noun"):
            raise ConfigError(f"data.captions is {self.captions!r}; choose given or noun")
        if self.references < 2:
            raise ConfigError(f"data.references is {self.references}; MACL needs r and another r⁺, so at least 2")
        if self.same_frame and (self.source != "pool" or self.references != self.targets):
            raise ConfigError(
                f"data.same_frame cuts r out of x: it needs data.source=pool, not {self.source!r}, and data.references "
                f"({self.references}) equal to data.targets ({self.targets})"
            )
        _at_least("data", self, subjects=1, targets=1, reference_size=8, size=0, workers=0)
        if 0 < self.size < 8:
            raise ConfigError(f"data.size is {self.size}; it must be 8 or more, or 0 for the base's own")
        try:
            World.named(self.world)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from None
        if self.shard_cache not in ("none", "latents", "clip", "both"):
            raise ConfigError(f"data.shard_cache is {self.shard_cache!r}; choose none, latents, clip or both")
        if not 0 <= self.holdout < 0.5:
            raise ConfigError(f"data.holdout is {self.holdout}; it must lie in [0, 0.5)")
        self.parts()
        if not 0 <= self.drop <= 1 / 3:
            raise ConfigError(f"data.drop is {self.drop}; three exclusive cases need 0 ≤ drop ≤ 1/3")
        if not 0 <= self.drop_branch or 3 * self.drop + 2 * self.drop_branch > 1:
            raise ConfigError(
                f"data.drop_branch is {self.drop_branch}; 3 · drop + 2 · drop_branch must lie between 0 and 1"
            )

    def parts(self) -> list[tuple[str, float, DataConfig]]:
        """(name, weight, settings) of each set of `sources`; one nameless part, these settings, where there are none.

        Raises ConfigError for a part that is no mapping, without a name of its own, or with a wrong field.
        """
        if not self.sources:
            return [("", 1.0, self)]
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"sources": []}
        found: list[tuple[str, float, DataConfig]] = []
        for i, given in enumerate(self.sources):
            where = f"data.sources[{i}]"
            if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given["name"]:
                raise ConfigError(f"{where} is {given!r}; write {{name: mvimgnet, source: shards, path: …, weight: 1}}")
            weight = _number(given.get("weight", 1.0))
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ConfigError(f"{where}.weight is {weight!r}; it must be a number above 0")
            fields = {key: value for key, value in given.items() if key not in ("name", "weight")}
            found.append((given["name"], float(weight), _build(DataConfig, plain | fields, where)))
        names = [name for name, _, _ in found]
        if len(set(names)) < len(names):
            raise ConfigError(f"data.sources are called {', '.join(names)}; give each a name of its own")
        return found


@dataclass(frozen=True)
class LossConfig:
    """Eq. 9 and the parts of it that the ablation turns off."""

    lambda_1: float = 1e-2  # λ_1, weight of L_CSCL + L_MACL
    lambda_2: float = 1e-3  # λ_2, weight of L_loc
    cscl: bool = True  # Eq. 4
    macl: bool = True  # Eq. 7
    macl_weight: float = 1.0  # weight of L_MACL beside L_CSCL inside λ_1's bracket; 1 is Eq. 9
    alpha: bool = True  # α_ij = S_ii / S_ij in Eq. 7; False = plain InfoNCE
    temperature: float = 0.07  # τ of Eq. 4
    macl_temperature: float = 0.07  # τ of Eq. 7; wants batch · τ · mean(S) > 1 (`losses.macl_loss`)
    visual: bool = True  # False = λ of Eq. 3 is 0: the subject acts through S* alone (an ELITE-like encoder)
    similarity_floor: float = 0.05  # S_ij is clamped to [floor, 1]
    contrast_batch: int = 0  # samples a process and micro-step for Eq. 4 and 7 alone, which need no UNet; 0 = the batch

    def __post_init__(self) -> None:
        _at_least("loss", self, lambda_1=0, lambda_2=0, macl_weight=0, contrast_batch=0)
        _at_least("loss", self, temperature=1e-4, macl_temperature=1e-4, similarity_floor=1e-4)
        if self.similarity_floor > 1:
            raise ConfigError(f"loss.similarity_floor is {self.similarity_floor}; it must be at most 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    steps: int = 200_000  # optimiser steps in all; the schedule's length
    batch: int = 8  # B, samples per process and micro-step
    accumulation: int = 1  # micro-steps per optimiser step
    learning_rate: float = 3e-5  # peak
    warmup: int = 500  # steps of linear warm-up
    schedule: str = "constant"  # constant or cosine, after the warm-up
    final: float = 0.05  # cosine: last learning rate / peak
    weight_decay: float = 1e-2
    beta_1: float = 0.9
    beta_2: float = 0.999
    clip_norm: float = 1.0  # global gradient norm; 0 = no clipping
    ema: float = 0.999  # decay of the averaged weights, which are the ones exported; 0 = no average
    mixed_precision: str = "no"  # no, bf16 or fp16
    gradient_checkpointing: bool = False  # of UNet and text encoders: less memory, one more forward
    sharding: str = "none"  # none: every process holds the whole adapter (DDP); full: a slice of it (FSDP2)
    timeout_minutes: float = 120.0  # how long processes wait for one that makes data ready, validates or has died

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"optim.schedule is {self.schedule!r}; choose constant or cosine")
        if self.sharding not in ("none", "full"):
            raise ConfigError(f"optim.sharding is {self.sharding!r}; choose none or full")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ConfigError(f"optim.mixed_precision is {self.mixed_precision!r}; choose no, bf16 or fp16")
        _at_least("optim", self, learning_rate=0, warmup=0, final=0, weight_decay=0, clip_norm=0)
        _at_least("optim", self, timeout_minutes=1)
        for name in ("beta_1", "beta_2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if min(self.steps, self.batch, self.accumulation) < 1:
            raise ConfigError(f"optim.steps={self.steps}, batch={self.batch}, accumulation={self.accumulation} < 1")


@dataclass(frozen=True)
class LogConfig:
    """What is written, and when. Everything goes under the output folder."""

    every: int = 20  # steps between lines of the log and TensorBoard points
    validate_every: int = 500  # steps between validation strips; 0 = none
    validate_subjects: int = 3  # held-out subjects on a strip
    validate_steps: int = 20  # denoising steps of its pictures
    validate_samples: int = 0  # held-out samples whose losses are measured with it; 0 = none
    validate_clip: str = ""  # CLIP (hub id or folder) for CT and CI; "" = the base's own, for CI (and Toyland's CT)
    save_every: int = 500  # steps between checkpoints
    save_minutes: float = 10.0  # and at least this often
    wandb: bool = False  # also to Weights & Biases, project "customcontrast"; WANDB_MODE=offline keeps it on disk
    keep: int = 2  # checkpoints kept, newest first

    def __post_init__(self) -> None:
        _at_least("log", self, every=1, validate_every=0, validate_subjects=1, validate_steps=1, save_every=1, keep=1)
        _at_least("log", self, save_minutes=0)


@dataclass(frozen=True)
class AdapterTrainConfig:
    """One training run of an adapter."""

    base: str = "toyland"  # key of customcontrast.base_model.BASES
    weights: str | None = None  # folder or hub id of the base's weights; None = the base's own
    seed: int = 0  # all randomness comes from (seed, step, process)
    encoder: dict[str, Any] = field(default_factory=dict)  # EncoderConfig fields to replace: width, depth, textual, …
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    log: LogConfig = LogConfig()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdapterTrainConfig:
        """Rebuild from nested plain values. Raises ConfigError for a field it does not know or a wrong type."""
        return _build(cls, values, "")


def load_config(name: str | Path, overrides: typing.Sequence[str] = ()) -> AdapterTrainConfig:
    """A preset ("toyland", "sd15", "sdxl", with or without .yaml) or a YAML file, then overrides "optim.batch=4".

    Raises ConfigError with one sentence for a missing file, broken YAML, or an unknown or mistyped field.
    """
    path = Path(name)
    if not path.is_file():
        path = PRESETS / (path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml")
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise ConfigError(f"config {str(name)!r} is neither a file nor a preset; the presets are {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config {path} is not valid YAML ({str(error).splitlines()[0]}); mend it") from error
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ConfigError(f"override {override!r} must look like optim.batch=4")
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key} is no field; it must look like optim.batch=4")
        try:
            node[last] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {text!r} is no value; it must look like optim.batch=4") from None
    return AdapterTrainConfig.from_dict(values)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a researcher means the number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"config: {where or 'the file'} must be a mapping, not {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"config: {where + '.' if where else ''}{unknown[0]} is unknown; fields: {', '.join(hints)}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}".strip(".")) for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if typing.get_origin(kind) is dict and not isinstance(value, dict):
        raise ConfigError(f"config: {where} is {value!r}; it must be a mapping")
    if typing.get_origin(kind) is list and not isinstance(value, list):
        raise ConfigError(f"config: {where} is {value!r}; it must be a list")
    value = _number(value) if kind is float else value
    if kind is str and isinstance(value, bool):
        value = "yes" if value else "no"  # YAML 1.1 reads no as false; optim.mixed_precision means the word
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind in (int, float, bool, str) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ConfigError(f"config: {where} is {value!r}; it must be of type {kind.__name__}")
    return value
