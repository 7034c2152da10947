"""CustomContrast as a diffusers pipeline: a thin layer over the one denoising loop in `pipeline.py`.

pipe = CustomContrastPipeline.from_pretrained("toyland")
bear = pipe.subject(Segmenter().auto("bear.png"), noun="bear")
pipe("a <bear> on the beach", bear, generator=torch.Generator().manual_seed(0)).images[0]
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter, save_adapter
from customcontrast.attention import slice_attention
from customcontrast.base_model import FACTS, BaseModel, load_base
from customcontrast.building import alone
from customcontrast.config import LocationConfig, RecordConfig
from customcontrast.integrations.diffusers_inputs import (
    ADAPTER,
    BASE_KEY,
    VOCABULARY,
    infer_base,
    joined,
    one_each,
    randomness,
    subject_lists,
    wrong,
)
from customcontrast.integrations.official_callbacks import cutoffs, own_inputs
from customcontrast.integrations.prompt_embeds import PromptEmbeds
from customcontrast.ip_adapter import IPAdapter
from customcontrast.layout import Layout, LayoutPrior
from customcontrast.output import Result, Step
from customcontrast.pipeline import CustomContrast, resolve_adapter
from customcontrast.placement import Placement
from customcontrast.safety import SafetyChecker, as_checker
from customcontrast.sampling import make_scheduler
from customcontrast.specs import BASES
from customcontrast.subject import Segmented, Subject
from customcontrast.tensor_files import share_with_umask

logger = logging.getLogger(__name__)


@dataclass
class CustomContrastOutput(BaseOutput):
    """Pictures and maps of one call. Pictures are numbered prompt by prompt; each list of maps has one array each."""

    images: (
        list[Image.Image] | np.ndarray | Tensor
    )  # "pil"; "np" (N, H, W, 3); "pt" (N, 3, H, W); "latent" (N, C, h, w)
    location_masks: list[np.ndarray]  # M_t, float32 (T, K, h, w)
    text_maps: list[np.ndarray]  # float16 (T', tokens, h, w); the tokens are those of this picture's prompt
    visual_maps: list[np.ndarray]  # float16 (T', K, h, w)
    subject_maps: list[np.ndarray]  # float16 (T', K, h, w)
    results: list[Result]  # one per prompt, with tokens, words, recipe and everything else
    nsfw_content_detected: list[bool] | None = None  # per picture: the safety checker withheld it; None = there is none


@dataclass(frozen=True)
class Part:
    """One part of a base model under the names that it has here and there."""

    name: str  # argument of the pipeline's constructor, and key of `components`
    field: str  # of `BaseModel`
    attribute: str  # of the pipeline


# What a pipeline and a `BaseModel` share beside tokenizers and text encoders: modules, which diffusers registers, and
# facts of the base, which it does not. Device, type, size and default settings follow from them.
MODULES = (
    Part("vae", "vae", "vae"),
    Part("unet", "unet", "unet"),
    Part("scheduler", "scheduler", "scheduler"),
    Part("image_encoder", "image_encoder", "image_encoder"),
    Part("feature_extractor", "image_processor", "feature_extractor"),
)
FACTS_OF_BASE = (
    Part("base", "name", "base_name"),
    Part("vocabulary", "vocabulary", "vocabulary"),
    Part("zero_empty_prompt", "zero_empty_prompt", "zero_empty_prompt"),
    Part("masks_padding", "masks_padding", "masks_padding"),
    Part("layout_prior", "layout_prior", "layout_prior"),
    Part("encoder_name", "encoder_name", "encoder_name"),
)


class CustomContrastPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Generate pictures of your subjects, with the names and conventions of diffusers' pipelines.

    Make one by `from_pretrained`, or by `from_parts` from what is in memory (the modules are shared, not copied). LoRA
    (`load_lora_weights`, `set_adapters`, `fuse_lora`, `unload_lora_weights`), `to`, `enable_model_cpu_offload`,
    `enable_sequential_cpu_offload` and `set_progress_bar_config` are diffusers' own; `scheduler` may be assigned.
    Unlike `CustomContrast`, one pipeline is for one thread: `interrupt` and the callbacks belong to the running call.
    """

    model_cpu_offload_seq = "unet->vae"  # the encoders and the adapter come and go by `sampling.on_device`
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        unet: nn.Module,
        scheduler: Any,
        image_encoder: nn.Module,
        feature_extractor: Any,
        text_encoder_2: nn.Module | None = None,
        tokenizer_2: Any | None = None,
        adapter: Adapter | IPAdapter | None = None,
        base: str = "sd15",
        vocabulary: frozenset[str] | None = None,
        zero_empty_prompt: bool = False,
        masks_padding: bool = False,
        layout_prior: LayoutPrior | None = None,
        encoder_name: str = "",
        safety_checker: SafetyChecker | nn.Module | None = None,
    ) -> None:
        """The parts of a `BaseModel` under diffusers' names. base: a key of `specs.BASES`.

        safety_checker: withholds the pictures that it flags; one of ours, or a diffusers pipeline's.
        """
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        if text_encoder_2 is not None:
            self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.adapter = adapter
        self.base_name = base
        self.vocabulary = vocabulary
        self.zero_empty_prompt = zero_empty_prompt
        self.masks_padding = masks_padding
        self.layout_prior = layout_prior
        self.encoder_name = encoder_name
        self.safety_checker = as_checker(safety_checker)
        self._interrupt = False
        self._num_timesteps = 0
        self._model: CustomContrast | None = None
        self._modules_alone = False

    # ---- sharing parts -------------------------------------------------------------------------------

    @property
    def components(self) -> dict[str, Any]:
        """Every part under its name in the constructor, so that `type(pipe)(**pipe.components)` is the same pipeline.

        The modules are shared, not copied; beside them stand the adapter and the facts of the base.
        """
        own = super().components
        if self._modules_alone:
            return own
        own |= {"adapter": self.adapter, "safety_checker": self.safety_checker}
        return own | {part.name: getattr(self, part.attribute) for part in FACTS_OF_BASE}

    @contextmanager
    def _only_modules(self) -> Iterator[None]:
        """For diffusers' own offloading, which would hook whatever `components` names."""
        self._modules_alone = True
        try:
            yield
        finally:
            self._modules_alone = False

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts: Any) -> CustomContrastPipeline:
        """Make a pipeline of another one's parts, which are shared, not copied; `parts` replaces or adds some.

        pipeline: a `CustomContrastPipeline`, or diffusers' own for SD-1.5 or SDXL; the latter needs `image_encoder` and
        `feature_extractor` in `parts` where it has none. parts: names of the constructor; `adapter` may be a file, and
        `torch_dtype` converts all modules. Raises ValueError with one sentence.
        """
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        dtype = parts.pop("torch_dtype", None)
        unknown = sorted(set(parts) - known)
        if unknown:
            raise wrong("from_pipe", unknown, f"must be names of parts: {', '.join(sorted(known))}")
        taken = {name: part for name, part in pipeline.components.items() if name in known and part is not None}
        taken |= parts
        pooled = "text_encoder_2" in taken
        taken.setdefault("base", "sdxl" if pooled else "sd15")
        missing = [name for name in ("image_encoder", "feature_extractor") if taken.get(name) is None]
        if missing:
            raise ValueError(f"from_pipe: this pipeline has no {' and no '.join(missing)}; pass them by these names.")
        adapter = taken.pop("adapter", None)
        made = (CustomContrastXLPipeline if pooled else CustomContrastPipeline)(**taken)
        made.adapter = load_adapter(adapter, made.model.base) if isinstance(adapter, str | Path) else adapter
        return made.to(dtype) if dtype is not None else made

    def __deepcopy__(self, memo: dict[int, Any]) -> CustomContrastPipeline:
        """A pipeline over copies of all modules; what is cached is not copied."""
        return type(self)(**{name: copy.deepcopy(part, memo) for name, part in self.components.items()})

    # ---- loading and saving --------------------------------------------------------------------------

    @classmethod
    def from_parts(
        cls,
        base: BaseModel,
        adapter: Adapter | IPAdapter | None = None,
        safety_checker: SafetyChecker | None = None,
    ) -> CustomContrastPipeline:
        """Make a pipeline of a base model and an adapter in memory, such as those of a `CustomContrast`."""
        pairs = zip(base.spec.text_parts, base.tokenizers, base.text_encoders, strict=True)
        texts = {
            name: part
            for text, tokenizer, encoder in pairs
            for name, part in ((text.tokenizer, tokenizer), (text.encoder, encoder))
        }
        shared = {part.name: getattr(base, part.field) for part in (*MODULES, *FACTS_OF_BASE)}
        return (CustomContrastXLPipeline if base.spec.pooled else CustomContrastPipeline)(
            adapter=adapter, safety_checker=safety_checker, **shared, **texts
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        base: str | None = None,
        adapter: str | Path | Adapter | IPAdapter | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        image_encoder: str | Path | None = None,
        safety_checker: str | Path | SafetyChecker | None = None,
    ) -> CustomContrastPipeline:
        """Load a diffusers pipeline folder or hub id, or a base by its name: toyland, toyland2, sd15 or sdxl.

        base: None = the one that the adapter was trained for, else inferred from model_index.json.
        adapter: a .safetensors file, the name of a published IP-Adapter or "owner/name:path" (see
            `CustomContrast.load`); None = `adapter.safetensors` in the folder if it is there.
        torch_dtype: None = float16 on CUDA, float32 on a CPU. device: None = CUDA where there is one.
        image_encoder: folder or hub id of the CLIP image encoder, where the weights bring none.
        safety_checker: see `CustomContrast.load`.
        Only safetensors are read. Raises ValueError with one sentence.
        """
        source = str(pretrained_model_name_or_path)
        if adapter is None and (Path(source) / ADAPTER).is_file():
            adapter = Path(source) / ADAPTER
        if source in BASES and not Path(source).is_dir():
            base, source = base or source, BASES[source].weights
            beside = Path(source) / ADAPTER
            adapter = beside if adapter is None and beside.is_file() else adapter
        known = adapter if not isinstance(adapter, str | Path) or Path(adapter).is_file() else None
        base = base or infer_base(source, known)
        if isinstance(adapter, str | Path):
            adapter, image_encoder = resolve_adapter(adapter, base, source, image_encoder)
        model = load_base(base, source, device, torch_dtype, image_encoder)
        loaded = load_adapter(adapter, model) if isinstance(adapter, Path) else adapter
        if isinstance(safety_checker, str | Path):
            safety_checker = SafetyChecker.load(safety_checker, source, model.device, model.dtype)
        return cls.from_parts(model, loaded, safety_checker)

    def save_pretrained(self, save_directory: str | Path, max_shard_size: int | str | None = None) -> None:
        """Write a diffusers pipeline folder that `from_pretrained` turns into the same pipeline, bit for bit.

        diffusers' own StableDiffusion(XL)Pipeline opens it too, as the base model without subjects. Safetensors only.
        Raises ValueError while LoRA layers are in the models, or their weights are offloaded piece by piece.
        """
        if any(self.get_list_adapters().values()):
            raise ValueError(
                "save_pretrained: LoRA layers are loaded and would not be saved; call unload_lora_weights() first "
                "(after fuse_lora(), to keep what they do)."
            )
        if any(p.device.type == "meta" for p in self.unet.parameters()):
            raise ValueError("save_pretrained: weights are offloaded; call remove_all_hooks() and to('cpu') first.")
        folder = Path(save_directory)
        super().save_pretrained(folder, safe_serialization=True, max_shard_size=max_shard_size)
        index = json.loads((folder / self.config_name).read_text(encoding="utf-8"))
        index |= {"_class_name": self._stock_class, BASE_KEY: self.base_name} | self._stock_options()
        (folder / self.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        share_with_umask(*folder.rglob("*.safetensors"))
        facts = {
            "masks_padding": self.masks_padding,
            "layout": asdict(self.layout_prior) if self.layout_prior else None,
        }
        if any(facts.values()):
            (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        if self.vocabulary is not None:
            (folder / VOCABULARY).write_text(json.dumps(sorted(self.vocabulary)), encoding="utf-8")
        if self.adapter is not None:
            save_adapter(self.adapter, folder / ADAPTER, **self.adapter.metadata)

    _stock_class = "StableDiffusionPipeline"

    def _stock_options(self) -> dict[str, Any]:
        """What the stock pipeline's constructor requires in the index, beside the modules."""
        return {"safety_checker": [None, None], "requires_safety_checker": False}

    # ---- the model behind it -------------------------------------------------------------------------

    @property
    def model(self) -> CustomContrast:
        """A `CustomContrast` of the current components; a new one where a component has been replaced."""
        spec = BASES[self.base_name]
        size = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        shared: dict[str, Any] = {part.field: getattr(self, part.attribute) for part in (*MODULES, *FACTS_OF_BASE)}
        base = BaseModel(
            tokenizers=[getattr(self, text.tokenizer) for text in spec.text_parts],
            text_encoders=self._text_encoders,
            default_size=size,
            default_steps=spec.steps,
            default_guidance=spec.guidance,
            default_guidance_end=spec.guidance_end,
            dtype=self.unet.dtype,
            device=torch.device(self._execution_device),
            **shared,
        )
        known = self._model
        same = known is not None and known.base == base and known.adapter is self.adapter
        if known is None or not same or known.safety is not self.safety_checker:
            self._model = known = CustomContrast(base, self.adapter, self.safety_checker)
        return known

    @property
    def _text_encoders(self) -> list[nn.Module]:
        return [getattr(self, text.encoder) for text in BASES[self.base_name].text_parts]

    def subject(
        self,
        segmentations: Segmented | Sequence[Segmented],
        noun: str,
        strength: float = 1.0,
        placement: Placement | None = None,
        layer_scales: Mapping[int | str, float] | Sequence[float] | None = None,
        reference_resolution: int | None = None,
    ) -> Subject:
        """Encode the references of one subject, once; see `CustomContrast.subject`."""
        return self.model.subject(segmentations, noun, strength, placement, layer_scales, reference_resolution)

    def style(self, picture: Image.Image | Segmented, strength: float = 1.0, role: str = "style") -> Subject:
        """Encode a whole picture that gives its style or layout; see `CustomContrast.style`."""
        return self.model.style(picture, strength, role)

    # ---- the call ------------------------------------------------------------------------------------

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops after this step; set `_interrupt` from a callback or another thread."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the latest call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        subjects: Subject | Sequence[Subject] | Sequence[Sequence[Subject]] = (),
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        subject_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        seed: int | None = None,
        location: LocationConfig | None = None,
        record: RecordConfig | None = None,
        scheduler: str | None = None,
        layout: Layout | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        output_type: str = "pil",
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        subject_start: float = 0.0,
        subject_end: float = 1.0,
        guidance_end: float | None = None,
        subject_guidance_scale: float | None = None,
        subject_guidance_end: float | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> CustomContrastOutput | tuple[Any, list[Result]]:
        """Generate N = len(prompt) · num_images_per_prompt pictures, prompt by prompt.

        prompt, subjects, height … scheduler, layout, guidance_rescale … subject_guidance_end: as in
        `CustomContrast.stream`; None = the base's own. Several prompts share the subjects, or each has its own list.
        generator: one for all pictures, or N. seed: in its place, picture i then uses seed + i; neither = a new seed
        from PyTorch's global generator. latents: starting noise (N, C, h, w) of unit variance.
        record: which maps are returned; `RecordConfig(maps=False)` is the fastest.
        prompt_embeds (P, S, d_text), negative_prompt_embeds, pooled_prompt_embeds (P, d_pooled), …: encoded texts in
            the place of `prompt` and `negative_prompt`, as in diffusers; without subjects, and without maps.
        callback_on_step_end(pipe, step, timestep, {"latents": (num_images_per_prompt, C, h, w)}) is called after each
        step, counted from 0 for each prompt; it may return {"latents": others} and set `pipe._interrupt = True`, which
        stops there: the pictures are decoded as they are, further prompts are not begun. Of diffusers' official
            callbacks those that cut off guidance and the IP-Adapter's scale are taken, see `official_callbacks`.
        Returns CustomContrastOutput, or (images, results). Raises ValueError, before anything runs, for an argument
        that cannot be used.
        """
        encoded = PromptEmbeds(
            prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds
        )
        model = self.model  # once: whether it still holds is asked of all modules
        given = encoded.check(model.base, prompt, subjects, negative_prompt)
        if given:
            prompt, record = [""] * given, RecordConfig(maps=False)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise wrong("prompt", prompt, "must be text, or a list of texts")
        P, N = len(prompts), num_images_per_prompt
        if not isinstance(N, int) or isinstance(N, bool) or N < 1:
            raise wrong("num_images_per_prompt", N, "must be a whole number from 1")
        seed, generators = randomness(seed, generator, P * N)
        shape = tuple(getattr(latents, "shape", ()))
        if latents is not None and (len(shape) != 4 or len(latents) != P * N):
            raise wrong("latents", shape or latents, f"must be a tensor ({P * N}, C, h, w), one row per picture")
        total = functools.partial(self._total, scheduler, num_inference_steps)
        ends, inputs = cutoffs(callback_on_step_end, total), callback_on_step_end_tensor_inputs
        callback = self._callback(ends.others, None if own_inputs(callback_on_step_end) else inputs)
        lists, negatives = subject_lists(subjects, P), one_each("negative_prompt", negative_prompt, P)

        streams = []
        for p in range(P):
            rows = slice(p * N, (p + 1) * N)
            one = model
            if given:
                one = model.with_adapter(model.adapter)
                one.conditioner = encoded.conditioner(model.base, p)
            stream = one.stream(
                prompts[p],
                [self._here(subject, model.base.device) for subject in lists[p]],
                negative_prompt=negatives[p],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                subject_scale=subject_scale,
                seed=seed + p * N,
                height=height,
                width=width,
                num_images=N,
                location=location,
                record=record,
                scheduler=scheduler,
                layout=layout,
                generator=generators[rows] if generators else None,
                latents=None if latents is None else latents[rows],
                on_step=callback,
                output_type=output_type,
                guidance_rescale=guidance_rescale,
                clip_skip=clip_skip,
                subject_start=subject_start,
                subject_end=min(subject_end, ends.subject_end),
                guidance_end=min(
                    model.base.default_guidance_end if guidance_end is None else guidance_end, ends.guidance_end
                ),
                subject_guidance_scale=subject_guidance_scale,
                subject_guidance_end=subject_guidance_end,
            )
            streams.append(stream)
        try:
            results = self._finish(streams, num_inference_steps or model.base.default_steps)
        finally:
            self.maybe_free_model_hooks()
        images = joined([result.images for result in results])
        if not return_dict:
            return images, results
        kinds = ("location_masks", "text_maps", "visual_maps", "subject_maps")
        maps = {kind: [rows for result in results for rows in getattr(result, kind)] for kind in kinds}
        flags = [flag for result in results for flag in result.flagged] if model.safety is not None else None
        return CustomContrastOutput(images=images, **maps, results=results, nsfw_content_detected=flags)

    def _total(self, scheduler: str | None, steps: int | None) -> int:
        """How many timesteps a run has; as many as steps where the scheduler refuses them, which the run then says."""
        base = self.model.base
        count, own = steps or base.default_steps, make_scheduler(base.scheduler, scheduler)
        try:
            own.set_timesteps(count)
        except (ValueError, IndexError, TypeError):
            return max(1, count)
        return len(own.timesteps)

    def _finish(self, streams: Sequence[Any], steps: int) -> list[Result]:
        """Run the streams one after the other; those after an interrupt are not begun."""
        self._interrupt, results = False, []
        with self.progress_bar(total=len(streams) * steps) as bar:
            for stream in streams:
                if self.interrupt:
                    break
                for event in stream:
                    if isinstance(event, Step):
                        self._num_timesteps, bar.total = event.total, event.total * len(streams)
                        bar.update()
                    else:
                        results.append(event)
        return results

    def _callback(
        self, given: Any, inputs: Sequence[str] | None
    ) -> Callable[[int, Tensor, Tensor], tuple[Tensor, bool]]:
        """`callback_on_step_end` as the loop's `on_step`; without one it only looks for an interrupt."""
        if given is not None and not callable(given):
            raise wrong("callback_on_step_end", given, "must be a function (pipe, step, timestep, callback_kwargs)")
        inputs = getattr(given, "tensor_inputs", ["latents"]) if inputs is None else inputs
        if not isinstance(inputs, list | tuple) or not set(inputs) <= set(self._callback_tensor_inputs):
            raise wrong("callback_on_step_end_tensor_inputs", inputs, f"may name {self._callback_tensor_inputs} only")

        def on_step(step: int, t: Tensor, z: Tensor) -> tuple[Tensor, bool]:
            changed = given(self, step - 1, t, dict.fromkeys(inputs, z)) if given is not None else None
            new = (changed or {}).get("latents", z)
            if not isinstance(new, Tensor) or new.shape != z.shape:
                got = tuple(getattr(new, "shape", ())) or new
                raise wrong("callback_on_step_end", got, f"returned as latents, must be a tensor {tuple(z.shape)}")
            return new.to(z), not self.interrupt

        return on_step

    def _here(self, subject: Any, device: torch.device) -> Any:
        """A subject that was encoded before the pipeline moved or changed its type, on its device and in its type."""
        if not isinstance(subject, Subject) or self.adapter is None:
            return subject
        dtype = next(self.adapter.parameters()).dtype
        place = (device, dtype)
        tokens = None if subject.image_tokens is None else subject.image_tokens.to(*place)
        return replace(subject, features=subject.features.to(*place), image_tokens=tokens)

    # ---- memory, devices, LoRA -----------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> CustomContrastPipeline:
        """Move the models and the adapter to a device and (or) a type, as in diffusers.

        SDXL's autoencoder overflows in float16 and stays float32 where its config says so.
        """
        super().to(*args, **kwargs)
        given = [*args, kwargs.get("device"), kwargs.get("dtype")]
        dtype = next((x for x in given if isinstance(x, torch.dtype)), None)
        device = next((x for x in given if x is not None and not isinstance(x, torch.dtype)), None)
        if dtype == torch.float16 and BASES[self.base_name].pooled and self.vae.config.get("force_upcast", True):
            self.vae.to(torch.float32)
        if self.adapter is not None:
            self.adapter.to(device=device, dtype=dtype)
        return self

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """Compute attention a few heads at a time; diffusers' `enable_attention_slicing` calls it.

        slice_size: see `attention.slice_attention`. Raises ValueError.
        """
        slice_attention(self.unet, slice_size)

    def enable_vae_slicing(self) -> None:
        """Decode one picture at a time. Toyland's PatchAutoencoder has no such switch: a warning says so."""
        self._switch_vae("enable_slicing")

    def disable_vae_slicing(self) -> None:
        """Decode all pictures at once."""
        self._switch_vae("disable_slicing")

    def enable_vae_tiling(self) -> None:
        """Decode in overlapping tiles, blended; see `enable_vae_slicing` for Toyland."""
        self._switch_vae("enable_tiling")

    def disable_vae_tiling(self) -> None:
        """Decode in one piece."""
        self._switch_vae("disable_tiling")

    def _switch_vae(self, switch: str) -> None:
        if hasattr(self.vae, switch):
            getattr(self.vae, switch)()
        else:
            logger.warning("%s: %s works at half resolution and is decoded whole.", switch, type(self.vae).__name__)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Weigh skip connections (s1, s2) and backbone (b1, b2) of the UNet's first two upward blocks (FreeU).

        The UNet is the same object wherever the modules are shared, so it holds there too, until `disable_freeu`.
        """
        self.unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Take the UNet's connections as they are again."""
        self.unet.disable_freeu()

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Move each model to the accelerator for its part of a run only, as in diffusers.

        All have accelerate's hooks, which act where a model is called as a whole. The encoders and the adapter, parts
        of which the library calls directly, are moved by `sampling.on_device`. Not run on CUDA: the tests run the hooks
        with the CPU as the execution device, so that no weight really moves. Raises ValueError without an accelerator.
        """
        self._exclude_from_cpu_offload: list[str] = []
        with self._only_modules():
            super().enable_model_cpu_offload(gpu_id, self._offload_target(gpu_id, device))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Move each layer to the accelerator for its own forward pass only, as in diffusers: least memory, slow.

        The text encoders and the adapter, whose weights the library reads directly, are moved as a whole. Not run on
        CUDA: the tests run accelerate's hooks from weights on "meta" with the CPU as the execution device. Raises
        ValueError without an accelerator.
        """
        rest = [text.encoder for text in BASES[self.base_name].text_parts]
        self._exclude_from_cpu_offload = rest
        with self._only_modules():
            super().enable_sequential_cpu_offload(gpu_id, self._offload_target(gpu_id, device))
        for model in (*self._text_encoders, self.adapter):
            if model is not None:
                model.to("cpu")

    def _offload_target(self, gpu_id: int | None, device: torch.device | str | None) -> torch.device | str | None:
        """Where to compute: as requested, else as last time (diffusers calls again after a LoRA), else its choice."""
        if device is None and gpu_id is None:
            device = getattr(self, "_offload_device", None)
        if device is None and not torch.accelerator.is_available():
            raise ValueError(
                "CustomContrastPipeline: CPU offload needs an accelerator, and there is none; leave it out."
            )
        return device

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> None:
        """Load a LoRA (folder, .safetensors file, hub id or state dict) into the UNet and the text encoders.

        adapter_name: for `set_adapters([name], [scale])`. Other arguments: see diffusers. Only safetensors are read.
        Raises ValueError where nothing in it fits.
        """
        self._load_lora(super().load_lora_weights, pretrained_model_name_or_path_or_dict, *args, **kwargs)

    def _load_lora(self, load: Callable[..., None], given: Any, *args: Any, **kwargs: Any) -> None:
        if not given or not isinstance(given, str | Path | dict):
            raise wrong("load_lora_weights", given, "must be a folder, a .safetensors file, a hub id or a state dict")
        before = self.get_list_adapters()
        try:
            source = str(given) if isinstance(given, Path) else given
            alone(load)(source, *args, **{"use_safetensors": True} | kwargs)
        except (RuntimeError, KeyError, OSError) as error:  # shapes of another base; no such file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"load_lora_weights: it does not fit base {self.base_name!r} ({reason}).") from error
        if self.get_list_adapters() == before and not kwargs.get("hotswap"):
            raise ValueError(
                f"load_lora_weights: nothing in it fits base {self.base_name!r}; its keys must begin with "
                f"{' or '.join(self._lora_loadable_modules)}."
            )


class CustomContrastXLPipeline(StableDiffusionXLLoraLoaderMixin, CustomContrastPipeline):
    """`CustomContrastPipeline` with two text encoders; `from_pretrained` chooses it where the base is SDXL."""

    _stock_class = "StableDiffusionXLPipeline"
    # of the signature they share; never absent here
    _optional_components: ClassVar[list[str]] = ["text_encoder_2", "tokenizer_2"]

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> None:
        """As in `CustomContrastPipeline`; here the super class is diffusers' for SDXL."""
        self._load_lora(super().load_lora_weights, pretrained_model_name_or_path_or_dict, *args, **kwargs)

    def _stock_options(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.zero_empty_prompt}
