"""The one denoising loop: subjects and a prompt in, pictures with their masks and maps out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter
from customcontrast.attention import Masker, install_processors
from customcontrast.attention.state import level_size
from customcontrast.base_model import BaseModel, chosen_device, load_base, usual_dtype
from customcontrast.conditioning.conditioner import Conditioner
from customcontrast.conditioning.prompt import check_text
from customcontrast.config import GenerationConfig, LocationConfig, OnStep, RecordConfig, ResolvedConfig
from customcontrast.denoiser import NoisyLatents
from customcontrast.encoder import token_sources
from customcontrast.encoder.image_features import tokens_on_a_side
from customcontrast.errors import BaseModelError, CheckpointError, ConfigError, HubError, out_of_memory
from customcontrast.hub import adapter_file, is_file, is_folder, is_ip_adapter
from customcontrast.ip_adapter import FORMAT, IPAdapter, read_config
from customcontrast.layout import Layout
from customcontrast.map_collector import MapCollector
from customcontrast.memory import CHOICES, GB, MemoryPlan
from customcontrast.multi_subject import make_denoiser
from customcontrast.offload import free_memory, place, plan_for, rest
from customcontrast.output import Result, Step
from customcontrast.placement import Placement
from customcontrast.precision import read_dtype
from customcontrast.previews import LatentRGB, fit_latent_rgb
from customcontrast.run_settings import drawn_masks, recipe, resolve
from customcontrast.safety import SKIPPED, SafetyChecker, placeholder
from customcontrast.sampling import (
    make_scheduler,
    on_device,
    predicted_x0,
    side_by_side,
    starting_noise,
    step_options,
    to_output,
    to_pictures,
)
from customcontrast.specs import BASES
from customcontrast.subject import Segmented, Subject, WholePicture, check_makers, look_at

__all__ = ["CustomContrast", "Result", "Step", "Subject"]


class CustomContrast:
    """A base model, and the adapter that lets it draw your subject. Threads may share one instance."""

    def __init__(
        self, base: BaseModel, adapter: Adapter | IPAdapter | None = None, safety: SafetyChecker | None = None
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.safety = safety
        self.memory: MemoryPlan | None = None  # as `load` has placed it; None = all on the base's device
        self.conditioner = Conditioner(base, adapter)
        self._offloaded: Any = None  # what holds the hooks of parts that come and go
        self._latent_rgb: LatentRGB | None = None  # fitted at the first preview
        install_processors(base.unet)

    @classmethod
    def load(
        cls,
        base: str = "toyland",
        weights: str | Path | None = None,
        adapter: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        image_encoder: str | Path | None = None,
        safety_checker: str | Path | SafetyChecker | None = None,
        memory: str | MemoryPlan | None = None,
    ) -> CustomContrast:
        """Load a base model (toyland, toyland2, sd15 or sdxl) and an adapter file.

        weights: a diffusers folder, hub id or checkpoint file; default: the base's own.
        adapter: a .safetensors file, the name of a published IP-Adapter ("ip-adapter-plus", see `hub.ADAPTERS`) or
            "owner/name:path"; default: `adapter.safetensors` in the weights folder if it is there, else none, which
            leaves plain text-to-image.
        device: default CUDA where there is one. dtype: torch's or its name; default float16 on CUDA, float32 on a CPU.
        image_encoder: folder or hub id ("owner/name:folder") of the CLIP image encoder; default: the weights' own, else
            the one that the adapter was published with.
        safety_checker: pictures that it flags are withheld. "on" = the weights' own or the published one; a folder; a
            hub id; None = without.
        memory: "auto" = number type, CPU offload and decoding in tiles by what is free, see `memory.choose_memory`;
            "none", "model", "sequential" = that offload; a plan of yours; None = all of the model on the device.
        Raises BaseModelError or CheckpointError, both ValueErrors, with one sentence.
        """
        source = str(weights or (BASES[base].weights if isinstance(base, str) and base in BASES else ""))
        beside = Path(source) / "adapter.safetensors"
        if adapter is None and is_file(beside):
            adapter = beside
        if not (memory is None or isinstance(memory, MemoryPlan) or memory in CHOICES):
            raise ConfigError(f"load: memory={memory!r} must be one of {', '.join(CHOICES)}, a MemoryPlan, or None.")
        target = chosen_device(device)
        requested = None if dtype is None else read_dtype(dtype)
        read_as: torch.dtype = (
            getattr(torch, memory.dtype) if isinstance(memory, MemoryPlan) else requested or usual_dtype(target)
        )
        here = target if memory is None else torch.device("cpu")  # where weights are read to
        free, reason = free_memory(target) if memory is not None else None, ""
        try:
            file, image_encoder = resolve_adapter(adapter, base, source, image_encoder)
            read = (base, weights, file, here, read_as, image_encoder, safety_checker)
            return cls._read(*read) if memory is None else cls._read(*read)._placed(memory, target, free, requested)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = str(error).strip().split(". ")[0]
        raise BaseModelError(_too_large(base, target, reason))  # out here, where no traceback holds what was loaded

    @classmethod
    def _read(
        cls,
        base: str,
        weights: str | Path | None,
        adapter: Path | None,
        device: torch.device,
        dtype: torch.dtype,
        image_encoder: str | Path | None,
        safety_checker: str | Path | SafetyChecker | None,
    ) -> CustomContrast:
        """Everything from its files, on one device."""
        model = load_base(base, weights, device, dtype, image_encoder)
        loaded = None if adapter is None else load_adapter(adapter, model)
        if isinstance(safety_checker, str | Path):
            safety_checker = SafetyChecker.load(safety_checker, weights or model.spec.weights, device, dtype)
        return cls(model, loaded, safety_checker)

    def _placed(
        self, memory: str | MemoryPlan, device: torch.device, free: int | None, dtype: torch.dtype | None
    ) -> CustomContrast:
        """The same, loaded on the CPU, on its device as memory allows. free: bytes there before it was loaded."""
        checker = None if self.safety is None else self.safety.model
        if not isinstance(memory, MemoryPlan):
            memory = plan_for(self.base, self.adapter, device, free, memory, dtype, checker)
        base, parts = place(self.base, self.adapter, memory, device, checker)
        placed = type(self)(base, self.adapter, self.safety)
        placed.memory, placed._offloaded = memory, parts
        return placed

    @classmethod
    def from_parts(
        cls,
        base: BaseModel,
        adapter: Adapter | IPAdapter | None = None,
        safety_checker: SafetyChecker | None = None,
    ) -> CustomContrast:
        """Make one of a base model and an adapter in memory. The adapter is used as it is, in its own type.

        While an adapter is being trained, make a new instance for each look at it: contexts are cached per instance.
        """
        return cls(base, adapter, safety_checker)

    def with_adapter(self, adapter: Adapter | IPAdapter | None) -> CustomContrast:
        """The same base with another adapter: same safety checker, same place in memory."""
        other = type(self)(self.base, adapter, self.safety)
        other.memory, other._offloaded = self.memory, self._offloaded
        return other

    def subject(
        self,
        segmentations: Segmented | Sequence[Segmented],
        noun: str,
        strength: float = 1.0,
        placement: Placement | None = None,
        layer_scales: Mapping[int | str, float] | Sequence[float] | None = None,
        reference_resolution: int | None = None,
    ) -> Subject:
        """Encode the references of one subject to f_I (section 3.2), once for any number of generations.

        segmentations: one or several references of one subject, as a `Segmenter` returns them.
        noun: its class noun, such as "teddy bear". strength: λ of this subject among several, −1000 to 1000.
        placement: a box or mask for it, or no mask at all; None = its location masks decide. `Subject.placed` changes
            it later.
        layer_scales: factors of λ in each cross-attention layer: L numbers in execution order, or {layer or block of
            the UNet: number} and 0 elsewhere; None = 1 in all.
        reference_resolution: side in px at which the cut-out is seen, 16 to twice the image encoder's own; None = that
            one. Less leaves detail out, more gives more tokens: see `image_features.preprocess`.
        Raises ValueError with one sentence.
        """
        with on_device(self.base.device, self.base.image_encoder, self.adapter):
            return look_at(
                self.base,
                self.adapter,
                segmentations,
                noun,
                strength,
                placement,
                layer_scales=layer_scales,
                reference_resolution=reference_resolution,
            )

    def style(
        self,
        picture: Image.Image | Segmented,
        strength: float = 1.0,
        role: str = "style",
        layer_scales: Mapping[int | str, float] | Sequence[float] | None = None,
        reference_resolution: int | None = None,
    ) -> Subject:
        """Encode a whole picture whose style or layout new pictures take over (InstantStyle, Wang et al. 2024).

        Pass the result to `generate` among the subjects. It has no noun, no place and no mask, and acts in the layers
        that carry style or layout, `ip_adapter.ROLE_BLOCKS`. Only IP-Adapters take one.
        picture: all of it is encoded. strength: its own λ; `subject_scale` does not change it. role: "style" or
        "layout". layer_scales: other layers, and reference_resolution, as in `subject`. Raises ValueError with one
        sentence.
        """
        if role == "subject":
            raise ValueError("style: role='subject' has a noun and a place; make it with `subject`.")
        picture = WholePicture(picture) if isinstance(picture, Image.Image) else picture
        with on_device(self.base.device, self.base.image_encoder, self.adapter):
            return look_at(
                self.base,
                self.adapter,
                picture,
                "",
                strength,
                role=role,
                layer_scales=layer_scales,
                reference_resolution=reference_resolution,
            )

    def stream(
        self,
        prompt: str | Sequence[str],
        subjects: Subject | Sequence[Subject] = (),
        *,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        subject_scale: float | None = None,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        location: LocationConfig | None = None,
        record: RecordConfig | None = None,
        preview_every: int = 0,
        scheduler: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        on_step: OnStep | None = None,
        layout: Layout | None = None,
        output_type: str = "pil",
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        subject_start: float = 0.0,
        subject_end: float = 1.0,
        guidance_end: float | None = None,
        subject_guidance_scale: float | None = None,
        subject_guidance_end: float | None = None,
    ) -> Iterator[Step | Result]:
        """Generate pictures step by step: yields a `Step` after each denoising step and the `Result` last.

        Closing the generator stops the run. Without subjects it is the base's plain text-to-image. None is always the
        base's own value; ranges are in `config.LIMITS`.

        prompt: see `conditioning.prompt.parse_prompt` for the accepted forms. Several prompts share the subjects and
            are drawn in one call, num_images of each in turn, as a call for each with this seed would draw them; record
            no maps then. negative_prompt: what to avoid.
        subjects: up to four from `subject`, each with its own λ and place (`Subject.placed`), and those of `style`.
        guidance_scale: of classifier-free guidance; 1 or less turns it off.
        subject_scale: λ of Eq. 3; 0 turns the visual branch off, and S* stays in the prompt; None = the adapter's own,
            `default_scale`: 1 for ours, 0.6 for IP-Adapters.
        seed: picture i of a prompt uses seed + i. height, width: px, multiples of the autoencoder's factor.
        location: how location masks are made and used (section 3.4). record: which attention maps are recorded.
        preview_every: steps between two previews, 0 = none. scheduler: a key of `specs.SCHEDULERS`.
        generator: one per picture, in place of `seed`. latents: starting noise (N, C, h, w) of unit variance.
        on_step: called after each step with (step from 1, timestep, latents (N, C, h, w)); returns the latents to
            continue with, and False to stop there.
        layout: where the subjects stand, how they are turned, camera and light, for a base that was trained with it
            (`BaseModel.layout_channels`); None = drawn by the seed, in the places that the subjects were given.
        output_type: form of `Result.images`, see `sampling.to_output`; "latent" = the latents (N, C, h, w).
        guidance_rescale: 0 to 1, see `sampling.rescaled`. clip_skip: as in diffusers, how many layers of the text
            encoders are left out at their end, for the prompt alone.
        subject_start, subject_end: shares of the steps, 0 to 1, between which λ holds; it is 0 before and after (S* and
            the masks stay).
        guidance_end: share of the steps after which there is no classifier-free guidance, which halves their work.
        subject_guidance_scale, subject_guidance_end: in this share of the steps, the first ones, guidance is away from
            the same prompt without the subjects (no S*, λ = 0) in place of the empty or negative prompt, with this
            scale: the picture holds more to its subjects, at the same work. It acts inside their location masks, from
            the step on in which there are some; everywhere without them. It is a part of classifier-free guidance,
            which guidance_scale and guidance_end turn off in whole.
        Raises ValueError at once, before anything runs, for an argument that cannot be used.
        """
        several = prompt if isinstance(prompt, list | tuple) and prompt else (prompt,)
        config = GenerationConfig(
            prompt=several[0],
            further_prompts=tuple(several[1:]),
            negative_prompt=negative_prompt or "",
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            subject_scale=subject_scale,
            seed=seed,
            height=height,
            width=width,
            num_images=num_images,
            location=LocationConfig() if location is None else location,
            record=RecordConfig() if record is None else record,
            preview_every=preview_every,
            scheduler=scheduler,
            generator=_one_each(generator),
            latents=latents,
            on_step=on_step,
            layout=layout,
            output_type=output_type,
            guidance_rescale=guidance_rescale,
            clip_skip=clip_skip or 0,
            subject_start=subject_start,
            subject_end=subject_end,
            guidance_end=guidance_end,
            subject_guidance_scale=subject_guidance_scale,
            subject_guidance_end=subject_guidance_end,
        )
        return self.run(config, subjects)

    def run(self, config: GenerationConfig, subjects: Subject | Sequence[Subject] = ()) -> Iterator[Step | Result]:
        """Generate as `stream` does, with all settings in one object. Raises ConfigError at once."""
        several = tuple(subjects) if isinstance(subjects, list | tuple) else (subjects,)
        if config.location.normalize is None and self.adapter is not None:
            config = replace(config, location=replace(config.location, normalize=self.adapter.normalize))
        if config.record.looked_at and isinstance(self.adapter, IPAdapter):
            # its tokens have no known patches
            config = replace(config, record=replace(config.record, looked_at=False))
        resolved = resolve(self.base, config, several, self.adapter.default_scale if self.adapter else 1.0)
        here = (self.adapter.kind, self.adapter.config.width) if self.adapter else None
        if any((s.kind, s.features.shape[-1]) != here for s in several):
            raise ConfigError(
                "generate: these subjects do not fit; no adapter is loaded (pass adapter=FILE to CustomContrast.load), "
                "or they come from another one (make them again with this CustomContrast's `subject`)."
            )
        if self.safety is not None and resolved.output_type == "latent":
            raise ConfigError(
                "generate: output_type='latent' is nothing that the safety checker sees; take 'pil', 'np' or 'pt', "
                "or load without safety_checker."
            )
        scheduler = make_scheduler(self.base.scheduler, resolved.scheduler)
        try:
            scheduler.set_timesteps(resolved.num_inference_steps)
        except (ValueError, IndexError) as error:  # PNDM with too few, for one
            raise ConfigError(
                f"generate: scheduler={resolved.scheduler or type(scheduler).__name__!r} cannot take "
                f"num_inference_steps={resolved.num_inference_steps} ({error}); give more steps, or another scheduler."
            ) from error
        check_makers(self.adapter, several)
        pictures = tuple(s for s in several if s.role != "subject")
        return self._run(resolved, tuple(s for s in several if s.role == "subject"), pictures, scheduler)

    def generate(
        self, prompt: str | Sequence[str], subjects: Subject | Sequence[Subject] = (), **options: Any
    ) -> Result:
        """Generate pictures and return them with their masks and maps: `stream` run to its end, same arguments."""
        *_, result = self.stream(prompt, subjects, **options)
        return result  # type: ignore[return-value]

    def unknown_words(self, prompt: str) -> list[tuple[str, str]]:
        """Words of a prompt that the base was never trained on, each with the nearest one it knows, "" if none is near.

        [] for a base without a list of words. Raises ValueError where prompt is no text.
        """
        known, prompt = self.base.vocabulary, check_text("prompt", prompt)
        if known is None:
            return []
        words = re.findall(r"[^\W\d_]+", re.sub(r"\b[Ss]\d*\*", " ", prompt.lower()))
        strange = [word for word in dict.fromkeys(words) if word not in known and word.removesuffix("s") not in known]
        return [(word, next(iter(get_close_matches(word, known, 1, 0.6)), "")) for word in strange]

    def _run(self, *settings: Any) -> Iterator[Step | Result]:
        """`_steps`; however they end, no part of the model stays where it is only lent a place."""
        try:
            yield from self._steps(*settings)
        finally:
            rest(self._offloaded)

    @torch.no_grad()
    def _steps(
        self,
        config: ResolvedConfig,
        subjects: tuple[Subject, ...],
        pictures: tuple[Subject, ...],
        scheduler: Any,
    ) -> Iterator[Step | Result]:
        """The denoising loop. All mutable state is created here and discarded with the run."""
        base, N = self.base, config.pictures
        clock = _Clock()
        install_processors(base.unet)  # diffusers' own switches, attention slicing among them, take ours away
        scheduler.set_timesteps(config.num_inference_steps, device=base.device)
        timesteps = scheduler.timesteps
        size = (config.height // base.scale_factor, config.width // base.scale_factor)
        with on_device(base.device, *base.text_encoders, self.adapter):
            denoiser = make_denoiser(base, self.conditioner, config, subjects, pictures, timesteps, size)
        clock.lap("conditioning")

        generators = config.generator or [
            torch.Generator().manual_seed(config.seed + i % config.num_images) for i in range(N)
        ]
        if config.latents is None:
            z = starting_noise(generators, base.latent_channels, size, base.device, base.dtype)
        else:
            z = config.latents.to(base.device, base.dtype)
        z = z * scheduler.init_noise_sigma
        options = step_options(scheduler, generators)
        grid = level_size(size, min(layer.level for layer in base.cross_attention_layers))  # where maps come together
        layers = len(base.cross_attention_layers)
        collector = MapCollector(
            config.record, denoiser.prompt, N, len(subjects), grid, layers, config.location.normalize
        )
        located = [subject.placement.location for subject in subjects]
        masker = Masker(config.location, drawn_masks(config, subjects, grid, base.device), located, N)
        masks_required = (any(located) and config.location.enabled) or (bool(subjects) and config.record.maps)

        for step, t in enumerate(timesteps, start=1):
            for_masks = masks_required and masker.needs_maps(step)
            sources = self._sources(subjects, t) if collector.looks(step) else ()
            request = collector.request(step, for_masks, sources)
            prediction, maps = denoiser.predict(NoisyLatents(scheduler, z, t, request, *masker.at(step)))
            stepped = scheduler.step(prediction, t, z, **options)

            masker.take(maps.location() if for_masks and maps is not None else None)
            arrays = collector.write(step, maps, denoiser.owned(masker.masks))
            preview = None
            if config.preview_every and step % config.preview_every == 0 and self.safety is None:
                x_0 = predicted_x0(scheduler, stepped, prediction, t, z)
                preview = side_by_side(self._preview(x_0))
            z, going = stepped.prev_sample, True
            if config.on_step is not None:
                z, going = config.on_step(step, t, z)
            yield Step(step, len(timesteps), int(t), preview, arrays)
            if not going:
                break

        clock.lap("denoising")
        images, flagged = self._decode(z, config.output_type)
        clock.lap("decoding")
        about = (
            {key: self.adapter.metadata.get(key) for key in ("step", "revision", "ablation")} if self.adapter else {}
        )
        if isinstance(self.adapter, IPAdapter):
            about = {"format": FORMAT, "kind": self.adapter.config.kind}
        withheld = [SKIPPED.format(i) for i, flag in enumerate(flagged, start=1) if flag]
        yield Result(
            images=images,
            prompt="\n".join(prompt.text for prompt in denoiser.prompts),
            tokens=list(denoiser.prompt.tokens),
            words=[(word, list(places)) for word, places in denoiser.prompt.words],
            timesteps=[int(t) for t in timesteps[:step]],
            recipe=recipe(config, (*subjects, *pictures))
            | {"base": base.name, "adapter": about, "scheduler": type(scheduler).__name__},
            truncated=" ".join(prompt.truncated for prompt in denoiser.prompts if prompt.truncated),
            notes=[note for prompt in denoiser.prompts for note in prompt.notes] + withheld,
            seconds=clock.laps,
            flagged=flagged,
            looked_at=collector.looked_at([(tokens_on_a_side(base, s.resolution),) * 2 for s in subjects]),
            **collector.arrays(),
        )

    def _sources(self, subjects: Sequence[Subject], t: torch.Tensor) -> list[torch.Tensor]:
        """Per subject, the reference patches its visual tokens come from at timestep t: (L, n, references, patches)."""
        adapter = self.adapter
        if not isinstance(adapter, Adapter):
            return []
        t = torch.as_tensor([t.item()], device=self.base.device)
        with on_device(self.base.device, adapter):
            return [
                token_sources(adapter.encoder, subject.features, t, len(subject.segmentations))[0]
                for subject in subjects
            ]

    def _preview(self, z: Tensor) -> list[Image.Image]:
        """Latents as pictures to look at: by the autoencoder for embedded bases, else by the linear map of its colours.

        Decoded every second step, previews of SDXL take 157 TFLOP a run beside the UNet's 406; the embedded bases'
        autoencoders are small, and as few coloured cells their pictures would not show a subject.
        """
        if self.base.spec.embedded:
            with on_device(self.base.device, self.base.vae):
                return to_pictures(self.base.decode(z))
        if self._latent_rgb is None:
            with on_device(self.base.device, self.base.vae):
                self._latent_rgb = fit_latent_rgb(self.base)
        return to_pictures(self._latent_rgb.pixels(z, self.base.scale_factor))

    def _decode(self, z: Tensor, output_type: str) -> tuple[Any, list[bool]]:
        """Latents (N, C, h, w) -> pictures, as `Result.images` holds them, and which of them were withheld."""
        if output_type == "latent":
            return z, []
        with on_device(self.base.device, self.base.vae):
            pixels = self.base.decode(z)
        if self.safety is None:
            return to_output(pixels, output_type), []
        pictures = to_pictures(pixels)
        flagged = self.safety.flags(pictures, self.base.device)
        for i in (i for i, flag in enumerate(flagged) if flag):
            plain = np.asarray(placeholder(pictures[i].size), np.float32) / 127.5 - 1
            pixels[i] = torch.from_numpy(plain).permute(2, 0, 1).to(pixels)
        return to_output(pixels, output_type), flagged


load = CustomContrast.load  # `customcontrast.load("sdxl", adapter="ip-adapter-plus")`


def _too_large(base: str, device: torch.device, reason: str) -> str:
    free = free_memory(device)
    there = "" if free is None else f"; {free / GB:.1f} GB are free there"
    return (
        f"load: base {base!r} does not fit into the memory of {device} ({reason}{there}); close what else uses it, "
        "pass memory='auto' (the page: --memory auto), or take a smaller model."
    )


def resolve_adapter(
    adapter: str | Path | None, base: str, weights: str, image_encoder: str | Path | None
) -> tuple[Path | None, str | Path | None]:
    """The adapter's file, fetched if need be, and the image encoder: as given, else that of a published IP-Adapter.

    weights: the base's folder; where it brings an image encoder of its own, that one is taken. Raises CheckpointError.
    """
    if adapter is None:
        return None, image_encoder
    try:
        file = adapter_file(adapter, base)
    except HubError as error:
        raise CheckpointError(f"load_adapter: {error}") from error
    if image_encoder is None and is_ip_adapter(file) and not is_folder(Path(weights) / "image_encoder"):
        image_encoder = read_config(file)[0].image_encoder
    return file, image_encoder


def _one_each(generator: torch.Generator | Sequence[torch.Generator] | None) -> Any:
    """One generator per picture, as a tuple; what is none of these is left for `GenerationConfig` to name."""
    if isinstance(generator, torch.Generator):
        return (generator,)
    return tuple(generator) if isinstance(generator, list | tuple) else generator


class _Clock:
    """Seconds of each part of a run; time spent by whoever watches the stream counts as denoising."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
