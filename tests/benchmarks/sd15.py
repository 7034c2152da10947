"""One call of SD-1.5's UNet at true size with random weights: text alone, IP-Adapter, IP-Adapter-plus, and ours.

    python -m tests.benchmarks.sd15 [--side 256] [--rounds 3]

A call denoises one picture with classifier-free guidance by one step: a batch of two. All contenders run on the same
weights, in bfloat16 on a CPU and float16 on a GPU. The references have the published shapes: 4 tokens from one CLIP
embedding, and for plus 16 tokens by a Resampler of 4 blocks from the 257 × 1280 states of a ViT-H/14; diffusers runs
these projections in every call. Ours is given its keys, values and S+ contexts, which a run makes beforehand for all
steps; what they cost for one step is timed apart and printed beneath.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import torch
from diffusers import UNet2DConditionModel

from customcontrast.attention import MapRecorder, SubjectBranch, SubjectState, install_processors, unet_forward
from customcontrast.attention.state import level_size
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from tests.benchmarks.generation import LIMITS, NAMES, OURS, PLUS, ROOT, add_ip_adapter, add_ip_adapter_plus
from tests.benchmarks.memory import forget_peak, peak, resident
from tests.benchmarks.report import Options, Report, Target, table
from tests.benchmarks.sizes import PROMPT, SETTINGS
from tests.benchmarks.timing import interleave, summarize
from train.common.true_models import LENGTH, UNETS, adapter_for, base_model, make, unet

SIDE = 256  # px
TOKENS, KEPT = 4, 12  # S* tokens, tokens of the prompt whose maps are kept
VIT_H = SimpleNamespace(hidden_size=1280, projection_dim=1024)  # the image encoder that IP-Adapters read


def precision(device: str) -> torch.dtype:
    """The type of the weights."""
    return torch.float16 if device == "cuda" else torch.bfloat16


@torch.no_grad()
def contender(name: str, weights: UNet2DConditionModel, side: int) -> Callable[[], torch.Tensor]:
    """A call by name (`generation.NAMES`) at side × side px, with processors of its own on the weights given.

    It returns the prediction for the half with the prompt, (1, 4, h, w).
    """
    model = _twin(weights)
    size, like = (side // 8, side // 8), {"dtype": weights.dtype, "device": weights.device}

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(**like)

    torch.manual_seed(0)
    z, text = some(2, 4, *size), some(2, LENGTH, 768)
    if name not in OURS:
        options = {}
        if name != NAMES[2]:
            add = add_ip_adapter_plus if name == PLUS else add_ip_adapter
            add(SimpleNamespace(unet=model, image_encoder=SimpleNamespace(config=VIT_H)))
            image = some(2, 1, 257, 1280) if name == PLUS else some(2, 1, 1024)
            options = {"added_cond_kwargs": {"image_embeds": [image]}}
        return _quiet(lambda: model(z, 500, encoder_hidden_states=text, **options).sample[1:])

    specs = install_processors(model)
    keys, values = ([some(1, TOKENS + 1, spec.width) for spec in specs] for _ in range(2))
    positions = torch.zeros(1, LENGTH)
    positions[:, 3 : 3 + TOKENS] = 1
    located, everything = OURS[name]
    masks = torch.rand(1, 1, *level_size(size, min(spec.level for spec in specs))) if located else None
    state = SubjectState(
        (text[:1, None], text[1:, None].repeat(1, len(specs), 1, 1)),
        size,
        (SubjectBranch(keys, values, positions.to(weights.device)),),
        first=1,
        masks=None if masks is None else masks.to(weights.device),
        steady=(True, False),
        projected={},
    )

    def ours() -> torch.Tensor:
        recorder = MapRecorder(KEPT if everything else 0) if located else None
        base = SimpleNamespace(unet=model, layout_channels=0)
        return unet_forward(base, z, 500, replace(state, recorder=recorder))[1:]

    return _quiet(ours)


def _quiet(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Without gradients."""
    return torch.no_grad()(call)


def _twin(weights: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet with processors of its own on the same weights."""
    twin = make(lambda: UNet2DConditionModel(**UNETS["sd15"]), "meta", weights.dtype)
    twin.load_state_dict(weights.state_dict(), assign=True)
    return twin.requires_grad_(False).eval()


@torch.no_grad()
def contexts_seconds(device: str, rounds: int, steps: int = 4) -> list[float]:
    """Seconds that S*, K_v, V_v and C(t, l) take for one step (of `steps` made together), once for each round."""
    base = base_model("sd15", device, precision(device))
    adapter = adapter_for(base, device)
    f_I = torch.randn(1, 3 * 257, adapter.config.width).to(base.device, base.dtype)
    prompt, t = encode_prompt(base, PROMPT, ["bear"], TOKENS), torch.linspace(20, 980, steps).to(base.device)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        output = adapter.at(f_I, t)
        context = encode_contexts(base, [prompt] * steps, [output.mfi.text_tokens])
        context.hidden.sum().item()  # waits for a GPU
        seconds.append((time.perf_counter() - start) / steps)
    return seconds[1:]


def memory_of(name: str, side: int, device: str) -> dict[str, float]:
    """MB: memory of a fresh process with the weights, and by how much one call raises its peak (GPU: its peak)."""
    command = [sys.executable, "-m", "tests.benchmarks.sd15", "--side", str(side), "--memory", name, "--device", device]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _measure(name: str, side: int, device: str) -> dict[str, float]:
    """What `memory_of` asks for, in this process."""
    call = contender(name, unet("sd15", device, precision(device)), side)
    loaded = resident()
    forget_peak()
    call()
    if device == "cuda":
        return {"loaded_mb": loaded, "growth_mb": torch.cuda.max_memory_allocated() / 2**20}
    return {"loaded_mb": loaded, "growth_mb": peak() - loaded}


def run(options: Options, side: int = SIDE, rounds: int | None = None, names: Sequence[str] = NAMES) -> Report:
    """Time of all contenders in turn, their memory in fresh processes, and what S+ contexts add.

    rounds: turns after the one to warm up (None: half of the options', at least 3).
    """
    device, rounds = options.device, rounds or max(3, options.rounds // 2)
    weights = unet("sd15", device, precision(device))
    contenders = {name: contender(name, weights, side) for name in names}
    rows = summarize(interleave(contenders, rounds, sync=device == "cuda"))
    contenders.clear()
    del weights
    contexts = contexts_seconds(device, rounds)
    memory = {name: memory_of(name, side, device) for name in names}
    lines = table(
        (f"{side} px, {rounds} rounds", "seconds", "± quartiles", "× first", "± quartiles", "MB for the call"),
        [(r.name, f"{r.seconds:.3f}", f"{r.iqr:.3f}", f"{r.ratio:.3f}", f"{r.ratio_iqr:.3f}",
          f"{memory[r.name]['growth_mb']:.0f}") for r in rows],
    )  # fmt: skip
    first, each = rows[0].seconds, statistics.median(contexts)
    lines.append(f"S+ contexts of one step, once for a subject and prompt: {each:.3f} s, {each / first:.2f} × first")
    targets = [Target(f"{r.name}, time × {rows[0].name}", r.ratio, LIMITS[r.name]) for r in rows if r.name in LIMITS]
    figures = {"side": side, "dtype": str(precision(device)), "contexts_seconds": contexts}
    figures["rows"] = [row.as_dict() | memory[row.name] for row in rows]
    title = f"SD-1.5's UNet at true size, random weights, {figures['dtype'].removeprefix('torch.')}, one call"
    return Report(title, lines, figures, targets)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sd15")
    parser.add_argument("--side", type=int, default=SIDE, help="px, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", choices=NAMES, metavar="NAME", help="of one contender, in this process, as JSON")
    given = parser.parse_args()
    diffusers.logging.set_verbosity_error()  # a notice for each IP-Adapter
    if given.memory:
        print(json.dumps(_measure(given.memory, given.side, given.device)))
        return
    run(Options(device=given.device), given.side, given.rounds).print()


if __name__ == "__main__":
    main()
