"""Pictures of an evaluation: the same by one process and by several, drawn once, never half there."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customcontrast.base_model import BaseModel
from customcontrast.pipeline import CustomContrast
from customcontrast.segmentation import Segmentation
from train.evaluation import drawings
from train.evaluation.drawings import Drawing, drawn


def wanted(reference: Segmentation) -> list[Drawing]:
    options = {"num_inference_steps": 1}
    several = [Drawing("bear", "a <bear>", seed, ((reference, "bear"),), options) for seed in (0, 1)]
    return [*several, Drawing("text", "a red car", 0, options=options), several[0]]


def test_several_processes_draw_what_one_draws(
    tiny_custom: CustomContrast, reference: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = list(drawn(tiny_custom, wanted(reference), tmp_path / "alone", "one"))
    monkeypatch.setattr(drawings, "PORTION", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert drawings.processes(tiny_custom.base, 3) == 2
    parent, generate = os.getpid(), tiny_custom.generate

    def elsewhere(*args: object, **options: object) -> object:
        assert os.getpid() != parent
        return generate(*args, **options)

    monkeypatch.setattr(tiny_custom, "generate", elsewhere)
    shared = list(drawn(tiny_custom, wanted(reference), tmp_path / "shared", "two"))
    assert [p.tobytes() for p in shared] == [p.tobytes() for p in alone] and alone[0].tobytes() == alone[3].tobytes()
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("alone", "shared")]
    assert names[0] == names[1] and len(names[0]) == 3
    monkeypatch.setattr(tiny_custom, "generate", lambda *a, **k: pytest.fail("drawn again"))
    again = list(drawn(tiny_custom, wanted(reference), tmp_path / "shared", "read"))  # none is drawn
    assert [p.tobytes() for p in again] == [p.tobytes() for p in alone]


def test_a_file_is_of_all_that_its_picture_depends_on(tiny_custom: CustomContrast, reference: Segmentation) -> None:
    first, plain = wanted(reference)[0], wanted(reference)[2]
    mask = ~reference.mask
    others = [
        replace(first, seed=5),
        replace(first, prompt="a <bear> on the beach"),
        replace(first, options={"num_inference_steps": 2}),
        replace(first, options=first.options | {"subject_scale": 0.5}),
        replace(first, subjects=((replace(reference, mask=mask), "bear"),)),
        replace(first, subjects=((reference, "cat"),)),
    ]
    names = {drawing.file(tiny_custom, drawings.weights_digest(tiny_custom)) for drawing in (first, *others)}
    assert len(names) == 7 and all(name.startswith("bear-") and name.endswith(".png") for name in names)
    without = CustomContrast(tiny_custom.base)
    assert drawings.weights_digest(tiny_custom) != drawings.weights_digest(without)
    assert drawings.weights_digest(tiny_custom, adapter=False) == drawings.weights_digest(without)
    assert plain.file(tiny_custom, "") == plain.file(without, "")  # text alone: whatever the adapter


def test_a_base_of_other_weights_makes_other_pictures(tiny_base: BaseModel) -> None:
    before = drawings.base_digest(tiny_base)
    for part in ("unet", "vae", "image_encoder"):
        other = copy.deepcopy(getattr(tiny_base, part))
        next(iter(other.parameters())).data += 1
        assert drawings.base_digest(replace(tiny_base, **{part: other})) != before
    assert drawings.base_digest(tiny_base) == before


def test_prompts_of_one_subject_are_drawn_in_one_call(
    tiny_custom: CustomContrast, reference: Segmentation, tmp_path: Path
) -> None:
    first, other = replace(wanted(reference)[0], options={"num_inference_steps": 6}), replace(reference)
    prompts = ["a <bear>", *(f"a <bear> {where}" for where in ("on the beach", "in the forest"))]
    seven = [replace(first, name=f"{k}", prompt=prompts[k % 3]) for k in range(7)]
    apart = [
        replace(first, seed=5),
        replace(first, options={"num_inference_steps": 2}),
        replace(first, subjects=((other, "bear"),)),
        replace(first, subjects=((reference, "cat"),)),
        replace(first, subjects=()),
        replace(first, subjects=2 * first.subjects),
    ]
    assert not any(first.beside(drawing) or drawing.beside(first) for drawing in apart)
    calls = {Path(f"{k}"): drawing for k, drawing in enumerate([*seven, *apart])}
    assert [len(call) for call in drawings.in_calls(tiny_custom.base, calls)] == [5, 2, 1, 1, 1, 1, 1, 1]
    pictures = [np.asarray(p, int) for p in drawn(tiny_custom, seven[:3], tmp_path, "in one call")]
    for drawing, picture in zip(seven, pictures, strict=False):
        (alone,) = drawings.draw(tiny_custom, [drawing])
        assert np.abs(np.asarray(alone) - picture).max() <= 1
    assert np.abs(pictures[0] - pictures[1]).max() > 2
    path = sorted(tmp_path.iterdir())[1]
    before = path.read_bytes()
    path.unlink()
    list(drawn(tiny_custom, seven[:3], tmp_path, "goes on"))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_one_process_where_more_are_no_use(
    tiny_base: BaseModel, tiny_xl_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawings.processes(tiny_base, 2 * drawings.PORTION - 1) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [drawings.processes(tiny_base, n * drawings.PORTION) for n in (0, 1, 2, 3, 9)] == [1, 1, 2, 3, 4]
    assert drawings.processes(tiny_xl_base, 1000) == 1
    monkeypatch.setattr("sys.platform", "darwin")
    assert drawings.processes(tiny_base, 1000) == 1


def test_a_picture_is_whole_or_not_there(
    tiny_custom: CustomContrast, reference: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half a pic")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="no space"):
        list(drawn(tiny_custom, wanted(reference)[:1], tmp_path / "out", "one"))
    assert not list((tmp_path / "out").glob("*.png"))
