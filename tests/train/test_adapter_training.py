"""The loop: only the adapter learns, a stopped run goes on exactly, and bad numbers are named."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from customcontrast.adapter import Adapter, AdapterOutput
from customcontrast.adapter_files import load_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from customcontrast.errors import ConfigError, ResumeError
from customcontrast.precision import autocast
from customcontrast.tensor_files import remove_parts
from tests.robustness.kills import steps_done
from tests.robustness.runs import ENCODER
from tests.support import processes
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, LossConfig, OptimConfig
from train.adapter.losses import Losses
from train.adapter.packed_texts import contexts_of
from train.adapter.step import AdapterLoss, Noise, prompts_of
from train.adapter.train import main, train, usable_precision
from train.adapter.training_state import Progress, averaged, schedule
from train.common import log
from train.common.checkpoint import write_checkpoint
from train.common.ema import EMA
from train.data.frozen_features import with_features
from train.data.sampler import Samples
from train.data.samples import Batch, collate
from train.data.sources import make_source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def settings(tiny_folder: Path, tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AdapterTrainConfig:
    """A run of six steps on a pool of six subjects."""
    pool = tmp_path_factory.mktemp("train-pool")
    data = DataConfig(path=str(pool), size=64, reference_size=48, subjects=6, targets=2, references=2, drop=0.1)
    config = AdapterTrainConfig(
        weights=str(tiny_folder),
        encoder=ENCODER,
        data=data,
        optim=OptimConfig(steps=6, batch=3, learning_rate=1e-3, warmup=2, ema=0.9),
        log=LogConfig(every=1, validate_every=0, save_every=100, save_minutes=100),
    )
    make_source(config.data, tiny_base, progress=False)
    return config


@pytest.fixture
def batch(settings: AdapterTrainConfig, tiny_base: BaseModel) -> Batch:
    samples = Samples(make_source(settings.data, tiny_base, progress=False), seed=0, drop=0)
    return with_features(tiny_base, collate([samples[i] for i in range(4)]))


def make_loss(base: BaseModel, config: LossConfig | None = None, **encoder: object) -> AdapterLoss:
    torch.manual_seed(0)
    return AdapterLoss(base, Adapter.create(base, **(ENCODER | encoder)), config or LossConfig())


def noise_for(base: BaseModel, batch: Batch, step: int = 0) -> Noise:
    return Noise.draw(batch.latents.shape, base.scheduler.config.num_train_timesteps, (0, step), base.device)


def history(output: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line for line in map(json.loads, (output / "log.jsonl").read_text().splitlines())}


# ---- one step


def test_only_the_adapter_is_trained(tiny_base: BaseModel, batch: Batch) -> None:
    model = make_loss(tiny_base)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == [f"adapter.{name}" for name, _ in model.adapter.named_parameters()]
    trained = {name.split(".")[1] for name in names}
    assert trained == {"encoder", "attention"}  # the MFI encoder; W'_k, W'_v and the null keys
    parts = (tiny_base.unet, tiny_base.vae, tiny_base.image_encoder, *tiny_base.text_encoders)
    before = [p.clone() for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(batch, noise_for(tiny_base, batch)).total.backward()
    optimizer.step()
    after = [p for part in parts for p in part.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("flags", [{}, {"textual": False, "tv_fusion": False}, {"tv_fusion": False}, {"sink": False}])
def test_gradients_reach_every_parameter_in_every_ablation(
    any_base: BaseModel, tiny_base: BaseModel, batch: Batch, flags: dict[str, bool]
) -> None:
    if any_base is not tiny_base:
        batch = for_base(any_base, batch)
    model = make_loss(any_base, **flags)
    losses = model(batch, noise_for(any_base, batch))
    losses.total.backward()
    assert all(torch.isfinite(torch.tensor(v)) for v in losses.numbers().values())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []
    textual = flags.get("textual", True)
    assert (losses.cscl.item() != 0) == textual and (losses.macl.item() != 0) == textual
    silent = [name for name, p in model.named_parameters() if p.grad.abs().max() == 0]
    if textual:
        assert silent == []
    else:  # nothing asks the visual CLS; it shares its parameters with the queries that are asked
        assert all("null_key" in name or "queries" in name for name in silent)


def for_base(base: BaseModel, batch: Batch) -> Batch:
    """The same pictures for another base."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (len(batch), 3, 64, 64), generator=g, dtype=torch.uint8)
    empty = {"latents": None, "reference_states": None, "positive_states": None, "embeddings": None}
    return with_features(base, replace(batch, images=images, **empty))


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("drops", [(0, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 1)])
def test_the_short_way_of_contexts_is_the_plain_way(
    any_base: BaseModel, tiny_base: BaseModel, batch: Batch, drops: tuple[int, ...], padding: bool
) -> None:
    """Nothing is computed twice: the same values and gradients of S*, in packed tokens and in rows as they are."""
    if any_base is not tiny_base:
        batch = for_base(any_base, batch)
    batch = replace(batch, drop_subject=torch.tensor(drops, dtype=torch.bool))
    any_base = replace(any_base, masks_padding=not padding)
    batch = replace(batch, captions=["a small bear", *batch.captions[1:]], nouns=[(8, 12), *batch.nouns[1:]])
    prompts = prompts_of(any_base, batch, ENCODER["text_queries"])
    widths = [e.get_input_embeddings().embedding_dim for e in any_base.text_encoders]
    L, n = len(any_base.cross_attention_layers), ENCODER["text_queries"]
    tokens = [torch.randn(4, L, n, width, requires_grad=True) for width in widths]
    ways = [contexts_of(any_base, prompts, tokens), encode_contexts(any_base, prompts, [tokens], rows=5)]
    seen = torch.ones(ways[1].hidden.shape[::2][:2], dtype=torch.bool)
    if not padding:
        assert torch.equal(ways[0].lengths, ways[1].lengths)
        seen = torch.arange(ways[1].hidden.shape[2]) < ways[1].lengths[:, None]
    ways = [replace(way, hidden=way.hidden * seen[:, None, :, None]) for way in ways]
    weight = torch.randn(ways[1].hidden.shape)
    grads = [torch.autograd.grad((w.hidden * weight).sum(), tokens, retain_graph=True) for w in ways]
    torch.testing.assert_close(ways[0].hidden, ways[1].hidden, atol=1e-5, rtol=1e-5)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    if ways[1].pooled is not None:
        torch.testing.assert_close(ways[0].pooled, ways[1].pooled, atol=1e-5, rtol=1e-5)


def test_the_visual_branch_can_be_silent(tiny_base: BaseModel, batch: Batch) -> None:
    """An ELITE-like encoder: what the visual branch says does not change L_diff."""
    model = make_loss(tiny_base, LossConfig(visual=False))
    noise = noise_for(tiny_base, batch)
    before = model(batch, noise).diffusion.item()
    with torch.no_grad():
        for linear in model.adapter.attention.to_v:
            linear.weight.mul_(100.0)
    assert model(batch, noise).diffusion.item() == before


def test_terms_that_are_off_are_zero_and_total_is_equation_9(tiny_base: BaseModel, batch: Batch) -> None:
    noise = noise_for(tiny_base, batch)
    full = make_loss(tiny_base)(batch, noise)
    l1, l2 = LossConfig().lambda_1, LossConfig().lambda_2
    expected = full.diffusion + l1 * (full.cscl + full.macl) + l2 * full.location
    torch.testing.assert_close(full.total, expected)
    bare = make_loss(tiny_base, LossConfig(cscl=False, macl=False, lambda_2=0.0))(batch, noise)
    assert (bare.cscl, bare.macl, bare.location) == (0, 0, 0)
    torch.testing.assert_close(bare.total, full.diffusion)


def test_dropped_rows_are_what_guidance_will_ask_for(tiny_base: BaseModel, batch: Batch) -> None:
    """Drop both: the base with the empty prompt. Drop the subject: the base with the caption. Neither sees R."""
    kinds = [(False, False), (True, False), (False, True), (True, True)]
    text, subject = (torch.tensor([kind[i] for kind in kinds]) for i in (0, 1))
    batch = replace(batch, drop_text=text, drop_subject=subject)
    model = make_loss(tiny_base)
    for linear in model.adapter.attention.to_v:
        torch.nn.init.normal_(linear.weight, std=0.5)
    seen: list[torch.Tensor] = []
    import train.adapter.step as step_module

    original = step_module.unet_forward

    def spy(*args: object) -> torch.Tensor:
        seen.append(original(*args))
        return seen[-1]

    step_module.unet_forward = spy
    try:
        noise = noise_for(tiny_base, batch)
        model(batch, noise)
    finally:
        step_module.unet_forward = original
    z_t = model.scheduler.add_noise(batch.latents, noise.epsilon, noise.t)

    def plain(row: int, text: str) -> torch.Tensor:
        context = encode_contexts(tiny_base, [encode_prompt(tiny_base, text)]).hidden[:, 0]
        return tiny_base.unet(z_t[row : row + 1], noise.t[row : row + 1], context).sample[0]

    with torch.no_grad():
        torch.testing.assert_close(seen[0][2], plain(2, batch.captions[2]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen[0][3], plain(3, ""), atol=1e-5, rtol=1e-4)
        assert (seen[0][1] - plain(1, "")).abs().max() > 1e-3  # the subject acts through Eq. 3
        assert (seen[0][0] - plain(0, batch.captions[0])).abs().max() > 1e-3


def test_s_star_stands_right_after_the_noun(tiny_base: BaseModel, batch: Batch) -> None:
    for prompt, caption, (start, end) in zip(prompts_of(tiny_base, batch, 3), batch.captions, batch.nouns, strict=True):
        words = prompt.text.split()
        place = words.index("S*")
        assert words[place - 1] == caption[start:end]
        assert caption.startswith(" ".join(w for w in words if w != "S*").replace(" ,", ","))  # the tiny tokenizer cuts
        assert (prompt.positions >= 0).all()


def test_one_pass_for_target_and_positive_is_two_passes(tiny_base: BaseModel, batch: Batch) -> None:
    """S+ of both references at the same t, and all that the target's alone gives; the same gradients."""
    adapter, t = make_loss(tiny_base).adapter, noise_for(tiny_base, batch).t
    one = adapter(batch.reference_states, t, batch.positive_states)
    own, other = adapter(batch.reference_states, t), adapter(batch.positive_states, t)

    def values(out: AdapterOutput, positive: list[torch.Tensor] | None) -> list[torch.Tensor]:
        m = out.mfi
        return [*out.keys, *out.values, *m.text_tokens, m.text_cls, m.visual_tokens, m.visual_cls, *positive]

    ways = [values(one, one.mfi.positive_tokens), values(own, other.mfi.text_tokens)]
    torch.testing.assert_close(*ways, atol=1e-5, rtol=1e-5)
    grads = [
        torch.autograd.grad(sum(x.square().mean() for x in way), list(adapter.parameters()), retain_graph=True)
        for way in ways
    ]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)
    moved = adapter(batch.positive_states, t + 100).mfi.text_tokens[0]
    assert (moved - one.mfi.positive_tokens[0]).abs().max() > 1e-4


def test_the_optimiser_on_a_cpu_is_adamw(tiny_base: BaseModel) -> None:
    """Its fused form, step by step against torch's plain loop."""
    first, second = (make_loss(tiny_base).adapter for _ in range(2))
    second.load_state_dict(first.state_dict())
    config = OptimConfig()
    fused, plain = (training_state.make_optimizer(adapter, config) for adapter in (first, second))
    assert fused.defaults["fused"]
    for group in plain.param_groups:
        group["fused"], group["foreach"] = None, False
    for seed in range(3):
        for adapter in (first, second):
            g = torch.Generator().manual_seed(seed)
            for p in adapter.parameters():
                p.grad = torch.randn(p.shape, generator=g)
        fused.step()
        plain.step()
    torch.testing.assert_close(list(first.parameters()), list(second.parameters()), atol=1e-6, rtol=1e-5)


def test_noise_is_a_function_of_its_seed() -> None:
    draw = lambda *seed: Noise.draw((3, 2, 4, 4), 1000, seed, torch.device("cpu"))  # noqa: E731
    assert torch.equal(draw(0, 5).epsilon, draw(0, 5).epsilon) and torch.equal(draw(0, 5).t, draw(0, 5).t)
    for other in ((1, 5), (5, 0), (0, 6)):
        assert not torch.equal(draw(0, 5).epsilon, draw(*other).epsilon)


@pytest.mark.parametrize("bias", [0.5, 1.0, 3.0])
def test_timesteps_have_the_density_that_is_asked_for(bias: float) -> None:
    """P(t < x·T) = x^bias, and all of 0 … T − 1 can come; the noise beside them is as ever where bias is 1."""
    t = Noise.draw((20_000, 1, 1, 1), 1000, (0, 1), torch.device("cpu"), bias=bias).t
    assert t.dtype == torch.long and int(t.min()) >= 0 and int(t.max()) <= 999
    for x in (0.25, 0.5, 0.75):
        assert (t < 1000 * x).double().mean().item() == pytest.approx(x**bias, abs=0.012)
    with pytest.raises(ConfigError, match="timestep_bias"):
        LossConfig(timestep_bias=0.0)


def test_the_loss_falls_on_one_batch(tiny_base: BaseModel, batch: Batch) -> None:
    model = make_loss(tiny_base, LossConfig(lambda_1=0.1, lambda_2=0.1, macl_temperature=0.2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    noise = noise_for(tiny_base, batch)
    first = None
    for _ in range(25):
        losses: Losses = model(batch, noise)
        first = first or losses.numbers()
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    last = losses.numbers()
    assert last["diffusion"] < first["diffusion"]
    assert last["cscl"] < 0.7 * first["cscl"] and last["macl"] < first["macl"]
    assert last["location"] < first["location"]


# ---- schedule, average, checkpoints


def test_learning_rate_warms_up_and_falls() -> None:
    optim = OptimConfig(steps=100, warmup=10, learning_rate=1.0, schedule="cosine", final=0.1)
    rates = [schedule(optim).rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1) and all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert schedule(replace(optim, schedule="constant")).rate(5000) == 1.0


def test_ema_is_its_formula(tiny_base: BaseModel) -> None:
    adapter = Adapter.create(tiny_base, **ENCODER)
    ema = EMA(adapter, 0.5)
    name, p = next(iter(adapter.named_parameters()))
    start = p.detach().clone()
    with torch.no_grad():
        p.add_(1.0)
    ema.update(adapter, 100)  # (1 + 100) / 110 > 0.5
    torch.testing.assert_close(ema.weights[name], start + 0.5)
    exported = dict(averaged(ema, adapter).named_parameters())[name]
    torch.testing.assert_close(exported, start + 0.5)
    torch.testing.assert_close(p.detach(), start + 1.0)


def test_checkpoints_are_kept_found_and_checked(
    settings: AdapterTrainConfig, tiny_base: BaseModel, tmp_path: Path
) -> None:
    adapter = Adapter.create(tiny_base, **ENCODER)
    ema, optimizer = EMA(adapter, 0.9), training_state.make_optimizer(adapter, settings.optim)
    assert training_state.find(tmp_path, "latest") is None
    for step in (5, 10, 15):
        training_state.save(tmp_path, adapter, ema, optimizer, Progress(step, 1.5), settings, keep=2)
    assert [p.name for p in training_state.checkpoints(tmp_path)] == [
        "step-0000010.safetensors",
        "step-0000015.safetensors",
    ]
    latest = training_state.find(tmp_path, "latest")
    assert training_state.load(latest, adapter, ema, optimizer, settings) == Progress(15, 1.5)
    other = replace(settings, optim=replace(settings.optim, batch=7))
    with pytest.raises(ResumeError, match=r"optim.batch 3 → 7"):
        training_state.load(latest, adapter, ema, optimizer, other)
    with safe_open(latest, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    young = json.loads(about["config"])
    del young["data"]["same_frame"], young["data"]["captions"]  # written before there were these settings
    del young["optim"]["sharding"]
    save_file(tensors, tmp_path / "old.safetensors", metadata=about | {"config": json.dumps(young)})
    assert training_state.load(tmp_path / "old.safetensors", adapter, ema, optimizer, settings).seconds == 1.5
    with pytest.raises(ResumeError, match="processes 1 → 2"):
        training_state.load(latest, adapter, ema, optimizer, settings, processes=2)
    longer = replace(settings, optim=replace(settings.optim, steps=99), log=LogConfig(every=9))
    training_state.load(latest, adapter, ema, optimizer, longer)
    with pytest.raises(ResumeError, match="holds a run"):
        training_state.find(tmp_path, "none")
    latest.write_bytes(latest.read_bytes()[:1000])
    with pytest.raises(ResumeError, match="cannot be read"):
        training_state.load(latest, adapter, ema, optimizer, settings)


def test_what_a_kill_left_half_written_goes(tmp_path: Path) -> None:
    """A SIGKILL while a file is written leaves its part, gigabytes at SDXL's size, under the dead process's number."""
    (tmp_path / "checkpoints").mkdir()
    parts = [tmp_path / "checkpoints" / ".step-0000003.77.part", tmp_path / ".adapter.part.77.part"]
    kept = [tmp_path / "checkpoints" / "step-0000002.safetensors", tmp_path / "adapter.safetensors", tmp_path / ".mine"]
    for path in (*parts, *kept):
        path.touch()
    remove_parts(tmp_path, tmp_path / "checkpoints")
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
    (tmp_path / ".clip.77.part").touch()
    write_checkpoint(tmp_path / "clip.safetensors", {"x": torch.zeros(1)}, {})
    assert not list(tmp_path.rglob("*.part"))


# ---- whole runs


def test_a_stopped_run_goes_on_exactly(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings, whole, cpu=True)
    for steps in (2, 5, 6):
        train(replace(settings, optim=replace(settings.optim, steps=steps)), parts, cpu=True)
    one, two = history(whole), history(parts)
    assert set(one) == set(two) == set(range(1, 7))
    for step in one:
        for term in ("total", "diffusion", "cscl", "macl", "location", "gradient"):
            assert one[step][term] == two[step][term], (step, term)
    a, b = load_file(whole / "adapter.safetensors"), load_file(parts / "adapter.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_exported_adapter_is_read_by_inference(
    settings: AdapterTrainConfig, tiny_base: BaseModel, tmp_path: Path
) -> None:
    config = replace(settings, log=replace(settings.log, validate_every=2, validate_subjects=1, validate_steps=2))
    config = replace(config, optim=replace(config.optim, steps=2, accumulation=2, mixed_precision="bf16"))
    progress = train(config, tmp_path, cpu=True)
    adapter = load_adapter(tmp_path / "adapter.safetensors", tiny_base)
    assert (progress.step, adapter.metadata["step"]) == (2, 2)
    assert adapter.metadata["training"]["optim"]["batch"] == 3
    assert (tmp_path / "validation" / "step-0000002.png").is_file()
    assert any((tmp_path / "tensorboard").iterdir())


def test_bf16_is_used_only_where_it_is_no_imitation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for capabilities, wanted in (({"avx2": True, "avx512_bf16": False}, "no"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert usable_precision("bf16", cpu=True) == wanted
        assert [usable_precision(asked, cpu=True) for asked in ("no", "fp16")] == ["no", "fp16"]
        with autocast("cpu"):
            assert torch.is_autocast_enabled("cpu") == (wanted == "bf16")
    assert [record.getMessage() for record in caplog.records] == [
        "optim.mixed_precision=bf16: this cpu has no bfloat16 of its own, so float32 is used"
    ]


def test_gradient_checkpointing_changes_memory_alone(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    optim = replace(settings.optim, steps=2)
    train(replace(settings, optim=optim), tmp_path / "plain", cpu=True)
    train(replace(settings, optim=replace(optim, gradient_checkpointing=True)), tmp_path / "again", cpu=True)
    one, two = history(tmp_path / "plain"), history(tmp_path / "again")
    for term in ("total", "location", "gradient"):
        assert [one[s][term] for s in (1, 2)] == pytest.approx([two[s][term] for s in (1, 2)], rel=1e-3), term


def test_accumulation_takes_the_mean_of_its_micro_steps(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    """One optimiser step of two micro-steps = the step by the mean of both gradients."""
    optim = replace(settings.optim, steps=1, batch=2, accumulation=2, warmup=0, clip_norm=0.0)
    config = replace(settings, optim=optim)
    train(config, tmp_path, cpu=True)
    base = load_base("toyland", settings.weights, "cpu")
    torch.manual_seed(config.seed)
    adapter = Adapter.create(base, **config.encoder).float().train()
    optimizer = training_state.make_optimizer(adapter, optim)
    model = AdapterLoss(base, adapter, config.loss)
    samples = Samples(make_source(config.data, base, progress=False), config.seed, config.data.drop)
    for micro in range(2):
        batch = with_features(base, collate([samples[2 * micro + i] for i in range(2)]))
        noise = Noise.draw(batch.latents.shape, 1000, (config.seed, 0, micro, 0), base.device)
        (model(batch, noise).total / 2).backward()
    optimizer.step()
    saved = load_file(tmp_path / "checkpoints" / "step-0000001.safetensors")
    first = {name: p.grad.abs().max() for name, p in adapter.named_parameters()}
    for name, p in adapter.named_parameters():
        if first[name] > 1e-5:  # AdamW's first step is the gradient's sign: rounding decides where it is 0
            moved = (saved[f"exp_avg.{name}"] - optimizer.state[p]["exp_avg"]).abs().max()
            assert moved < 1e-3 * first[name], name


def test_wandb_is_asked_for_by_name_when_it_is_missing(
    settings: AdapterTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "is_wandb_available", lambda: False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(replace(settings, log=replace(settings.log, wandb=True)), tmp_path, cpu=True)


def test_wandb_keeps_an_offline_run(
    settings: AdapterTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = replace(settings.log, wandb=True, validate_every=1, validate_subjects=1, validate_steps=2)
    train(replace(settings, log=log, optim=replace(settings.optim, steps=1)), tmp_path, cpu=True)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_sigterm_stops_cleanly_with_a_checkpoint(
    settings: AdapterTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train.adapter.train as loop

    calls = []

    def counting(*args: object) -> Batch:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return with_features(*args)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "with_features", counting)
    assert train(settings, tmp_path, cpu=True).step == 3  # the step in progress is finished
    assert signal.getsignal(signal.SIGTERM) == before
    assert training_state.find(tmp_path / "checkpoints", "latest").name == "step-0000003.safetensors"


def test_minutes_limit_a_sitting(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    assert train(settings, tmp_path, minutes=0, cpu=True).step == 0
    assert train(settings, tmp_path, minutes=5, cpu=True).step == 6


def test_a_bad_loss_is_named(settings: AdapterTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train.adapter.step as step_module

    nan = lambda *args: args[0].sum() * float("nan")  # noqa: E731
    monkeypatch.setattr(step_module.losses, "macl_loss", nan)
    with pytest.raises(FloatingPointError, match="loss 'macl' is nan at step 0"):
        train(settings, tmp_path, cpu=True)


def test_mistakes_on_the_command_line_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "nothing"]) == 2
    assert main(["--config", "toyland", "--set", f"weights={tmp_path}", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "presets are" in error and "pass weights=FOLDER" in error and "Traceback" not in error


def test_a_killed_run_goes_on_exactly(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    """SIGKILL at a random step: the run that goes on has the same losses and weights as an unbroken one."""
    settings = replace(settings, optim=replace(settings.optim, steps=10), log=replace(settings.log, save_every=2))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(settings, whole, cpu=True)
    wanted = random.Random().randint(2, 5)
    process = processes.start(train, settings, killed, None, "latest", True, failed=tmp_path / "failed.txt")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if steps_done(killed) >= wanted:
            break
        time.sleep(0.002)
    process.kill()
    process.join()
    assert 0 < steps_done(killed) < 10
    train(settings, killed, cpu=True)
    one, two = history(whole), history(killed)
    assert [one[s]["total"] for s in range(1, 11)] == [two[s]["total"] for s in range(1, 11)]
    a, b = load_file(whole / "adapter.safetensors"), load_file(killed / "adapter.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_slices_want_several_processes(settings: AdapterTrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"accelerate launch, or set optim.sharding=none"):
        train(replace(settings, optim=replace(settings.optim, sharding="full")), tmp_path, cpu=True)
    with pytest.raises(ConfigError, match="choose none or full"):
        OptimConfig(sharding="half")


def test_a_dropped_branch_leaves_the_subject_to_the_other(tiny_base: BaseModel, batch: Batch) -> None:
    """Without S* the caption is plain and Eq. 3 acts; with λ = 0 S* stands in the caption and Eq. 3 does not."""
    no = torch.zeros(len(batch), dtype=torch.bool)
    kept = replace(batch, drop_text=no, drop_subject=no)
    token, visual = no.clone(), no.clone()
    token[0] = visual[1] = True
    dropped = replace(kept, drop_token=token, drop_visual=visual)
    prompts = prompts_of(tiny_base, dropped, 3)
    assert (prompts[0].positions < 0).all() and prompts[0].text == batch.captions[0]
    assert all((prompt.positions >= 0).all() for prompt in prompts[1:])
    model, noise = make_loss(tiny_base, LossConfig(cscl=False, macl=False, lambda_2=0.0)), noise_for(tiny_base, batch)
    values = [linear.weight for linear in model.adapter.attention.to_v]

    def row_loss(row: int) -> torch.Tensor:
        return model(dropped.select([row]), Noise(noise.t[row : row + 1], noise.epsilon[row : row + 1])).diffusion

    for row, acts in ((0, True), (1, False)):
        grads = torch.autograd.grad(row_loss(row), values, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in grads) == acts
