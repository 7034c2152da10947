"""SD-1.5 and SDXL at true size: parameters by part, and an estimate of peak memory, held against a measured one.

    python -m tests.benchmarks.sizes [--no-check]

The estimate. A whole generation of one picture with one subject and classifier-free guidance is run dry on the meta
device, through the library's own code, in fp16: the reference through the image encoder; the MFI encoder at all T
timesteps; the T × L rows of S+ through the text encoders; one UNet call without location masks and one with them; the
autoencoder. `DryRun` adds up what is alive. Peak = weights of all parts + the most that is alive at once, which is

    what is kept for the run: the contexts C(t, l) (T·L rows of 77 × d_text), K_v and V_v of Eq. 3, S* and f_tv
    + the largest activations of the part that is running.

Not in it: CUDA's own context and cuDNN's workspaces (hundreds of MB), the allocator's gaps, what Python and the
libraries take, and the maps of finished steps, which leave the GPU. All parts are taken to stay on one device.

The check. The same estimate in float32 for SD-1.5's UNet at 256 and 512 px on a CPU, whose convolutions copy their
input and weights (`DryRun(convolution_copies=True)`), beside what a fresh process's memory grew by during that call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from customcontrast.adapter import Adapter, AdapterOutput
from customcontrast.attention import MapRecorder, Masker, SubjectBranch, SubjectState, aggregate, unet_forward
from customcontrast.attention.layers import install_processors
from customcontrast.attention.state import level_size
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.conditioner import Conditioner
from customcontrast.conditioning.text_context import (
    ROWS,
    TextContext,
    TokenizedPrompt,
    encode_contexts,
    encode_prompt,
    subject_state,
)
from customcontrast.config import LocationConfig
from customcontrast.encoder.image_features import extract
from customcontrast.subject import Subject
from tests.benchmarks.generation import ROOT
from tests.benchmarks.memory import forget_peak, peak, resident
from tests.benchmarks.report import table
from train.common.dry_run import DryRun
from train.common.true_models import LENGTH, adapter_for, base_model, unet

PROMPT = "a bear on the red beach"  # 12 tokens with S*, start and end
MODES = {"maps off": (False, False), "location masks": (True, False), "all maps": (True, True)}  # masks, every token
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}  # freed memory goes back at once
MB = 2**20
Model = tuple[BaseModel, Adapter]


@dataclass(frozen=True)
class Estimate:
    """Bytes."""

    weights: int  # of all parts, each in the type it runs in
    contexts: int  # C(t, l), K_v, V_v, S* and f_tv of all T steps
    parts: dict[str, int]  # the most alive beside the weights while each part runs, `contexts` included

    @property
    def peak(self) -> int:
        return self.weights + max(self.parts.values())


def models(base: BaseModel, adapter: Adapter) -> dict[str, nn.Module]:
    """All parts by name: the base's are frozen, the adapter's trained."""
    texts = {f"text encoder {i + 1}": encoder for i, encoder in enumerate(base.text_encoders)}
    mfi = adapter.encoder
    image = nn.ModuleList([mfi.image_norms, mfi.image_projections, nn.ParameterList([mfi.image_layer_embedding])])
    attention = adapter.attention
    return {
        "UNet": base.unet,
        **texts,
        "autoencoder": base.vae,
        "CLIP image encoder": base.image_encoder,
        "adapter: image projections": image,
        "adapter: Visual Q-Former": nn.ModuleList([mfi.visual_queries, mfi.visual_qformer]),
        "adapter: Textual Q-Former": nn.ModuleList([mfi.text_queries, mfi.text_qformer, mfi.text_heads]),
        "adapter: TV Fusion": nn.ModuleList([mfi.tv_fusion, mfi.tv_norm]),
        "adapter: W'_k, W'_v": nn.ModuleList([attention.to_k, attention.to_v]),
        "adapter: null keys": attention.null_key,
    }


def parameters(module: nn.Module) -> int:
    """How many numbers its weights hold."""
    return sum(weight.numel() for weight in module.parameters())


def weight_bytes(*modules: nn.Module) -> int:
    """Memory of their weights, each in its own type."""
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def parameter_table(name: str) -> list[str]:
    """Lines: parameters of each part, their memory in fp16, whether they are trained, and their share of all."""
    base = base_model(name, dtype=torch.float16)
    adapter = adapter_for(base)
    parts = models(base, adapter)
    total, trained = sum(map(parameters, parts.values())), parameters(adapter)
    rows = [
        (part, f"{parameters(m):,}", f"{weight_bytes(m) / MB:.0f}", "yes" if part.startswith("adapter") else "no",
         f"{parameters(m) / total:.2%}")
        for part, m in parts.items()
    ]  # fmt: skip
    memory = weight_bytes(*parts.values())
    rows.append(
        ("adapter in all", f"{trained:,}", f"{weight_bytes(adapter) / MB:.0f}", "yes", f"{trained / total:.2%}")
    )
    rows.append(("all", f"{total:,}", f"{memory / MB:.0f}", "", "100.00%"))
    return table((f"{name}, {len(base.cross_attention_layers)} layers", "parameters", "MB", "trained", "share"), rows)


@torch.no_grad()
def estimates(
    name: str, sides: Sequence[int] = (512, 1024), steps: int | None = None, models: Model | None = None
) -> dict[tuple[int, str], Estimate]:
    """Peak memory of one picture in fp16, see the top of this file, by side of the square (px) and key of MODES.

    steps: denoising steps T (None: the base's own). models: another base and adapter on the meta device.
    """
    base = base_model(name, dtype=torch.float16) if models is None else models[0]
    adapter = adapter_for(base) if models is None else models[1]
    base.scheduler.set_timesteps(steps or base.default_steps)
    timesteps = tuple(dict.fromkeys(base.scheduler.timesteps.tolist()))
    prompt = encode_prompt(base, PROMPT, ["bear"], adapter.config.placeholder_tokens)
    side = base.image_encoder.config.image_size
    pixels = torch.empty(1, 3, side, side, dtype=base.dtype, device="meta")
    weights = weight_bytes(*base.text_encoders, base.unet, base.vae, base.image_encoder, adapter)

    found = {}
    with DryRun() as dry:
        with dry.phase("image encoder"):
            subject = Subject("bear", (), adapter.encoder.encode_image(extract(base, pixels)))
        with dry.phase("MFI encoder"):
            output = Conditioner(base, adapter)._outputs(subject, timesteps)
        with dry.phase("text encoders"):
            prompts, rows = [prompt] * len(timesteps), ROWS["cuda"]
            context = encode_contexts(base, prompts, [output.mfi.text_tokens], rows)
            empty = encode_contexts(base, [encode_prompt(base, "")])
        contexts, before = dry.now, dict(dry.peaks)
        for side in sides:
            for mode in MODES:
                dry.peaks = dict(before)
                with dry.phase("UNet"):
                    z = _denoise(base, context, output, empty, prompt, (side // base.scale_factor,) * 2, mode)
                with dry.phase("autoencoder"):
                    base.decode(z)
                found[side, mode] = Estimate(weights, contexts, dry.peaks)
    return found


def _denoise(
    base: BaseModel,
    context: TextContext,
    output: AdapterOutput,
    empty: TextContext,
    prompt: TokenizedPrompt,
    size: tuple[int, int],
    mode: str,
) -> Tensor:
    """Two steps of the loop, the second with the masks that the first one made -> latents (1, 4, h, w)."""
    located, everything = MODES[mode]
    base = replace(base, device=torch.device("meta"))  # the places of S* too: maps are summed over them
    z, kept, recorder = torch.empty(1, base.latent_channels, *size, dtype=base.dtype, device="meta"), {}, None
    masker = Masker(LocationConfig(enabled=located), [None], [True], 1)
    for step in (1, 2):
        if located:
            recorder = MapRecorder(list(range(len(prompt.tokens))) if everything else 0)
        masks, masked = masker.at(step)
        state = subject_state(
            base, context.row(step - 1), [prompt], [output.row(step - 1)], size=size, unconditional=empty,
            masks=masks, masked=masked, recorder=recorder, projected=kept,
        )  # fmt: skip
        without, with_prompt = unet_forward(base, torch.cat([z, z]), 500, state).chunk(2)
        z = without + 7.5 * (with_prompt - without)
        masker.take(aggregate(recorder) if located else None)
        if everything:
            held = [recorder.mean(kind) for kind in ("text", "visual", "subject")], recorder.by_resolution()
            del held
    return z


def memory_table() -> list[str]:
    """Lines: peak memory of both models at 512² and 1024² in each mode, and what makes it up, in MB."""
    rows = []
    for name in ("sd15", "sdxl"):
        for (side, mode), e in estimates(name).items():
            highest = max(e.parts, key=e.parts.get)
            over = [e.parts[part] - e.contexts for part in ("text encoders", "UNet", "autoencoder")]
            figures = (e.peak, e.weights, e.contexts, *over)
            rows.append((f"{name} {side} px, {mode}", *(f"{x / MB:,.0f}" for x in figures), highest))
    head = ("MB in fp16", "peak", "weights", "S+ contexts", "+ text enc.", "+ UNet", "+ autoenc.", "peak is in")
    return table(head, rows)


def call_at(side: int, mode: str, model: nn.Module) -> Tensor:
    """One call of SD-1.5's UNet with guidance at side × side px, in the type and on the device of `model`."""
    specs, weight = install_processors(model), next(model.parameters())
    size = (side // 8, side // 8)

    def some(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=weight.dtype, device=weight.device)

    pairs = ([some(1, 5, spec.width) for spec in specs] for _ in range(2))
    located, everything = MODES[mode]
    branch = SubjectBranch(*pairs, some(1, LENGTH))
    grid = level_size(size, min(spec.level for spec in specs))
    recorder = MapRecorder(12 if everything else 0) if located else None
    text = (some(1, 1, LENGTH, 768), some(1, len(specs), LENGTH, 768))
    masks = some(1, 1, *grid) if located else None
    state = SubjectState(
        text, size, (branch,), first=1, masks=masks, recorder=recorder, projected={}, steady=(True, False)
    )
    return unet_forward(SimpleNamespace(unet=model, layout_channels=0), some(2, 4, *size), 500, state)


@torch.no_grad()
def measure(side: int, mode: str) -> dict[str, float]:
    """In this process: MB that the weights of SD-1.5's UNet in float32 took, and that one call took on top."""
    before = resident()
    model = unet("sd15", "cpu")
    loaded = resident()
    torch.nn.functional.conv2d(torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3))  # what the first use of it allocates
    loaded_once = resident()
    forget_peak()
    call_at(side, mode, model)
    return {"weights": loaded - before, "growth": peak() - loaded_once}


@torch.no_grad()
def check(side: int, mode: str) -> tuple[str, ...]:
    """A row: estimated and measured MB of weights and of a call, float32 on this CPU, in a fresh process."""
    model = unet("sd15")
    with DryRun(convolution_copies=True) as dry, dry.phase("call"):
        call_at(side, mode, model)
    command = [sys.executable, "-m", "tests.benchmarks.sizes", "--measure", str(side), mode]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found, expected = json.loads(done.stdout.strip().splitlines()[-1]), dry.peaks["call"] / MB
    weights = weight_bytes(model) / MB
    values = (weights, found["weights"], expected, found["growth"])
    errors = (expected / found["growth"] - 1, (weights + expected) / (found["weights"] + found["growth"]) - 1)
    return (f"{side} px, {mode}", *(f"{value:,.0f}" for value in values), *(f"{error:+.1%}" for error in errors))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sizes")
    parser.add_argument("--no-check", action="store_true", help="leave out the measured calls (two minutes)")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "MODE"), help="one call in this process; prints JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(int(options.measure[0]), options.measure[1])))
        return
    for name in ("sd15", "sdxl"):
        print("\n".join([*parameter_table(name), ""]))
    print("Estimated peak memory of one picture, batch 1, classifier-free guidance, one subject")
    print("\n".join([*memory_table(), ""]))
    if not options.no_check:
        print("The estimator against a CPU: SD-1.5's UNet, float32, one call with guidance, MB")
        rows = [check(side, mode) for side, mode in ((256, "maps off"), (256, "all maps"), (512, "all maps"))]
        head = ("", "weights", "measured", "a call", "measured", "error of the call", "of the sum")
        print("\n".join(table(head, rows)))


if __name__ == "__main__":
    main()
