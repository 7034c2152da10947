"""SD-1.5 and SDXL at true size on the meta device: parameters, layers, rows of S+, shapes, and no map of HW × HW."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from customcontrast.adapter import Adapter, AdapterOutput
from customcontrast.attention import MapRecorder, aggregate, unet_forward
from customcontrast.attention.state import level_size
from customcontrast.base_model import BaseModel, encoder_config
from customcontrast.conditioning.text_context import TextContext, encode_contexts, encode_prompt, subject_state
from customcontrast.encoder.image_features import extract
from tests.benchmarks.generation import NAMES, OURS
from tests.benchmarks.sd15 import contender
from tests.benchmarks.sizes import MB, MODES, PROMPT, call_at, models, parameters, weight_bytes
from train.common.dry_run import DryRun
from train.common.true_models import LENGTH, VOCABULARY, adapter_for, base_model, make, tokenizer, unet

Model = tuple[BaseModel, Adapter]
COUNTS = {
    "sd15": {
        "UNet": 859_520_964,
        "text encoder 1": 123_060_480,
        "autoencoder": 83_653_863,
        "CLIP image encoder": 303_966_208,
        "adapter: image projections": 2_370_048,
        "adapter: Visual Q-Former": 28_359_936,
        "adapter: Textual Q-Former": 29_569_536,
        "adapter: TV Fusion": 2_363_904,
        "adapter: W'_k, W'_v": 19_169_280,
        "adapter: null keys": 12_480,
    },
    "sdxl": {
        "UNet": 2_567_463_684,
        "text encoder 1": 123_060_480,
        "text encoder 2": 694_659_840,
        "autoencoder": 83_653_863,
        "CLIP image encoder": 303_966_208,
        "adapter: image projections": 3_158_016,
        "adapter: Visual Q-Former": 50_396_160,
        "adapter: Textual Q-Former": 53_638_144,
        "adapter: TV Fusion": 4_200_448,
        "adapter: W'_k, W'_v": 170_393_600,
        "adapter: null keys": 83_200,
    },
}


@pytest.fixture(scope="module")
def sd15() -> Model:
    base = base_model("sd15", dtype=torch.float16)
    return base, adapter_for(base)


@pytest.fixture(scope="module")
def sdxl() -> Model:
    base = base_model("sdxl", dtype=torch.float16)
    return base, adapter_for(base)


@pytest.fixture(params=["sd15", "sdxl"])
def true(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


def output_at(base: BaseModel, adapter: Adapter, timesteps: torch.Tensor) -> AdapterOutput:
    """What the adapter says of one reference at the timesteps (T,)."""
    pixels = torch.empty(1, 3, 224, 224, dtype=base.dtype, device="meta")
    return adapter.at(adapter.encoder.encode_image(extract(base, pixels)), timesteps)


def test_parameters_of_every_part(true: Model) -> None:
    base, adapter = true
    assert {part: parameters(model) for part, model in models(base, adapter).items()} == COUNTS[base.name]
    assert parameters(adapter) == sum(n for part, n in COUNTS[base.name].items() if part.startswith("adapter"))


@pytest.mark.parametrize(("name", "trained", "share"), [("sd15", 81_845_184, 0.0564), ("sdxl", 281_869_568, 0.0695)])
def test_trained_share(name: str, trained: int, share: float, request: pytest.FixtureRequest) -> None:
    _base, adapter = request.getfixturevalue(name)
    assert parameters(adapter) == trained
    assert trained / sum(COUNTS[name].values()) == pytest.approx(share, abs=5e-5)


def test_the_meta_adapter_has_the_shape_of_a_real_one(tiny_base: BaseModel) -> None:
    """`adapter_for` fills in what `encoder_config` reads, but for the scale of S* at its start."""
    found = adapter_for(tiny_base).config
    assert replace(found, text_scales=encoder_config(tiny_base).text_scales) == encoder_config(tiny_base)


@pytest.mark.parametrize(("name", "layers", "rows"), [("sd15", 16, 800), ("sdxl", 70, 2100)])
@torch.no_grad()
def test_rows_of_s_plus(name: str, layers: int, rows: int, request: pytest.FixtureRequest) -> None:
    """T × L rows for each text encoder at the base's own number of steps and with its own scheduler."""
    base, adapter = request.getfixturevalue(name)
    assert len(base.cross_attention_layers) == adapter.config.num_layers == layers
    base.scheduler.set_timesteps(base.default_steps)
    timesteps = torch.tensor(list(dict.fromkeys(base.scheduler.timesteps.tolist())))
    output = output_at(base, adapter, timesteps)
    widths = [encoder.config.hidden_size for encoder in base.text_encoders]
    assert [tokens.shape for tokens in output.mfi.text_tokens] == [(rows // layers, layers, 4, d) for d in widths]
    assert len(widths) == (2 if name == "sdxl" else 1)
    assert [key.shape[-1] for key in output.keys] == [layer.width for layer in base.cross_attention_layers]

    few = output_at(base, adapter, timesteps[:2])
    prompt = encode_prompt(base, PROMPT, ["bear"], 4)
    context = encode_contexts(base, [prompt] * 2, [few.mfi.text_tokens], rows=256)
    assert context.hidden.shape == (2, layers, LENGTH, base.unet.config.cross_attention_dim)
    assert (context.pooled is None) == (name == "sd15")


@pytest.mark.parametrize("side", [512, 1024])
@torch.no_grad()
def test_a_call_with_a_subject_and_no_map_of_pixels_by_pixels(true: Model, side: int) -> None:
    """Masks in, all maps out; no tensor is (…, h·w, h·w), or at 1024² nearly heads × h·w × h·w of the finest layer."""
    base, adapter = true
    base = replace(base, device=torch.device("meta"))
    layers, size = base.cross_attention_layers, (side // 8, side // 8)
    finest = min(layers, key=lambda layer: layer.level)
    h, w = grid = level_size(size, finest.level)
    prompt = encode_prompt(base, PROMPT, ["bear"], 4)
    hidden = torch.empty(1, len(layers), LENGTH, base.unet.config.cross_attention_dim, dtype=base.dtype, device="meta")
    pooled = hidden.new_empty(1, 1280) if base.spec.pooled else None
    output = output_at(base, adapter, torch.tensor([500]))
    z, recorder = hidden.new_empty(2, 4, *size), MapRecorder(len(prompt.tokens))
    with DryRun() as dry:
        state = subject_state(
            base, TextContext(hidden, pooled), [prompt], [output], size=size, recorder=recorder,
            unconditional=TextContext(hidden[:, :1], pooled), masks=torch.empty(1, 1, h, w, device="meta"),
        )  # fmt: skip
        assert unet_forward(base, z, 500, state).shape == z.shape
        assert aggregate(recorder).shape == (1, 1, h, w)
        assert recorder.mean("text").shape == (1, 12, h, w)
    assert recorder._seen == {(kind, i) for i in range(len(layers)) for kind in ("text", "subject", "visual")}
    assert recorder.grid == grid

    pixels = {math.prod(level_size(size, layer.level)) for layer in layers}
    square = {shape for shape in dry.shapes if len(shape) > 2 and shape[-1] == shape[-2] and shape[-1] in pixels}
    assert square <= {shape for shape in dry.shapes if shape[-2:] == size}, "latents are square too; maps are not"
    maps = [math.prod(shape) for shape in dry.shapes if shape[-1:] == (LENGTH,)]
    assert max(maps) == finest.heads * h * w * LENGTH, "the largest text map: one row, every head, all pixels × tokens"
    if side == 1024:  # (at 512 SDXL's feed-forward part happens to be that large)
        assert max(math.prod(shape) for shape in dry.shapes) < finest.heads * (h * w) ** 2 / 3


@torch.no_grad()
def test_memory_of_a_call_grows_with_pixels_not_with_their_square() -> None:
    """Four times the pixels: about four times the memory. Maps add little, for they are summed as they come."""
    model, peaks = unet("sd15", dtype=torch.float16), {}
    for side in (512, 1024):
        for mode in MODES:
            with DryRun() as dry, dry.phase("call"):
                call_at(side, mode, model)
            assert dry.now == 0, "all that was made is gone"
            peaks[side, mode] = dry.peaks["call"]
    for mode in MODES:
        assert 3 < peaks[1024, mode] / peaks[512, mode] <= 4.1
    assert peaks[1024, "maps off"] <= peaks[1024, "location masks"] <= peaks[1024, "all maps"]
    assert peaks[1024, "all maps"] < 1.05 * peaks[1024, "maps off"]


def test_dry_run_counts_what_is_alive() -> None:
    x = torch.empty(1024, 256, device="meta")  # 1 MB, made before: not counted
    with DryRun() as dry:
        with dry.phase("a"):
            y = x + 1
            view = y.view(-1)[10:]
            z = (y * 2).add_(1)
            del y, z
        with dry.phase("b"):
            del view
            assert dry.now == 0
            x.to(torch.float16)
        with dry.phase("attention"):
            Q = torch.empty(1, 2, 4096, 64, device="meta", dtype=torch.float16)
            torch.nn.functional.scaled_dot_product_attention(Q, Q, Q)
    assert dry.peaks["a"] == 2 * MB and dry.peaks["b"] <= 1 * MB
    assert dry.peaks["attention"] == 2 * Q.nbytes + 2 * 4096 * 4
    with DryRun(convolution_copies=True) as dry, dry.phase("c"):
        torch.nn.functional.conv2d(torch.empty(1, 8, 16, 16, device="meta"), torch.empty(8, 8, 3, 3, device="meta"))
    made = 4 * (8 * 16 * 16 + 8 * 8 * 9)
    assert dry.peaks["c"] == 2 * made + 4 * 8 * 14 * 14


def test_tokenizer_has_the_true_size() -> None:
    found = tokenizer()
    ids = found("a bear on the red beach", padding="max_length").input_ids
    assert len(found) == VOCABULARY and len(ids) == LENGTH
    assert ids[0] == VOCABULARY - 2 and ids[7] == VOCABULARY - 1 and max(ids[1:7]) < 1000


def test_random_weights_are_finite_and_not_alike() -> None:
    """On a CPU `make` fills everything: matrices at 1/√(3·inputs), norms with ones, biases with zeros."""
    model = make(lambda: torch.nn.Sequential(torch.nn.Linear(300, 5000), torch.nn.LayerNorm(5000)), "cpu")
    weight = model[0].weight
    assert float(weight.std()) == pytest.approx((3 * 300) ** -0.5, rel=0.01)
    assert not torch.equal(weight[0], weight[4000]) and float(weight.abs().max()) < 1
    assert bool((model[1].weight == 1).all()) and bool((model[0].bias == 0).all())
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert weight_bytes(model) == 4 * parameters(model)
    with pytest.raises(ValueError, match="running_mean"):
        make(lambda: torch.nn.BatchNorm2d(3), "cpu")


@pytest.mark.parametrize("name", [NAMES[2], *OURS])
def test_contenders_of_the_true_size_benchmark(name: str) -> None:
    """The ones that need no weights to be loaded; each predicts one picture's noise and keeps no memory."""
    call = contender(name, unet("sd15", dtype=torch.float16), 64)
    with DryRun() as dry:
        assert call().shape == (1, 4, 8, 8)
        before = dry.now  # keys and values of the empty prompt stay for the next step
        call()
        assert dry.now == before and before < 4 * MB
