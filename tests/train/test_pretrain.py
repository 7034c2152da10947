"""The embedded base's own training: every stage at toy width, from pictures to a pipeline that diffusers loads."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from customcontrast.base_model import FACTS
from train.base import clip_stages, pool, pretrain
from train.base.base_config import TINY, PoolConfig, StageConfig
from train.base.export import adopt
from train.base.networks import (
    ClipTrainer,
    _labelled,
    export_stage,
    label_values,
    make_clip,
    make_tokenizer,
    tokenize,
)
from train.base.stage import Stage, checkpoint_step
from train.common.schedule import Schedule
from train.toyland import World, is_heldout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run and its exported folder beside it."""
    folder = tmp_path_factory.mktemp("base")
    stages = [
        ["clip"],
        ["vae"],
        ["latents"],
        ["unet"],
        ["image"],
        ["decoder"],
        ["export", "--out", str(folder / "weights")],
    ]
    for stage in [["pool", "--count", "2"], *stages]:
        pretrain.main([*stage, "--preset", "tiny", "--run", str(folder)])
    return folder


def test_a_batch_without_a_label_costs_nothing_and_is_no_nan() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    none, some = torch.full((3,), -100), torch.tensor([-100, 2, 4])
    assert _labelled(logits, none).item() == 0
    assert torch.allclose(_labelled(logits, some), nn.functional.cross_entropy(logits[1:], some[1:]))


def test_exported_folder_is_an_ordinary_diffusers_pipeline(run: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(run / "weights")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red cat on the beach", num_inference_steps=2, height=32, width=32).images[0]
    assert picture.size == (32, 32)
    assert pipe.image_encoder.config.image_size == 32


def test_every_weight_file_is_small_sixteen_bit_safetensors(run: Path) -> None:
    files = [p for p in (run / "weights").rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    for path in (p for p in files if p.suffix == ".safetensors"):
        assert path.stat().st_size < 9e6
        with safe_open(path, "pt") as f:
            assert {f.get_slice(k).get_dtype() for k in f.keys()} <= {"F16", "I64"}  # noqa: SIM118


def test_clip_towers_agree_with_the_trained_clip(run: Path) -> None:
    """The exported towers and head give the cosine the whole CLIPModel gives."""
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    weights = run / "weights"
    tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer")
    values = label_values(World.small())
    trainer = ClipTrainer(make_clip(TINY, tokenizer), values, TINY.clip.width)
    clip = export_stage("image", trainer, TINY, run).clip.eval()
    ids = tokenize(tokenizer, ["a cat", "two red bears in the snow"])
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        text = CLIPTextModel.from_pretrained(weights / "text_encoder")(ids).pooler_output
        text = text @ load_file(weights / "clip_head.safetensors")["text_projection.weight"].float().T
        image = CLIPVisionModelWithProjection.from_pretrained(weights / "image_encoder")(pixels).image_embeds
        whole = clip(input_ids=ids, pixel_values=pixels)
    unit = nn.functional.normalize
    torch.testing.assert_close(unit(text), whole.text_embeds, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(unit(image), whole.image_embeds, atol=5e-3, rtol=5e-3)


def test_locked_parts_stay_what_the_denoiser_was_trained_with(run: Path) -> None:
    """`image` leaves the text tower alone, `decoder` the encoder: neither moves what the denoiser has seen."""
    clip, image = load_file(run / "clip.safetensors"), load_file(run / "image.safetensors")
    vae, decoder = load_file(run / "vae.safetensors"), load_file(run / "decoder.safetensors")
    for name in (k for k in image if k.startswith("weights.clip.text_")):
        assert torch.equal(image[name], clip["ema" + name.removeprefix("weights")]), name
    for name in (k for k in decoder if k.startswith("weights.encoder.")):
        assert torch.equal(decoder[name], vae["ema" + name.removeprefix("weights")]), name
    moved = [k for k in decoder if k.startswith("weights.decoder.") and not torch.equal(decoder[k], vae["ema" + k[7:]])]
    assert moved


def test_training_goes_on_from_an_exported_folder(run: Path, tmp_path: Path) -> None:
    """adopt, then export without a step: the same weights. With more steps: others, and the log counts on."""
    log = tmp_path / "shipped"
    shutil.copytree(run / "weights", log)
    pretrain.main(["adopt", "--preset", "tiny", "--weights", str(log), "--run", str(tmp_path / "run")])
    pretrain.main(["export", "--preset", "tiny", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "again")])
    for path in sorted(p.relative_to(log) for p in log.rglob("*.safetensors")):
        before, after = load_file(log / path), load_file(tmp_path / "again" / path)
        assert all(torch.equal(before[k], after[k]) for k in before), path
    shutil.copytree(run / "pool", tmp_path / "run" / "pool")
    pretrain.main(["unet", "--preset", "tiny", "--steps", "8", "--run", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "unet.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8 and checkpoint_step(run / "unet.safetensors")[0] == 6
    with pytest.raises(SystemExit):
        pretrain.main(["adopt", "--preset", "tiny", "--weights", str(log), "--run", str(tmp_path / "run")])


def test_a_base_with_layouts_goes_on_from_its_export(exported_demo: Path, tmp_path: Path) -> None:
    """adopt, then export, without a pool: the same weights, prior and steps."""
    options = ["--preset", "tiny-demo", "--run", str(tmp_path / "run")]
    pretrain.main(["adopt", *options, "--weights", str(exported_demo)])
    pretrain.main(["export", *options, "--out", str(tmp_path / "again")])
    before, after = (json.loads((folder / FACTS).read_text()) for folder in (exported_demo, tmp_path / "again"))
    assert before["layout"] == after["layout"] and before["masks_padding"] and after["masks_padding"]
    assert {k: v["step"] for k, v in after["trained"].items()} == {"clip": 6, "vae": 6, "unet": 6}
    for path in sorted(p.relative_to(exported_demo) for p in exported_demo.rglob("*.safetensors")):
        old, new = load_file(exported_demo / path), load_file(tmp_path / "again" / path)
        assert all(torch.equal(old[k], new[k]) for k in old), path


def test_adopting_names_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use the --preset that trained them"):
        adopt(replace(TINY, unet=replace(TINY.unet, channels=(16, 16))), run / "weights", tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="name a folder that export wrote"):
        adopt(TINY, tmp_path, tmp_path / "b")


def test_tokenizer_takes_any_text(run: Path) -> None:
    tokenizer = make_tokenizer(TINY, run)
    for text in ("", "a giraffe", "Möndsee 雪 🦒", "x" * 500, "\u202eright to left"):
        ids = tokenize(tokenizer, [text])
        assert ids.shape == (1, TINY.clip.max_tokens)
        assert ids.max() == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.decode(tokenizer("möndsee 雪").input_ids, skip_special_tokens=True).strip() == "möndsee 雪"


def test_words_the_model_was_shown(run: Path) -> None:
    words = set(json.loads((run / "weights" / "vocabulary.json").read_text()))
    assert {"bear", "beach", "striped", "red"} <= words
    assert "giraffe" not in words


def test_a_stage_resumes_to_the_weights_of_an_unbroken_run(tmp_path: Path) -> None:
    config = StageConfig(batch=4, lr=1e-2, steps=12, warmup=2)

    def train(folder: Path, limits: list[int]) -> dict[str, torch.Tensor]:
        for limit in limits:  # a new process each time, as far as the stage can tell
            torch.manual_seed(0)
            model = nn.Linear(3, 3)
            stage = Stage("toy", model, config, folder)

            def loss_at(step: int, g: torch.Generator, stage=stage, model=model, limit=limit):
                if step + 1 == limit:
                    signal.raise_signal(signal.SIGTERM)
                x = torch.randn(4, 3, generator=g)
                return (model(x) - x.flip(1)).pow(2).mean(), {}

            stage.run(loss_at)
        return stage.ema.weights | dict(model.state_dict())

    whole, broken = train(tmp_path / "whole", [99]), train(tmp_path / "broken", [5, 9, 99])
    for name, tensor in whole.items():
        torch.testing.assert_close(broken[name], tensor, atol=0, rtol=0)


def test_non_finite_loss_is_named(tmp_path: Path) -> None:
    stage = Stage("toy", nn.Linear(1, 1), StageConfig(batch=1, lr=1e-3, steps=2), tmp_path)
    with pytest.raises(FloatingPointError, match="toy: loss is nan at step 0"):
        stage.run(lambda step, g: (stage.model.weight.sum() * float("nan"), {}))


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    stage = StageConfig(batch=1, lr=1.0, steps=100, warmup=10, decay=0.3)
    rates = [Schedule(stage.lr, stage.steps, stage.warmup, "linear", decay=stage.decay).rate(s) for s in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert set(rates[10:70]) == {1.0}
    assert rates[70:] == sorted(rates[70:], reverse=True)
    assert rates[100] == 0.0


def test_pool_depends_on_its_index_alone_and_holds_no_heldout_lead(tmp_path: Path) -> None:
    config = PoolConfig(size=32, subjects_per_shard=2, views=2, variants=2, captions=2)
    a = pool.read_shard(pool.write_shard(3, config, tmp_path / "a", chunk=3))
    b = pool.read_shard(pool.write_shard(3, config, tmp_path / "b", chunk=8))
    assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) and a.records == b.records
    assert a.images.shape == (8, 3, 32, 32) and a.masks.shape == (8, 2, 32, 32)
    for record in a.records:
        for caption in record["captions"] + record["plain"]:
            assert all(0 <= s < e <= len(caption["text"]) for s, e in caption["nouns"])
    scenes = pool.shard_scenes(3, config)
    assert not any(is_heldout(p.subject) for _, _, scene in scenes for p in scene.placements)
    # frames of a group share their leading subject
    leads = {
        g: set.intersection(*({p.subject.id for p in s.placements} for h, _, s in scenes if h == g)) for g in (0, 1)
    }
    assert all(leads.values())


def test_crops_show_the_subject_alone_on_white() -> None:
    image = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    mask = torch.zeros(1, 2, 20, 20, dtype=torch.bool)
    mask[0, 1, 5:9, 2:8] = True
    image[0, 0, 5:9, 2:8] = 200
    crop = clip_stages.subject_crops(image, mask, torch.tensor([1]), 24)[0]
    assert crop[:, :2].min() > 240 and crop[:, -2:].min() > 240
    assert crop[0, 12, 12] > 190 and crop[1:, 12, 12].max() < 10
    empty = clip_stages.subject_crops(image, mask, torch.tensor([0]), 24)
    assert (empty == 255).all()


def test_presets_differ_in_size_alone() -> None:
    """One code path: every preset fills the same dataclasses."""
    from train.base.base_config import CPU, GPU

    assert type(CPU) is type(GPU) is type(TINY)
    assert replace(GPU, unet=CPU.unet).unet == CPU.unet
    for preset in (CPU, GPU):
        assert preset.pool.size % preset.clip.patch == 0
        assert preset.pool.size % 2 ** (len(preset.vae.channels) - 1) == 0
