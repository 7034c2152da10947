"""The library as a service: what a page, an API or a notebook needs between its controls and the pipeline.

A `Studio` owns what is shared by all visitors and dear to make: the base models (loaded once, in the
background, so that a page can answer first), the segmenter, and the image features of recent subjects.
Everything of one visitor travels through arguments and return values. No user interface code here, and
nothing heavy is imported before a model is asked for.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from customcontrast.errors import RequestError, SegmentationError
from customcontrast.hub import in_cache
from customcontrast.images.loading import load_with_alpha
from customcontrast.segmentation import Segmentation, Segmenter, Stroke, painted
from customcontrast.segmentation.segmenter import NOTHING_FOUND, chosen_checkpoint
from customcontrast.ui.service.request import (
    ANYWHERE,
    BOX,
    MAX_PROMPT,
    MAX_SIDE,
    Cut,
    Picked,
    Point,
    Request,
    check,
    place_box,
)
from customcontrast.ui.service.wording import names, sentence, shortened

if TYPE_CHECKING:
    from customcontrast.pipeline import CustomContrast, Result, Step, Subject
    from customcontrast.toyland.feature_atlas import Atlas

log = logging.getLogger(__name__)

PACKAGED = Path(__file__).parents[2] / "weights"
PLAIN = "adapter-plain.safetensors"  # beside an adapter: the same, trained without CSCL and MACL
LOOK_EVERY = 5  # steps between two records of which parts of the references were looked at
MAX_UNKNOWN = 4  # unknown words named at once
CACHED_SUBJECTS = 32  # subjects whose image features are kept


@dataclasses.dataclass(frozen=True)
class StudioConfig:
    """Where the models are. The same names serve the command line and the environment."""

    base: str = "toyland"  # key of the base model registry, loaded at start
    weights: str | None = None  # folder of the base model; None = the one shipped in the package
    adapter: str | None = None  # adapter file, or a name of `hub`; None = the one shipped beside the base's weights
    sam_checkpoint: str | None = None  # SAM weights for clicks; None = GrabCut
    device: str | None = None  # "cpu", "cuda"; None = the best one present
    image_encoder: str | None = None  # folder or hub id of the CLIP image encoder; None = the adapter's or base's own


@dataclasses.dataclass(frozen=True)
class BaseChoice:
    """What a page says about a base model before anything heavy is imported (a test holds it to `BASES`)."""

    title: str
    steps: int  # default number of denoising steps
    guidance: float  # default guidance scale
    sizes: tuple[str, ...]  # "WIDTHxHEIGHT" in px that suit it
    hub: str | None = None  # where its weights come from; None = they ship with the package


CHOICES = {
    "toyland": BaseChoice(
        "Toyland (small, ships with CustomContrast)", 20, 4.0, ("96x96", "96x128", "128x96", "128x128")
    ),
    "toyland2": BaseChoice(
        "Toyland 2 (new: 192 px, ships with CustomContrast)", 20, 4.0, ("192x192", "192x256", "256x192")
    ),
    "sd15": BaseChoice(
        "Stable Diffusion 1.5",
        50,
        7.5,
        ("512x512", "512x768", "768x512", "640x640"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "sdxl": BaseChoice(
        "Stable Diffusion XL",
        30,
        5.0,
        ("1024x1024", "832x1216", "1216x832", "896x1152", "1152x896"),
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
}


# The heavy libraries load their parts lazily, and two threads that import them at once find them half made. The thread
# that loads the model imports them; everyone else waits for the model before importing what needs them.
IMPORTS = threading.Lock()


class Studio:
    """Shared by all visitors of one server; every method is safe to call from several threads."""

    def __init__(self, config: StudioConfig | None = None):
        self.config = config or StudioConfig()
        self._models: dict[str, Future[CustomContrast]] = {}
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-model")
        self._segmenter: Segmenter | None = None
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._atlases: dict[Path, Atlas] = {}
        self._plain: dict[str, CustomContrast] = {}
        self._plain_lock = threading.Lock()
        self._lock = threading.Lock()
        self._segment_lock = threading.Lock()

    # ---- models -------------------------------------------------------------------------------

    def start(self, base: str | None = None) -> Future[CustomContrast]:
        """Begin to load a base model in the background, once. Raises RequestError for one that is not here."""
        name = base or self.config.base
        if not self.offers(name):
            here = ", ".join(filter(self.offers, CHOICES))
            raise RequestError(f"The model “{name}” is not on this machine; there is {here}.")
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
        return in_cache(hub)

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
            RequestError: it cannot be loaded; the message says why.
        """
        try:
            return self.start(base).result(timeout)
        except TimeoutError:
            raise
        except (OSError, ValueError, ImportError, KeyError) as error:
            name = base or self.config.base
            with self._lock:
                self._models.pop(name, None)  # so that a repaired folder is found without a restart
            raise RequestError(f"The model “{name}” could not be loaded: {sentence(error)}") from error

    def _load(self, name: str) -> CustomContrast:
        with IMPORTS:
            from customcontrast.pipeline import CustomContrast  # heavy: torch, diffusers, transformers

        own = name == self.config.base
        model = CustomContrast.load(
            base=name,
            weights=self.config.weights if own else None,
            adapter=self.config.adapter if own else None,
            device=self.config.device,
            image_encoder=self.config.image_encoder if own else None,
        )
        log.info("model %s loaded", name)
        return model

    def plain_adapter(self, base: str | None = None) -> Path | None:
        """The file of the adapter trained without CSCL and MACL, where there is one beside the base's own adapter."""
        path = self._folder(base) / PLAIN
        return path if path.is_file() else None

    def _folder(self, base: str | None) -> Path:
        """Where a base's adapter lies, and what belongs to it."""
        name = base or self.config.base
        file = self.config.adapter if self.config.adapter and Path(self.config.adapter).is_file() else None
        if name == self.config.base and (file or self.config.weights):
            return Path(file).parent if file else Path(self.config.weights)
        return PACKAGED / name

    def _without_contrast(self, base: str) -> CustomContrast:
        """The same base with the adapter trained without CSCL and MACL; loaded at first use."""
        model, path = self.model(base), self.plain_adapter(base)
        if path is None:
            raise RequestError(
                "There is no adapter without CSCL and MACL here: train it with "
                f"`python -m train.experiments.ablation --ids 2`, and put it beside the adapter as {PLAIN}."
            )
        with self._plain_lock:
            if base not in self._plain:
                from customcontrast.adapter import load_adapter
                from customcontrast.pipeline import CustomContrast

                self._plain[base] = CustomContrast.from_parts(model.base, load_adapter(path, model.base))
            return self._plain[base]

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
        """`cut` with these clicks instead of its own; with none, it is as it was found. Its strokes lie over them.

        Where the clicks leave nothing, the last subject stays and `trouble` says so.
        """
        clicks = [point for point in points if point[2] != BOX]
        new = dataclasses.replace(cut, points=tuple(points), clicked=cut.auto)
        if not clicks and new.box is None:
            return self.painted(new, cut.strokes)
        try:
            with self._segment_lock:
                found = self._get_segmenter().refine(cut.auto or cut.picture, clicks, new.box)
        except SegmentationError as error:
            return dataclasses.replace(new, clicked=cut.clicked or cut.auto, trouble=sentence(error))
        return self.painted(dataclasses.replace(new, clicked=found), cut.strokes)

    def painted(self, cut: Cut, strokes: Sequence[Stroke]) -> Cut:
        """`cut` with these strokes over what its clicks show; where they leave nothing, the last subject stays."""
        known = cut.clicked or cut.auto
        if known is None and not strokes:
            trouble = sentence(SegmentationError(NOTHING_FOUND))
            return dataclasses.replace(cut, strokes=(), current=None, trouble=trouble)
        try:
            current = painted(known or cut.picture, strokes, cut.points)
        except SegmentationError as error:
            return dataclasses.replace(cut, trouble=sentence(error))
        return dataclasses.replace(cut, strokes=tuple(strokes), current=current, trouble="")

    def undone(self, cut: Cut) -> Cut:
        """`cut` without its last click or stroke, whichever came later."""
        if cut.strokes and cut.strokes[-1].after >= len(cut.points):
            return self.painted(cut, cut.strokes[:-1])
        return self.clicked(cut, cut.points[:-1])

    def as_found(self, cut: Cut) -> Cut:
        """`cut` without any click or stroke."""
        return self.painted(dataclasses.replace(cut, points=(), strokes=(), clicked=cut.auto), ())

    def _get_segmenter(self) -> Segmenter:
        if self._segmenter is None:
            heavy = chosen_checkpoint(self.config.sam_checkpoint)  # segment-anything imports torch
            with IMPORTS if heavy else contextlib.nullcontext():
                self._segmenter = Segmenter(sam_checkpoint=self.config.sam_checkpoint, device=self.config.device)
        return self._segmenter

    def subject(self, model: CustomContrast, base: str, picked: Picked) -> Subject:
        """The subject with its image features; these are computed once per set of pictures and adapter."""
        digest = hashlib.sha256(f"{base} {model is self._plain.get(base)}".encode())
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
        mine = dataclasses.replace(known, noun=picked.noun, strength=picked.strength)
        box = place_box(picked.place)
        fractions = None if box is None else tuple(edge / 100 for edge in box)
        return mine.placed(box=fractions, location=picked.place != ANYWHERE)

    def missing(self, base: str) -> str:
        """How to get a base that is not on this machine, in a sentence; "" for one that is."""
        if self.offers(base):
            return ""
        choice = CHOICES[base]
        where = f"`hf download {choice.hub}` puts it here" if choice.hub else "it is made by train/base/pretrain.py"
        return (
            f"{choice.title} is not on this machine: {where}; then start with "
            f"--base {base} --weights FOLDER --adapter FILE."
        )

    def atlas(self, base: str | None = None) -> tuple[Atlas, CustomContrast]:
        """Features of the training run's subjects, from beside the adapter. Raises AtlasError, RequestError."""
        model, folder = self.model(base), self._folder(base)
        from customcontrast.toyland.feature_atlas import FILE, Atlas  # after the model, see IMPORTS

        with self._lock:
            known = self._atlases.get(folder)
        if known is None:
            known = Atlas.read(folder / FILE)
        with self._lock:
            self._atlases[folder] = known
        return known, model

    # ---- runs ---------------------------------------------------------------------------------

    def stream(self, request: Request, preview_every: int = 0) -> Iterator[Step | Result]:
        """Run a request: yields a `Step` per denoising step and the `Result` last."""
        request = check(request)
        base = request.base or self.config.base
        model = self.model(base) if request.contrast or not request.subjects else self._without_contrast(base)
        from customcontrast.conditioning.conditioner import VisualConditioner
        from customcontrast.config import LocationConfig, RecordConfig  # after the model, see IMPORTS

        if request.subjects and model.adapter is None:
            raise RequestError(
                "This server has no adapter for this model, so it draws from words alone: "
                "remove the pictures, or start it with --adapter FILE."
            )
        subjects = [self.subject(model, base, picked) for picked in request.subjects]
        if not request.text_tokens:
            model = copy.copy(model)  # the same weights; only what it hears of the prompt differs
            model.conditioner = VisualConditioner(model.base, model.adapter)
        width, height = request.width_height or (None, None)
        try:
            yield from model.stream(
                request.prompt,
                subjects,
                negative_prompt=request.negative_prompt,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                subject_scale=request.subject_scale,
                seed=request.seed,
                num_images=request.pictures,
                location=LocationConfig(enabled=request.location_masks, apart=request.apart),
                record=RecordConfig(looked_at=bool(subjects), looked_at_every=LOOK_EVERY),
                preview_every=preview_every,
                width=width,
                height=height,
                scheduler=request.scheduler or None,
            )
        except ValueError as error:  # the core checks its arguments, and names the remedy
            raise RequestError(sentence(error)) from error

    def prompt_notes(self, prompt: str, nouns: Sequence[str], base: str | None = None) -> list[str]:
        """Sentences about a prompt as it stands; fewer while the model is not loaded, which is not waited for."""
        notes = [
            f"“{noun}” is not in the prompt: name your subject there, or it is put in front."
            for noun in nouns
            if not names(prompt, noun)
        ]
        if not self.ready(base):
            return notes
        from customcontrast.conditioning.text_context import encode_prompt

        model = self.model(base)
        placeholders = model.adapter.config.placeholder_tokens if model.adapter else 0
        try:
            read = encode_prompt(model.base, prompt[:MAX_PROMPT], list(nouns), placeholders)
        except ValueError as error:
            return [*notes, sentence(error)]
        notes += [text for text in read.notes if "put in front" not in text]
        if read.truncated:
            notes.append(f"The prompt is too long for this model; left out: “{shortened(read.truncated)}”.")
        for word, nearest in model.unknown_words(read.text)[:MAX_UNKNOWN]:
            hint = f" The nearest word it knows is “{nearest}”." if nearest else ""
            notes.append(f"This model was never shown the word “{word}”.{hint}")
        return notes
