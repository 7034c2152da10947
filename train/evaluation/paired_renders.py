"""How near a base's pictures come to the renders of the same scenes: same words, same layout, picture against render.

    python -m train.evaluation paired --base toyland2 --world demo --count 300

Only a base that takes layouts can be judged so. Held-out subjects, one to a scene. Beside each number stands what two
sets of renders, or a render and its own reading, would give.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from tqdm import tqdm

from customcontrast.pipeline import CustomContrast
from customcontrast.visualize import contact_sheet
from train.common.options import from_options
from train.data.frozen_features import to_pixels
from train.evaluation.command import add_toyland_options, write_report
from train.evaluation.drawings import Drawing, drawn
from train.evaluation.readers import load_readers
from train.toyland import ToyScene, World, describe, render, sample_scene, sample_subject
from train.toyland.layouts import layout_of

SHOWN = 24  # pairs on the sheet
CROP = 96  # px of a picture that the critic of pixels learns from at once
_WHITE = (0.95047, 1.0, 1.08883)  # D65
_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))


@dataclass(frozen=True)
class PairedConfig:
    """How pictures are held to renders. A field is the option of its name, and its default the option's."""

    base: str = "toyland2"  # one that takes layouts
    weights: str | None = None  # folder of the base; None = the shipped one
    world: str = "demo"  # part of Toyland: a classmethod of train.toyland.World
    readers: Path | None = None  # who finds subjects (`train.evaluation.readers`); None = those of the base's world
    count: int = 300  # scenes
    steps: int | None = None  # denoising steps; None = the base's own
    guidance: float | None = None  # guidance scale; None = the base's own
    guidance_end: float | None = None  # share of the steps after which there is none; None = the base's own
    seed: int = 0  # of the scenes; picture i has the noise of seed + i
    out: Path = Path("runs/paired")  # folder of the report


@dataclass(frozen=True)
class Pair:
    """One scene: how its picture differs from its render, inside the subject's exact mask."""

    prompt: str
    iou: float  # of the subject's silhouettes, as the mask reader finds it in the picture, and the exact one
    color: float  # ΔE (CIE 1976) between the mean colours
    pixels: float  # mean ΔE pixel by pixel
    ssim: float  # structural similarity, window 11 px
    iou_read: float  # of the mask reader on the render itself: the ceiling of `iou`


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB (…, 3) in 0..1 to CIE L*a*b* (D65)."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    t = linear @ np.array(_TO_XYZ).T / np.array(_WHITE)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack((116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])), -1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); 1 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def compare(
    prompt: str, made: np.ndarray, real: np.ndarray, found: np.ndarray, read: np.ndarray, mask: np.ndarray
) -> Pair:
    """Picture and render (H, W, 3) uint8; masks (H, W) bool: found in the picture, read off the render, exact."""
    a, b = to_lab(made[mask] / 255), to_lab(real[mask] / 255)
    both = (torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255 for x in (made, real))
    _, structure = structural_similarity_index_measure(*both, data_range=1.0, return_full_image=True)
    return Pair(
        prompt,
        iou(found, mask),
        float(np.linalg.norm(a.mean(0) - b.mean(0))),
        float(np.linalg.norm(a - b, axis=-1).mean()),
        float(structure[0].mean(0).numpy()[mask].mean()),
        iou(read, mask),
    )


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features (N, d), taken as normal distributions (Heusel et al. 2017)."""
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mixed = sqrtm(sa @ sb)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * np.real(mixed)))


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of so many a critic learns on, and which it is tested on."""
    order = np.random.default_rng(0).permutation(count)
    return order[: count // 2], order[count // 2 :]


def critic(generated: np.ndarray, rendered: np.ndarray) -> float:
    """Accuracy, on the other half, of a linear critic that learned on one half which features (N, d) are rendered."""
    x = np.concatenate([generated, rendered])
    y = np.repeat([0, 1], [len(generated), len(rendered)])
    learn, test = halves(len(x))
    scale = StandardScaler().fit(x[learn])
    model = LogisticRegression(max_iter=2000, C=0.1).fit(scale.transform(x[learn]), y[learn])
    return float(model.score(scale.transform(x[test]), y[test]))


class PixelCritic(nn.Sequential):
    """Convolutions that see 31 px at a time; a picture (B, 3, H, W) is judged by the mean over its places, (B,)."""

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = []
        for inputs in (3, width, width, width):
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(width, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Above 0 where a picture looks rendered."""
        return super().forward(pictures).mean(dim=(1, 2, 3))


def pixel_critic(
    generated: Sequence[Image.Image], rendered: Sequence[Image.Image], steps: int | None = None, batch: int = 32
) -> float:
    """As `critic`, on pixels less the mean of their neighbours: what a small network learns of edges and surfaces.

    steps: how long it learns; None = two for each picture, 400 at most.
    """
    several = [*generated, *rendered]
    steps = steps or min(400, 2 * len(several))
    x = to_pixels(torch.stack([pil_to_tensor(p.convert("RGB")) for p in several]))
    x = 4 * (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1))  # else it sees colours and learns nothing
    y = torch.tensor([0.0] * len(generated) + [1.0] * len(rendered))
    learn, test = (torch.from_numpy(half) for half in halves(len(x)))
    side = min(CROP, *x.shape[-2:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelCritic()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = learn[torch.randint(len(learn), (batch,))]
            top, left = (int(torch.randint(length - side + 1, ())) for length in x.shape[-2:])
            pixels = x[rows, :, top : top + side, left : left + side]
            loss = F.binary_cross_entropy_with_logits(model(pixels), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found = torch.cat([model(x[rows]) for rows in test.split(64)])
    return float(((found > 0) == (y[test] > 0)).float().mean())


def heldout(world: World, seed: int, count: int) -> list[ToyScene]:
    """Scenes of one held-out subject each, as the world draws them."""
    rng = random.Random(f"paired-{seed}")
    return [sample_scene(rng, world, subjects=(sample_subject(rng, world, heldout=True),)) for _ in range(count)]


@torch.no_grad()
def clip_features(custom: CustomContrast, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Image embeddings (N, e) by the base's own CLIP."""
    base, parts = custom.base, []
    for start in range(0, len(pictures), 64):
        pixels = base.image_processor(images=list(pictures[start : start + 64]), return_tensors="pt")["pixel_values"]
        parts.append(base.image_encoder(pixels.to(base.device, base.image_encoder.dtype)).image_embeds.float().cpu())
    return torch.cat(parts).numpy()


def paired_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation paired …`: the table."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation paired", description=__doc__.split("\n\n")[0])
    given = PairedConfig()
    add_toyland_options(parser, given)
    parser.add_argument("--readers", type=Path, help="who finds subjects (train.evaluation.readers)")
    parser.add_argument("--count", type=int, default=given.count, help="scenes")
    parser.add_argument("--steps", type=int, help="denoising steps; default the base's own")
    parser.add_argument("--guidance", type=float, help="guidance scale; default the base's own")
    parser.add_argument("--guidance-end", type=float, help="share of the steps with guidance")
    parser.add_argument("--seed", type=int, default=given.seed)
    return evaluate_paired(from_options(PairedConfig, parser.parse_args(arguments)))


def evaluate_paired(config: PairedConfig) -> str:
    """Make the pictures, compare them, write scores.json, table.md and sheet.png; returns the table.

    Raises ValueError for a base that takes no layout.
    """
    custom = CustomContrast.load(config.base, config.weights)
    if not custom.base.layout_channels:
        raise ValueError(f"--base {config.base}: it takes no layout, so its pictures cannot be paired with renders")
    readers, side = load_readers(config.readers, config.base), custom.base.default_size
    scenes = heldout(World.named(config.world), config.seed, config.count)
    rendered = [render([scene], side) for scene in tqdm(scenes, desc="renders", unit="scene")]
    real = [to_pil_image(r.images[0]) for r in rendered]
    settings = {
        "num_inference_steps": config.steps, "guidance_scale": config.guidance, "guidance_end": config.guidance_end,
    }  # fmt: skip
    drawings = [
        Drawing("scene", describe(scene).text, config.seed + i, (), {"layout": layout_of(scene, r.masks[0])} | settings)
        for i, (scene, r) in enumerate(zip(scenes, rendered, strict=True))
    ]
    made = list(drawn(custom, drawings, config.out / "pictures", "pairs"))
    pairs = []
    for drawing, picture, truth, r in zip(drawings, made, real, rendered, strict=True):
        found, read = (readers.segment(p).mask for p in (picture, truth))
        arrays = np.asarray(picture), np.asarray(truth)
        pairs.append(compare(drawing.prompt, *arrays, found, read, r.masks[0, 0].numpy()))
    other = [
        to_pil_image(render([scene], side).images[0])
        for scene in heldout(World.named(config.world), config.seed + 1, config.count)
    ]
    features = [clip_features(custom, pictures) for pictures in (made, real, other)]
    scores = {
        "scenes": len(pairs),
        "IoU of silhouettes, median": float(np.median([p.iou for p in pairs])),
        "the same of the reader on renders": float(np.median([p.iou_read for p in pairs])),
        "ΔE of mean colours, median": float(np.median([p.color for p in pairs])),
        "ΔE by pixel, median": float(np.median([p.pixels for p in pairs])),
        "SSIM inside the mask, median": float(np.median([p.ssim for p in pairs])),
        "Fréchet distance to renders": frechet(features[0], features[2]),
        "Fréchet distance of two sets of renders": frechet(features[1], features[2]),
        "critic's accuracy": critic(features[0], features[2]),
        "critic's accuracy on two sets of renders": critic(features[1], features[2]),
        "critic of pixels, its accuracy": pixel_critic(made, other),
        "the same on two sets of renders": pixel_critic(real, other),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v:.3f} |" for k, v in scores.items())])
    write_report(config.out, table, "scores.json", {"scores": scores, "pairs": [asdict(p) for p in pairs]})
    sheet(made, real).save(config.out / "sheet.png")
    return table


def sheet(made: Sequence[Image.Image], real: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Rows of pictures, each above its renders."""
    shown = min(SHOWN, len(made))
    rows = [list(run[i : min(i + columns, shown)]) for i in range(0, shown, columns) for run in (made, real)]
    return contact_sheet([picture for row in rows for picture in row], columns=min(columns, shown), tile=made[0].width)
