"""`init`: a run starts as a published IP-Adapter, goes on without its file, and says what is wrong with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from customcontrast import hub
from customcontrast.adapter_files import load_adapter, save_adapter
from customcontrast.attention import unet_forward
from customcontrast.attention.state import SubjectBranch, SubjectState
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from customcontrast.errors import ConfigError, ResumeError
from customcontrast.ip_adapter import IPAdapter
from customcontrast.warm_start import WarmAdapter
from tests.robustness.runs import ENCODER, small_run, write_views
from tests.support.ip_files import random_ip_file
from tests.support.tiny_models import random_adapter
from train.adapter import losses
from train.adapter.adapter_config import AdapterTrainConfig, DataConfig, LossConfig
from train.adapter.start import Start
from train.adapter.step import AdapterLoss, Noise
from train.adapter.train import train
from train.data.frozen_features import with_features
from train.data.sampler import Samples
from train.data.samples import collate
from train.data.sources import make_source


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AdapterTrainConfig:
    """A run of two steps on a folder of three subjects, from a file in the published layout."""
    folder = tmp_path_factory.mktemp("init")
    file = random_ip_file(folder / "plus.safetensors", "plus", tiny_base.unet, tiny_base.image_encoder.config)
    write_views(folder / "views", subjects=3)
    config = small_run(tiny_folder, folder, steps=2)
    data = DataConfig(source="folder", path=str(folder / "views"), size=64, drop=0.2, captions="noun")
    return replace(config, init=str(file), data=data)


def history(output: Path) -> list[float]:
    return [json.loads(line)["total"] for line in (output / "log.jsonl").read_text().splitlines()]


def test_the_first_loss_is_that_of_ip_adapter(settings: AdapterTrainConfig) -> None:
    """L_diff at step 0, row by row: of the picture, and of no picture where the subject or its branch is dropped."""
    config = replace(settings, encoder=ENCODER | {"textual": False, "tv_fusion": False})
    start = Start.of(config, None)
    base = start.base(torch.device("cpu"), torch.float32)
    assert base.image_layers[0] == base.image_encoder.config.num_hidden_layers - 1
    adapter, ip = start.adapter(base), load_adapter(settings.init, base)
    assert isinstance(adapter, WarmAdapter) and isinstance(ip, IPAdapter)
    samples = Samples(make_source(config.data, base, progress=False), 0, 0.0)
    batch = with_features(base, collate([samples[i] for i in range(4)]))
    no = torch.zeros(4, dtype=torch.bool)
    subject, visual = no.clone(), no.clone()
    subject[1] = visual[2] = True
    batch = replace(batch, drop_text=no, drop_subject=subject, drop_visual=visual)
    noise = Noise.draw(batch.latents.shape, 1000, (0, 0), base.device)
    model = AdapterLoss(base, adapter, LossConfig(cscl=False, macl=False, lambda_2=0.0))
    with torch.no_grad():
        found = model(batch, noise).diffusion
        context = encode_contexts(base, [encode_prompt(base, caption) for caption in batch.captions])
        seen, nothing = ip.image_proj(batch.reference_states[0]), ip.nothing(base).expand(4, -1, -1)
        pictures = ip.at(torch.where((subject | visual)[:, None, None], nothing, seen))
        state = SubjectState((context.hidden,), (8, 8), (SubjectBranch(pictures.keys, pictures.values, sink=False),))
        z_t = model.scheduler.add_noise(batch.latents, noise.epsilon, noise.t)
        target = losses.diffusion_target(model.scheduler, batch.latents, noise.epsilon, noise.t)
        wanted = losses.diffusion_loss(unet_forward(base, z_t, noise.t, state), target)
        undropped = model(replace(batch, drop_subject=no, drop_visual=no), noise).diffusion
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert (found - undropped).abs() > 1e-4, "no picture is another condition than the picture"


def test_a_run_goes_on_from_its_checkpoint_alone(
    settings: AdapterTrainConfig, tiny_base: BaseModel, tmp_path: Path
) -> None:
    """The file is read for step 0; the run that goes on without it has the losses and weights of the unbroken one."""
    train(settings, tmp_path / "whole", cpu=True)
    half = replace(settings, optim=replace(settings.optim, steps=1))
    train(half, tmp_path / "parts", cpu=True)
    train(replace(settings, init="moved.safetensors"), tmp_path / "parts", cpu=True)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    a, b = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    adapter, ip = load_adapter(tmp_path / "whole" / "adapter.safetensors", tiny_base), load_file(settings.init)
    assert isinstance(adapter, WarmAdapter) and adapter.image_encoder is not None
    moved = [not torch.equal(w.half(), ip[name].half()) for name, w in adapter.published.published().items()]
    assert all(moved), "all of the published part is trained"
    for wrong in ("", settings.init):
        name = "whole" if wrong == "" else "bare"
        if wrong:
            train(replace(half, init=""), tmp_path / name, cpu=True)
        with pytest.raises(ResumeError, match="init"):
            train(replace(settings, init=wrong), tmp_path / name, cpu=True)


def test_what_init_cannot_be_is_one_sentence(
    settings: AdapterTrainConfig, tiny_base: BaseModel, tiny_xl_base: BaseModel, tmp_path: Path
) -> None:
    made = {
        kind: random_ip_file(tmp_path / f"{kind}.safetensors", kind, base.unet, base.image_encoder.config)
        for kind, base in (("pooled", tiny_base), ("plus", tiny_xl_base))
    }
    own = save_adapter(random_adapter(tiny_base), tmp_path / "own.safetensors")
    for wrong, says in (
        ("nowhere.safetensors", "no file 'nowhere.safetensors', and no published adapter"),
        ("ip-adapter-plus", "published for sd15 and sdxl, not for 'toyland'"),
        ("h94/IP-Adapter:models/ip-adapter_sd15.bin", "pickle"),
        (str(made["pooled"]), "reads image embeddings"),
        (str(made["plus"]), "choose the file of your base"),
        (str(own), "no published IP-Adapter"),
    ):
        with pytest.raises(ConfigError, match=f"config: init cannot be used.*{says}"):
            train(replace(settings, init=wrong), tmp_path / "run", cpu=True)


def test_a_name_brings_its_image_encoder(
    settings: AdapterTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights bring none, the CLIP that the published file reads is loaded; a given one stands above it."""
    from train.adapter import start as start_module

    asked: list[object] = []
    monkeypatch.setattr(start_module, "adapter_file", lambda name, base: Path(settings.init))
    monkeypatch.setattr(start_module, "load_base", lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(start_module, "replace", lambda base, **_: base)
    config = replace(settings, init=hub.NAMES[0], weights=str(tmp_path))
    Start.of(config, None).base(torch.device("cpu"), torch.float32)
    Start.of(replace(config, image_encoder="mine/clip"), None).base(torch.device("cpu"), torch.float32)
    Start.of(replace(config, weights=settings.weights), None).base(torch.device("cpu"), torch.float32)
    assert asked == ["h94/IP-Adapter:models/image_encoder", "mine/clip", None]
