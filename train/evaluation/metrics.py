"""CT, CI and DI with confidence intervals (section 4.1), and retrieval of an identity among distractors.

CT is the cosine of prompt and picture in a text–image space. CI and DI are cosines of *segmented* reference and
*segmented* generation, in CLIP's image space and in an identity space: DINO's at SD scale, an identity reader's on
Toyland (`readers`). A prefix says which prompts: R- only name the subject (reconstruction), E- edit it.

By a base's own CLIP, CT cannot tell a picture that does what was asked from one of an average subject: on Toyland real
renders of the prompts score lower than pictures from text alone. So CT can be judged by a CLIP that learned to tell
(`clip_judge`), and "edits" says it outright: the share of E- pictures off which an attribute reader
(`attribute_reader`) reads the style, shape, place or thing to wear that was asked for. Where the reference itself was
in some style and shape and wore something, "leaks" is the share of that, unasked, in the picture.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from customcontrast.base_model import BaseModel

# Pictures, and {attribute: value} wanted of each → {attribute: 1 where it is seen, 0 where not} of each.
Sees = Callable[[Sequence[Image.Image], Sequence[dict[str, str]]], list[dict[str, float]]]
CATEGORIES = ("reconstruction", "style", "shape", "scene", "accessorisation")  # the first is R-, the others are E-


@dataclass(frozen=True)
class Score:
    """One generated picture: whose it is, what was asked, and its three cosines in [−1, 1]."""

    subject: str
    category: str  # one of CATEGORIES
    prompt: str
    ct: float
    ci: float
    di: float
    rank: int = -1  # place of the true subject among the distractors in identity space, 0 = first; −1 = not asked
    ir: float | None = None  # ImageReward of prompt and picture, unbounded, about −2 … 2; None = not asked
    edit: float | None = None  # 1 where the picture shows the edit that was asked for, 0 where not; None = not asked
    leaks: dict[str, float] | None = None  # {attribute the reference shows unasked: 1 where it is seen, 0 where not}
    carried: dict[str, float] | None = None  # {attribute of the subject: 1 where it is seen, 0 where not}
    seed: int = 0  # of the picture's noise

    @property
    def leak(self) -> float | None:
        """The share of `leaks` that is seen, in [0, 1]; None where there is nothing to leak."""
        return sum(self.leaks.values()) / len(self.leaks) if self.leaks else None


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        """spec: "" or "+", which signs the numbers of a difference."""
        return f"{self.mean:{spec}.3f} [{self.low:{spec}.3f}, {self.high:{spec}.3f}]"


CHUNK = 32  # prompts or pictures that go through an encoder at once
CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dinov2-base"  # what the paper's figures agree with


@dataclass(frozen=True)
class ClipSpaces:
    """The two sides of a CLIP, each to rows (N, ·) of one space."""

    text: Callable[[Sequence[str]], Tensor]
    image: Callable[[Sequence[Image.Image]], Tensor]


def in_chunks(encode: Callable[[Sequence[Any]], Tensor], size: int = CHUNK) -> Callable[[Sequence[Any]], Tensor]:
    """An encoder that takes `size` rows at once, however many it is given: 1,500 pictures do not fit a GPU."""

    def encoded(rows: Sequence[Any]) -> Tensor:
        return torch.cat([encode(rows[i : i + size]) for i in range(0, len(rows), size)])

    return encoded


@dataclass(frozen=True)
class Backbones:
    """The three encoders of the metrics, each to unit-free rows (N, ·), and their names for the report."""

    text: Callable[[Sequence[str]], Tensor]  # prompts → CT's text space
    image: Callable[[Sequence[Image.Image]], Tensor]  # pictures → the same space
    identity: Callable[[Sequence[Image.Image]], Tensor]  # segmented subjects → DI's space
    reward: Callable[[Sequence[str], Sequence[Image.Image]], Tensor] | None = None  # prompts, pictures → IR (N,)
    sees: Sees | None = None  # None = nobody reads attributes off pictures
    names: dict[str, str] = field(default_factory=dict)  # {"CT": …, "CI": …, "DI": …}
    likeness: Callable[[Sequence[Image.Image]], Tensor] | None = None  # segmented subjects → CI's space; None = `image`


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row by row: (N, d) and (N, d) → (N,) in [−1, 1]."""
    if a.shape != b.shape:
        raise ValueError(f"cosine: a is {tuple(a.shape)} and b is {tuple(b.shape)}; give equally many rows and columns")
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def bootstrap(
    values: Sequence[float],
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean with a percentile bootstrap interval.

    groups: draw whole groups (subjects) with replacement, because the pictures of one subject are not independent;
    None draws single values. level in (0, 1). Raises ValueError for no values or unequal lengths.
    """
    if len(values) == 0:
        raise ValueError("bootstrap: values is empty; there is nothing to average")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"bootstrap: {len(values)} values but {len(groups)} groups; give one group per value")
    cluster: dict[object, list[float]] = defaultdict(list)
    for i, value in enumerate(values):
        cluster[i if groups is None else groups[i]].append(float(value))
    sums = np.array([sum(v) for v in cluster.values()])
    sizes = np.array([len(v) for v in cluster.values()])
    rows = np.random.default_rng(seed).integers(len(sums), size=(rounds, len(sums)))
    means = sums[rows].sum(1) / sizes[rows].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(np.asarray(values, float))), float(low), float(high), len(values))


def paired(
    scores: Sequence[Score], baseline: Sequence[Score], value: Callable[[Score], float], **options: Any
) -> Interval:
    """How far `value` of one method is above the baseline's, with its interval over subjects.

    The pictures must be of the same subjects, prompts and seeds in the same order: what makes one subject or prompt
    harder than another falls out of each difference, so the interval is narrower than those of the two means.
    options: of `bootstrap`. Raises ValueError where the two lists do not match.
    """
    same = [(s.subject, s.category, s.prompt) for s in scores] == [(s.subject, s.category, s.prompt) for s in baseline]
    if not same:
        raise ValueError(
            f"paired: {len(scores)} and {len(baseline)} scores are not of the same subjects and prompts in one order; "
            "evaluate both on the same benchmark"
        )
    steps = [value(a) - value(b) for a, b in zip(scores, baseline, strict=True)]
    return bootstrap(steps, [s.subject for s in scores], **options)


def identity_rank(query: Tensor, true: Tensor, distractors: Tensor) -> int:
    """How many distractors (D, d) are nearer to `query` (d,) than the true subject's embedding (d,); 0 = found."""
    q = F.normalize(query.float(), dim=-1)
    own = (q * F.normalize(true.float(), dim=-1)).sum()
    return int((F.normalize(distractors.float(), dim=-1) @ q > own).sum())


COLUMNS: dict[str, tuple[str, Callable[[Score], float | None]]] = {  # name: (which prompts, value; None = not asked)
    "CT": ("", lambda s: s.ct),
    "R-CT": ("R-", lambda s: s.ct),
    "E-CT": ("E-", lambda s: s.ct),
    "R-CI": ("R-", lambda s: s.ci),
    "E-CI": ("E-", lambda s: s.ci),
    "R-DI": ("R-", lambda s: s.di),
    "E-DI": ("E-", lambda s: s.di),
    "IR": ("", lambda s: s.ir),
    "edits": ("E-", lambda s: s.edit),
    "leaks": ("", lambda s: s.leak),
    "retrieval": ("", lambda s: float(s.rank == 0) if s.rank >= 0 else None),
}


def asked(scores: Iterable[Score], column: str) -> list[Score]:
    """The pictures that a column of COLUMNS is about."""
    prompts, value = COLUMNS[column]
    wanted = {"": (True, False), "R-": (True,), "E-": (False,)}[prompts]
    return [s for s in scores if (s.category == CATEGORIES[0]) in wanted and value(s) is not None]


def summarise(scores: Iterable[Score]) -> dict[str, Interval]:
    """COLUMNS, each with its interval over subjects: the paper's, and on Toyland edits and retrieval.

    CT is over all prompts. Edits is the share of edits that are seen, leaks that of what the reference shows unasked,
    retrieval the share of pictures whose subject is found first. A column without pictures is left out.
    """
    scores = list(scores)
    table: dict[str, Interval] = {}
    for column, (_, value) in COLUMNS.items():
        rows = [(x, s.subject) for s in asked(scores, column) if (x := value(s)) is not None]
        if rows:
            table[column] = bootstrap([x for x, _ in rows], [subject for _, subject in rows])
    return table


def by_category(scores: Iterable[Score]) -> dict[str, dict[str, Interval]]:
    """CT, CI, DI and, where it was asked, the share of edits seen, of each category that has pictures."""
    scores, table = list(scores), {}
    for category in CATEGORIES:
        rows = [s for s in scores if s.category == category]
        if rows:
            subjects = [s.subject for s in rows]
            table[category] = {
                "CT": bootstrap([s.ct for s in rows], subjects),
                "CI": bootstrap([s.ci for s in rows], subjects),
                "DI": bootstrap([s.di for s in rows], subjects),
            }
            edits = [s.edit for s in rows if s.edit is not None]
            if len(edits) == len(rows):
                table[category]["edits"] = bootstrap(edits, subjects)
    return table


def by_attribute(scores: Iterable[Score], field: Literal["leaks", "carried"]) -> dict[str, Interval]:
    """How often each attribute in this field of the scores is seen, {attribute: share}."""
    rows = [(name, seen, s.subject) for s in scores for name, seen in (getattr(s, field) or {}).items()]
    names = dict.fromkeys(name for name, *_ in rows)
    return {k: bootstrap([v for n, v, _ in rows if n == k], [s for n, _, s in rows if n == k]) for k in names}


def markdown(runs: dict[str, list[Score]], names: dict[str, str], notes: Sequence[str] = ()) -> str:
    """One table over all runs (rows), one per category, one of leaks and one of what is carried, in intervals."""
    tables = {run: summarise(scores) for run, scores in runs.items()}
    shown = ("CT", "E-CT", "R-CI", "E-CI", "R-DI", "E-DI", "IR", "edits", "leaks", "retrieval")
    lines = _rows(tables, shown, "run")
    for run, scores in runs.items():
        parts = _rows(by_category(scores), ("CT", "CI", "DI", "edits"), "category")
        lines += ["", f"**{run}, by category**", "", *parts]
    titles: dict[Literal["leaks", "carried"], str] = {
        "leaks": "leaks, by what the reference shows",
        "carried": "attributes of the subject that are seen in its pictures",
    }
    for which, title in titles.items():
        seen = {run: found for run, scores in runs.items() if (found := by_attribute(scores, which))}
        if seen:
            parts = _rows(seen, tuple(dict.fromkeys(name for row in seen.values() for name in row)), "run")
            lines += ["", f"**{title}**", "", *parts]
    lines += ["", *(f"- {metric}: {name}" for metric, name in names.items())]
    lines += [f"- {note}" for note in notes]
    lines += ["- in brackets: 95 % bootstrap interval over subjects"]
    return "\n".join(lines) + "\n"


def _rows(table: dict[str, dict[str, Interval]], columns: Sequence[str], head: str) -> list[str]:
    """A table of the columns that any row has."""
    columns = [column for column in columns if any(column in row for row in table.values())]
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(str(row[c]) if c in row else "–" for c in columns) + " |")
    return lines


def to_json(runs: dict[str, list[Score]], names: dict[str, str], about: dict[str, object]) -> str:
    """Everything behind the tables: each picture's score, the columns and the backbones."""
    return json.dumps(
        {
            "about": about,
            "backbones": names,
            "summary": {run: {k: asdict(v) for k, v in summarise(scores).items()} for run, scores in runs.items()},
            "scores": {run: [asdict(s) for s in scores] for run, scores in runs.items()},
        },
        indent=1,
    )


# -------------------------------------------------------------------------------------------------- backbones


def toyland_backbones(
    base: BaseModel,
    weights: Path,
    identity: Callable[[Sequence[Image.Image]], Tensor],
    sees: Sees | None = None,
    ct: ClipSpaces | None = None,
) -> Backbones:
    """The embedded base's own CLIP, `identity` of `train.evaluation.readers` in DINO's place, and who sees attributes.

    weights: the base's folder; its clip_head.safetensors holds the text projection that the pipeline does not need.
    ct: a CLIP for CT alone (`train.evaluation.clip_judge`); None = the base's own. Raises FileNotFoundError without it.
    """
    own = toyland_spaces(base, weights)
    names = {"CT": "Toyland's CLIP", "CI": "Toyland's CLIP, segmented", "DI": "identity reader, segmented"}
    if ct is not None:
        names["CT"] = "a CLIP that only judges"
    spaces = ct or own
    return Backbones(spaces.text, spaces.image, identity, sees=sees, names=names, likeness=own.image)


def toyland_spaces(base: BaseModel, weights: Path) -> ClipSpaces:
    """The two sides of an embedded base's own CLIP. Raises FileNotFoundError without its clip_head.safetensors."""
    head = weights / "clip_head.safetensors"
    if not head.exists():
        raise FileNotFoundError(f"{head} is missing, so text and pictures cannot be compared; export the base again")
    projection = load_file(head)["text_projection.weight"].float().to(base.device)
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]

    @torch.no_grad()
    def text(prompts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return (encoder(ids.to(base.device)).pooler_output.float() @ projection.T).cpu()

    @torch.no_grad()
    def image(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = base.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return base.image_encoder(pixels.to(base.device, base.image_encoder.dtype)).image_embeds.float().cpu()

    return ClipSpaces(in_chunks(text), in_chunks(image))


def image_reward(name: str, device: torch.device) -> Callable[[Sequence[str], Sequence[Image.Image]], Tensor]:
    """IR by the package image-reward; name: "ImageReward-v1.0" or a checkpoint file. Raises ValueError without it."""
    try:
        import ImageReward
    except ImportError as error:
        raise ValueError(
            f"IR needs the package image-reward ({error}); pip install image-reward, or leave --reward out"
        ) from error
    model = ImageReward.load(name, device=str(device))
    return lambda prompts, pictures: torch.tensor(
        [float(model.score(prompt, [picture])) for prompt, picture in zip(prompts, pictures, strict=True)]
    )


def clip_spaces(clip: str, device: torch.device) -> ClipSpaces:
    """A whole CLIP by hub id or folder. Raises OSError, naming it, where it cannot be read."""
    from transformers import CLIPModel, CLIPProcessor

    clip_model = CLIPModel.from_pretrained(clip).to(device).eval()
    clip_processor = CLIPProcessor.from_pretrained(clip)

    @torch.no_grad()
    def text(prompts: Sequence[str]) -> Tensor:
        inputs = clip_processor(text=list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        return clip_model.text_projection(clip_model.text_model(**inputs).pooler_output).cpu()

    @torch.no_grad()
    def image(pictures: Sequence[Image.Image]) -> Tensor:
        inputs = clip_processor(images=list(pictures), return_tensors="pt").to(device)
        return clip_model.visual_projection(clip_model.vision_model(**inputs).pooler_output).cpu()

    return ClipSpaces(in_chunks(text), in_chunks(image))


def pretrained_backbones(
    clip: str = CLIP, dino: str = DINO, device: torch.device | str = "cpu", reward: str | None = None
) -> Backbones:
    """Published backbones, by hub id or folder: a CLIP, a DINO and, where `reward` names it, ImageReward."""
    from transformers import AutoImageProcessor, AutoModel

    spaces = clip_spaces(clip, torch.device(device))
    dino_model = AutoModel.from_pretrained(dino).to(device).eval()
    dino_processor = AutoImageProcessor.from_pretrained(dino)

    @torch.no_grad()
    def identity(pictures: Sequence[Image.Image]) -> Tensor:
        inputs = dino_processor(images=list(pictures), return_tensors="pt").to(device)
        return dino_model(**inputs).last_hidden_state[:, 0].cpu()

    names = {"CT": clip, "CI": f"{clip}, segmented", "DI": f"{dino}, segmented"} | ({"IR": reward} if reward else {})
    ir = image_reward(reward, torch.device(device)) if reward else None
    return Backbones(spaces.text, spaces.image, in_chunks(identity), ir, names=names)
