"""Settings of adapter training: frozen dataclasses, one per concern, and the YAML presets that fill them."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from customcontrast.errors import ConfigError
from train.common.config_values import at_least, build, number, one_of
from train.data.data_config import DataConfig

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class LossConfig:
    """Weights and temperatures of Eq. 9, and the parts of it that the ablation turns off.

    Raises ConfigError naming the field, as all settings here do.
    """

    lambda_1: float = 1e-2  # λ_1, weight of L_CSCL + L_MACL
    lambda_2: float = 1e-3  # λ_2, weight of L_loc
    cscl: bool = True  # Eq. 4
    macl: bool = True  # Eq. 7
    macl_weight: float = 1.0  # weight of L_MACL beside L_CSCL inside λ_1's bracket; 1 is Eq. 9
    alpha: bool = True  # α_ij = S_ii / S_ij in Eq. 7; False = plain InfoNCE
    temperature: float = 0.07  # τ of Eq. 4
    macl_temperature: float = 0.07  # τ of Eq. 7; needs batch · τ · mean(S) > 1 (`losses.macl_loss`)
    visual: bool = True  # False = λ of Eq. 3 is 0: the subject acts through S* alone (an ELITE-like encoder)
    similarity_floor: float = 0.05  # S_ij is clamped to [floor, 1]
    timestep_bias: float = 1.0  # t of Eq. 1 is drawn with the density ∝ t^(bias − 1): 1 = all alike, 2.5 = mostly noisy
    contrast_batch: int = 0  # samples a process and micro-step for Eq. 4 and 7 alone, which need no UNet; 0 = the batch

    def __post_init__(self) -> None:
        at_least("loss", self, lambda_1=0, lambda_2=0, macl_weight=0, contrast_batch=0)
        at_least("loss", self, temperature=1e-4, macl_temperature=1e-4, similarity_floor=1e-4, timestep_bias=0.1)
        if self.similarity_floor > 1:
            raise ConfigError(f"loss.similarity_floor is {self.similarity_floor}; it must be at most 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, batches, precision, and how the work is divided among processes."""

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
        one_of("optim", self, schedule=("constant", "cosine"), sharding=("none", "full"))
        one_of("optim", self, mixed_precision=("no", "bf16", "fp16"))
        at_least("optim", self, learning_rate=0, warmup=0, final=0, weight_decay=0, clip_norm=0)
        at_least("optim", self, timeout_minutes=1)
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
        at_least("log", self, every=1, validate_every=0, validate_subjects=1, validate_steps=1, save_every=1, keep=1)
        at_least("log", self, save_minutes=0)


@dataclass(frozen=True)
class AdapterTrainConfig:
    """All settings of one training run of an adapter."""

    base: str = "toyland"  # key of customcontrast.base_model.BASES
    weights: str | None = None  # folder or hub id of the base's weights; None = the base's own
    image_encoder: str = ""  # folder or hub id ("owner/name:folder") of the CLIP; "" = the base's, or that of `init`
    # What the visual branch starts as: a published IP-Adapter, by name ("ip-adapter-plus"), "owner/name:path" or file.
    init: str = ""  # "" = untrained; read before step 0 alone
    seed: int = 0  # all randomness comes from (seed, step, process)
    encoder: dict[str, Any] = field(default_factory=dict)  # EncoderConfig fields to replace: width, depth, textual, …
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdapterTrainConfig:
        """Rebuild from nested plain values. Raises ConfigError for a field it does not know or a wrong type."""
        return build(cls, values, "")


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
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config {path} is not valid YAML ({str(error).splitlines()[0]}); mend it") from error
    values = {} if values is None else values  # an empty file: all is as it is by default
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not all(key.split(".")):
            raise ConfigError(f"override {override!r} must look like optim.batch=4")
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key} is no field; it must look like optim.batch=4")
        try:
            node[last] = number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: {text!r} is no value; it must look like optim.batch=4") from None
    return AdapterTrainConfig.from_dict(values)
