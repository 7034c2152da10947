"""Training at the size of SD-1.5 and SDXL: what is correct there, and what does not wait for a GPU."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPImageProcessor

from customcontrast.adapter import Adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from customcontrast.errors import ConfigError
from customcontrast.warm_start import WarmAdapter
from tests.gpu.first_run import random_batch
from tests.robustness.runs import ENCODER
from tests.support.ip_files import random_ip_file
from train import plan
from train.adapter import losses, training_state
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LogConfig, LossConfig, OptimConfig, load_config
from train.adapter.frozen_base import make_ready
from train.adapter.losses import Losses
from train.adapter.step import AdapterLoss, Noise, attention_kernel
from train.adapter.train import train, warn_of_small_batch
from train.adapter.watch import Agreement, FiniteWatch, batch_times_similarity
from train.common.true_models import VISION, adapter_for, base_model
from train.data.frozen_features import clip_pixels, with_features
from train.data.samples import Batch


def settings(base: BaseModel, **loss: object) -> AdapterTrainConfig:
    return AdapterTrainConfig(
        base=base.name, data=DataConfig(size=64), loss=LossConfig(**loss), optim=OptimConfig(batch=2), encoder=ENCODER
    )


def made(base: BaseModel, config: AdapterTrainConfig) -> tuple[AdapterLoss, Batch, Noise]:
    torch.manual_seed(0)
    model = AdapterLoss(base, Adapter.create(base, **ENCODER), config.loss)
    batch = with_features(base, random_batch(base, config))
    pairs = len(batch.contrast) if batch.contrast is not None else 0
    return model, batch, Noise.draw(batch.latents.shape, 1000, (0, 0), base.device, pairs)


# ---- correct at size


def test_matrix_products_of_the_losses_stay_float32_under_autocast() -> None:
    """P13: the same value to the last bit as without autocast; bfloat16 products differ in the third digit."""
    g = torch.Generator().manual_seed(0)
    v, u = torch.randn(6, 32, generator=g), torch.randn(6, 4, 32, generator=g)
    s, other = torch.randn(6, 4, 3, 8, generator=g), torch.randn(6, 4, 3, 8, generator=g)
    ids, e = torch.arange(6), torch.randn(6, 16, generator=g).abs()

    def values() -> list[Tensor]:
        S = losses.appearance_similarity(e)
        return [S, losses.cscl_loss(v, u, ids), losses.macl_loss(s, other, S, ids)]

    exact = values()
    with torch.autocast("cpu", torch.bfloat16):
        assert (v @ v.T).dtype == torch.bfloat16
        assert all(torch.equal(a, b) for a, b in zip(values(), exact, strict=True))


def test_sdxl_reads_what_its_pad_token_takes_apart(tiny_xl_base: BaseModel) -> None:
    """P7: "!!" is one token of the first tokenizer and two pad tokens of the second; S* has one place in both."""
    first, second = tiny_xl_base.tokenizers
    assert second.pad_token == "!" and len(first("wow!!").input_ids) != len(second("wow!!").input_ids)
    prompt = encode_prompt(tiny_xl_base, "a <bear> on the beach wow!!", ["bear"], 3)
    ids = [row[: prompt.end + 1].tolist() for row in prompt.ids]
    assert ids[0] == ids[1] and (prompt.ids[1][prompt.end + 1 :] == second.pad_token_id).all()
    assert torch.isfinite(encode_contexts(tiny_xl_base, [encode_prompt(tiny_xl_base, "wow!!")]).hidden).all()


def test_original_size_and_crop_reach_sdxls_time_ids(tiny_xl_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = torch.zeros(2, 24)
    origins = torch.tensor([[1990, 1120, 30, 0], [64, 64, 0, 0]])
    ids = tiny_xl_base.added_conditions(pooled, 64, 64, origins)["time_ids"]
    assert ids.tolist() == [[1990, 1120, 30, 0, 64, 64], [64, 64, 0, 0, 64, 64]]
    assert torch.equal(tiny_xl_base.added_conditions(pooled, 64, 64)["time_ids"][0], ids[1])
    model, batch, noise = made(tiny_xl_base, settings(tiny_xl_base))
    with torch.no_grad():
        plain = model(batch, noise).diffusion
        other = model(replace(batch, origins=torch.tensor([[400, 300, 9, 7]] * 2)), noise).diffusion
    assert plain != other


def test_sdxls_autoencoder_works_in_float32(tiny_xl_folder: Path, tiny_folder: Path) -> None:
    xl = load_base("sdxl", weights=tiny_xl_folder, device="cpu", dtype=torch.bfloat16)
    make_ready(xl, gradient_checkpointing=False)
    assert xl.vae.dtype == torch.float32 and xl.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("cscl", [True, False])
def test_a_contrastive_batch_of_its_own_is_the_losses_of_its_pairs(any_base: BaseModel, cscl: bool) -> None:
    """P5: L_diff is of the batch, Eq. 4 and 7 are of the pairs, and the adapter alone has seen these."""
    config = settings(any_base, contrast_batch=6, cscl=cscl)
    model, batch, noise = made(any_base, config)
    found = model(batch, noise)
    alone, _, _ = made(any_base, settings(any_base, cscl=False, macl=False))
    torch.testing.assert_close(found.diffusion, alone(replace(batch, contrast=None), noise).diffusion)
    pairs, encoder = batch.contrast, model.adapter.encoder
    out = encoder(encoder.encode_image(pairs.reference_states), noise.t_pairs)
    others = encoder(encoder.encode_image(pairs.positive_states), noise.t_pairs)
    s, positive = torch.cat(out.text_tokens, -1), torch.cat(others.text_tokens, -1)
    S = losses.appearance_similarity(pairs.embeddings)
    torch.testing.assert_close(found.macl, losses.macl_loss(s, positive, S, pairs.subjects))
    wanted = losses.cscl_loss(out.visual_cls, out.text_cls, pairs.subjects) if cscl else torch.tensor(0.0)
    torch.testing.assert_close(found.cscl, wanted)
    assert batch.positive_states is None  # CLIP was not asked for what nobody compares
    found.total.backward()
    assert all(p.grad is not None for p in model.adapter.parameters())


def test_a_batch_too_small_for_equation_7_is_warned_of(tiny_base: BaseModel, caplog: pytest.LogCaptureFixture) -> None:
    """B · τ · S̄ of the first batch: 6 pairs at τ = 0.07 cannot be above 1, at τ = 0.5 over 8 processes they are."""
    config = settings(tiny_base, contrast_batch=6)
    _, batch, _ = made(tiny_base, config)
    warn_of_small_batch(config, batch, 1)
    assert len(caplog.records) == 1 and "loss.contrast_batch" in caplog.text and "6 samples x 1 process" in caplog.text
    caplog.clear()
    warn_of_small_batch(replace(config, loss=replace(config.loss, macl_temperature=0.5)), batch, 8)
    warn_of_small_batch(replace(config, loss=replace(config.loss, macl=False)), batch, 1)
    assert caplog.records == []
    S = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    assert batch_times_similarity(3, 0.1, S) == pytest.approx(3 * 0.1 * 0.3)


def test_old_runs_resume_and_moved_sets_are_the_same_run() -> None:
    """A configuration from before these settings has their defaults, under which nothing changes."""
    new = load_config("toyland2").to_dict()
    old = json.loads(json.dumps(new))
    for place, names in (("data", ("sources", "holdout", "shard_cache")), ("loss", ("contrast_batch",)),
                         ("optim", ("timeout_minutes",)), ("log", ("validate_samples", "validate_clip"))):  # fmt: skip
        for name in names:
            del old[place][name]
    assert training_state.differences(training_state._completed(old), new) == []
    sets = [{"name": "a", "source": "shards", "path": "x"}]
    a, b = (replace(AdapterTrainConfig(), data=DataConfig(sources=[sets[0] | {"path": p}])).to_dict() for p in "xy")
    assert training_state.differences(a, b) == []
    c = replace(AdapterTrainConfig(), data=DataConfig(sources=[sets[0] | {"weight": 2}])).to_dict()
    assert len(training_state.differences(a, c)) == 1


# ---- fast


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers of tensors that Python asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_a_step_asks_for_no_number_of_a_tensor_on_the_device(any_base: BaseModel) -> None:
    model, batch, noise = made(any_base, settings(any_base, contrast_batch=4))
    watch = FiniteWatch(torch.device("cpu"))
    watch.check = lambda: None  # on a CPU it looks at once, where it need not wait
    with Waits() as waits, attention_kernel(any_base.device):
        ready = with_features(any_base, batch)
        found = model(ready, noise)
        watch.see(found, 0)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), 1.0)
    assert waits.count == 0
    moved = batch.to(torch.device("meta"))  # a stand-in for a GPU: what stays on the CPU can be read without it
    assert moved.latents.device.type == "meta" and moved.drop_text.device.type == "cpu"
    assert moved.contrast.references.device.type == "meta"


def test_a_bad_number_is_remembered_until_it_is_asked_for() -> None:
    watch = FiniteWatch(torch.device("cpu"))
    check, watch.check = watch.check, lambda: None
    one, nan = torch.tensor(1.0), torch.tensor(float("nan"))
    watch.see(Losses(one, one, one, one, one), 3)
    watch.see(Losses(one, nan, one, one, nan), 4)
    watch.see(Losses(nan, one, one, one, one), 5)
    with pytest.raises(FloatingPointError, match="loss 'cscl' is nan at step 4"):
        check()
    assert Agreement(1, timedelta(minutes=1))(True) and not Agreement(1, timedelta(minutes=1))(False)


@pytest.mark.parametrize("side", [24, 40])
def test_clip_preprocessing_on_the_device_is_the_processors(tiny_base: BaseModel, side: int) -> None:
    """Exact where nothing is resized; else within 2 of 255 grey levels."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 7, 7, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in small]
    tensors = torch.from_numpy(np.stack([np.array(p) for p in pictures])).permute(0, 3, 1, 2)
    wanted = tiny_base.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    error = (clip_pixels(tiny_base, tensors) - wanted).abs().max()
    std = min(tiny_base.image_processor.image_std)
    assert error < (1e-5 if side == 24 else 2 / 255 / std)
    processor = CLIPImageProcessor()  # the published one: 224 px
    whole = replace(tiny_base, image_processor=processor)
    picture = pictures[0].resize((224, 224))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    wanted = processor(images=picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip_pixels(whole, pixels), wanted, atol=1e-5, rtol=0)


def test_every_tensor_of_a_batch_is_pinned(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader pins what has `pin_memory`; a dataclass without it was left as it is. (Pinning itself needs a GPU.)"""
    seen: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: seen.append(id(self)) or self)
    batch = random_batch(tiny_base, settings(tiny_base, contrast_batch=4))
    pinned = torch.utils.data._utils.pin_memory.pin_memory(batch)
    fields = [*vars(batch).values(), *vars(batch.contrast).values()]
    assert sorted(seen) == sorted(id(x) for x in fields if isinstance(x, Tensor)) and len(pinned.contrast) == 4


def test_plain_attention_on_a_cpu_is_the_fused_one(tiny_folder: Path) -> None:
    """The UNet that `make_ready` leaves: self-attention in plain steps, the same values and gradients."""
    base = load_base("toyland", weights=tiny_folder, device="cpu")
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, base.unet.config.in_channels, 8, 8, generator=g)
    context = torch.randn(2, 5, base.unet.config.cross_attention_dim, generator=g).requires_grad_()
    found = []
    for _ in range(2):
        out = base.unet(z, torch.tensor([3, 700]), context).sample
        found.append([out, *torch.autograd.grad(out.square().sum(), context)])
        make_ready(base, gradient_checkpointing=False)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    selfs = [m.processor for name, m in base.unet.named_modules() if name.endswith("attn1")]
    assert selfs and all(type(processor) is AttnProcessor for processor in selfs)


def test_checkpointed_text_encoders_give_the_same_gradients(tiny_xl_folder: Path) -> None:
    grads = []
    for on in (False, True):
        base = load_base("sdxl", weights=tiny_xl_folder, device="cpu")
        make_ready(base, gradient_checkpointing=on)
        assert all(e.is_gradient_checkpointing == on for e in base.text_encoders)
        model, batch, noise = made(base, settings(base))
        with attention_kernel(base.device):
            model(batch, noise).total.backward()
        grads.append([p.grad for p in model.adapter.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


# ---- validation on subjects of the run's own data


def test_validation_shows_and_measures_held_out_subjects(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.train.test_data_scale import write_views

    for i in range(8):
        write_views(tmp_path / "own" / f"bear {i}", i, 2)
    data = DataConfig(source="folder", path=str(tmp_path / "own"), size=64, holdout=0.3)
    config = AdapterTrainConfig(
        weights=str(tiny_folder),
        encoder=ENCODER,
        data=data,
        loss=LossConfig(contrast_batch=3),
        optim=OptimConfig(steps=2, batch=2),
        log=LogConfig(every=1, validate_every=2, validate_subjects=2, validate_steps=2, validate_samples=3),
    )
    assert train(config, tmp_path / "run", cpu=True).step == 2
    lines = (tmp_path / "run" / "validation" / "metrics.jsonl").read_text().splitlines()
    found = json.loads(lines[0])
    assert set(found) == {"step", "R-CI", "E-CI", "diffusion", "location"} and found["step"] == 2
    assert -1 <= found["E-CI"] <= 1 and found["diffusion"] > 0
    assert (tmp_path / "run" / "validation" / "step-0000002.png").is_file()
    assert "set data.holdout" not in caplog.text and "L_MACL: 3 samples" in caplog.text
    with caplog.at_level(logging.WARNING):
        train(replace(config, data=replace(data, holdout=0.0)), tmp_path / "all", cpu=True)
    assert "set data.holdout=0.01" in caplog.text


# ---- the plan


@pytest.mark.parametrize("warm", [False, True])
def test_the_plan_counts_what_a_measured_step_does(any_base: BaseModel, warm: bool, tmp_path: Path) -> None:
    """The parts' sum against FlopCounterMode over one real step of Eq. 9, forward and backward.

    warm: with an IP-Adapter in the visual branch.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = settings(any_base, contrast_batch=4)
    model, _, noise = made(any_base, config)
    batch = random_batch(any_base, config)
    if warm:
        file = random_ip_file(tmp_path / "plus.safetensors", "plus", any_base.unet, any_base.image_encoder.config)
        any_base = replace(any_base, penultimate=True)
        model = AdapterLoss(any_base, WarmAdapter.from_file(any_base, file, **ENCODER), config.loss)
    counted = sum(part.flops for part in plan.count(any_base, model.adapter, config))
    flops = FlopCounterMode(display=False)
    flops.mod_tracker = plan._NoModules()
    with flops, attention_kernel(any_base.device):
        model(with_features(any_base, batch), noise).total.backward()
    assert counted == pytest.approx(flops.get_total_flops(), rel=0.03)


def test_the_plan_knows_what_init_brings(tiny_base: BaseModel, tmp_path: Path) -> None:
    """Sizes of the published files (BRIDGE's key tables), of a file that is here, and what cannot be a start."""
    sd15, sdxl = (load_config(name, ["init=ip-adapter-plus"]) for name in ("sd15", "sdxl"))
    for config, brings, bytes_ in ((sd15, 49_087_488, 98_183_288), (sdxl, 423_748_864, 847_517_512)):
        base = base_model(config.base)
        plain, warm = (adapter_for(base, published=sizes) for sizes in (None, plan.started_from(config)))
        extra = sum(p.numel() for p in warm.parameters()) - sum(p.numel() for p in plain.parameters())
        assert extra == brings and 0 < bytes_ - 2 * extra < 30_000, "16-bit numbers and a header"
    assert plan.started_from(replace(sd15, init="")) is None
    assert (
        sum(p.numel() for p in base_model("sd15", image_encoder=VISION[1280]).image_encoder.parameters()) == 632_076_800
    )
    file = random_ip_file(tmp_path / "plus.safetensors", "plus", tiny_base.unet, tiny_base.image_encoder.config)
    for wrong, says in ((str(file), "not for sd15"), ("ip-adapter", "can start from ip-adapter-full-face, ip-adapter-"),
                        ("h94/IP-Adapter:models/x.safetensors", "a file that is here")):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            plan.started_from(replace(sd15, init=wrong))


def test_the_plan_says_what_does_not_fit_and_what_to_change() -> None:
    parts = [plan.Part(name, 1e12, 2**30) for name in ("adapter", "text encoders", "UNet", "CLIP image encoder")]
    config = load_config("sdxl", ["loss.contrast_batch=0", "optim.gradient_checkpointing=false", "data.holdout=0"])
    made = plan.Plan(config, 1, {"adapter": 10**8, "UNet": 10**9}, parts, 20 * 2**30, 2 * 2**30, 2**30, 2**17, 2**20)
    assert made.peak == 25 * 2**30 and made.flops == 16e12 and made.contrast == pytest.approx(2 * 0.07 * 0.65)
    said = "\n".join(plan.advice(made, 24))
    changes = ("gradient_checkpointing=true", "optim.batch=1 optim.accumulation=8", "contrast_batch=22", "holdout")
    for words in ("do not fit", *changes):
        assert words in said, words
    table = "\n".join(plan.lines(made, 24))
    assert "200,000 steps see 1.6 M samples" in table and "| UNet | 1,000 M |" in table
    fast, slow = made.days(312.0)
    assert fast == pytest.approx(200_000 * 16e12 / 0.4 / 312e12 / 86_400) and slow == pytest.approx(2 * fast)
    assert plan.main(["--config", "toyland"]) == 2
