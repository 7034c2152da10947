"""What a denoising step needs of the UNet: a prediction and its maps. One call for all subjects is the paper's way.

`multi_subject` has the other way, a call for each subject. The pipeline knows the protocol alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from customcontrast.attention import MapRecorder, unet_forward
from customcontrast.attention.maps import Size, resize
from customcontrast.attention.state import SubjectBranch
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.conditioner import Conditions
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.conditioning.text_context import TextContext, joined, subject_state
from customcontrast.config import ResolvedConfig
from customcontrast.sampling import rescaled


@dataclass(frozen=True)
class MapRequest:
    """Which maps of one step are requested; the fields are those of `MapRecorder`."""

    tokens: Sequence[int] = ()
    layers: tuple[int, ...] | None = None
    everywhere: bool = True
    sources: Sequence[Tensor] = ()
    normalize: str | None = None

    def recorder(self) -> MapRecorder:
        """A fresh recorder of these maps."""
        return MapRecorder(self.tokens, self.layers, self.everywhere, self.sources, self.normalize)


@dataclass(frozen=True, eq=False)
class NoisyLatents:
    """What a denoiser predicts from: the latents of one step, which maps are requested, and where subjects may act."""

    scheduler: Any  # of this run, a scheduler of diffusers
    z: Tensor  # (N, C, h, w), as noisy as at t
    t: Tensor  # the timestep, a scalar
    request: MapRequest | None = None  # None = no maps
    masks: Tensor | None = None  # location masks (N, K, h, w) in [0, 1]; None = no mask yet
    masked: Sequence[bool] = ()  # which subjects have one, see `Masker.at`


class Maps(Protocol):
    """The maps of one step, on the whole picture: N pictures, K subjects."""

    def location(self) -> Tensor | None:
        """A of Eq. 8 for each subject, (N, K, h, w)."""

    def mean(self, kind: str, grid: Size) -> Tensor | None:
        """Mean over the layers of one kind ("text", "subject", "visual") -> (N, c, h, w)."""

    def looked(self, subject: int, grid: Size) -> Tensor | None:
        """Which reference patches each place attended to -> (N, h, w, references, patches)."""

    def by_resolution(self) -> dict[Size, dict[str, Tensor]]:
        """Means over the layers of each resolution."""


class Denoiser(Protocol):
    """The conditions of a run, and how the UNet gets them."""

    @property
    def prompt(self) -> TokenizedPrompt:
        """The whole prompt, the first of several: what the maps' tokens refer to."""

    @property
    def prompts(self) -> tuple[TokenizedPrompt, ...]:
        """All prompts of the run."""

    def predict(self, noisy: NoisyLatents) -> tuple[Tensor, Maps | None]:
        """The guided prediction for z, (N, C, h, w), and the requested maps."""

    def owned(self, masks: Tensor | None) -> Tensor | None:
        """The masks (N, K, h, w) as they are shown: what of each is its subject's."""


@dataclass(frozen=True, eq=False)
class JointDenoiser:
    """All subjects in one UNet call, each under its own mask."""

    base: BaseModel
    config: ResolvedConfig
    conditions: tuple[Conditions, ...]  # of each prompt; each has as many of the pictures, in turn
    unconditional: TextContext | None  # None = without classifier-free guidance
    strengths: Sequence[float]  # λ of each subject
    layout: Tensor | None = None  # layout channels of each picture (N, 13, h, w), for a base that takes them
    layer_scales: Sequence[Sequence[float] | None] = ()  # what λ of each subject is multiplied by in each layer
    everywhere: tuple[SubjectBranch, ...] = ()  # style and layout pictures
    silent: frozenset[float] = frozenset()  # timesteps at which λ is 0
    unguided: frozenset[float] = frozenset()  # timesteps without classifier-free guidance
    plain: TextContext | None = None  # the prompt without its subjects; None = no guidance on them
    on_subjects: frozenset[float] = frozenset()  # timesteps at which guidance is away from `plain`
    located: Sequence[bool] = ()  # whether each subject gets a location mask, in which alone guidance on it acts
    projected: dict[str, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)  # of each kind of `guidance`

    @property
    def prompt(self) -> TokenizedPrompt:
        """The whole prompt, the first of several: what the maps' tokens refer to."""
        return self.conditions[0].prompt

    @property
    def prompts(self) -> tuple[TokenizedPrompt, ...]:
        """All of them."""
        return tuple(conditions.prompt for conditions in self.conditions)

    def owned(self, masks: Tensor | None) -> Tensor | None:
        """The masks (N, K, h, w) as they are shown: these."""
        return masks

    def guidance(self, noisy: NoisyLatents) -> tuple[str, TextContext | None, float | Tensor]:
        """What guidance is away from in this step: its kind, its text (None = there is no guidance), the scale.

        Guidance on subjects acts in the union of their masks, and not before there are any: away from the same prompt
        the rest of the picture would lose what the prompt says of it. Its scale is (N, 1, h, w) then, 1 elsewhere.
        """
        t = noisy.t.item()
        if t in self.unguided or self.unconditional is None:
            return "none", None, 1.0
        masked = noisy.masked or [False] * len(self.located)
        found = all(on or not wanted for on, wanted in zip(masked, self.located, strict=True))
        if t not in self.on_subjects or self.plain is None or not found:
            return "all", self.unconditional, self.config.guidance_scale
        scale = self.config.subject_guidance_scale
        if noisy.masks is None or not all(masked):
            return "subjects", self.plain, scale
        size = (noisy.z.shape[-2], noisy.z.shape[-1])
        union = resize(noisy.masks.float(), size).amax(dim=1, keepdim=True).to(noisy.z.dtype)
        return "subjects", self.plain, 1 + (scale - 1) * union

    def predict(self, noisy: NoisyLatents) -> tuple[Tensor, MapRecorder | None]:
        """The guided prediction for z, (N, C, h, w), and its maps; see `Denoiser.predict`."""
        z, t = noisy.z, noisy.t
        recorder = None if noisy.request is None else noisy.request.recorder()
        each = [conditions.at(t.item()) for conditions in self.conditions]
        context, outputs = joined([text for text, _ in each]), each[0][1]
        kind, without, scale = self.guidance(noisy)
        guided = without is not None
        state = subject_state(
            self.base,
            context,
            self.prompts,
            outputs,
            size=(z.shape[-2], z.shape[-1]),
            strengths=[0.0] * len(self.strengths) if t.item() in self.silent else self.strengths,
            layer_scales=self.layer_scales,
            everywhere=self.everywhere,
            unconditional=without,
            repeat=len(z) // len(self.conditions),
            masks=noisy.masks,
            masked=noisy.masked,
            location=self.config.location,
            recorder=recorder,
            steady=all(conditions.steady for conditions in self.conditions),
            projected=self.projected.setdefault(kind, {}),
        )
        z_in = noisy.scheduler.scale_model_input(torch.cat([z] * (1 + guided)), t)
        layout = None if self.layout is None else self.layout.repeat(1 + guided, 1, 1, 1)
        prediction = unet_forward(self.base, z_in, t, state, layout)
        if not guided:
            return prediction, recorder
        unprompted, with_prompt = prediction.chunk(2)
        mixed = unprompted + scale * (with_prompt - unprompted)
        return rescaled(mixed, with_prompt, self.config.guidance_rescale), recorder
