"""Scores, intervals, the benchmark and its judges; a whole evaluation at toy size."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import BaseModel
from customcontrast.segmentation import Segmentation
from tests.support.tiny_models import random_adapter
from train.adapter.adapter_config import DataConfig
from train.base.networks import label_values
from train.data import adapter_pool
from train.evaluation import attribute_reader, command, evaluate, metrics, readers
from train.evaluation.clip_judge import ClipJudge, save_judge
from train.evaluation.metrics import (
    CATEGORIES,
    Backbones,
    Score,
    bootstrap,
    by_category,
    cosine,
    identity_rank,
    markdown,
    paired,
    summarise,
)
from train.evaluation.tasks import EDITED, EDITS, INCIDENTAL, ceiling, folder_cases, toyland_cases
from train.toyland import World, is_heldout, render, sample_scene


def made_up(n: int, ct: float, di: float) -> list[Score]:
    rng = random.Random(n)
    return [
        Score(f"s{i}", c, "a bear", ct + 0.01 * rng.random(), 0.7, di + (0.1 if c == CATEGORIES[0] else 0), i % 2)
        for i in range(n)
        for c in CATEGORIES
    ]


# ---- numbers


def test_cosine_row_by_row() -> None:
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(ValueError, match="equally many"):
        cosine(a, b[:2])


def test_bootstrap_covers_the_mean_and_groups_widen_it() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        interval = bootstrap(rng.normal(0.5, 1.0, 40), rounds=400, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    assert hits >= 50  # about 95 % of 60
    subject = np.repeat(rng.normal(0, 1, 10), 20)  # 200 values, but 10 independent ones
    groups = np.repeat(np.arange(10), 20).tolist()
    alone, clustered = bootstrap(subject), bootstrap(subject, groups)
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)
    assert alone.mean == clustered.mean and clustered.count == 200
    assert bootstrap([0.3]).low == bootstrap([0.3]).high == pytest.approx(0.3)
    with pytest.raises(ValueError, match="empty"):
        bootstrap([])
    with pytest.raises(ValueError, match="one group per value"):
        bootstrap([1.0, 2.0], [0])


def test_pairs_see_what_the_two_means_hide() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.5, 0.2, 20)  # subjects differ far more than the two methods
    before = [Score(str(i), "scene", f"p{k}", 0.3, 0.0, h) for i, h in enumerate(hard) for k in range(3)]
    after = [replace(s, di=s.di + 0.02 + rng.normal(0, 0.01)) for s in before]
    gain = paired(after, before, lambda s: s.di)
    assert gain.low > 0.01 and gain.high < 0.03 and gain.count == 60
    apart = [bootstrap([s.di for s in rows], [s.subject for s in rows]) for rows in (before, after)]
    assert apart[0].high > apart[1].low  # the plain intervals overlap
    assert paired(before, before, lambda s: s.di).high == 0
    assert f"{gain:+}".startswith("+0.0") and str(gain).startswith("0.0")
    with pytest.raises(ValueError, match="same benchmark"):
        paired(after[1:], before[:-1], lambda s: s.di)


def test_identity_rank_counts_nearer_distractors() -> None:
    query, true = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.5])
    distractors = torch.tensor([[1.0, 0.1], [0.0, 1.0], [2.0, 0.0]])
    assert identity_rank(query, true, distractors) == 2
    assert identity_rank(query, query, distractors[:2]) == 0


def test_summary_splits_reconstruction_and_edits() -> None:
    table = summarise(made_up(8, ct=0.3, di=0.5))
    assert table["R-DI"].mean == pytest.approx(0.6) and table["E-DI"].mean == pytest.approx(0.5)
    assert table["CT"].count == 40 and table["E-CI"].count == 32
    assert table["retrieval"].mean == pytest.approx(0.5)
    assert set(by_category(made_up(3, 0.3, 0.5))) == set(CATEGORIES)
    only_edits = [s for s in made_up(3, 0.3, 0.5) if s.category == "style"]
    assert "R-CI" not in summarise(only_edits) and list(by_category(only_edits)) == ["style"]


def test_the_report_is_markdown_and_json() -> None:
    runs = {"ours": made_up(4, 0.3, 0.5), "floor": made_up(4, 0.31, 0.1)}
    text = markdown(runs, {"CT": "some CLIP"}, ["a note"])
    head = text.splitlines()[0]
    assert (
        head.startswith("| run | CT |") and "| ours | 0.30" in text and "- CT: some CLIP" in text and "- a note" in text
    )
    widths = {line.count("|") for line in text.splitlines()[:4]}
    assert len(widths) == 1
    read = json.loads(metrics.to_json(runs, {"CT": "some CLIP"}, {"step": 3}))
    assert read["about"]["step"] == 3 and len(read["scores"]["ours"]) == 20
    assert read["summary"]["floor"]["E-DI"]["mean"] == pytest.approx(0.1)


def test_leaks_are_averaged_over_a_picture_and_counted_by_attribute() -> None:
    rows = [
        replace(s, leaks={"style": 1.0, "shape": 0.0} if i % 2 else {"style": 0.0})
        for i, s in enumerate(made_up(4, 0.3, 0.1))
    ]
    assert [r.leak for r in rows[:2]] == [0.0, 0.5] and made_up(1, 0.3, 0.1)[0].leak is None
    found = metrics.by_attribute(rows, "leaks")
    assert (found["style"].mean, found["style"].count) == (0.5, 20) and found["shape"].mean == 0.0
    assert metrics.summarise(rows)["leaks"].mean == pytest.approx(0.25) and "leaks" not in markdown(
        {"a": made_up(2, 0, 0)}, {}
    )
    read = json.loads(metrics.to_json({"a": rows}, {}, {}))["scores"]["a"]
    assert [Score(**row) for row in read] == rows


# ---- benchmark


def test_toyland_cases_are_held_out_repeatable_and_ask_one_edit_each() -> None:
    cases = toyland_cases(3, World.small())
    assert [c.subject for c in cases] == [c.subject for c in toyland_cases(3, World.small())]
    assert [c.subject for c in cases] != [c.subject for c in toyland_cases(3, World.small(), seed=5)]
    for case in cases:
        assert is_heldout(case.toy) and 0.03 < case.reference.area < 0.8
        assert [t.category for t in case.tasks] == list(CATEGORIES)
        plain = case.tasks[0].scene
        for task in case.tasks:
            assert f"<{case.noun}>" in task.prompt and "<" not in task.text
            assert case.toy.pattern == "plain" or case.toy.pattern not in task.text
            toy, base = task.scene.placements[0], plain.placements[0]
            changed = {
                "style": task.scene.style != plain.style,
                "scene": task.scene.background != plain.background,
                "shape": toy.shape != base.shape,
                "accessorisation": toy.accessory != base.accessory,
            }
            assert [k for k, v in changed.items() if v] == (
                [] if task.category == "reconstruction" else [task.category]
            )
            assert tuple(task.edit) == EDITED.get(task.category, ())
            assert task.edit.get("style", task.scene.style) == task.scene.style
            assert task.edit.get("shape", toy.shape) == toy.shape and "none" not in task.edit.values()
    picture, mask = ceiling(cases[0], cases[0].tasks[1], 64)
    assert picture.size == (64, 64) and mask.any()


def test_a_ceiling_is_framed_as_the_pictures_of_its_world() -> None:
    world = World.demo()
    rows = [(case, task) for case in toyland_cases(6, world) for task in case.tasks]
    rng = random.Random(0)
    own = render([sample_scene(rng, world, subjects=(case.toy,)) for case, _ in rows], 64).masks[:, 0]

    def tall(masks: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([mask.any(1).sum() for mask in masks]) / 64

    ours = tall([ceiling(case, task, 64)[1] for case, task in rows])
    assert abs(ours.mean() - tall(own.numpy()).mean()) < 0.06 and ours.max() <= world.heights[0][1] + 0.05
    assert {task.scene.seed for _, task in rows} <= set(range(world.variants))


def test_edited_references_show_what_no_task_asks_for() -> None:
    world = World.small()
    plain, edited = (toyland_cases(4, world, edited=flag) for flag in (False, True))
    for case, dressed in zip(plain, edited, strict=True):
        assert (dressed.subject, dressed.tasks) == (case.subject, case.tasks) and dressed.key != case.key
        assert np.array_equal(np.asarray(dressed.likeness.image), np.asarray(case.reference.image))
        assert not np.array_equal(np.asarray(dressed.reference.image), np.asarray(case.reference.image))
        assert tuple(dressed.incidental) == INCIDENTAL and case.leaks(case.tasks[0]) == {}
        for task in dressed.tasks:
            assert dressed.leaks(task) == dressed.incidental and not set(task.edit.values()) & set(
                dressed.incidental.values()
            )
    again = replace(edited[0].tasks[1], scene=replace(edited[0].tasks[1].scene, style=edited[0].incidental["style"]))
    assert "style" not in edited[0].leaks(again)  # what the picture should show does not leak


@pytest.fixture(scope="module")
def judges() -> Backbones:
    """Of attributes alone."""
    sees = functools.partial(attribute_reader.shows, attribute_reader.load_reader())
    return Backbones(*3 * [torch.Tensor], sees=sees)


def test_leaks_are_counted_off_the_pictures(judges: Backbones) -> None:
    cases = toyland_cases(8, World.small(), edited=True)

    def leaked(pictures: list[Image.Image]) -> list[float]:
        made = [
            evaluate.Made(case, case.tasks[3], picture, None) for case, picture in zip(cases, pictures, strict=True)
        ]
        found = evaluate.seen(made, [m.case.leaks(m.task) for m in made], judges)
        assert all(tuple(row) == INCIDENTAL for row in found)
        return [value for row in found for value in row.values()]

    kept = leaked([case.reference.image.resize((96, 96)) for case in cases])  # the reference itself: all of it
    free = leaked([ceiling(case, case.tasks[3], 96)[0] for case in cases])  # what was asked for: nothing
    assert set(kept + free) <= {0.0, 1.0}
    assert np.mean(kept) > 0.6 and np.mean(free) < 0.15
    bare = toyland_cases(1, World.small())[0]
    made = [evaluate.Made(bare, bare.tasks[3], bare.reference.image, None)]
    assert evaluate.seen(made, [bare.leaks(bare.tasks[3])], judges) == [None]


def test_what_of_a_subject_is_carried_is_read_off_its_pictures(judges: Backbones) -> None:
    cases = toyland_cases(6, World.small())
    rows = [(case, task) for case in cases for task in case.tasks]
    for case, task in rows:
        wanted = case.carried(task)
        colors = set() if task.scene.style == "sketch" else {"color_1", "color_2"}
        assert set(wanted) == {"species", "pattern"} | colors and wanted["species"] == case.toy.species
    made = [evaluate.Made(case, task, ceiling(case, task, 96)[0], None) for case, task in rows]
    own = evaluate.seen(made, [case.carried(task) for case, task in rows], judges)
    others = [case.carried(task) for case, task in rows[5:] + rows[:5]]  # the next subject's
    wrong = evaluate.seen(made, others, judges)

    def share(found: list[dict[str, float] | None]) -> float:
        return float(np.mean([value for row in found for value in row.values()]))

    assert share(own) > 0.7 > share(wrong) + 0.2
    scores = [Score("a", "scene", "", 0, 0, 0, carried={"pattern": value}) for value in (1.0, 0.0)]
    assert "| a | 0.500 [0.500, 0.500] |" in markdown({"a": scores}, {})


def test_folder_cases_take_the_class_from_dreambenchs_list(tmp_path: Path) -> None:
    for name in ("dog6", "grey_sloth_plushie"):
        (tmp_path / name / "masks").mkdir(parents=True)
        pixels = np.full((40, 40, 3), 255, np.uint8)
        pixels[10:30, 10:30] = 90
        Image.fromarray(pixels).save(tmp_path / name / "00.png")
        Image.fromarray((pixels[..., 0] < 200).astype(np.uint8) * 255).save(tmp_path / name / "masks" / "00.png")
    (tmp_path / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ndog6,dog\ngrey_sloth_plushie,toy\n"
    )
    cases = folder_cases(tmp_path)
    assert [(c.subject, c.noun) for c in cases] == [("dog6", "dog"), ("grey_sloth_plushie", "toy")]
    assert cases[0].tasks[0].prompt == EDITS["reconstruction"][0].format("<dog>")
    with pytest.raises(ValueError, match="one sub-folder for each subject"):
        folder_cases(tmp_path / "dog6")


# ---- readers


@pytest.fixture(scope="session")
def quick_readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readers") / "toyland.safetensors"
    torch.set_num_threads(1)
    trained = readers.train_readers(World.small(), minutes=0.03, limit=1, progress=False, norm="group")
    readers.save_readers(trained, path, "small")
    return path


@pytest.mark.slow
def test_readers_learn_are_measured_and_read_back(quick_readers: Path) -> None:
    judge = readers.load_readers(quick_readers)
    assert set(judge.quality) == {"identity_among_50", "identity_among_3_look_alikes", "mask_iou"}
    assert all(0 <= v <= 1 for v in judge.quality.values())
    rng = random.Random(0)
    crops, numbers = readers.identity_frames(rng, World.small(), 2, 2, True)
    pictures = [Image.fromarray(c.permute(1, 2, 0).numpy()) for c in crops]
    z = judge.identity(pictures)
    assert z.shape == (12, 96) and numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    torch.testing.assert_close(z.norm(dim=1), torch.ones(12))
    found = judge.segment(pictures[0].resize((50, 40)))
    assert isinstance(found, Segmentation) and found.mask.shape == (40, 50)
    with pytest.raises(FileNotFoundError, match=r"python -m train.evaluation.readers"):
        readers.load_readers(quick_readers.with_name("none.safetensors"))


def test_the_shipped_readers_are_as_good_as_their_file_says() -> None:
    judge = readers.load_readers()
    found = readers.measure(judge, World.small())
    for name, value in judge.quality.items():
        assert found[name] == pytest.approx(value, abs=0.05)
    assert found["identity_among_50"] > 0.9 and found["mask_iou"] > 0.85


def test_each_base_is_judged_by_its_worlds_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WEIGHTS", tmp_path)
    (tmp_path / "toyland2").mkdir()
    assert command.judge("toyland2", command.READERS) == tmp_path / "toyland" / "readers.safetensors"
    (tmp_path / "toyland2" / "readers.safetensors").touch()
    assert command.judge("toyland2", command.READERS) == tmp_path / "toyland2" / "readers.safetensors"
    assert command.judge("toyland2", command.ATTRIBUTES) == tmp_path / "toyland" / "attributes.safetensors"
    assert command.judge("sd15", command.READERS) == tmp_path / "toyland" / "readers.safetensors"


def test_readers_may_learn_from_a_pool(tmp_path: Path) -> None:
    config = DataConfig(path=str(tmp_path), reference_size=48, subjects=3, targets=1, references=2)
    adapter_pool.build_pool(config, 32, 24, progress=False)
    frames = readers.PoolFrames(tmp_path)
    frames.families = [[0, 1, 2]]
    crops, numbers = frames.identity(random.Random(0), 2, 2)
    assert crops.shape == (12, 3, 64, 64) and numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    images, masks = frames.masks(random.Random(0), 4)
    assert images.shape == (4, 3, 32, 32) and masks.shape == (4, 32, 32) and masks.any()
    with pytest.raises(FileNotFoundError, match=r"train.data prepare"):
        readers.PoolFrames(tmp_path / "nowhere")


def test_look_alikes_are_other_subjects_of_the_same_world() -> None:
    world, rng = World.small(), random.Random(0)
    for _ in range(50):
        subject = readers.sample_subject(rng, world)
        other = readers.look_alike(rng, world, subject)
        assert other.id != subject.id and other.species == subject.species
        assert {other.color_1, other.color_2} <= set(world.colors)


def test_contrast_is_least_when_frames_of_one_subject_agree() -> None:
    numbers = torch.tensor([0, 0, 1, 1])
    good = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    bad = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert readers.contrast(good, numbers) < 1e-3 < 1 < readers.contrast(bad, numbers)


# ---- the command


def test_a_whole_evaluation(
    tiny_base: BaseModel, headed_folder: Path, quick_readers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(evaluate, "DISTRACTORS", 6)
    adapter = save_adapter(random_adapter(tiny_base), tmp_path / "a.safetensors", step=7)
    arguments = ["adapter", "--weights", str(headed_folder), "--adapter", str(adapter), "--readers", str(quick_readers)]
    arguments += ["--limit", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    assert evaluate.main(arguments) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(name in table for name in evaluate.RUNS) and "identity reader" in table
    assert "| edits | retrieval |" in table and "attribute reader" in table
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["about"]["step"] == 7 and {len(rows) for rows in scores["scores"].values()} == {10}
    real = scores["summary"][evaluate.RUNS[2]]
    assert real["edits"]["mean"] > 0.6 and real["edits"]["count"] == 8
    assert real["R-DI"]["mean"] > scores["summary"][evaluate.RUNS[1]]["R-DI"]["mean"]  # the ceiling is above the floor
    assert (tmp_path / "out" / "grid.png").is_file()

    pictures = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    assert len(pictures) == 20
    times = [p.stat().st_mtime_ns for p in pictures]
    pictures[3].unlink()
    assert evaluate.main(arguments) == 0  # goes on: only what is missing is made again
    again = [p.stat().st_mtime_ns for p in pictures]
    assert [a == b for a, b in zip(times, again, strict=True)].count(False) == 1
    assert (tmp_path / "out" / "table.md").read_text() == table
    reader = attribute_reader.AttributeReader(label_values(World.small()), attribute_reader.Shape(side=24, width=16))
    judge = ClipJudge(reader, tiny_base.tokenizers[0])
    judge.told = 0.25
    save_judge(judge, tmp_path / "clip.safetensors", "small", 0)
    assert evaluate.main([*arguments, "--clip", str(tmp_path / "clip.safetensors")]) == 0  # CT is its, CI is not
    judged = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"][evaluate.RUNS[0]]
    assert [(a["ci"], a["ct"] == b["ct"]) for a, b in zip(judged, scores["scores"][evaluate.RUNS[0]], strict=True)] == [
        (b["ci"], False) for b in scores["scores"][evaluate.RUNS[0]]
    ]
    judged = (tmp_path / "out" / "table.md").read_text()
    assert "the judge tells 0.250 from eight" in judged and "edits: the share of edits seen" in judged
    shown = ["--references", "edited", "--floor", str(tmp_path / "out" / "pictures" / "text")]
    assert evaluate.main([*arguments[:-1], str(tmp_path / "edited"), *shown]) == 0
    edited = json.loads((tmp_path / "edited" / "scores.json").read_text())
    assert edited["summary"][evaluate.RUNS[0]]["leaks"]["count"] == 10 and "leaks" not in scores["summary"]
    assert edited["scores"][evaluate.RUNS[1]][3]["ci"] == scores["scores"][evaluate.RUNS[1]][3]["ci"]  # to the portrait
    table = (tmp_path / "edited" / "table.md").read_text()
    assert "| edits | leaks | retrieval |" in table and "| run | style | shape | accessory |" in table
    capsys.readouterr()
    assert evaluate.main([*arguments, *shown, "--benchmark", str(tmp_path)]) == 2
    assert "--references edited needs --benchmark toyland" in capsys.readouterr().err


def test_the_command_names_its_parts_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([]) == 2
    assert "python -m train.evaluation {adapter" in capsys.readouterr().err
    assert evaluate.main(["adapter", "--weights", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pass weights=FOLDER" in error and "Traceback" not in error


def test_image_reward_is_a_column_where_it_was_asked() -> None:
    rows = [metrics.Score(f"s{i}", "scene", "a bear", 0.1, 0.2, 0.3, ir=float(i)) for i in range(4)]
    assert metrics.summarise(rows)["IR"].mean == 1.5
    assert "| IR |" in metrics.markdown({"ours": rows}, {"IR": "ImageReward-v1.0"})
    plain = [metrics.Score("s", "scene", "a bear", 0.1, 0.2, 0.3)]
    assert "IR" not in metrics.summarise(plain)


def test_image_reward_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(ValueError, match="pip install image-reward"):
        metrics.image_reward("ImageReward-v1.0", torch.device("cpu"))


def test_edits_are_counted_where_something_was_asked() -> None:
    rows = [Score(f"s{i}", "style", "a bear", 0.1, 0.2, 0.3, edit=float(i > 0)) for i in range(4)]
    rows += [Score(f"s{i}", "reconstruction", "a bear", 0.1, 0.2, 0.3) for i in range(4)]
    assert summarise(rows)["edits"].mean == 0.75 and summarise(rows)["edits"].count == 4
    parts = by_category(rows)
    assert parts["style"]["edits"].mean == 0.75 and "edits" not in parts["reconstruction"]
    table = markdown({"ours": rows}, {})
    assert "| edits |" in table and "| category | CT | CI | DI | edits |" in table
    assert "edits" not in markdown({"ours": rows[4:]}, {})
