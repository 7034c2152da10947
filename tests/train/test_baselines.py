"""Baselines: each trains what its name says, and all of them end in one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

from customcontrast.base_model import BaseModel
from customcontrast.conditioning.text_context import encode_contexts, encode_prompt
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation
from train.adapter.adapter_config import AdapterTrainConfig
from train.adapter.step import without_subject
from train.evaluation import evaluate
from train.evaluation.evaluation_config import EvaluationConfig
from train.experiments import baselines, finetune
from train.experiments.ablation import Deadline
from train.experiments.baselines import ENCODERS, method_config
from train.experiments.finetune import METHODS, FineTuneConfig, FineTuned, fine_tune


def weights_of(base: BaseModel) -> list[torch.Tensor]:
    return [p.clone() for part in (base.unet, *base.text_encoders) for p in part.parameters()]


def test_baselines_differ_in_their_flags_alone() -> None:
    config = AdapterTrainConfig(encoder={"width": 32})
    rows = {name: method_config(config, method, 9) for name, method in ENCODERS.items()}
    assert len({(row.seed, row.optim, row.data) for row in rows.values()}) == 1
    assert rows["customcontrast"].loss.macl and rows["customcontrast"].loss.cscl
    for name in ("ip-adapter-plus", "elite"):
        loss = rows[name].loss
        assert not loss.cscl and not loss.macl and loss.lambda_2 == 0
    assert rows["ip-adapter-plus"].encoder["textual"] is False and not rows["elite"].loss.visual


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning_learns_one_subject_and_leaves_the_base_alone(
    any_base: BaseModel, reference: Segmentation, method: str
) -> None:
    before = weights_of(any_base)
    config = FineTuneConfig(method, steps=2, batch=2, class_pictures=3, learning_rate=1e-2, tokens=2, rank=2)
    subject = fine_tune(any_base, reference, "bear", config)
    first = finetune.first_tokens(any_base, "bear", 2, torch.Generator().manual_seed(0))
    moved = [not torch.equal(a, b) for a, b in zip(first, subject.tokens, strict=True)]
    assert all(moved) if method != "dreambooth-lora" else not any(moved)
    was, now = dict(any_base.unet.named_parameters()), dict(subject.base.unet.named_parameters())
    changed = {n for n, p in now.items() if not torch.equal(p, was.get(n.replace("base_layer.", ""), torch.zeros(())))}
    if method == "textual-inversion":
        assert subject.base.unet is any_base.unet and len(subject.learned) == len(any_base.text_encoders)
    elif method == "custom-diffusion":
        cross = {f"{layer.name}.to_{x}.weight" for layer in any_base.cross_attention_layers for x in "kv"}
        assert changed == cross == {name for name in subject.learned if not name.startswith("S*")}
    else:
        assert set(subject.learned) == {n for n in now if "lora_" in n} == changed
        assert any(p.abs().max() > 0 for n, p in now.items() if "lora_B" in n)  # zero at first
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(any_base), strict=True))
    again = fine_tune(any_base, reference, "bear", config)
    assert subject.losses == again.losses and len(subject.losses) == 2
    picture = finetune.generate(subject, "a <bear> on the beach", steps=2)
    assert picture.size == (any_base.default_size,) * 2
    assert finetune.generate(subject, "a <bear> on the beach", steps=2).tobytes() == picture.tobytes()
    ended = replace(subject, base=replace(subject.base, default_guidance_end=0.0))  # guidance ends as in the pipeline
    unguided = finetune.generate(subject, "a <bear> on the beach", steps=2, guidance=1.0)
    assert finetune.generate(ended, "a <bear> on the beach", steps=2).tobytes() == unguided.tobytes()
    assert unguided.tobytes() != picture.tobytes()


def test_textual_inversion_lowers_its_loss(tiny_base: BaseModel, reference: Segmentation) -> None:
    """On one picture and the same noise, the later steps cost less than with S* as it starts."""
    config = {"method": "textual-inversion", "steps": 30, "batch": 2, "tokens": 2}
    learned = fine_tune(tiny_base, reference, "bear", FineTuneConfig(**config, learning_rate=5e-2)).losses
    still = fine_tune(tiny_base, reference, "bear", FineTuneConfig(**config, learning_rate=0.0)).losses
    assert sum(learned[15:]) < sum(still[15:])


def test_mistakes_and_the_deadline() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        FineTuneConfig("hypernetwork")
    with pytest.raises(ValueError, match="counts"):
        FineTuneConfig(steps=0)
    assert Deadline(None).left is None and Deadline(0).left == 0.0 and 0 < Deadline(5).left <= 5


def test_all_methods_end_in_one_table(
    experiment: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*experiment, "--subject-steps", "1"]
    assert baselines.main([*arguments, "--minutes", "0"]) == 130
    assert baselines.main(arguments) == 0, capsys.readouterr().err
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(f"| {name} | " in table for name in (*ENCODERS, *METHODS))
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    monkeypatch.setattr(finetune, "fine_tune", lambda *a: pytest.fail("learned again"))
    assert baselines.main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in made} == made


def test_a_benchmark_folder_that_is_missing_is_named(tiny_base: BaseModel) -> None:
    config = EvaluationConfig(benchmark="nowhere", limit=1, clip="", dino="")
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        evaluate.Bench.of(tiny_base, config)


def test_custom_diffusion_shows_the_class_without_the_subject(tiny_base: BaseModel) -> None:
    pictures = finetune.class_pictures(tiny_base, "bear", 4, seed=0)
    assert pictures.shape == (4, 3, tiny_base.default_size, tiny_base.default_size) and pictures.dtype == torch.uint8
    drawn = CustomContrast(tiny_base).generate("a bear", num_images=4, seed=0).images
    assert torch.equal(pictures, torch.stack([pil_to_tensor(picture) for picture in drawn]))
    tokens = finetune.first_tokens(tiny_base, "bear", 2, torch.Generator().manual_seed(0))
    rows = [encode_prompt(tiny_base, "a <bear>", ["bear"], 2), without_subject(tiny_base, "a bear", 2)]
    marked, plain = FineTuned(tiny_base, tokens, "bear", (), []).context(rows).hidden
    alone = encode_contexts(tiny_base, [encode_prompt(tiny_base, "a bear")]).hidden[0]
    torch.testing.assert_close(plain, alone)
    assert not torch.allclose(marked, plain)


def test_with_a_word_for_s_star_a_fine_tuned_picture_is_the_pipelines(any_base: BaseModel, laid_out: BaseModel) -> None:
    """The same noise, guidance and, on a base that takes them, drawn layout: methods differ in what they learned."""
    for base in (any_base, laid_out):
        tables = [encoder.get_input_embeddings().weight for encoder in base.text_encoders]
        ids = [tokenizer("red", add_special_tokens=False).input_ids for tokenizer in base.tokenizers]
        tokens = [table[word][None, None] for table, word in zip(tables, ids, strict=True)]
        ours = finetune.generate(FineTuned(base, tokens, "bear", (), []), "a <bear> on the beach", steps=2, seed=3)
        pipeline = CustomContrast(base).generate("a bear red on the beach", num_inference_steps=2, seed=3).images[0]
        assert np.abs(np.asarray(ours, int) - np.asarray(pipeline)).max() <= 1
