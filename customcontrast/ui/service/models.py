"""The models in memory: which are on this machine, loaded once in the background so that a page can answer first.

Nothing heavy is imported before a model is requested.
"""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from customcontrast.config import DEFAULT_SCALES
from customcontrast.errors import RequestError, UserError, out_of_memory
from customcontrast.hub import in_cache, is_ip_adapter, means_ip_adapter
from customcontrast.layout import LAYOUT_CHANNELS
from customcontrast.model_options import ModelChoice
from customcontrast.specs import BASES, DEFAULT_BASE, WEIGHTS
from customcontrast.ui.service.phrases import sentence

if TYPE_CHECKING:
    from customcontrast.pipeline import CustomContrast
    from customcontrast.toyland.feature_atlas import Atlas

log = logging.getLogger(__name__)

CLIP_SIDE = 224  # px, of the published image encoders
PLAIN = "adapter-plain.safetensors"  # beside an adapter: the same, trained without CSCL and MACL
NO_PLAIN = (
    "There is no adapter without CSCL and MACL here: train it with "
    f"`python -m train.experiments.ablation --ids 2`, and put it beside the adapter as {PLAIN}."
)

# The heavy libraries load their parts lazily, and two threads that import them at once find them half made. The thread
# that loads the model imports them; everyone else waits for the model before importing what needs them.
IMPORTS = threading.Lock()


@dataclass(frozen=True)
class ServiceConfig:
    """Where the models are. The same names serve the command line and the environment."""

    base: str = DEFAULT_BASE  # key of `specs.BASES`, loaded at start
    weights: str | None = None  # folder of the base model; None = the one shipped in the package
    adapter: str | None = None  # adapter file, or a name of `hub`; None = the one shipped beside the base's weights
    sam_checkpoint: str | None = None  # SAM weights for clicks; None = GrabCut
    device: str | None = None  # "cpu", "cuda"; None = the best one present
    image_encoder: str | None = None  # folder or hub id of the CLIP image encoder; None = the adapter's or base's own
    safety_checker: str | None = None  # see `hub.safety_folder`; None = none. Embedded bases never have one
    memory: str = "auto"  # one of `memory.CHOICES`, for bases that are not embedded


class Models:
    """The base models of one server, with their adapters; every method is safe to call from several threads."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self._models: dict[str, Future[CustomContrast]] = {}
        self._failures: dict[str, str] = {}  # base → why it could not be loaded the last time
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-model")
        self._atlases: dict[Path, Atlas] = {}
        self._plain: dict[str, CustomContrast] = {}
        self._plain_lock = threading.Lock()
        self._lock = threading.Lock()

    def start(self, base: str | None = None) -> Future[CustomContrast]:
        """Begin to load a base model in the background, once. Raises RequestError for one that is not here."""
        name = base or self.config.base
        if not self.offers(name):
            here = ", ".join(filter(self.offers, BASES))
            raise RequestError(f"The model “{name}” is not on this machine; there is {here}.")
        with self._lock:
            if name not in self._models:
                self._models[name] = self._loader.submit(self._load, name)
            return self._models[name]

    def present(self, base: str) -> bool:
        """Whether the weights of a base are on this machine, without looking into them."""
        hub = BASES[base].hub
        if hub is None:
            return (WEIGHTS / base / "model_index.json").is_file()
        return in_cache(hub)

    def offers(self, base: str) -> bool:
        """Whether this server makes pictures with a base."""
        return base == self.config.base or (base in BASES and self.present(base))

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
        except RequestError:
            raise
        except Exception as error:
            name = base or self.config.base
            with self._lock:
                self._models.pop(name, None)  # so that a repaired folder is found without a restart
            raise RequestError(_failure(name, error)) from error

    def _load(self, name: str) -> CustomContrast:
        own = name == self.config.base
        try:
            with IMPORTS:
                import customcontrast.pipeline  # noqa: F401 - heavy: torch, diffusers, transformers

            model = ModelChoice(
                name,
                weights=self.config.weights if own else None,
                adapter=self.config.adapter if own else None,
                image_encoder=self.config.image_encoder if own else None,
                device=self.config.device,
                safety_checker=self.config.safety_checker,
                memory=self.config.memory,
            ).load()
        except Exception as error:  # whoever waits for the model is told; the log is for whoever keeps the server
            known = isinstance(error, UserError | OSError)
            log.error("model %s could not be loaded: %s", name, sentence(error), exc_info=None if known else error)
            self._failures[name] = _failure(name, error)
            raise
        self._failures.pop(name, None)
        log.info("model %s loaded", name)
        if model.memory is not None:
            log.info("model %s: %s", name, model.memory.sentence)
        return model

    def about_memory(self, base: str | None = None) -> str:
        """How a loaded model is kept in memory, in a sentence; "" for an embedded one, or where it is not loaded."""
        if not self.ready(base):
            return ""
        plan = self.model(base).memory
        return "" if plan is None else plan.sentence

    def failure(self, base: str | None = None) -> str:
        """Why a model could not be loaded the last time it was tried, in a sentence; "" where it could, or was not."""
        return self._failures.get(base or self.config.base, "")

    def folder(self, base: str | None = None) -> Path:
        """Where a base's adapter lies, and what belongs to it."""
        name = base or self.config.base
        file = self.config.adapter if self.config.adapter and Path(self.config.adapter).is_file() else None
        if name == self.config.base and (file or self.config.weights):
            return Path(file).parent if file else Path(self.config.weights or "")
        return WEIGHTS / name

    def takes_layout(self, base: str | None = None) -> bool:
        """Whether a base takes layouts (how subjects are turned, where the camera is), without loading it."""
        name = base or self.config.base
        own = self.config.weights if name == self.config.base else None
        file = Path(own or WEIGHTS / name) / "unet" / "config.json"
        try:
            about = json.loads(file.read_text("utf-8"))
            return about["in_channels"] - about["out_channels"] == LAYOUT_CHANNELS
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def image_side(self, base: str | None = None) -> int:
        """The side of what a base's image encoder reads, px, without loading it; CLIP's usual one if it is not here."""
        name = base or self.config.base
        own = self.config if name == self.config.base else ServiceConfig(name)
        given = [Path(own.image_encoder)] if own.image_encoder else []
        for place in (*given, Path(own.weights or WEIGHTS / name) / "image_encoder"):
            try:
                return int(json.loads((place / "config.json").read_text("utf-8"))["image_size"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return CLIP_SIDE

    def has_ip_adapter(self, base: str | None = None) -> bool:
        """Whether a base comes with a published IP-Adapter, and so takes a style picture; without loading it."""
        name = base or self.config.base
        if name != self.config.base or name not in BASES:
            return False
        if self.config.adapter:
            return means_ip_adapter(self.config.adapter)
        return is_ip_adapter(Path(self.config.weights or BASES[name].weights) / "adapter.safetensors")

    def default_scale(self, base: str | None = None) -> float:
        """λ where none is requested, the adapter's own; without loading it."""
        return DEFAULT_SCALES["ip-adapter" if self.has_ip_adapter(base) else "customcontrast"]

    def published_adapter(self, base: str | None = None) -> bool:
        """Whether a loaded base has a published IP-Adapter: no S*, no features, no map of its own."""
        model = self.model(base)
        from customcontrast.ip_adapter import IPAdapter  # after the model, see IMPORTS

        return isinstance(model.adapter, IPAdapter)

    def plain_adapter(self, base: str | None = None) -> Path | None:
        """The file of the adapter trained without CSCL and MACL, where there is one beside the base's own adapter."""
        path = self.folder(base) / PLAIN
        return path if path.is_file() else None

    def without_contrast(self, base: str | None = None) -> CustomContrast:
        """The same base with the adapter trained without CSCL and MACL; loaded at first use. Raises RequestError."""
        name = base or self.config.base
        model, path = self.model(name), self.plain_adapter(name)
        if path is None:
            raise RequestError(NO_PLAIN)
        with self._plain_lock:
            if name not in self._plain:
                from customcontrast.adapter_files import load_adapter

                self._plain[name] = model.with_adapter(load_adapter(path, model.base))
            return self._plain[name]

    def atlas(self, base: str | None = None) -> tuple[Atlas, CustomContrast]:
        """Features of the training run's subjects, from beside the adapter. Raises AtlasError, RequestError."""
        model, folder = self.model(base), self.folder(base)
        from customcontrast.toyland.feature_atlas import FILE, Atlas  # after the model, see IMPORTS

        with self._lock:
            known = self._atlases.get(folder)
        if known is None:
            known = Atlas.read(folder / FILE)
        with self._lock:
            self._atlases[folder] = known
        return known, model

    def forget_atlases(self) -> None:
        """Read the files of known subjects anew at the next request."""
        with self._lock:
            self._atlases.clear()

    def missing(self, base: str) -> str:
        """How to get a base that is not on this machine, in a sentence; "" for one that is."""
        if self.offers(base) or base not in BASES:
            return ""
        spec = BASES[base]
        where = f"`hf download {spec.hub}` puts it here" if spec.hub else "it is made by train/base/pretrain.py"
        return (
            f"{spec.title} is not on this machine: {where}; then start with "
            f"--base {base} --weights FOLDER --adapter FILE."
        )


def _failure(name: str, error: Exception) -> str:
    """Why a model could not be loaded, as visitors are told; what they cannot read is in the log."""
    if isinstance(error, UserError | OSError | ValueError | ImportError | KeyError):
        return f"The model “{name}” could not be loaded: {sentence(error)}"
    if out_of_memory(error):
        return f"The model “{name}” could not be loaded: there is not enough memory for it on the server."
    return f"The model “{name}” could not be loaded; the server's log says why."
