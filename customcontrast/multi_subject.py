"""The UNet's prediction of one step: all subjects in one call, or each subject in a pass of its own.

One call is the paper's way. A small base mixes two subjects that way, whatever masks keep them apart: what one pass
draws is one thing in the middle. `SeparateDenoiser` is MultiDiffusion (Bar-Tal et al. 2023) with a shift: the prompt of
pass k speaks of subject k alone, and the latents are moved along the width until its place is in the middle. The
predictions, moved back, are mixed pixel by pixel (their Eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from customcontrast.attention import MapRecorder
from customcontrast.attention.maps import Size, resize
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.conditioner import Conditioner
from customcontrast.conditioning.prompt import ParsedPrompt, TokenizedPrompt, parse_prompt, words_of_each
from customcontrast.conditioning.text_context import joined
from customcontrast.config import ResolvedConfig
from customcontrast.denoiser import Denoiser, JointDenoiser, MapRequest, NoisyLatents
from customcontrast.layout import Layout
from customcontrast.layout_channels import layout_channels
from customcontrast.run_settings import drawn_masks, picture_layouts
from customcontrast.subject import Subject

SHARPNESS = 12.0  # of the softmax that gives a pixel to a subject; a mask is 1 where it is surest
PRIOR = 0.6  # what a subject's part of the picture counts, in masks
INWARD = 0.9  # how far from the middle a place in a row of subjects is, in widths of an even division


@dataclass(frozen=True, eq=False)
class SeparateDenoiser:
    """One pass for each of K subjects; the maps they leave are those of the whole picture again."""

    prompt: TokenizedPrompt  # of all subjects: what the maps' tokens refer to
    passes: tuple[JointDenoiser, ...]
    places: tuple[dict[int, int], ...]  # for each pass, which token of `prompt` each of its own tokens is
    shifts: tuple[int, ...]  # latent cells to the right that bring subject k into the middle
    prior: Tensor  # (K, h, w) in [0, 1]: whose part of the picture a latent cell is

    @property
    def prompts(self) -> tuple[TokenizedPrompt, ...]:
        """The one prompt."""
        return (self.prompt,)

    @cached_property
    def common(self) -> set[int]:
        """The tokens of `prompt` that every pass has."""
        return set.intersection(*(set(places.values()) for places in self.places))

    def predict(self, noisy: NoisyLatents) -> tuple[Tensor, JoinedMaps | None]:
        """As `Denoiser.predict`: each subject's own prediction, moved back and mixed."""
        z, request = noisy.z, noisy.request
        weights = self.weights(noisy.masks, len(z))
        masks, total, parts = _within(noisy.masks, weights), torch.zeros_like(z), []
        for k, (one, cells) in enumerate(zip(self.passes, self.shifts, strict=True)):
            own = replace(
                noisy,
                z=z.roll(cells, -1),
                request=None if request is None else self._part(request, k),
                masks=None if masks is None else shifted(masks[:, k : k + 1], cells, z.shape[-1]),
                masked=noisy.masked[k : k + 1],
            )
            moved, maps = one.predict(own)
            total += weights[:, k : k + 1].to(z.dtype) * moved.roll(-cells, -1)
            parts += [] if maps is None else [maps]
        return total, None if request is None else JoinedMaps(self, parts, request.tokens, weights)

    def _part(self, request: MapRequest, k: int) -> MapRequest:
        """The request in terms of pass k: its own tokens, its own subject's references."""
        own = [token for token, place in self.places[k].items() if place in request.tokens]
        return replace(request, tokens=own, sources=request.sources[k : k + 1])

    def owned(self, masks: Tensor | None) -> Tensor | None:
        """The masks (N, K, h, w), each where the place is its subject's."""
        return None if masks is None else _within(masks, self.weights(masks, len(masks)))

    def weights(self, masks: Tensor | None, images: int) -> Tensor:
        """To which subject a latent cell belongs, (images, K, h, w) in [0, 1].

        It is the softmax over the subjects of M_k + PRIOR · prior_k, sharpened.
        So a subject may reach into its neighbour's part where the neighbour is not, and no further.
        """
        size = (self.prior.shape[-2], self.prior.shape[-1])
        sure = self.prior.new_zeros(()) if masks is None else resize(masks.float(), size)
        return (SHARPNESS * (sure + PRIOR * self.prior)).softmax(dim=-3).expand(images, -1, -1, -1)


class JoinedMaps:
    """The recorders of all passes, moved back and read as `MapRecorder` is read.

    A token that all passes have: each place shows the map of the subject it belongs to. A token of one subject's own
    words has its own pass's map; one that no pass has ("and") has none, zeros.
    """

    def __init__(
        self, whole: SeparateDenoiser, parts: list[MapRecorder], tokens: Sequence[int], weights: Tensor
    ) -> None:
        """Join the maps `parts` of all passes. weights: to which subject each place belongs, (N, K, h, w)."""
        self.whole = whole
        self.parts = parts
        self.tokens = list(tokens)
        self.weights = weights

    def location(self) -> Tensor | None:
        """A of Eq. 8 for each subject, from its own pass, (N, K, h, w)."""
        return self.joined([part.location() for part in self.parts])

    def joined(self, maps: Sequence[Tensor | None]) -> Tensor | None:
        """One map (N, 1, h, w) of each subject -> (N, K, h, w); None where there are none."""
        there = [x for x in maps if x is not None]
        if len(there) < len(maps):
            return None
        width = self.whole.prior.shape[-1]
        return torch.cat([shifted(x, -cells, width) for x, cells in zip(there, self.whole.shifts, strict=True)], dim=1)

    def _text(self, maps: Sequence[Tensor | None], size: Size) -> Tensor | None:
        """Maps (N, own tokens, h, w) of each pass -> (N, tokens, h, w)."""
        if all(x is None for x in maps):
            return None
        example = next(x for x in maps if x is not None)
        total = example.new_zeros(len(example), len(self.tokens), *size)
        weights, width = resize(self.weights, size), self.whole.prior.shape[-1]
        for k, (part, x) in enumerate(zip(self.parts, maps, strict=True)):
            if x is None:
                continue
            x = shifted(x, -self.whole.shifts[k], width)
            for column, own in enumerate(part.token_list):
                place = self.whole.places[k][own]
                share = weights[:, k].to(x) if place in self.whole.common else 1
                total[:, self.tokens.index(place)] += x[:, column] * share
        return total

    def mean(self, kind: str, grid: Size) -> Tensor | None:
        """As `MapRecorder.mean`."""
        found = [part.mean(kind, grid) for part in self.parts]
        return self._text(found, grid) if kind == "text" else self.joined(found)

    def looked(self, subject: int, grid: Size) -> Tensor | None:
        """As `MapRecorder.looked`, from the subject's own pass."""
        found = self.parts[subject].looked(0, grid)
        width = self.whole.prior.shape[-1]
        return None if found is None else shifted(found, -self.whole.shifts[subject], width, dim=2)

    def by_resolution(self) -> dict[Size, dict[str, Tensor]]:
        """As `MapRecorder.by_resolution`."""
        found, result = [part.by_resolution() for part in self.parts], {}
        for size in found[0]:
            kinds = {kind: [part[size].get(kind) for part in found] for kind in ("text", "subject", "visual")}
            both = {kind: self._text(x, size) if kind == "text" else self.joined(x) for kind, x in kinds.items()}
            result[size] = {kind: x for kind, x in both.items() if x is not None}
        return result


def shifted(maps: Tensor, cells: int, width: int, dim: int = -1) -> Tensor:
    """Maps rolled along their width (dim) by `cells` of `width` latent cells, to their own nearest cell."""
    return maps.roll(round(cells * maps.shape[dim] / width), dim)


def _within(masks: Tensor | None, weights: Tensor) -> Tensor | None:
    """Masks (N, K, h, w) of any size, each where the place is its subject's."""
    return None if masks is None else masks * resize(weights, (masks.shape[-2], masks.shape[-1])).to(masks)


def make_denoiser(
    base: BaseModel,
    conditioner: Conditioner,
    config: ResolvedConfig,
    subjects: Sequence[Subject],
    pictures: Sequence[Subject],
    timesteps: Tensor,
    size: Size,
) -> Denoiser:
    """The conditions of a run at all timesteps (T,), and the denoiser that hands them to the UNet.

    pictures: style and layout pictures, which act everywhere. size: (h, w) of the latents.
    """
    guided = config.guidance_scale > 1
    layouts = picture_layouts(base, config, subjects) if base.layout_channels else []
    everywhere = conditioner.everywhere(pictures)
    silent = silent_timesteps(timesteps, config.subject_start, config.subject_end)
    unguided = silent_timesteps(timesteps, 0.0, config.guidance_end)
    on_subjects = frozenset(timesteps.tolist()) - silent_timesteps(timesteps, 0.0, config.subject_guidance_end)

    def one(
        prompts: Sequence[str | ParsedPrompt], some: Sequence[Subject], layouts: Sequence[Layout | None]
    ) -> JointDenoiser:
        conditions = tuple(conditioner.conditions(prompt, some, timesteps, config.clip_skip) for prompt in prompts)
        without = conditioner.unconditional(config.negative_prompt, conditions[0].encoders) if guided else None
        plain = None
        if guided and some and on_subjects:
            pairs = zip(prompts, conditions, strict=True)
            plain = joined([conditioner.without_subjects(p, some, c, config.clip_skip) for p, c in pairs])
        return JointDenoiser(
            base,
            config,
            conditions,
            unconditional=None if without is None else joined([without] * len(prompts)),
            strengths=[config.subject_scale * subject.strength for subject in some],
            layout=layout_channels(layouts, *size).to(base.device, base.dtype) if layouts else None,
            layer_scales=[subject.layer_scales for subject in some],
            everywhere=everywhere,
            silent=silent,
            unguided=unguided,
            plain=plain,
            on_subjects=on_subjects,
            located=[s.placement.drawn or (config.location.enabled and s.placement.location) for s in some],
        )

    if not config.location.apart or len(subjects) < 2:
        return one(config.prompts, subjects, layouts)
    parsed = parse_prompt(config.prompt, [subject.noun for subject in subjects])
    whole, passes, places = conditioner.tokenized(parsed, subjects), [], []
    order = [word.subject for word in parsed.words if word.subject is not None]
    prior = parts_of_picture(config, subjects, order, size).to(base.device)
    step = 1 << min(layer.level for layer in base.cross_attention_layers)  # whole cells of the finest maps
    shifts = tuple(_shift(part, s.placement.drawn, step) for part, s in zip(prior, subjects, strict=True))
    for k, (subject, (own, kept)) in enumerate(zip(subjects, words_of_each(parsed), strict=True)):
        alone = [_alone(x, order.index(k) if k in order else k, shifts[k] / size[1]) for x in layouts]
        passes.append(one([own], [subject], alone))
        pairs = zip(passes[-1].prompt.places, (whole.places[i] for i in kept), strict=True)
        same = {mine: theirs for ours, full in pairs for mine, theirs in zip(ours, full, strict=False)}
        ends = {0: 0, passes[-1].prompt.end: whole.end}
        places.append(dict(sorted((ends | same).items())))
    return SeparateDenoiser(whole, tuple(passes), tuple(places), shifts, prior)


def silent_timesteps(timesteps: Tensor, start: float, end: float) -> frozenset[float]:
    """The timesteps (T,) outside of the steps from `start` to `end`, shares of them in [0, 1].

    Step i of T, from 0, acts where start ≤ i / T and (i + 1) / T ≤ end, as diffusers' ControlNet pipelines have it.
    """
    total, slack = len(timesteps), 1e-6  # 0.3 of 10 steps are 3
    return frozenset(
        t for i, t in enumerate(timesteps.tolist()) if i / total < start - slack or (i + 1) / total > end + slack
    )


def _alone(layout: Layout | None, place: int, right: float) -> Layout | None:
    """The layout of one of its subjects, the `place`-th that is named, moved to the right by so much of the width."""
    if layout is None or place >= len(layout.subjects):
        return None
    subject = layout.subjects[place]
    left, top, far, bottom = subject.box
    near, far = max(0.0, left + right), min(1.0, far + right)
    return replace(layout, subjects=(replace(subject, box=(near, top, far, bottom)),)) if near < far else None


def parts_of_picture(config: ResolvedConfig, subjects: Sequence[Subject], order: Sequence[int], size: Size) -> Tensor:
    """Each subject's part of the picture, (K, h, w) in [0, 1]: what the user drew for it, else its place in a row.

    order: the subjects as the prompt names them; the row is in this order from left to right. Who has a drawing takes
    its place in it too, so that two subjects of which one is drawn on the left do not meet there.
    """
    layouts, K, (h, w) = drawn_masks(config, subjects, size, torch.device("cpu")), len(subjects), size
    x = (torch.arange(w, dtype=torch.float32) + 0.5) / w
    centres = [_centre(layout) if layout is not None else None for layout in layouts]
    free = [k for k in order if centres[k] is None]
    taken = sorted(min(int(c * K), K - 1) for c in centres if c is not None)
    slots = [i for i in range(K) if i not in taken]
    parts: list[Tensor] = []
    for k, layout in enumerate(layouts):
        if layout is not None:
            parts.append(layout)
            continue
        slot = slots[min(free.index(k), len(slots) - 1)]
        parts.append(((x >= slot / K) & (x < (slot + 1) / K)).float().expand(h, w))
    return torch.stack(parts)


def _centre(layout: Tensor) -> float:
    """Where the middle of a layout (h, w) is along the width, in [0, 1]."""
    columns = layout.sum(0)
    x = (torch.arange(len(columns), dtype=columns.dtype) + 0.5) / len(columns)
    return float((columns * x).sum() / columns.sum().clamp_min(1e-6))


def _shift(part: Tensor, drawn: bool, step: int) -> int:
    """Latent cells to the right, a multiple of `step`, from the middle of a part (h, w) to the middle of the picture.

    In a row of subjects each stands a little nearer to the middle than its part: it may be wider than that.
    """
    away = 0.5 - _centre(part)
    return step * round(away * (1 if drawn else INWARD) * part.shape[-1] / step)
