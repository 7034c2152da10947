"""Figures show what the arrays say: bright where a map is high, each subject in its colour, the same every time."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import imageio.v3 as reader
import numpy as np
import pytest
from PIL import Image, ImageSequence

from customcontrast import visualize as v


def gray(value: int = 128, size: tuple[int, int] = (120, 90)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def spot(side: str = "left", shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    """A map that is 1 in its left or right half."""
    values = np.zeros(shape, np.float32)
    half = shape[1] // 2
    values[:, slice(0, half) if side == "left" else slice(half, None)] = 1
    return values


def light(picture: Image.Image, box: tuple[int, int, int, int] | None = None) -> float:
    return float(np.asarray(picture.crop(box) if box else picture).mean())


# ---- maps -------------------------------------------------------------------------------------------------


def test_heat_map_follows_the_map_and_its_scale_does_not_matter() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    small = v.heat_map(values, cmap="gray")
    assert small.size == (4, 3) and small.mode == "RGB"
    assert (np.diff(np.asarray(small)[..., 0].ravel().astype(int)) > 0).all()
    assert v.heat_map(values * 7 - 3).tobytes() == v.heat_map(values).tobytes()
    assert v.heat_map(values, (40, 30)).size == (40, 30)
    assert np.ptp(np.asarray(v.heat_map(np.full((3, 4), 5.0)))[..., 0]) == 0


def test_overlay_glows_where_the_map_is_high() -> None:
    shown = v.overlay(gray(), spot("left"))
    assert shown.size == (120, 90)
    assert light(shown, (0, 0, 50, 90)) > light(shown, (70, 0, 120, 90)) + 20
    right = np.asarray(shown.crop((90, 0, 120, 90))).astype(int)
    assert np.ptp(right, axis=-1).max() <= 2  # dim and without colour
    assert v.overlay(gray(), spot(), strength=0).tobytes() == gray().tobytes()


def test_overlays_with_one_range_compare() -> None:
    weak, strong = 0.5 * spot(), spot()
    alone, together = v.overlay(gray(), weak), v.overlay(gray(), weak, value_range=(0, 1))
    assert alone.tobytes() == v.overlay(gray(), strong).tobytes()
    assert light(together, (0, 0, 50, 90)) < light(alone, (0, 0, 50, 90))


def test_maps_with_nan_or_infinity_are_shown() -> None:
    values = spot()
    values[0, 0], values[1, 1] = np.nan, np.inf
    assert v.overlay(gray(), values).size == v.heat_map(values, (120, 90)).size == (120, 90)


@pytest.mark.parametrize("bad", [np.zeros((2, 3, 4)), np.zeros(5), np.zeros((0, 4))])
def test_maps_of_another_shape_are_named(bad: np.ndarray) -> None:
    for draw in (v.heat_map, lambda m: v.overlay(gray(), m), lambda m: v.token_grid(gray(), {"cat": m})):
        with pytest.raises(ValueError, match="shape"):
            draw(bad)


def test_strip_steps_are_those_of_the_paper() -> None:
    assert v.strip_steps(50) == (1, 10, 20, 30, 40, 50)
    assert v.strip_steps(20) == (1, 4, 8, 12, 16, 20)
    for total in range(1, 120):
        steps = v.strip_steps(total)
        assert steps[0] == 1 and steps[-1] == total and len(steps) == min(total, 6)
        assert all(a < b for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("shape", [(12, 12), (8, 12), (12, 8)])
def test_location_strip_layout(shape: tuple[int, int]) -> None:
    """Input, six grey masks, output, from left to right, in the output's proportions, on white."""
    h, w = shape
    masks = np.linspace(0, 1, 20)[:, None, None] * np.ones((20, h, w))
    output = Image.new("RGB", (10 * w, 10 * h), (10, 20, 200))
    strip = v.location_strip(Image.new("RGB", (40, 40), (200, 20, 10)), masks, output, width=1000)
    pixels = np.asarray(strip).astype(int)
    assert strip.width == 1000 and (pixels[0] == 255).all() and (pixels[-1] == 255).all()
    middle = pixels[10 + round(0.5 * h / w * 100)]
    red, blue = np.flatnonzero(middle[:, 0] - middle[:, 2] > 150), np.flatnonzero(middle[:, 2] - middle[:, 0] > 150)
    assert red.max() < 140 < 860 < blue.min()
    inner = middle[red.max() + 25 : blue.min() - 25, 0]
    levels = [round(255 * (step - 1) / 19) for step in (1, 4, 8, 12, 16, 20)]
    for level in levels[:-1]:
        assert (np.abs(inner - level) <= 1).sum() > 80, level
    tall = np.flatnonzero(np.abs(pixels[:, int(blue.mean())] - (10, 20, 200)).max(-1) < 5)
    assert len(tall) / len(blue) == pytest.approx(h / w, rel=0.03)


def test_location_strip_with_few_or_chosen_steps() -> None:
    masks = np.zeros((3, 4, 4))
    assert v.location_strip(gray(), masks, gray()).width == 1200
    assert v.location_strip(gray(), masks, gray(), steps=(2,), width=400).width == 400
    for steps in ((0, 1), (4,), ()):
        with pytest.raises(ValueError, match="steps from 1 to 3"):
            v.location_strip(gray(), masks, gray(), steps=steps)
    with pytest.raises(ValueError, match="T, h, w"):
        v.location_strip(gray(), masks[0], gray())


def test_token_grid_has_a_tile_for_each_word() -> None:
    words = "a cat S* on the beach at night".split()
    grid = v.token_grid(gray(), {word: spot() for word in words}, tile=100)
    assert grid.width == 10 + 5 * 110  # nine tiles in two rows of five
    one = v.token_grid(gray(), {}, tile=100)
    assert one.width == 120 and grid.height > 1.7 * one.height
    assert v.token_grid(gray(), {"cat": spot()}, columns=1, tile=100).width == 120
    long = v.token_grid(gray(), {"antidisestablishmentarianism" * 3: spot(), "": spot(), "ünïcödé 猫": spot()})
    assert long.width == 10 + 4 * 202


def test_token_grid_shared_range() -> None:
    maps = {"strong": spot(), "weak": 0.3 * spot()}
    each, shared = v.token_grid(gray(), maps, tile=100), v.token_grid(gray(), maps, tile=100, shared=True)
    weak = (230, 10, 275, 80)
    assert light(shared, weak) < light(each, weak)


def test_subjects_have_their_own_colours() -> None:
    masks = np.stack([spot("left"), spot("right")])
    shown = np.asarray(v.subjects_overlay(gray(), masks), np.float32)
    for k, columns in enumerate((slice(0, 45), slice(75, None))):
        color = shown[:, columns].reshape(-1, 3).mean(0)
        others = [np.dot(color - color.mean(), np.subtract(c, np.mean(c))) for c in v.SUBJECT_COLORS[:2]]
        assert int(np.argmax(others)) == k
    assert v.subjects_overlay(gray(), masks, ["cat", "robot"]).size == (120, 90)
    assert v.subjects_overlay(gray(), masks[:0]).size == (120, 90)
    many = v.subjects_overlay(gray(size=(300, 300)), np.zeros((9, 4, 4)), [f"subject {k}" for k in range(9)])
    assert light(many, (8, 250, 40, 290)) > 200  # the legend's plate
    with pytest.raises(ValueError, match="K, h, w"):
        v.subjects_overlay(gray(), masks[0])


# ---- plots ------------------------------------------------------------------------------------------------


def test_area_plot() -> None:
    masks = np.random.default_rng(0).random((12, 2, 8, 10)).astype(np.float32)
    masks[3, 1] = 0  # an empty mask has no centre
    picture = v.area_plot(masks, ["cat", "robot"])
    assert picture.size == (1000, 360) and picture.mode == "RGB"
    assert picture.tobytes() == v.area_plot(masks, ["cat", "robot"]).tobytes()
    assert picture.tobytes() != v.area_plot(masks * 0.5, ["cat", "robot"]).tobytes()
    assert v.area_plot(masks[:1, :1], size=(600, 300)).size == (600, 300)
    with pytest.raises(ValueError, match="T, K, h, w"):
        v.area_plot(masks[:, 0])


def test_tsne_plot_is_deterministic_and_checks_its_labels() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(6, 8)) + 9 * k for k in range(3)])
    subjects, views = np.repeat(["a", "b", "c"], 6), np.tile(["front", "side"], 9)
    first = v.tsne_plot(features, subjects, views, "S*")
    assert first.size == (760, 640) and first.tobytes() == v.tsne_plot(features, subjects, views, "S*").tobytes()
    assert v.tsne_plot(np.zeros((4, 5)), [1, 2, 3, 4], [0, 0, 1, 1]).size == (760, 640)
    assert v.tsne_plot(features[:3], [1, 2, 3], [1, 2, 3], size=(400, 300)).size == (400, 300)
    with pytest.raises(ValueError, match="N ≥ 3"):
        v.tsne_plot(features[:2], [1, 2], [1, 2])
    with pytest.raises(ValueError, match="give one of each"):
        v.tsne_plot(features, subjects[:3], views)


def test_tsne_keeps_clusters_together() -> None:
    from customcontrast.visualize.plots import tsne

    rng = np.random.default_rng(1)
    features = np.concatenate([rng.normal(size=(8, 10)) + 12 * rng.normal(size=10) for _ in range(3)])
    points = tsne(features, 0)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(24)
    assert (distance.argmin(1) // 8 == np.arange(24) // 8).all()


def test_plots_leave_no_global_state() -> None:
    code = (
        "import sys, numpy as np; from customcontrast import visualize as v;"
        "v.area_plot(np.ones((3, 1, 4, 4))); print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert run.stdout.strip() == "False"


def test_figures_from_many_threads_are_those_of_one() -> None:
    masks = np.random.default_rng(0).random((6, 2, 6, 8))

    def draw() -> tuple[bytes, ...]:
        strip = v.location_strip(gray(), masks[:, 0], gray(90))
        return v.area_plot(masks).tobytes(), strip.tobytes(), v.token_grid(gray(), {"cat": masks[0, 0]}).tobytes()

    expected, results = draw(), []
    workers = [threading.Thread(target=lambda: results.append(draw())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [expected] * 4


# ---- sheets -----------------------------------------------------------------------------------------------


def test_contact_sheet_is_a_grid() -> None:
    pictures = [gray(40, (50, 80)), gray(200), Image.new("RGBA", (30, 30))]
    sheet = v.contact_sheet(pictures, ["tall", "wide", "clear"], columns=2, tile=60, title="All")
    assert sheet.width == 2 * 70 + 10
    assert v.contact_sheet(pictures * 4, tile=40).width == 10 + 50 * 4  # twelve in even rows of four
    with pytest.raises(ValueError, match="at least one"):
        v.contact_sheet([])
    with pytest.raises(ValueError, match="one for each"):
        v.contact_sheet(pictures, ["one"])


def test_compare_row_keeps_proportions() -> None:
    row = v.compare_row([gray(0, (100, 50)), gray(99, (50, 100))], ["reference", "output"], height=100)
    assert row.width == 200 + 50 + 3 * 10
    with pytest.raises(ValueError, match="one for each"):
        v.compare_row([gray()], [])


def test_checkerboard_shows_through_what_is_clear() -> None:
    cutout = Image.new("RGBA", (64, 64))
    cutout.paste((200, 0, 0, 255), (16, 16, 48, 48))
    board = v.checkerboard(cutout, square=8)
    assert board.getpixel((32, 32)) == (200, 0, 0)
    assert {board.getpixel((2, 2)), board.getpixel((10, 2))} == {(228,) * 3, (250,) * 3}


@pytest.mark.parametrize("ending", ["gif", "mp4"])
@pytest.mark.parametrize("size", [(48, 32), (61, 47)])
def test_animation_plays_all_frames(tmp_path: Path, ending: str, size: tuple[int, int]) -> None:
    frames = [Image.new("RGB", size, (40 * k, 200 - 40 * k, 90)) for k in range(5)]
    path = v.animation(frames, tmp_path / "new" / f"steps.{ending}", fps=4, hold=0.5)
    if ending == "gif":
        with Image.open(path) as played:
            shown = [frame.convert("RGB") for frame in ImageSequence.Iterator(played)]
            assert played.size == size and played.info["loop"] == 0
    else:
        shown = [Image.fromarray(frame) for frame in reader.imiter(path)]
        assert len(shown) == 7 and shown[0].size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert len(shown) >= 5
    for frame, picture in zip(frames, shown, strict=False):
        center = np.subtract(picture.getpixel((20, 15)), frame.getpixel((20, 15)))
        assert np.abs(center).max() < 16


def test_animation_names_what_is_wrong(tmp_path: Path) -> None:
    for frames, name, fps, says in (
        ([], "a.gif", 5, "at least one"),
        ([gray()], "a.avi", 5, "end it in"),
        ([gray()], "a.gif", 0, "positive"),
    ):
        with pytest.raises(ValueError, match=says):
            v.animation(frames, tmp_path / name, fps)


def test_a_labelled_grid_has_a_place_for_every_picture() -> None:
    from customcontrast.visualize import labelled_grid

    colors = [["red", "green", "blue"], ["cyan", "magenta", "yellow"]]
    rows = [[Image.new("RGB", (64, 96), color) for color in row] for row in colors]
    sheet = labelled_grid(
        rows, ["a long prompt about a bear", "b"], ["x = 1", "x = 2", "x = 3"], tile=80, title="A bear"
    )
    pixels = np.asarray(sheet).reshape(-1, 3)
    for color in ("red", "lime", "blue", "cyan", "magenta", "yellow"):
        value = Image.new("RGB", (1, 1), "green" if color == "lime" else color).getpixel((0, 0))
        assert (pixels == value).all(1).sum() == 80 * 120
    with pytest.raises(ValueError, match="one for each row"):
        labelled_grid(rows, ["a"], ["1", "2", "3"])
    with pytest.raises(ValueError, match="one for each row"):
        labelled_grid([], [], [])


def test_atlas_plot_marks_new_subjects_in_their_colours() -> None:
    from customcontrast.visualize import SUBJECT_COLORS, atlas_plot

    places = np.random.default_rng(0).normal(size=(12, 2))
    picture = np.asarray(atlas_plot(places, np.arange(12) // 3, [("bear", places[0]), ("owl", places[5])]))
    for color in SUBJECT_COLORS[:2]:
        assert (picture.reshape(-1, 3) == color).all(1).sum() > 50
    assert not (picture.reshape(-1, 3) == SUBJECT_COLORS[2]).all(1).any()
