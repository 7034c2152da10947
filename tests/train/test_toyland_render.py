"""The renderer: rays against a plain reference, masks, determinism, resolution, batches, styles, identity."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from train.toyland import (
    Placement,
    ToyScene,
    ToySubject,
    World,
    render,
    render_variants,
    sample_scene,
    sample_subject,
)
from train.toyland.backgrounds.scenes import BACKGROUNDS
from train.toyland.geometry import Table, build_table, intersect
from train.toyland.noise import resample, smooth
from train.toyland.parts import BOX, ELLIPSOID, FRUSTUM
from train.toyland.species.accessories import ACCESSORIES
from train.toyland.styles.registry import STYLES
from train.toyland.subjects import COLORS


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _scenes(count: int, seed: int = 0, **fixed: object) -> list[ToyScene]:
    rng = random.Random(seed)
    return [sample_scene(rng, World.full(), **fixed) for _ in range(count)]


def _inside(kind: float, p: Tensor, taper: float) -> Tensor:
    """Plain definition of the unit solids."""
    if kind == ELLIPSOID:
        return (p**2).sum(-1) <= 1
    if kind == BOX:
        return (p**8).sum(-1) <= 1
    wall = 0.5 * (1 + taper) + 0.5 * (taper - 1) * p[..., 1]
    return (p[..., 1].abs() <= 1) & ((p[..., 0] ** 2 + p[..., 2] ** 2).sqrt() <= wall)


@pytest.mark.parametrize(("kind", "taper"), [(ELLIPSOID, 1), (BOX, 1), (FRUSTUM, 1), (FRUSTUM, 0.0), (FRUSTUM, 1.5)])
def test_intersections_agree_with_marching(kind: float, taper: float) -> None:
    """Nearest hit = first of 3,000 steps along each ray that lies inside, for random affine solids."""
    gen = torch.Generator().manual_seed(int(kind * 10 + taper))
    size = 20
    for _ in range(4):
        matrix = torch.linalg.qr(torch.randn(3, 3, generator=gen))[0] * (0.2 + 0.5 * torch.rand(3, generator=gen))
        center = 0.2 * torch.randn(3, generator=gen)
        inverse = torch.linalg.inv(matrix)
        rows = torch.zeros(1, 27)
        rows[0, 0], rows[0, 25] = kind, taper
        shift = -(inverse @ center)
        table = Table(
            rows,
            torch.cat((inverse, shift[:, None]), 1)[None],
            matrix[None],
            center[None],
            torch.full((1, 2), 3.0),
            torch.zeros(1, 4),
            torch.zeros(1, dtype=torch.long),
            torch.zeros(1, dtype=torch.long),
        )
        hits = intersect(table, 1, size)
        z = torch.linspace(2.5, -2.5, 3001)
        axis = (torch.arange(size) + 0.5) * (2 / size) - 1
        grid = torch.stack(torch.broadcast_tensors(axis.view(1, -1, 1), -axis.view(-1, 1, 1), z.view(1, 1, -1)), -1)
        inside = _inside(kind, grid @ inverse.T + shift, taper)
        want = torch.where(inside.any(-1), z[inside.int().argmax(-1)], torch.tensor(float("nan")))
        got = hits.depth[0]
        agree = torch.isfinite(got) == ~want.isnan()
        assert agree.float().mean() > 0.985  # grazing rays may fall between the steps
        both = torch.isfinite(got) & ~want.isnan()
        error = (got - want)[both].abs()
        assert error.quantile(0.95) < 0.01 and both.sum() > 10
        assert (hits.normal.norm(dim=1) - 1).abs().max() < 1e-4 and (hits.normal[:, 2] > -0.1).all()


def test_same_seed_same_picture_and_batch_equals_single() -> None:
    scenes = _scenes(10, 1)
    batch, again = render(scenes, 48), render(scenes, 48)
    assert torch.equal(batch.images, again.images) and torch.equal(batch.masks, again.masks)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (10, 3, 48, 48)
    for i, scene in enumerate(scenes):
        one = render([scene], 48)
        k = len(scene.placements)
        assert torch.equal(one.masks[0], batch.masks[i, :k]) and not batch.masks[i, k:].any()
        assert (one.images[0].int() - batch.images[i].int()).abs().max() <= 1
    assert not torch.equal(batch.images[0], render([replace(scenes[0], seed=7)], 48).images[0])


def test_variants_share_geometry_and_equal_plain_rendering() -> None:
    scene = _scenes(1, 2)[0]
    looks = [("beach", "photo", 1), ("night", "sketch", 2), ("studio", "pixel art", 3)]
    got = render_variants(scene, looks, 48)
    assert (got.masks == got.masks[:1]).all()
    for i, (background, style, seed) in enumerate(looks):
        plain = render([replace(scene, background=background, style=style, seed=seed)], 48)
        assert (plain.images[0].int() - got.images[i].int()).abs().max() <= 1


def test_masks_are_disjoint_and_hold_the_accessory() -> None:
    world = replace(World.full(), p_two=1.0, p_bare=0.0)
    rng = random.Random(3)
    scenes = [sample_scene(rng, world) for _ in range(12)]
    out = render(scenes, 64)
    assert (out.masks.sum(1) <= 1).all()
    assert (out.accessories <= out.masks).all() and out.accessories.any()
    area = out.masks.float().mean((2, 3))
    assert (area > 0.008).all() and (area < 0.6).all()


def test_masks_are_exactly_where_the_toy_is() -> None:
    """Against the same picture of the same toy in other paint: nothing outside the mask's border changes."""
    subject = ToySubject("bear", "red", "blue", "plain")
    scene = ToyScene((Placement(subject, azimuth=30.0, scale=1.2),), "studio")
    repainted = replace(scene, placements=(replace(scene.placements[0], subject=replace(subject, color_1="green")),))
    out = render([scene, repainted], 64)
    assert torch.equal(out.masks[0], out.masks[1])
    changed = (out.images[0].int() - out.images[1].int()).abs().amax(0) > 12
    mask = out.masks[0, 0]
    near = torch.nn.functional.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0
    assert not (changed & ~near).any()
    assert (changed & mask).float().sum() > 0.4 * mask.float().sum()


def test_resolutions_agree() -> None:
    scenes = _scenes(8, 4, style="photo")
    low, high = render(scenes, 64), render(scenes, 128)
    shrunk = torch.nn.functional.avg_pool2d(high.masks.float(), 2) >= 0.5
    both, either = (shrunk & low.masks).sum((2, 3)), (shrunk | low.masks).sum((2, 3))
    assert (both[either > 0] / either[either > 0]).min() > 0.9
    small = torch.nn.functional.avg_pool2d(high.images.float(), 2)
    assert (small - low.images.float()).abs().mean() < 6.0


def _shares(out: Tensor, mask: Tensor, colors: list[str]) -> np.ndarray:
    """Share of mask pixels nearest (in chromaticity) to each colour."""
    pixels = out.float()[:, mask].T / 255
    chroma = pixels / pixels.sum(1, keepdim=True).clamp(min=0.05)
    palette = torch.tensor([COLORS[c] for c in colors])
    palette = palette / palette.sum(1, keepdim=True)
    near = torch.cdist(chroma, palette).argmin(1)
    return np.bincount(near.numpy(), minlength=len(colors)) / len(near)


@pytest.mark.parametrize("pattern", ["striped", "spotted", "patched"])
def test_identity_is_the_same_from_every_view(pattern: str) -> None:
    subject = ToySubject("bear", "yellow", "blue", pattern)
    at = Placement(subject, scale=1.4)
    views = [ToyScene((replace(at, azimuth=a),), "studio", elevation=12.0) for a in range(-180, 180, 45)]
    out = render(views, 64)
    shares = np.stack(
        [_shares(i, m[0], ["yellow", "blue", "red", "green"]) for i, m in zip(out.images, out.masks, strict=True)]
    )
    assert (shares[:, :2].sum(1) > 0.85).all(), "both colours and no other"
    assert (shares[:, :2] > 0.12).all() and shares[:, 0].std() < 0.12
    turned = render([ToyScene((replace(at, azimuth=180.0),), "studio", elevation=12.0)], 64)
    assert (turned.images[0].int() - out.images[0].int()).abs().float().mean() < 0.5


def test_pattern_is_glued_to_the_object() -> None:
    """One body point has one colour: its local coordinates and paint do not depend on the camera."""
    subject = ToySubject("cat", "white", "red", "spotted")
    scenes = [ToyScene((Placement(subject, azimuth=a),), elevation=e) for a, e in ((0.0, 10.0), (70.0, 25.0))]
    first, second = (build_table([s], torch.device("cpu")) for s in scenes)
    assert torch.equal(first.rows, second.rows) and torch.equal(first.pattern, second.pattern)
    assert not torch.allclose(first.inverse, second.inverse)


@pytest.mark.parametrize("style", STYLES)
def test_every_species_and_accessory_renders_in_every_style(style: str) -> None:
    rng = random.Random(len(style))
    world = World.full()
    pairs = list(itertools.product(world.species, ACCESSORIES))
    rng.shuffle(pairs)
    share = len(pairs) // len(STYLES) + 1
    start = list(STYLES).index(style) * share
    subjects = [(replace(sample_subject(rng), species=s), a) for s, a in pairs[start : start + share]]
    scenes = [
        sample_scene(rng, subjects=(s,), accessory=a, style=style, background=list(BACKGROUNDS)[i % len(BACKGROUNDS)])
        for i, (s, a) in enumerate(subjects)
    ]
    out = render(scenes, 32)
    assert (out.masks.flatten(1).sum(1) > 15).all()
    assert (out.images.float().flatten(1).std(1) > 2.0).all()
    worn = torch.tensor([a != "none" for _, a in subjects])
    assert not out.accessories[~worn].any()


def test_shapes_change_the_outline_and_keep_the_paint() -> None:
    at = Placement(ToySubject("rabbit", "yellow", "blue", "plain"), scale=1.2)
    shapes = ("normal", "tall", "chubby", "cube shaped", "tiny")
    out = render([ToyScene((replace(at, shape=s),)) for s in shapes], 64)
    height = out.masks[:, 0].any(2).sum(1)
    width = out.masks[:, 0].any(1).sum(1)
    area = out.masks[:, 0].sum((1, 2))
    assert height[1] > height[0] and width[2] > width[0] and area[3] > area[0] and area[4] < 0.5 * area[0]
    for image, mask in zip(out.images, out.masks, strict=True):
        assert _shares(image, mask[0], ["yellow", "blue", "red"])[0] > 0.4


def test_noise_is_the_same_picture_at_any_size() -> None:
    seed = torch.tensor([3, 4])
    low, high = smooth(seed, 1, 4, 4, 16), smooth(seed, 1, 4, 4, 64)
    assert (torch.nn.functional.avg_pool2d(high, 4) - low).abs().max() < 0.05
    assert not torch.allclose(low[0], low[1])
    assert torch.allclose(resample(torch.ones(1, 1, 3, 3), 9), torch.ones(1, 1, 9, 9))


def test_bad_arguments_are_refused() -> None:
    scene = _scenes(1)[0]
    for arguments, message in (
        (([], 64), "empty"),
        (([scene], 4), "size is 4"),
        (([replace(scene, style="fresco")], 32), "style is 'fresco'"),
        (([replace(scene, background="attic")], 32), "background is 'attic'"),
    ):
        with pytest.raises(ValueError, match=message):
            render(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    scenes = _scenes(24, 6)
    cpu, gpu = render(scenes, 64), render(scenes, 64, "cuda")
    assert (cpu.masks != gpu.masks.cpu()).float().mean() < 1e-3
    assert (cpu.images.float() - gpu.images.cpu().float()).abs().mean() < 0.5
