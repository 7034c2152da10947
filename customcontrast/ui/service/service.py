"""The library as a service: what a page, an API or a notebook needs between its controls and the pipeline.

A `Service` owns what is shared by all visitors and expensive to make: the models, the segmenter, and the image features
of recent subjects. Everything of one visitor travels through arguments and return values. No user interface code here,
and nothing heavy is imported before a model is requested.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from customcontrast.errors import RequestError
from customcontrast.output import Result, Step
from customcontrast.segmentation import Segmentation
from customcontrast.ui.service.cutouts import CutOuts
from customcontrast.ui.service.models import Models, ServiceConfig
from customcontrast.ui.service.noun_guess import NounGuesser
from customcontrast.ui.service.phrases import sentence
from customcontrast.ui.service.request import ANYWHERE, Request, StyleRequest, SubjectRequest, check, in_fractions
from customcontrast.ui.service.view_layout import chosen_layout

if TYPE_CHECKING:
    from customcontrast.adapter import Adapter
    from customcontrast.ip_adapter import IPAdapter
    from customcontrast.pipeline import CustomContrast, Subject

CACHED_SUBJECTS = 32  # subjects and style pictures whose image features are cached
NO_ADAPTER = (
    "This server has no adapter for this model, so it draws from words alone: "
    "remove the pictures, or start it with --adapter FILE."
)
NO_STYLE = (
    "This model takes no style picture: remove it, or start the server with SD-1.5 or SDXL and a published IP-Adapter, "
    "such as --base sd15 --adapter ip-adapter-plus."
)


class Service:
    """Shared by all visitors of one server; every method is safe to call from several threads."""

    def __init__(self, config: ServiceConfig | None = None) -> None:
        self.config = config or ServiceConfig()
        self.models = Models(self.config)
        self.cutouts = CutOuts(self.config.sam_checkpoint, self.config.device)
        self.nouns = NounGuesser(self.models)
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._digests: WeakKeyDictionary[Adapter | IPAdapter, str] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def subject(self, model: CustomContrast, request: SubjectRequest, side: int | None = None) -> Subject:
        """The subject with its image features; these are computed once per set of pictures, adapter and resolution.

        side: the request's reference resolution.
        """
        known = self._cached(
            f"{side} {self._key(model, request.segmentations)}",
            lambda: model.subject(
                list(request.segmentations), request.noun, request.strength, reference_resolution=side
            ),
        )
        mine = dataclasses.replace(known, noun=request.noun, strength=request.strength)
        return mine.placed(box=in_fractions(request.place), location=request.place != ANYWHERE)

    def style(self, model: CustomContrast, request: StyleRequest, side: int | None = None) -> Subject:
        """The style or layout picture with its image features, computed once as well. Raises RequestError."""
        from customcontrast.ip_adapter import IPAdapter  # after the model, see models.IMPORTS

        if not isinstance(model.adapter, IPAdapter):
            raise RequestError(NO_STYLE)
        key = f"{request.role} {side} {self._key(model, [request.whole])}"
        known = self._cached(
            key, lambda: model.style(request.picture, request.strength, request.role, reference_resolution=side)
        )
        return dataclasses.replace(known, strength=request.strength)

    def _cached(self, key: str, look: Callable[[], Subject]) -> Subject:
        """What is cached under `key`, or what `look` makes; the least recently used one goes."""
        with self._lock:
            known = self._subjects.get(key)
        if known is None:
            known = look()
        with self._lock:
            self._subjects[key] = known
            self._subjects.move_to_end(key)
            while len(self._subjects) > CACHED_SUBJECTS:
                self._subjects.popitem(last=False)
        return known

    def _key(self, model: CustomContrast, segmentations: Sequence[Segmentation]) -> str:
        """Digest of the adapter's weights and of the pictures with their masks."""
        digest = hashlib.sha256(f"{model.base.name} {self._adapter_digest(model.adapter)}".encode())
        for segmentation in segmentations:
            digest.update(repr(segmentation.image.size).encode())
            digest.update(segmentation.image.tobytes())
            digest.update(np.packbits(segmentation.mask).tobytes())
        return digest.hexdigest()

    def _adapter_digest(self, adapter: Adapter | IPAdapter | None) -> str:
        """Digest of an adapter's weights, computed once: another one of the same shape makes other features."""
        if adapter is None:
            return ""
        with self._lock:
            known = self._digests.get(adapter)
        if known is None:
            digest = hashlib.sha256()
            for value in adapter.state_dict().values():
                digest.update(value.detach().float().cpu().numpy().tobytes())
            known = digest.hexdigest()
            with self._lock:
                self._digests[adapter] = known
        return known

    def stream(self, request: Request, preview_every: int = 0) -> Iterator[Step | Result]:
        """Run a request: yields a `Step` per denoising step and the `Result` last. Raises RequestError."""
        request = check(request)
        base = request.base or self.config.base
        plain = bool(request.subjects) and not request.contrast
        model = self.models.without_contrast(base) if plain else self.models.model(base)
        from customcontrast.conditioning.conditioner import VisualConditioner  # after the model, see models.IMPORTS

        if request.subjects and model.adapter is None:
            raise RequestError(NO_ADAPTER)
        try:
            side = request.reference_resolution
            subjects = [self.subject(model, subject, side) for subject in request.subjects]
            styles = [] if request.style is None else [self.style(model, request.style, side)]
        except ValueError as error:  # such as a UNet without the layers that carry style
            raise RequestError(sentence(error)) from error
        if not request.text_tokens:
            model = copy.copy(model)  # the same weights; only its reading of the prompt differs
            model.conditioner = VisualConditioner(model.base, model.adapter)
        try:
            layout = chosen_layout(model.base, request)
            yield from model.run(request.to_config(preview_every, layout), [*subjects, *styles])
        except ValueError as error:  # the core checks its arguments, and names the remedy
            raise RequestError(sentence(error)) from error

    def run(self, request: Request) -> Result:
        """Run a request to its end. Raises RequestError."""
        *_, result = self.stream(request)
        return result  # type: ignore[return-value]
