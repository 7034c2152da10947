"""A folder of your own subjects: one sub-folder each, with pictures of that subject in it.

subjects/
  my bear/        the sub-folder's name is the class noun (digits and underscores aside), unless noun.txt says it
    01.jpg 02.jpg …
    01.txt        optional caption of 01.jpg with the subject's word marked: "a <bear> on a red sofa"
    masks/01.jpg.png  optional mask (masks/01.png will do where no two pictures are called 01): white, or not 0, or not
                  transparent = subject; made by our segmentation when absent, and kept for you to mend

Names that begin with a dot are skipped. Texts may be UTF-8, UTF-16 with its mark, or Windows-1252.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from customcontrast.conditioning.prompt import without_tags
from customcontrast.errors import ConfigError, PictureError, SegmentationError
from customcontrast.images.loading import load_picture
from customcontrast.images.resizing import reduced
from customcontrast.segmentation import Segmentation, Segmenter
from train.data.folder_layout import class_noun, mask_path, pictures_in, read_text, subject_places
from train.data.references import segmented
from train.data.samples import Sample, keys_of

LOG = logging.getLogger(__name__)
AREA = (0.01, 0.95)  # share of a picture that a usable subject covers
SHORT_SIDE = 1024  # px; pictures whose shorter side is larger are reduced to it when they are read
MAX_SIDE = 8192  # px; no longer side is larger than this
ORIENTATION = 0x0112  # EXIF: from 5 on the picture lies on its side
_MADE_FOR = "made for"  # in a mask of our own making: the digest of its picture


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a subject."""

    picture: Path | bytes
    mask: np.ndarray  # bool (H, W), at the size at which the picture is read
    caption: str
    noun: tuple[int, int]  # span of the class noun in the caption
    original: tuple[int, int] | None = None  # width and height before any resizing, px; None = as it is read


def subject_folders(
    folder: Path,
    count: int | None = None,
    find: Callable[[Image.Image, str], Segmentation | None] | None = None,
) -> Iterator[tuple[str, str, Segmentation]]:
    """(name, class noun, segmentation of the first usable picture) of the first `count` subjects (None: of all).

    find: what segments a picture by its subject's noun; None = the mask beside it, or our segmentation.
    """
    segmenter = None
    for place in subject_places(folder)[:count]:
        noun = class_noun(place)
        for path in pictures_in(place):
            try:
                if find is not None:
                    found = find(reduced(load_picture(path, max_side=MAX_SIDE), SHORT_SIDE), noun)
                else:
                    segmenter = segmenter or Segmenter()
                    found = segment(path, segmenter)
            except (PictureError, SegmentationError):
                continue
            if found is not None:
                yield place.name, noun, found
                break


def segment(path: Path, segmenter: Segmenter) -> Segmentation:
    """The picture with the mask beside it, or one of our own making, kept beside it where the folder is writable.

    Raises PictureError or SegmentationError with one sentence.
    """
    picture = reduced(load_picture(path, max_side=MAX_SIDE), SHORT_SIDE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = mask_path(path)
    if kept.is_file() and _made_for(kept) in (None, digest):
        return Segmentation(image=picture, mask=read_mask(kept, picture.size), score=1.0, method="given")
    found = segmenter.auto(picture)
    try:
        kept.parent.mkdir(exist_ok=True)
        about = PngInfo()
        about.add_text(_MADE_FOR, digest)
        Image.fromarray(found.mask.astype(np.uint8) * 255).save(kept, pnginfo=about)
    except OSError:  # a read-only folder: segment again next time
        pass
    return found


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask file as bool (H, W) at `size` (W, H): its alpha where it has any, else what is not index 0 of a palette,
    not 0 where it holds 0 and 1 alone, brighter than half elsewhere.

    Raises PictureError where it cannot be read, or is of another shape than the picture.
    """
    load_picture(path, argument=path.name)  # its checks, in one sentence
    with Image.open(path) as mask:
        mask.load()
        if abs(mask.width * size[1] - size[0] * mask.height) > 0.02 * mask.width * size[1]:
            raise PictureError(f"mask {path.name} is {mask.width} x {mask.height}, of another shape than its picture")
        alpha = mask.getchannel("A") if "A" in mask.getbands() else None
        if alpha is not None and np.asarray(alpha).min() < 255:
            grey, least = alpha, 127
        elif mask.mode == "P":
            grey, least = Image.fromarray(np.asarray(mask)), 0
        else:
            grey = mask.convert("L")
            least = 0 if np.asarray(grey).max() <= 1 else 127
        return np.asarray(grey.resize(size, Image.Resampling.NEAREST)) > least


def _made_for(mask: Path) -> str | None:
    """The digest of the picture that a mask of our own making is of; None for anybody else's."""
    try:
        with Image.open(mask) as image:
            return getattr(image, "text", {}).get(_MADE_FOR)
    except (OSError, ValueError, SyntaxError):
        return None


def caption_path(path: Path) -> Path | None:
    """The caption beside a picture, NAME.txt in any letter case; None where there is none."""
    wanted = f"{path.stem}.txt".casefold()
    return next((p for p in sorted(path.parent.iterdir()) if p.name.casefold() == wanted and p.is_file()), None)


def has_caption(path: Path) -> bool:
    """Whether a caption lies beside a picture."""
    return caption_path(path) is not None


def caption_of(path: Path, noun: str) -> tuple[str, tuple[int, int]]:
    """The caption beside a picture (NAME.txt), or "a photo of a NOUN", and the span of the class noun in it."""
    noun, beside = unicodedata.normalize("NFC", noun), caption_path(path)
    text = f"a photo of a <{noun}>" if beside is None else read_text(beside)
    text = " ".join(without_tags(text, []).split())
    marked = re.search(r"<([^<>]+)>", text) or re.search(rf"\b({re.escape(noun)})\b", text, re.IGNORECASE)
    if marked is None:
        return f"{noun}, {text}", (0, len(noun))
    start, word = marked.start(), marked[1]
    return text[:start] + word + text[marked.end() :], (start, start + len(word))


class FolderSource:
    """Subjects of a folder; every picture can be x, r or r⁺, and r ≠ x, r⁺ ≠ r wherever there are two.

    Pictures that cannot be read or segmented are left out and listed in `skipped`. Raises ConfigError when no subject
    is left.
    """

    def __init__(self, folder: Path, size: int, crop: int, progress: bool = True) -> None:
        self.size, self.crop = size, crop
        self.subjects: list[tuple[str, list[Frame], list[Tensor]]] = []
        self.skipped: list[str] = []
        segmenter = Segmenter()
        for place in tqdm(subject_places(folder), desc="read subjects", disable=not progress):
            frames, references = [], []
            for path in pictures_in(place):
                frame = self._frame(path, place, segmenter)
                if frame is not None:
                    frames.append(frame[0])
                    references.append(frame[1])
            if frames:
                self.subjects.append((place.name, frames, references))
        if self.skipped:
            some = "; ".join(self.skipped[:5]) + (" …" if len(self.skipped) > 5 else "")
            LOG.warning("%d pictures of %s are left out: %s", len(self.skipped), folder, some)
        if not self.subjects:
            raise ConfigError(
                f"{folder} holds no usable subject; skipped: {'; '.join(self.skipped) or 'nothing found'}"
            )

    def _frame(self, path: Path, place: Path, segmenter: Segmenter) -> tuple[Frame, Tensor] | None:
        try:
            found = segment(path, segmenter)
        except (PictureError, SegmentationError) as error:
            self.skipped.append(f"{path.name} of {place.name}: {error}")
            return None
        area = float(found.mask.mean())
        if not AREA[0] <= area <= AREA[1]:
            self.skipped.append(f"{path.name} of {place.name}: the subject covers {area:.0%} of the picture")
            return None
        caption, noun = caption_of(path, class_noun(place))
        image = pil_to_tensor(found.image.convert("RGB"))
        reference = segmented(image, torch.from_numpy(found.mask.copy()), self.crop)
        with Image.open(path) as header:
            original = header.size if header.getexif().get(ORIENTATION, 1) < 5 else header.size[::-1]
        return Frame(path, found.mask, caption, noun, original), reference

    def __len__(self) -> int:
        return len(self.subjects)

    def subject_keys(self) -> np.ndarray:
        return keys_of(name for name, _, _ in self.subjects)

    def pair(self, index: int, rng: random.Random) -> Sample:
        name, frames, references = self.subjects[index]
        order = rng.sample(range(len(references)), min(2, len(references)))
        both = references[order[0]], references[order[-1]]
        frame = frames[order[0]]
        mask = torch.zeros(1, 1, 1, dtype=torch.bool)
        return Sample(name, frame.caption, frame.noun, mask, reference=both[0], positive=both[1], pair=True)

    def draw(self, index: int, rng: random.Random) -> Sample:
        name, frames, references = self.subjects[index]
        order = rng.sample(range(len(frames)), len(frames))
        target, reference, positive = (order[k % len(order)] for k in range(3))
        if len(order) == 2:  # r⁺ ≠ r matters more than r⁺ ≠ x
            positive = target
        image, mask, origin = square(frames[target], self.size, rng)
        return Sample(
            subject=name,
            caption=frames[target].caption,
            noun=frames[target].noun,
            mask=mask,
            image=image,
            reference=references[reference],
            positive=references[positive],
            origin=origin,
        )


def square(frame: Frame, size: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """A square part of the picture with as much of the subject as fits.

    Returns x uint8 (3, size, size), M bool (1, size, size), and what SDXL is told of x: the picture's height and width
    before any resizing, and the crop's top and left where its shorter side is `size`; px, (4,).
    """
    picture = reduced(load_picture(frame.picture, max_side=MAX_SIDE), min(frame.mask.shape)).convert("RGB")
    mask = Image.fromarray(frame.mask.astype(np.uint8) * 255)
    w, h = picture.size
    side = min(w, h)
    rows, columns = np.flatnonzero(frame.mask.any(1)), np.flatnonzero(frame.mask.any(0))
    x = _offset(int(columns[0]), int(columns[-1]) + 1, side, w, rng)
    y = _offset(int(rows[0]), int(rows[-1]) + 1, side, h, rng)
    box = (x, y, x + side, y + side)
    pixels = pil_to_tensor(picture.resize((size, size), Image.Resampling.LANCZOS, box=box))
    inside = np.array(mask.resize((size, size), Image.Resampling.BILINEAR, box=box)) > 127
    width, height = frame.original or (w, h)
    origin = torch.tensor([height, width, round(y * size / side), round(x * size / side)])
    return pixels, torch.from_numpy(inside)[None], origin


def _offset(low: int, high: int, side: int, whole: int, rng: random.Random) -> int:
    """Start of a window of `side` within `whole` that covers [low, high) where it can, else lies inside it."""
    first, last = sorted((max(0, high - side), min(low, whole - side)))
    first, last = max(0, min(first, whole - side)), max(0, min(last, whole - side))
    return rng.randint(first, last)
