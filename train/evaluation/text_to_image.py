"""How well a Toyland base model follows its prompt, against real renders of the same prompts.

    python -m train.evaluation base                        → runs/base-evaluation/{table.md, scores.json, sheet.png}

500 prompts of held-out subjects, spread over all attribute kinds. An attribute reader that was trained on renders
alone says what each picture shows; every share is given for the generated pictures, for the renders (what the reader
itself can do), and as the ratio of the two. Beside it CLIP-T, a kernel distance in the reader's features, what the
autoencoder keeps, and seconds a picture. Pictures that are there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from customcontrast.base_model import BaseModel
from customcontrast.config import RecordConfig
from customcontrast.pipeline import CustomContrast
from customcontrast.visualize import contact_sheet
from train.common.options import from_options
from train.evaluation.attribute_reader import AttributeReader, heldout_scenes, load_reader, read, rendered
from train.evaluation.command import add_toyland_options
from train.evaluation.drawings import Drawing, base_digest, drawn
from train.evaluation.metrics import cosine, toyland_backbones
from train.toyland import ToyScene, World, attributes, describe

TARGETS = {  # ratio to renders: (weights trained on a GPU, on a CPU)
    "scene": (0.95, 0.85),
    "species": (0.92, 0.75),
    "main colour": (0.92, 0.75),
    "style": (0.95, 0.85),
    "accessory": (0.85, 0.60),
    "pattern": (0.80, 0.50),
    "both species of two": (0.75, 0.40),
    "CLIP-T": (0.95, 0.88),
}
ROWS = {  # row of the table: attribute of the reader
    "scene": "background",
    "species": "species",
    "main colour": "color_1",
    "second colour": "color_2",
    "pattern": "pattern",
    "style": "style",
    "shape": "shape",
    "accessory": "accessory",
    "accessory colour": "accessory_color",
}
SHEET = (  # the 32 fixed prompts of the contact sheet
    "a red and white bear on the beach",
    "a blue and yellow car on a city street",
    "a pink and white rabbit in a studio",
    "an orange and black cat in the jungle",
    "a yellow and red duck underwater",
    "a purple and white elephant in the desert",
    "a green and black robot in the snow",
    "a white and blue knight at night",
    "a brown and yellow bear wearing a red hat in the snow",
    "a blue and white cat wearing a yellow crown on the beach",
    "a white and pink rabbit wearing a blue scarf in the jungle",
    "a yellow and green duck wearing black glasses in a studio",
    "a pink and purple elephant wearing a green hat on the beach",
    "a red and black robot wearing a yellow scarf at night",
    "a striped orange and black cat in a studio",
    "a spotted white and black rabbit on the beach",
    "a patched brown and white bear in the jungle",
    "a striped red and white car in the desert",
    "a green and yellow elephant in the jungle, watercolor style",
    "a red and blue robot in the desert, watercolor style",
    "an orange and white cat on the beach, pixel art style",
    "a blue and red knight in the snow, pixel art style",
    "a pink and white bear in the snow, pencil sketch style",
    "a green and yellow car on a city street, pencil sketch style",
    "a cube shaped yellow and red duck in a studio",
    "a cube shaped green and white bear at night",
    "a chubby blue and yellow rabbit in the desert",
    "a tall orange and brown elephant underwater",
    "a red and white bear and a blue and yellow duck on the beach",
    "a green and black robot and a pink and white cat in a studio",
    "an orange and white car and a purple and yellow elephant in the desert",
    "a yellow and black knight and a red and white rabbit in the snow",
)


@dataclass(frozen=True)
class BaseEvaluationConfig:
    """How a base is judged from text alone. A field is the option of its name, and its default the option's."""

    base: str = "toyland"  # toyland or toyland2
    weights: str | None = None  # folder of the base; None = the shipped one
    reader: Path | None = None  # file of train.evaluation.attribute_reader; None = that of the base's world
    count: int = 500  # prompts
    world: str = "small"  # part of Toyland: a classmethod of train.toyland.World
    steps: int | None = None  # denoising steps; None = the base's own
    guidance: float | None = None  # guidance scale; None = the base's own
    seed: int = 0  # of the prompts; picture i has the noise of seed + i
    out: Path = Path("runs/base-evaluation")  # folder of pictures and report


@dataclass(frozen=True)
class Row:
    """One line of the table. generated and real in [0, 1]; ratio with its 95 % bootstrap interval over prompts."""

    name: str
    generated: float
    real: float
    ratio: float
    low: float
    high: float
    count: int


def options_parser() -> argparse.ArgumentParser:
    """The command line of `python -m train.evaluation base`."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluation base", description=__doc__.split("\n\n")[0])
    given = BaseEvaluationConfig()
    add_toyland_options(parser, given, ("toyland", "toyland2"))
    parser.add_argument("--reader", type=Path, help="another of train.evaluation.attribute_reader")
    parser.add_argument("--count", type=int, default=given.count, help="prompts")
    parser.add_argument("--steps", type=int, help="denoising steps; default the base's own")
    parser.add_argument("--guidance", type=float, help="guidance scale; default the base's own")
    parser.add_argument("--seed", type=int, default=given.seed)
    return parser


def evaluate_base(config: BaseEvaluationConfig) -> str:
    """Make the pictures, score them, write table.md, scores.json and sheet.png; returns the table."""
    base = CustomContrast.load(config.base, config.weights).base
    custom = CustomContrast(base)
    reader = load_reader(config.reader, config.base)
    scenes = heldout_scenes(World.named(config.world), f"base evaluation {config.seed}", config.count)
    prompts = [describe(scene).text for scene in scenes]
    folder = config.out / "pictures"
    made = pictures(custom, prompts, folder, config, "prompts")
    sheet = pictures(custom, SHEET, folder, config, "contact sheet")
    real = rendered(scenes, base.default_size)
    generated = torch.stack([pil_to_tensor(picture.convert("RGB")) for picture in made])

    rows = attribute_rows(reader, generated, real, scenes)
    rows.append(clip_row(base, Path(config.weights or base.spec.weights), prompts, made, real))
    facts = {
        "kernel distance": kernel_distance(reader, real, generated),
        "kernel distance of other renders": kernel_distance(reader, real, other_renders(config, base.default_size)),
        "autoencoder": {side: autoencoder_quality(base, config.world, side) for side in (base.default_size, 128)},
        "seconds": seconds(custom, config),
    }
    about = {
        "prompts": len(prompts), "seed": config.seed, "steps": config.steps or base.default_steps,
        "guidance": config.guidance or base.default_guidance, "world": config.world,
        "weights": base_digest(base), "reader on held-out renders": reader.quality,
    }  # fmt: skip
    table = markdown(rows, facts, about)
    (config.out / "table.md").write_text(table, encoding="utf-8")
    report = {"about": about, "rows": [asdict(row) for row in rows], **facts}
    (config.out / "scores.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    contact_sheet(sheet, [textwrap.fill(p, 28) for p in SHEET], columns=8, tile=192).save(config.out / "sheet.png")
    return table


# ------------------------------------------------------------------------------------------------- pictures


def pictures(
    custom: CustomContrast, prompts: Sequence[str], folder: Path, config: BaseEvaluationConfig, what: str
) -> list[Image.Image]:
    """One picture a prompt, seed config.seed + its number; those in `folder` made the same way are read instead."""
    options = {"num_inference_steps": config.steps, "guidance_scale": config.guidance}
    drawings = [Drawing("text", prompt, config.seed + i, options=options) for i, prompt in enumerate(prompts)]
    return list(drawn(custom, drawings, folder, what))


def other_renders(config: BaseEvaluationConfig, side: int) -> Tensor:
    """Renders of other held-out subjects: the distance that two sets of renders have."""
    world = World.named(config.world)
    return rendered(heldout_scenes(world, f"other renders {config.seed}", config.count), side)


# --------------------------------------------------------------------------------------------------- scores


def attribute_rows(reader: AttributeReader, generated: Tensor, real: Tensor, scenes: Sequence[ToyScene]) -> list[Row]:
    """One row an attribute; species apart for one and for two subjects. generated, real: (N, 3, S, S) uint8."""
    labels = [attributes(scene) for scene in scenes]
    got, truth = read(reader, generated, labels), read(reader, real, labels)
    two = torch.tensor([len(scene.placements) > 1 for scene in scenes])
    rows = []
    for name, attribute in ROWS.items():
        asked = ~truth[attribute].isnan()
        if attribute == "species":
            asked &= ~two
        rows.append(ratio_row(name, got[attribute][asked], truth[attribute][asked]))
    return [*rows, ratio_row("both species of two", got["species"][two], truth["species"][two])]


def ratio_row(name: str, generated: Tensor, real: Tensor, rounds: int = 2000, seed: int = 0) -> Row:
    """Means of two paired columns (N,), and their ratio with a percentile bootstrap over the pairs.

    Raises ValueError where there are no pairs.
    """
    if len(generated) == 0:
        raise ValueError(f"evaluate base: no prompt asks for {name!r}; raise --count")
    a, b = generated.double().numpy(), real.double().numpy()
    drawn = np.random.default_rng(seed).integers(len(a), size=(rounds, len(a)))
    ratios = a[drawn].mean(1) / np.maximum(b[drawn].mean(1), 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Row(name, a.mean(), b.mean(), a.mean() / max(b.mean(), 1e-9), float(low), float(high), len(a))


def clip_row(base: BaseModel, weights: Path, prompts: Sequence[str], made: Sequence[Image.Image], real: Tensor) -> Row:
    """Cosine of prompt and picture by Toyland's own CLIP, of generated pictures and of renders."""
    clip = toyland_backbones(base, weights, lambda images: torch.zeros(len(images), 1))
    truth = [to_pil_image(image) for image in real]
    text = clip.text(prompts)
    return ratio_row("CLIP-T", cosine(text, clip.image(made)), cosine(text, clip.image(truth)))


class _Features(nn.Module):
    """The reader's features of uint8 pictures as torchmetrics wants them, each row of mean square 1.

    The cubic kernel of raw features would be ruled by the few loudest pictures.
    """

    def __init__(self, reader: AttributeReader) -> None:
        super().__init__()
        self.reader = reader

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features = torch.cat([self.reader.features(part.float() / 255) for part in images.split(64)])
        return features * features.pow(2).mean(1, keepdim=True).rsqrt()


def kernel_distance(reader: AttributeReader, real: Tensor, generated: Tensor) -> dict[str, float]:
    """KID's polynomial kernel distance in the reader's features: mean and deviation over subsets."""
    torch.manual_seed(0)
    size = min(100, len(real), len(generated))
    metric = KernelInceptionDistance(feature=_Features(reader), subsets=50, subset_size=size)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    mean, deviation = metric.compute()
    return {"mean": float(mean), "deviation": float(deviation)}


@torch.no_grad()
def autoencoder_quality(base: BaseModel, world: str, side: int, count: int = 64) -> dict[str, float]:
    """PSNR (dB, mean over pictures) and SSIM of `count` renders of held-out subjects at `side` px, there and back."""
    real = rendered(heldout_scenes(World.named(world), "autoencoder", count), side).float() / 255
    back = torch.cat([base.decode(base.encode(part * 2 - 1)).float() for part in real.split(16)])
    back = ((back / 2 + 0.5).clamp(0, 1) * 255).round() / 255
    error = (back - real).pow(2).mean((1, 2, 3)).clamp_min(1e-10)
    similarity = structural_similarity_index_measure(back, real, data_range=1.0)
    return {"PSNR": float((-10 * error.log10()).mean()), "SSIM": float(similarity)}


def seconds(custom: CustomContrast, config: BaseEvaluationConfig, rounds: int = 5) -> dict[str, float]:
    """Medians over `rounds`, in seconds: from the call to the first preview and to the picture; threads used."""
    first: list[float] = []
    whole: list[float] = []
    for number in range(rounds + 1):
        start, seen = time.perf_counter(), None
        stream = custom.stream(
            "a red and white bear on the beach", (), num_inference_steps=config.steps,
            guidance_scale=config.guidance, seed=number, preview_every=2, record=RecordConfig(maps=False),
        )  # fmt: skip
        for event in stream:
            if seen is None and getattr(event, "preview", None) is not None:
                seen = time.perf_counter() - start
        done = time.perf_counter() - start
        if number:
            first.append(done if seen is None else seen)
            whole.append(done)
    return {
        "first preview": float(np.median(first)),
        "picture": float(np.median(whole)),
        "threads": torch.get_num_threads(),
    }


# --------------------------------------------------------------------------------------------------- report


def markdown(rows: Sequence[Row], facts: dict, about: dict) -> str:
    """The table, the targets beside each ratio, and the facts under it."""
    lines = [
        "| | generated | renders | ratio | 95 % interval | target (GPU / CPU) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        goal = TARGETS.get(row.name)
        verdict = "–" if goal is None else f"{goal[0]:.2f} / {goal[1]:.2f}: {reached(row.ratio, goal)}"
        cells = (f"{row.generated:.3f}", f"{row.real:.3f}", f"**{row.ratio:.2f}**", f"{row.low:.2f} … {row.high:.2f}")
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {verdict} |")
    near, far = facts["kernel distance of other renders"], facts["kernel distance"]
    clock = facts["seconds"]
    lines += ["", f"- kernel distance in the reader's features ×1000: {1000 * far['mean']:.1f} ± "
              f"{1000 * far['deviation']:.1f}; two sets of renders: {1000 * near['mean']:.1f}"]  # fmt: skip
    for side, quality in facts["autoencoder"].items():
        lines.append(f"- autoencoder at {side} px: {quality['PSNR']:.1f} dB, SSIM {quality['SSIM']:.3f}")
    lines.append(
        f"- {about['steps']} steps, guidance {about['guidance']:g}: {clock['picture']:.2f} s a picture, first preview "
        f"after {clock['first preview']:.2f} s ({clock['threads']} threads)"
    )
    lines.append(f"- {about['prompts']} prompts of held-out subjects, seed {about['seed']}, weights {about['weights']}")
    lines.append(
        "- the interval is a bootstrap over prompts; the column of the renders is the most that the reader can see"
    )
    return "\n".join(lines) + "\n"


def reached(ratio: float, goal: tuple[float, float]) -> str:
    """Which column of the targets a ratio reaches."""
    return "GPU" if ratio >= goal[0] else "CPU" if ratio >= goal[1] else "missed"


def base_command(arguments: Sequence[str]) -> str:
    """`python -m train.evaluation base …`: the table."""
    return evaluate_base(from_options(BaseEvaluationConfig, options_parser().parse_args(arguments)))
