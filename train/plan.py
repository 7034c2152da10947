"""What a run of adapter training would take, before anybody pays for it.

    python -m train.plan --config sdxl --gpus 8

Counted, on the meta device, with the published architectures and without weights: parameters; multiplications and
additions of one step by part (torch's FlopCounterMode); what is alive at once (weights, gradients, AdamW's moments,
average, activations). Assumed, and said so in the table: the share of a GPU's peak that training reaches, the mean
similarity S̄ of two subjects, bytes of a stored pixel. Nothing here was measured on a GPU; `tests/gpu/first_run.py`
compares it with one.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from customcontrast.adapter import Adapter, AdapterOutput
from customcontrast.attention import MapRecorder, aggregate, install_processors, unet_forward
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.text_context import TextContext, TokenizedPrompt, subject_state
from customcontrast.encoder import MFIOutput
from customcontrast.errors import CheckpointError, ConfigError
from customcontrast.hub import NAMES, is_file
from customcontrast.ip_adapter import IPAdapterConfig, read_config
from customcontrast.warm_start import checked
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.frozen_base import make_ready
from train.adapter.packed_texts import contexts_of
from train.adapter.step import attention_kernel
from train.adapter.watch import batch_times_similarity
from train.common.dry_run import DryRun
from train.common.true_models import PUBLISHED, VISION, adapter_for, base_model

GPUS = {"A100": (312.0, 80), "H100": (989.0, 80), "A10G / 24 GB": (125.0, 24)}  # dense 16-bit TFLOP/s; GB
SHARE_OF_PEAK = (0.2, 0.4)  # of those, that training of such UNets reaches; an assumption
SIMILARITY = 0.65  # S̄: mean cosine of CLIP image embeddings of two subjects on white; an assumption
BYTES_A_PIXEL = 0.35  # of a JPEG of quality 95; an assumption (photographs range from 0.2 to 0.5)
VIEWS = 12  # kept of a subject
SUBJECTS = {
    "MVImgNet": (219_188, VIEWS),
    "OpenImages": (1_500_000, 1),
}  # listed; how many pass the filters is not known
MB, GB = 2**20, 2**30


@dataclass(frozen=True)
class Part:
    """One part of a micro-step of one process."""

    name: str
    flops: float  # of forward, backward and what is computed again
    activations: int  # bytes alive at once on top of the weights


@dataclass(frozen=True)
class Plan:
    """What `main` prints. Bytes; FLOP of one process and micro-step."""

    config: AdapterTrainConfig
    gpus: int
    parameters: dict[str, int]
    parts: list[Part]
    frozen: int  # weights of the base
    trained: int  # weights, gradients, two moments and average of the adapter, float32
    checkpoint: int  # one file
    latent: int  # a cached latent, 16-bit
    states: int  # the cached CLIP features of one reference, 16-bit
    advice: list[str] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Of one optimiser step of one process."""
        return self.config.optim.accumulation * sum(part.flops for part in self.parts)

    @property
    def peak(self) -> int:
        """Memory of one process: weights of all kinds, and the largest activations.

        The graph of the adapter, of the text encoders and of the UNet is alive at once when the backward pass begins.
        """
        graph = sum(part.activations for part in self.parts if part.name in KEPT)
        alone = max(part.activations for part in self.parts if part.name not in KEPT)
        return self.frozen + self.trained + max(graph, alone)

    @property
    def contrast(self) -> float:
        """B · τ · S̄ over all processes (`losses.macl_loss`)."""
        loss = self.config.loss
        batch = (loss.contrast_batch or self.config.optim.batch) * self.gpus
        return batch_times_similarity(batch, loss.macl_temperature, SIMILARITY)

    def days(self, tflops: float) -> tuple[float, float]:
        """Fastest and slowest, at SHARE_OF_PEAK of so many TFLOP/s."""
        seconds = self.config.optim.steps * self.flops / (tflops * 1e12)
        return seconds / SHARE_OF_PEAK[1] / 86_400, seconds / SHARE_OF_PEAK[0] / 86_400


KEPT = ("adapter", "pairs for Eq. 4 and 7", "text encoders", "UNet")  # whose graphs are alive together


def make_plan(config: AdapterTrainConfig, gpus: int, memory: float = 80.0) -> Plan:
    """Count a run of `config`. memory: GB of one GPU, for the advice. Raises ConfigError for another base."""
    if config.base not in ("sd15", "sdxl"):
        raise ConfigError(
            f"base is {config.base!r}; a plan can be made of sd15 and sdxl, whose architectures are known"
        )
    dtype = torch.float32 if config.optim.mixed_precision == "no" else torch.bfloat16
    published = started_from(config)
    if published is None:
        base = base_model(config.base, dtype=dtype)
    else:
        base = base_model(config.base, dtype=dtype, image_encoder=VISION[published.image_width])
        base = replace(base, penultimate=True)
    make_ready(replace(base, device=torch.device("meta")), config.optim.gradient_checkpointing)
    adapter = adapter_for(base, published=published).train().requires_grad_(True)
    parts = count(base, adapter, config)
    models = {"UNet": [base.unet], "text encoders": base.text_encoders, "autoencoder": [base.vae],
              "CLIP image encoder": [base.image_encoder], "adapter": [adapter]}  # fmt: skip
    parameters = {name: sum(p.numel() for m in group for p in m.parameters()) for name, group in models.items()}
    size = parameters["adapter"] * 4
    slices = gpus if config.optim.sharding == "full" else 1
    side = (config.data.size or base.default_size) // base.scale_factor
    states = len(base.image_layers) * base_tokens(base) * base.image_encoder.config.hidden_size * 2
    base_parts = [m for name, group in models.items() if name != "adapter" for m in group]
    plan = Plan(
        config=config,
        gpus=gpus,
        parameters=parameters,
        parts=parts,
        frozen=sum(p.nbytes for m in base_parts for p in m.parameters()),
        trained=5 * size // slices,
        checkpoint=4 * size,
        latent=base.latent_channels * side * side * 2,
        states=states,
    )
    return replace(plan, advice=advice(plan, memory))


def started_from(config: AdapterTrainConfig) -> IPAdapterConfig | None:
    """Sizes of the IP-Adapter that `config.init` names, without a download; None where it names none.

    Raises ConfigError for one that a run cannot start from, or whose sizes are not known.
    """
    init = config.init
    if not init:
        return None
    sizes: IPAdapterConfig | None
    try:
        if is_file(init):
            sizes = checked(read_config(Path(init))[0], Path(init).name)
        elif init in NAMES:
            sizes = PUBLISHED.get((init, config.base))
        else:
            raise ConfigError(f"init is {init!r}; a plan can be made of a file that is here, or of {', '.join(NAMES)}")
    except CheckpointError as error:
        raise ConfigError(f"config: init cannot be used: {error}") from error
    if sizes is None:
        names = sorted({name for name, base in PUBLISHED if base == config.base})
        raise ConfigError(f"init is {init!r}; a run of {config.base} can start from {', '.join(names)}, or from a file")
    width, layers = {"sd15": (768, 16), "sdxl": (2048, 70)}[config.base]
    if (sizes.width, sizes.num_layers) != (width, layers) or sizes.image_width not in VISION:
        raise ConfigError(f"init is {init!r}, which is not for {config.base}; choose the file of your base")
    return sizes


def base_tokens(base: BaseModel) -> int:
    """Tokens of the CLIP image encoder, the class token too."""
    rows, columns = base.image_patches
    return rows * columns + 1


# ------------------------------------------------------------------------------------------------------- counting


def count(base: BaseModel, adapter: Adapter, config: AdapterTrainConfig, memory: bool = True) -> list[Part]:
    """The parts of a micro-step: forward and backward of each, on the device of the models' weights.

    Each part gets what the one before it would give as fresh tensors with gradients; so a part can be counted alone,
    and all of them together are the step. memory: whether to find what is alive too (on the meta device alone).
    """
    device = next(base.unet.parameters()).device
    step = _MicroStep(base, adapter, config, torch.zeros(config.optim.batch, dtype=torch.long, device=device))
    runs: list[tuple[str, Callable[[], Tensor]]] = [
        ("autoencoder (z of x)", step.autoencoder),
        ("CLIP image encoder", step.image_encoder),
        ("adapter", step.mapped),
        ("text encoders", step.texts),
        ("UNet", step.unet),
    ]
    if config.loss.contrast_batch and adapter.config.textual and (config.loss.cscl or config.loss.macl):
        runs.insert(3, ("pairs for Eq. 4 and 7", step.pairs))
    install_processors(base.unet)
    _ = step.given  # made before anything is counted
    return [Part(name, *_counted(run, device, memory)) for name, run in runs]


@dataclass(frozen=True, eq=False)
class _MicroStep:
    """One micro-step of one process, a method for each of its parts; each returns what it is differentiated by."""

    base: BaseModel
    adapter: Adapter
    config: AdapterTrainConfig
    t: Tensor  # timesteps (B,), on the device of the models' weights

    @functools.cached_property
    @torch.no_grad()
    def given(self) -> AdapterOutput:
        """What the UNet is given of the adapter; its own work is counted elsewhere."""
        return self.output()

    @property
    def B(self) -> int:
        """Samples."""
        return self.config.optim.batch

    @property
    def layers(self) -> int:
        """L."""
        return len(self.base.cross_attention_layers)

    @property
    def side(self) -> int:
        """Of a target picture, px."""
        return self.config.data.size or self.base.default_size

    def empty(self, *shape: int, dtype: torch.dtype | None = None, gradient: bool = False) -> Tensor:
        """A tensor on the device, in the base's type."""
        return torch.empty(shape, dtype=dtype or self.base.dtype, device=self.t.device, requires_grad=gradient)

    def zeros(self, n: int) -> Tensor:
        """n whole numbers: timesteps, or positions."""
        return torch.zeros(n, dtype=torch.long, device=self.t.device)

    def states(self, n: int) -> list[Tensor]:
        """CLIP's hidden states of n references."""
        width = self.base.image_encoder.config.hidden_size
        return [self.empty(n, base_tokens(self.base), width) for _ in self.base.image_layers]

    def output(self, positives: bool = False) -> AdapterOutput:
        """What the adapter makes of B references. positives: and of as many others of the same subjects."""
        return self.adapter(self.states(self.B), self.t, self.states(self.B) if positives else None)

    @torch.no_grad()
    def autoencoder(self) -> Tensor:
        pixels = self.empty(self.B, 3, self.side, self.side, dtype=self.base.vae.dtype)
        return self.base.vae.encode(pixels).latent_dist.mode()

    @torch.no_grad()
    def image_encoder(self) -> Tensor:
        contrast, encoder = self.config.loss.contrast_batch, self.base.image_encoder
        reads = self.B * (1 if contrast else 2) + 2 * contrast  # r, and r⁺ or the pairs'
        pixels = self.empty(reads, 3, encoder.config.image_size, encoder.config.image_size, dtype=encoder.dtype)
        return encoder(pixels, output_hidden_states=True).image_embeds

    def mapped(self) -> Tensor:
        loss = self.config.loss
        out = self.output(self.adapter.config.textual and loss.macl and not loss.contrast_batch)
        pairs = [pair for pair in (out.beside, out.unconditional) if pair is not None]  # dropped rows see the latter
        beside = [x for pair in pairs for xs in pair for x in xs]
        return _sum([*out.keys, *out.values, *beside, *_tensors(out.mfi)])

    def pairs(self) -> Tensor:
        n, encoder, macl = self.config.loss.contrast_batch, self.adapter.encoder, self.config.loss.macl
        states = self.states(2 * n if macl else n)
        return _sum(_tensors(encoder(encoder.encode_image(states), self.zeros(n), pairs=macl)))

    def texts(self) -> Tensor:
        base, n = self.base, self.adapter.config.placeholder_tokens
        widths = [encoder.config.hidden_size for encoder in base.text_encoders]
        tokens = [self.empty(self.B, self.layers, n, width, gradient=True) for width in widths]
        prompts = [_prompt(base.text_encoders[0].config.max_position_embeddings, n, len(widths))] * self.B
        context = contexts_of(replace(base, device=self.t.device), prompts, tokens if n else [])
        total = context.hidden.float().sum()
        return total if context.pooled is None else total + context.pooled.float().sum()

    def unet(self) -> Tensor:
        base, B = self.base, self.B
        length = base.text_encoders[0].config.max_position_embeddings
        width = sum(encoder.config.hidden_size for encoder in base.text_encoders)
        hidden = self.empty(B, self.layers, length, width, gradient=True)
        pooled = None
        if base.spec.pooled:
            pooled = self.empty(B, base.text_encoders[-1].config.projection_dim, gradient=True)
        out = self.given
        out = replace(out, keys=self._fresh(out.keys), values=self._fresh(out.values))
        if out.beside is not None:
            out = replace(out, beside=(self._fresh(out.beside[0]), self._fresh(out.beside[1])))
        prompt = _prompt(length, self.adapter.config.placeholder_tokens, len(base.text_encoders))
        here = replace(base, device=self.t.device)
        recorder = MapRecorder() if self.config.loss.lambda_2 else None
        latent = (self.side // base.scale_factor,) * 2
        state = subject_state(here, TextContext(hidden, pooled), [prompt] * B, [out], size=latent,
                              strengths=[torch.ones(B, device=self.t.device)], recorder=recorder)  # fmt: skip
        z = self.empty(B, base.unet.config.in_channels, *latent)
        total = unet_forward(here, z, self.t, state).float().square().mean()
        A = aggregate(recorder) if recorder else None
        return total if A is None else total + A.float().mean()

    def _fresh(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(x, dtype=self.base.dtype).requires_grad_() for x in tensors]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.float().sum() for x in tensors]).sum()


def _tensors(mfi: MFIOutput) -> list[Tensor]:
    """What the encoder gave, without f_tv, of which keys and values are made."""
    cls = [mfi.visual_cls] if mfi.text_cls is None else [mfi.text_cls, mfi.visual_cls]
    return [*mfi.text_tokens, *(mfi.positive_tokens or ()), *cls]


def _prompt(length: int, n: int, encoders: int) -> TokenizedPrompt:
    ids = torch.zeros(length, dtype=torch.long)
    return TokenizedPrompt((ids,) * encoders, torch.arange(6, 6 + n)[None], ("",) * (length - 1), (), "")


class _Fused(torch.autograd.Function):
    """What a fused attention keeps for its backward pass: Q, K, V, the result and a log-sum a row, no probabilities."""

    @staticmethod
    def forward(ctx: Any, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        out = Q.new_empty((*Q.shape[:-1], V.shape[-1]))
        ctx.save_for_backward(Q, K, V, out, Q.new_empty(Q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V, _, _ = ctx.saved_tensors
        return torch.empty_like(Q), torch.empty_like(K), torch.empty_like(V)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stands for F.scaled_dot_product_attention on the meta device, where torch would write the probabilities out."""
    return _Fused.apply(query, key, value)


class _NoModules(ModuleTracker):
    """FlopCounterMode's view of modules: none, only the sum."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *error: object) -> None: ...


def _counted(run: Callable[[], Tensor], device: torch.device, memory: bool) -> tuple[float, int]:
    """FLOP of run and of its backward pass, and the bytes alive at once (0 where nobody asks)."""
    flops = FlopCounterMode(display=False)
    flops.mod_tracker = _NoModules()  # its hooks do not bear modules that are called without gradients
    with flops, attention_kernel(device):
        _through(run)
    if not memory or device.type != "meta":
        return float(flops.get_total_flops()), 0
    plain, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _fused
    try:
        with DryRun() as dry, dry.phase("all"):
            _through(run)
    finally:
        F.scaled_dot_product_attention = plain
    return float(flops.get_total_flops()), dry.peaks["all"]


def _through(run: Callable[[], Tensor]) -> None:
    total = run()
    if total.requires_grad:
        total.backward()


# ------------------------------------------------------------------------------------------------------- printing


def advice(plan: Plan, memory: float) -> list[str]:
    """What to change where the run does not fit, one sentence each."""
    config, said = plan.config, []
    optim, loss = config.optim, config.loss
    if plan.peak > 0.9 * memory * GB:
        said.append(f"{plan.peak / GB:.0f} GB do not fit {memory:g} GB with room to spare:")
        if not optim.gradient_checkpointing:
            said.append("- set optim.gradient_checkpointing=true (about a third more computation)")
        if optim.batch > 1:
            half = optim.batch // 2
            said.append(f"- set optim.batch={half} optim.accumulation={optim.accumulation * -(-optim.batch // half)}")
        if loss.contrast_batch > 8:
            said.append(f"- set loss.contrast_batch={loss.contrast_batch // 2}")
        if optim.sharding == "none" and plan.gpus > 1:
            saved = plan.trained * (1 - 1 / plan.gpus) / GB
            said.append(f"- set optim.sharding=full (saves {saved:.1f} GB of the adapter's)")
        if optim.mixed_precision == "no":
            said.append("- set optim.mixed_precision=bf16")
    if plan.contrast <= 1 and loss.macl:
        need = int(1 / (loss.macl_temperature * SIMILARITY * plan.gpus)) + 1
        said.append(f"B·τ·S̄ is not above 1: set loss.contrast_batch={need} or more")
    if config.data.holdout == 0 and config.data.source in ("folder", "shards"):
        said.append("nothing is held out: set data.holdout=0.002, or validation shows subjects of the training data")
    return said or ["it fits; nothing needs to be changed"]


def lines(plan: Plan, memory: float) -> list[str]:
    """The table, as Markdown."""
    config, optim = plan.config, plan.config.optim
    samples = optim.batch * optim.accumulation * plan.gpus
    out = [
        f"**{config.base}, {plan.gpus} GPU(s), B = {optim.batch} × {optim.accumulation} × {plan.gpus} = {samples} "
        f"samples a step, {config.data.size or 'own'} px, {optim.mixed_precision}**",
        "",
        "| part | parameters | TFLOP a step and GPU | share | activations, GB |",
        "|---|---|---|---|---|",
    ]
    total = plan.flops
    for part in plan.parts:
        key = next((name for name in plan.parameters if part.name.startswith(name)), "")
        tflop = part.flops * optim.accumulation / 1e12
        known = f"{plan.parameters[key] / 1e6:,.0f} M" if key else "(adapter's)"
        out.append(
            f"| {part.name} | {known} | {tflop:.2f} | {part.flops * optim.accumulation / total:.0%} | "
            f"{part.activations / GB:.2f} |"
        )
    out += [
        f"| all | {sum(plan.parameters.values()) / 1e6:,.0f} M | {total / 1e12:.1f} | | |",
        "",
        "| memory of one GPU | GB |",
        "|---|---|",
        f"| frozen weights | {plan.frozen / GB:.1f} |",
        f"| adapter: weights, gradients, moments, average (float32) | {plan.trained / GB:.1f} |",
        f"| activations at the peak | {(plan.peak - plan.frozen - plan.trained) / GB:.1f} |",
        f"| in all, without CUDA's own and the allocator's gaps | {plan.peak / GB:.1f} of {memory:g} |",
        "",
        f"- B·τ·S̄ = {plan.contrast:.2f} (S̄ = {SIMILARITY}, assumed); Eq. 7 orders subjects above 1",
        f"- {optim.steps:,} steps see {optim.steps * samples / 1e6:.1f} M samples",
    ]
    for name, (tflops, _) in list(GPUS.items())[:2]:
        low, high = plan.days(tflops)
        step = plan.flops / tflops / 1e12
        out.append(
            f"- {name}: {step / SHARE_OF_PEAK[1]:.2f}–{step / SHARE_OF_PEAK[0]:.2f} s a step, {low:.1f}–{high:.1f} "
            f"days (at {SHARE_OF_PEAK[1]:.0%}–{SHARE_OF_PEAK[0]:.0%} of {tflops:g} TFLOP/s, assumed)"
        )
    side = max(config.data.size, 512)
    pixels = side * side * 16 / 9  # frames of videos are 16:9
    for name, (subjects, views) in SUBJECTS.items():
        shards = subjects * views * pixels * BYTES_A_PIXEL
        out.append(
            f"- {name}: {subjects:,} subjects × {views} views ≤ {shards / 1e12:.2f} TB of shards at {side} px "
            f"({BYTES_A_PIXEL} B a pixel, assumed); latents cached {subjects * views * plan.latent / 1e12:.2f} TB, "
            f"CLIP features {subjects * max(views, 4) * plan.states / 1e12:.2f} TB"
        )
    out.append(
        f"- checkpoints: {config.log.keep} × {plan.checkpoint / GB:.2f} GB, adapter.safetensors "
        f"{plan.parameters['adapter'] * 2 / GB:.2f} GB"
    )
    return [*out, "", *plan.advice]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train.plan`"""
    parser = argparse.ArgumentParser(
        prog="python -m train.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="sd15", help="preset (sd15, sdxl) or YAML file")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--memory", type=float, default=80.0, help="GB of one GPU")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set optim.batch=8")
    options = parser.parse_args(arguments)
    if options.gpus < 1 or not options.memory > 0:
        parser.error(f"--gpus {options.gpus} --memory {options.memory:g}: give 1 GPU or more, and some memory")
    try:
        plan = make_plan(load_config(options.config, options.set), options.gpus, options.memory)
    except ConfigError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(plan, options.memory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
