"""The library as a service: what a page, an API or a notebook needs between its controls and the pipeline.

A `Studio` owns what is shared by all visitors and dear to make: the base models (loaded once, in the
background, so that a page can answer first), the segmenter, and the image features of recent subjects.
Everything of one visitor travels through arguments and return values. No user interface code here, and
nothing heavy is imported before a model is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from customcontrast.imageio import load_with_alpha
from customcontrast.recipe import MAX_SUBJECTS
from customcontrast.segmentation import Segmentation, SegmentationError, Segmenter

if TYPE_CHECKING:
    from customcontrast.pipeline import CustomContrast, Result, Step, Subject

log = logging.getLogger(__name__)

MAX_SIDE = 768  # px; a reference picture is reduced to this on entry, so that recipes stay small and exact
MAX_PICTURES = 4  # per request
MAX_STEPS = 100
MAX_PROMPT = 20_000  # characters
MAX_NOUN = 40  # characters
MAX_SEED = 2**31 - 1
PACKAGED = Path(__file__).parent / "weights"
MAX_POINTS = 64  # clicks on one picture
MAX_UNKNOWN = 4  # unknown words named at once
CACHED_SUBJECTS = 32  # subjects whose image features are kept


class StudioError(ValueError):
    """A request that cannot be served; the message is one sentence for a visitor, naming the remedy."""


@dataclasses.dataclass(frozen=True)
class StudioConfig:
    """Where the models are. The same names serve the command line and the environment."""

    base: str = "toyland"  # key of the base model registry, loaded at start
    weights: str | None = None  # folder of the base model; None = the one shipped in the package
    adapter: str | None = None  # adapter file; None = the one shipped beside the base's weights
    sam_checkpoint: str | None = None  # SAM weights for clicks; None = GrabCut
    device: str | None = None  # "cpu", "cuda"; None = the best one present


@dataclasses.dataclass(frozen=True)
class BaseChoice:
    """What a page says about a base model before anything heavy is imported (a test holds it to `BASES`)."""

    title: str
    steps: int  # default number of denoising steps
    guidance: float  # default guidance scale
    hub: str | None = None  # where its weights come from; None = they ship with the package


CHOICES = {
    "toyland": BaseChoice("Toyland (small, ships with CustomContrast)", 20, 4.0),
    "sd15": BaseChoice("Stable Diffusion 1.5", 50, 7.5, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sdxl": BaseChoice("Stable Diffusion XL", 30, 5.0, "stabilityai/stable-diffusion-xl-base-1.0"),
}


ADD, REMOVE, BOX = 1, 0, 2  # what a click says; two BOX clicks are the corners of a box
Point = tuple[int, int, int]  # x, y in pixels of the picture, and one of the above


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A reference picture, the clicks on it so far, and the subject they lead to."""

    picture: Image.Image  # RGB, longer side at most MAX_SIDE
    auto: Segmentation | None = None  # what was found without clicks
    points: tuple[Point, ...] = ()
    current: Segmentation | None = None  # the subject with the clicks
    trouble: str = ""  # a sentence, when there is no subject yet

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, or None while there is no subject."""
        return self.current.mask if self.current else None

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The last box that was clicked: (x0, y0, x1, y1)."""
        corners = [(x, y) for x, y, label in self.points if label == BOX]
        if len(corners) < 2:
            return None
        (xa, ya), (xb, yb) = corners[len(corners) // 2 * 2 - 2 : len(corners) // 2 * 2]
        return min(xa, xb), min(ya, yb), max(xa, xb) + 1, max(ya, yb) + 1


@dataclasses.dataclass(frozen=True)
class Picked:
    """One subject as a visitor gave it."""

    segmentations: tuple[Segmentation, ...]  # its reference pictures, cut out
    noun: str  # class word
    strength: float = 1.0  # weight of this subject's visual branch, 0 … 2


@dataclasses.dataclass(frozen=True)
class Request:
    """All settings of one run; with the pictures of the subjects it is the whole recipe."""

    prompt: str
    subjects: tuple[Picked, ...] = ()
    negative_prompt: str = ""
    steps: int | None = None  # denoising steps; None = the base's default
    guidance: float | None = None  # classifier-free guidance scale; None = the base's default
    subject_scale: float = 1.0  # λ of Eq. 3
    seed: int = 0
    pictures: int = 1  # pictures made in one go
    location_masks: bool = True  # inject M_t into the next step (section 3.4)
    base: str | None = None  # key of the base model; None = the studio's

    def settings(self) -> dict[str, Any]:
        """The JSON part of the recipe; the inverse of :func:`request_from`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "subjects"}
        return values | {"subjects": [{"noun": s.noun, "strength": s.strength} for s in self.subjects]}


def request_from(settings: dict[str, Any], references: Sequence[Sequence[Segmentation]]) -> Request:
    """Rebuild a request from a recipe; values are checked as if a visitor had typed them.

    Raises:
        StudioError: a value is missing or of the wrong kind.
    """
    try:
        words = settings.get("subjects", [])
        subjects = tuple(
            Picked(tuple(pictures), str(word["noun"]), float(word.get("strength", 1.0)))
            for pictures, word in zip(references, words, strict=True)
        )
        names = {f.name for f in dataclasses.fields(Request)} - {"subjects"}
        request = Request(subjects=subjects, **{k: v for k, v in settings.items() if k in names})
        return check(request)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StudioError):
            raise
        raise StudioError("The recipe is incomplete or damaged; download the PNG again.") from error


def check(request: Request) -> Request:
    """Return `request` with clean types, or raise a StudioError that says what to do."""
    if not isinstance(request.prompt, str) or not request.prompt.strip():
        raise StudioError("The prompt is empty: write what the picture should show.")
    if len(request.prompt) > MAX_PROMPT or len(str(request.negative_prompt or "")) > MAX_PROMPT:
        raise StudioError(f"The prompt is longer than {MAX_PROMPT:,} characters: shorten it.")
    if len(request.subjects) > MAX_SUBJECTS:
        raise StudioError(f"At most {MAX_SUBJECTS} subjects fit in one picture: remove some.")
    return dataclasses.replace(
        request,
        prompt=request.prompt.strip(),
        negative_prompt=str(request.negative_prompt or "").strip(),
        subjects=tuple(_check_subject(k, s) for k, s in enumerate(request.subjects, start=1)),
        steps=None if request.steps is None else int(_within("number of steps", request.steps, 1, MAX_STEPS)),
        guidance=None if request.guidance is None else _within("guidance", request.guidance, 0, 30),
        subject_scale=_within("subject scale", request.subject_scale, 0, 5),
        seed=int(_within("seed", request.seed, 0, MAX_SEED)),
        pictures=int(_within("number of pictures", request.pictures, 1, MAX_PICTURES)),
        location_masks=bool(request.location_masks),
    )


def _check_subject(k: int, subject: Picked) -> Picked:
    noun = " ".join(re.sub(r"[<>*]", " ", str(subject.noun or "")).split())
    if not noun:
        raise StudioError(f"Say what subject {k} is in one word, for instance “dog”.")
    if len(noun) > MAX_NOUN:
        raise StudioError(f"The word for subject {k} is too long: use one or two words, such as “teddy bear”.")
    return dataclasses.replace(subject, noun=noun, strength=_within("strength", subject.strength, 0, 3))


def _within(name: str, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise StudioError(f"The {name} must be a number from {low} to {high:,}.") from None
    if not low <= number <= high:
        raise StudioError(f"The {name} is {number:g}; it must be from {low} to {high:,}.")
    return number


class Studio:
    """Shared by all visitors of one server; every method is safe to call from several threads."""

    def __init__(self, config: StudioConfig | None = None):
        self.config = config or StudioConfig()
        self._models: dict[str, Future[CustomContrast]] = {}
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-model")
        self._segmenter: Segmenter | None = None
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._lock = threading.Lock()
        self._segment_lock = threading.Lock()

    # ---- models -------------------------------------------------------------------------------

    def start(self, base: str | None = None) -> Future[CustomContrast]:
        """Begin to load a base model in the background, once. Raises StudioError for one that is not here."""
        name = base or self.config.base
        if not self.offers(name):
            here = ", ".join(filter(self.offers, CHOICES))
            raise StudioError(f"The model “{name}” is not on this machine; there is {here}.")
        with self._lock:
            if name not in self._models:
                self._models[name] = self._loader.submit(self._load, name)
            return self._models[name]

    def present(self, base: str) -> bool:
        """Whether the weights of a base are on this machine, as far as a look at the disk can tell."""
        if base == self.config.base and self.config.weights:
            return True
        hub = CHOICES[base].hub
        if hub is None:
            return (PACKAGED / base / "model_index.json").is_file()
        cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
        return any(cache.glob(f"models--{hub.replace('/', '--')}/snapshots/*/model_index.json"))

    def offers(self, base: str) -> bool:
        """Whether this server makes pictures with a base."""
        return base == self.config.base or (base in CHOICES and self.present(base))

    def ready(self, base: str | None = None) -> bool:
        """Whether the model is loaded and can be used without waiting."""
        future = self._models.get(base or self.config.base)
        return bool(future and future.done() and future.exception() is None)

    def model(self, base: str | None = None, timeout: float | None = None) -> CustomContrast:
        """The loaded model; waits for it up to `timeout` seconds.

        Raises:
            TimeoutError: it is still loading.
            StudioError: it cannot be loaded; the message says why.
        """
        try:
            return self.start(base).result(timeout)
        except TimeoutError:
            raise
        except (OSError, ValueError, ImportError, KeyError) as error:
            name = base or self.config.base
            with self._lock:
                self._models.pop(name, None)  # so that a repaired folder is found without a restart
            raise StudioError(f"The model “{name}” could not be loaded: {sentence(error)}") from error

    def _load(self, name: str) -> CustomContrast:
        from customcontrast.pipeline import CustomContrast  # heavy: torch, diffusers, transformers

        own = name == self.config.base
        model = CustomContrast.load(
            base=name,
            weights=self.config.weights if own else None,
            adapter=self.config.adapter if own else None,
            device=self.config.device,
        )
        log.info("model %s loaded", name)
        return model

    # ---- subjects -----------------------------------------------------------------------------

    def cut(self, source: str | Path | Image.Image | bytes) -> Cut:
        """Open a reference picture and find its subject; where none stands out, `trouble` says so.

        Raises:
            PictureError: the picture cannot be read.
        """
        picture, alpha = load_with_alpha(source, max_side=MAX_SIDE)
        try:
            if alpha is not None:
                found = Segmentation(picture, alpha, 1.0, "alpha")
            else:
                with self._segment_lock:
                    found = self._get_segmenter().auto(picture)
        except SegmentationError as error:
            return Cut(picture, trouble=sentence(error))
        return Cut(picture, found, (), found)

    def clicked(self, cut: Cut, points: Sequence[Point]) -> Cut:
        """`cut` with these clicks instead of its own; with none, it is as it was found.

        Where the clicks leave nothing, the last subject stays and `trouble` says so.
        """
        clicks = [point for point in points if point[2] != BOX]
        trouble = "" if cut.auto or points else cut.trouble
        new = dataclasses.replace(cut, points=tuple(points), current=cut.auto, trouble=trouble)
        if not clicks and new.box is None:
            return new
        try:
            with self._segment_lock:
                found = self._get_segmenter().refine(cut.auto or cut.picture, clicks, new.box)
        except SegmentationError as error:
            return dataclasses.replace(new, current=cut.current, trouble=sentence(error))
        return dataclasses.replace(new, current=found)

    def _get_segmenter(self) -> Segmenter:
        if self._segmenter is None:
            self._segmenter = Segmenter(sam_checkpoint=self.config.sam_checkpoint, device=self.config.device)
        return self._segmenter

    def subject(self, model: CustomContrast, base: str, picked: Picked) -> Subject:
        """The subject with its image features; these are computed once per set of pictures."""
        digest = hashlib.sha256(base.encode())
        for segmentation in picked.segmentations:
            digest.update(repr(segmentation.image.size).encode())
            digest.update(segmentation.image.tobytes())
            digest.update(np.packbits(segmentation.mask).tobytes())
        key = digest.hexdigest()
        with self._lock:
            known = self._subjects.get(key)
        if known is None:
            known = model.subject(list(picked.segmentations), picked.noun, picked.strength)
        with self._lock:
            self._subjects[key] = known
            self._subjects.move_to_end(key)
            while len(self._subjects) > CACHED_SUBJECTS:
                self._subjects.popitem(last=False)
        return dataclasses.replace(known, noun=picked.noun, strength=picked.strength)

    # ---- runs ---------------------------------------------------------------------------------

    def stream(self, request: Request, preview_every: int = 0) -> Iterator[Step | Result]:
        """Run a request: yields a `Step` per denoising step and the `Result` last."""
        from customcontrast.config import LocationConfig

        request = check(request)
        base = request.base or self.config.base
        model = self.model(base)
        try:
            yield from model.stream(
                request.prompt,
                [self.subject(model, base, picked) for picked in request.subjects],
                negative_prompt=request.negative_prompt,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                subject_scale=request.subject_scale,
                seed=request.seed,
                num_images=request.pictures,
                location=LocationConfig(enabled=request.location_masks),
                preview_every=preview_every,
            )
        except ValueError as error:  # the core checks its arguments, and names the remedy
            raise StudioError(sentence(error)) from error

    def prompt_notes(self, prompt: str, nouns: Sequence[str], base: str | None = None) -> list[str]:
        """Sentences about a prompt as it stands; fewer while the model is not loaded, which is not waited for."""
        notes = [
            f"“{noun}” is not in the prompt: name your subject there, or it is put in front."
            for noun in nouns
            if not names(prompt, noun)
        ]
        if not self.ready(base):
            return notes
        from customcontrast.conditioning import encode_prompt

        model = self.model(base)
        placeholders = model.adapter.config.placeholder_tokens if model.adapter else 0
        try:
            read = encode_prompt(model.base, prompt[:MAX_PROMPT], list(nouns), placeholders)
        except ValueError as error:
            return [*notes, sentence(error)]
        notes += [text for text in read.notes if "put in front" not in text]
        if read.truncated:
            notes.append(f"The prompt is too long for this model; left out: “{_shortened(read.truncated)}”.")
        for word, nearest in model.unknown_words(read.text)[:MAX_UNKNOWN]:
            hint = f" The nearest word it knows is “{nearest}”." if nearest else ""
            notes.append(f"This model was never shown the word “{word}”.{hint}")
        return notes


def points_from(values: Any) -> list[Point]:
    """Check clicks sent by a client: [[x, y, label], …] → tuples. Raises StudioError."""
    try:
        points = [(int(x), int(y), int(label)) for x, y, label in values or ()]
    except (TypeError, ValueError):
        raise StudioError("`points` must be a list of [x, y, label] with label 1 to add and 0 to remove.") from None
    if len(points) > MAX_POINTS or any(label not in (ADD, REMOVE) for *_, label in points):
        raise StudioError(f"`points` takes at most {MAX_POINTS} points, each with label 1 or 0.")
    return points


def names(prompt: str, noun: str) -> bool:
    """Whether a prompt names a subject: by its class word, by <any word>, or by a placeholder such as S* or S2*."""
    if re.search(r"\b[Ss]\d*\*|<[^<>]+>", prompt):
        return True
    return re.search(rf"(?<!\w){re.escape(noun.strip())}(?:s|es)?(?!\w)", prompt, re.IGNORECASE) is not None


def with_article(words: str) -> str:
    """“elephant” → “an elephant”."""
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def fill(template: str, nouns: Sequence[str]) -> str:
    """Put the subjects into a preset such as “a watercolor painting of {subject}”.

    Words inside the braces belong to the first subject: “{tall subject wearing a hat} on the beach”.
    """

    def phrase(match: re.Match[str]) -> str:
        first, *others = [noun for noun in nouns if noun] or ["robot"]
        before, after = match.groups()
        parts = [with_article(before + first) + after, *map(with_article, others)]
        return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]

    return re.sub(r"\{([^{}]*)subject([^{}]*)\}", phrase, template)


def noun_from_name(path: str | Path) -> str:
    """Guess the class word of an example from its file name: “striped-orange-cat_2.png” → “cat”."""
    words = re.findall(r"[a-zA-Z]+", Path(path).stem)
    return words[-1].lower() if words else ""


def _shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def sentence(error: BaseException) -> str:
    """The message of a core error as a sentence for a visitor: without the name of the argument in front."""
    text = re.sub(r"^\w+: ", "", str(error).strip()) or type(error).__name__
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
