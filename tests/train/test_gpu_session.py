"""A session on a lent GPU, on the CPU: it renders, learns, hands back files that come back, and they can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from customcontrast.base_model import load_base
from train.base import gpu_session, pretrain
from train.base.base_config import TINY_DEMO
from train.base.networks import lateness, make_unet, noise_weight, text_mask
from train.base.stage import Stage, checkpoint_step


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a session starts from: a tokenizer, CLIP and an autoencoder; and some shards already rendered."""
    folder = tmp_path_factory.mktemp("session")
    for stage in (["pool", "--count", "6"], ["clip"], ["vae"]):
        pretrain.main([*stage, "--preset", "tiny-demo", "--run", str(folder)])
    return folder


def session(**options: object) -> gpu_session.SessionConfig:
    given = {"batch": 4, "first": 12, "capacity": 40, "workers": 0, "device": "cpu", "save_every": 0.2}
    return gpu_session.SessionConfig(0.05, **(given | options))


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished session of three seconds."""
    tokenizer = gpu_session.load(run / "tokenizer")
    for shard in sorted((run / "pool").glob("*.safetensors")):
        gpu_session.hand_over(shard, run, tokenizer, TINY_DEMO.unet.plain)
    folder = tmp_path_factory.mktemp("out")
    gpu_session.Session(TINY_DEMO, session(), run, folder).run()
    return folder


def test_what_comes_back_is_small_files_and_pictures_to_look_at(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    assert {"unet-0.safetensors", "sheet-0.png"} <= names and not [n for n in names if n.endswith(".part")]
    assert all(path.stat().st_size <= 16 * 2**20 for path in out.iterdir())


def test_the_checkpoint_goes_on_on_the_cpu(run: Path, out: Path) -> None:
    samples = gpu_session.collect(TINY_DEMO, run, out)
    with safe_open(out / "unet-0.safetensors", "pt") as f:
        assert samples == int(f.metadata()["samples"]) // 4 * 4 > 0
    before = checkpoint_step(run / "unet.safetensors")[0]
    pretrain.main(["unet", "--preset", "tiny-demo", "--run", str(run), "--steps", str(before + 3)])
    assert checkpoint_step(run / "unet.safetensors")[0] == before + 3
    pretrain.main(["export", "--preset", "tiny-demo", "--run", str(run), "--out", str(run / "weights")])
    base = load_base("toyland", run / "weights")
    assert base.masks_padding and base.layout_channels and base.layout_prior.kinds


def test_parts_of_two_moments_are_refused(run: Path, out: Path, tmp_path: Path) -> None:
    state = load_file(out / "unet-0.safetensors")
    for n, names in enumerate((list(state)[:3], list(state)[3:])):
        part = {k: state[k] for k in names}
        save_file(part, tmp_path / f"unet-{n}.safetensors", metadata={"samples": str(n)})
    with pytest.raises(ValueError, match="two moments"):
        gpu_session.collect(TINY_DEMO, run, tmp_path)
    with pytest.raises(FileNotFoundError, match="unet-N"):
        gpu_session.collect(TINY_DEMO, run, tmp_path / "nothing")


def test_files_hold_whole_tensors_up_to_a_size() -> None:
    mega = 2**20
    sizes = {"a": 9 * mega, "b": 5 * mega, "c": 4 * mega, "d": 20 * mega, "e": mega}
    assert list(gpu_session.parts(sizes)) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_the_store_holds_what_was_rendered(run: Path, out: Path) -> None:
    store = gpu_session.Store(TINY_DEMO, run, 40, torch.device("cpu"))
    while store.grow(2):
        pass
    assert store.count == 40 and len(store.held["images"]) == 4  # 48 pictures: 4 held, 40 that fit
    assert store.rows[0, 0, 3:7].tolist() != store.rows[0, 1, 3:7].tolist()  # the second is the mirror
    torch.manual_seed(0)
    z, context, mask, layout = store.batch(64)
    assert z.shape == (64, 4, 4, 4) and context.shape[:2] == mask.shape == (64, gpu_session.TOKENS)
    assert layout.shape == (64, 13, 4, 4)
    unknown = (layout == 0).flatten(1).all(1).float().mean().item()
    bare = (mask.sum(1) == 2).float().mean().item()  # start and end alone
    assert 0 < unknown < 0.4 and 0 < bare < 0.4


def test_the_average_is_that_of_single_steps(run: Path, tmp_path: Path) -> None:
    s = gpu_session.Session(TINY_DEMO, session(ema=0.9), run, tmp_path)
    s.step = 10_000
    name = next(iter(s.ema))
    with torch.no_grad():
        s.parameters[name].fill_(1.0)
        s.ema[name].zero_()
    s.average(5)
    assert torch.allclose(s.ema[name], torch.full_like(s.ema[name], 1 - 0.9**5))


def test_noise_weight_goes_from_one_weighting_to_the_other() -> None:
    snr = torch.tensor([0.01, 1.0, 4.0, 100.0])
    least, most = noise_weight(snr, 5.0, 1.0), noise_weight(snr, 5.0, 0.0)
    assert torch.allclose(least, snr.clamp(max=5) / (snr + 1)) and torch.allclose(most[:3], torch.ones(3))
    assert torch.allclose(noise_weight(snr, 5.0, torch.tensor(0.5)), (least + most) / 2)
    assert [lateness(d, 0.5) for d in (0.0, 0.5, 0.75, 1.0)] == [0, 0, 0.5, 1] and lateness(0.1, 0.0) == 1


def test_the_mask_of_a_text_ends_with_its_first_end_token() -> None:
    ids = torch.tensor([[0, 5, 9, 9, 9], [0, 5, 6, 7, 9], [0, 9, 9, 9, 9]])
    assert text_mask(ids, 9).sum(1).tolist() == [3, 5, 2]


def test_a_log_line_of_a_session(run: Path, tmp_path: Path) -> None:
    s = gpu_session.Session(TINY_DEMO, session(), run, tmp_path)
    s.errors += torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 0.0]])
    s._log(12, 3.0, 4.0)
    line = json.loads((tmp_path / "session.jsonl").read_text())
    assert line["quarters"] == [0.5, 1.0, 1.5, 4.0] and not s.errors.any()
    s.errors[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        s._log(12, 3.0, 4.0)


def test_stage_reads_a_checkpoint_without_moments(run: Path, out: Path) -> None:
    gpu_session.collect(TINY_DEMO, run, out)
    stage = Stage("unet", make_unet(TINY_DEMO), TINY_DEMO.unet_stage, run)
    assert stage.step > 0 and not stage.optimizer.state
