"""One Toyland picture: diffusers' pipeline, its IP-Adapter and IP-Adapter-plus, and ours; time, and memory of each.

Same steps, size, guidance and scheduler; each contender's UNet is loaded from the same weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection

from customcontrast import CustomContrast, Segmenter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.images.loading import load_picture
from tests.benchmarks.report import Options, Report, Target, table
from tests.benchmarks.timing import interleave, summarize

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "bear.png"
PROMPT = "a bear S* on the beach"
PLUS = "IP-Adapter-plus (diffusers)"
OURS = {"ours, maps off": (False, False), "ours, location masks": (True, False), "ours, all maps": (True, True)}
NAMES = (PLUS, "IP-Adapter (diffusers)", "plain pipeline (diffusers)", *OURS)  # the first is the measure of the others
LIMITS = dict(zip(OURS, (1.05, 1.15, 1.3), strict=True))


def stock_pipeline(base: BaseModel) -> StableDiffusionPipeline:
    """A base with one text encoder in diffusers' own pipeline."""
    return StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        scheduler=base.scheduler,
        safety_checker=None,
        feature_extractor=base.image_processor,
        image_encoder=base.image_encoder,
        requires_safety_checker=False,
    )


def pipeline(device: str = "cpu") -> StableDiffusionPipeline:
    """Toyland in diffusers' own pipeline, with stock attention processors."""
    pipe = stock_pipeline(load_base("toyland", device=device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_ip_adapter(pipe: StableDiffusionPipeline, tokens: int = 4) -> None:
    """An IP-Adapter of true layout with random weights: ImageProjection, to_k_ip and to_v_ip in every attn2."""
    unet = pipe.unet
    context, seen = unet.config.cross_attention_dim, pipe.image_encoder.config.projection_dim
    weights, key = {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{key}.{part}.weight"] = torch.randn(hidden, context) * 0.02
        key += 2
    projection = {
        "proj.weight": torch.randn(tokens * context, seen) * 0.02,
        "proj.bias": torch.zeros(tokens * context),
        "norm.weight": torch.ones(context),
        "norm.bias": torch.zeros(context),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


def add_ip_adapter_plus(pipe: StableDiffusionPipeline) -> None:
    """IP-Adapter-plus with random weights: its Resampler (16 queries, 4 blocks) reads CLIP's patch features."""
    add_ip_adapter(pipe)
    unet, seen = pipe.unet, pipe.image_encoder.config.hidden_size
    context = unet.config.cross_attention_dim
    resampler = IPAdapterPlusImageProjection(
        seen, context, context, depth=4, dim_head=64, heads=max(1, context // 64), num_queries=16
    )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([resampler]).to(unet.device, unet.dtype).eval()


def forget(custom: CustomContrast) -> None:
    """Drop what is kept of earlier prompts, so that S+ contexts are paid for."""
    custom.conditioner.cache.clear()


def contender(name: str, steps: int, device: str = "cpu") -> Callable[[], object]:
    """Makes one picture by name; the reference of ours is segmented and encoded before, as for a second picture."""
    picture = load_picture(EXAMPLE)
    if name in OURS:
        custom = CustomContrast.load("toyland", device=device)
        subject = custom.subject(Segmenter().auto(picture), "bear")
        location, maps = OURS[name]
        options = {"location": LocationConfig(enabled=location), "record": RecordConfig(maps=maps)}
        options |= {"num_inference_steps": steps, "guidance_scale": custom.base.default_guidance}

        def ours() -> object:
            forget(custom)
            return custom.generate(PROMPT, [subject], **options)

        return ours
    pipe = pipeline(device)
    base_size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    same = {"num_inference_steps": steps, "guidance_scale": 4.0, "height": base_size, "width": base_size}
    if name == NAMES[2]:
        return lambda: pipe("a bear on the beach", **same)
    (add_ip_adapter_plus if name == PLUS else add_ip_adapter)(pipe)
    return lambda: pipe("a bear on the beach", ip_adapter_image=picture, **same)


def memory_of(name: str, options: Options) -> dict[str, float]:
    """Peak memory of a fresh process that makes one picture (MB): RSS, and what it grew by after loading."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", name, str(options.steps), options.device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(options: Options) -> Report:
    contenders = {name: contender(name, options.steps, options.device) for name in NAMES}
    rows = summarize(interleave(contenders, options.rounds, sync=options.device == "cuda"))
    contenders.clear()
    memory = {name: memory_of(name, options) for name in NAMES}
    lines = table(
        ("one Toyland picture", "seconds", "± quartiles", "× first", "± quartiles", "peak MB", "over loading"),
        [(r.name, f"{r.seconds:.3f}", f"{r.iqr:.3f}", f"{r.ratio:.2f}", f"{r.ratio_iqr:.2f}",
          f"{memory[r.name]['peak_mb']:.0f}", f"{memory[r.name]['growth_mb']:.0f}") for r in rows],
    )  # fmt: skip
    ratios = {row.name: row.ratio for row in rows}
    targets = [Target(f"{name}, time × {PLUS}", ratios[name], limit) for name, limit in LIMITS.items()]
    figures = {"steps": options.steps, "rows": [row.as_dict() | memory[row.name] for row in rows]}
    return Report("Generation: Toyland, S+ contexts made anew for each picture", lines, figures, targets)
