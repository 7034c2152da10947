"""Attention maps: recorded layer by layer, aggregated on the fly. The one definition of "the map".

Text map of a token: its probability, averaged over heads. Text map of subject k: the sum over its S* tokens p.
Visual map of subject k: the mass on its subject tokens (all keys but the null key), averaged over heads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from customcontrast.attention.location import minmax

Size = tuple[int, int]


@dataclass
class MapSums:
    """Sums over the layers of one resolution, (R, channels, h, w), and how many layers they hold."""

    text: Tensor | None = None  # every recorded token
    subject: Tensor | None = None  # each subject's text map
    visual: Tensor | None = None  # each subject's visual map
    counts: dict[str, int] = field(default_factory=lambda: {"text": 0, "subject": 0, "visual": 0})

    def add(self, kind: str, maps: Tensor) -> None:
        """Add one layer's maps (R, channels, h, w). kind: "text", "subject" or "visual"."""
        old = getattr(self, kind)
        setattr(self, kind, maps if old is None else old + maps)
        self.counts[kind] += 1


class MapRecorder:
    """Records the attention maps of one UNet call as one sum per resolution; gradients flow through.

    tokens: how many text tokens to record (from the start token on), or their positions; 0 = the subjects' maps alone.
    layers: record these layers only; None = all.
    everywhere: record the subjects' maps in all layers even so, because `aggregate` needs them.
    sources: per subject, the origin of its visual tokens, (L, n, references, patches) of `encoder.token_sources`; with
        it, `looked` returns which reference patches each place of the picture attends to.
    normalize: "layer" = `aggregate` sees each layer's map brought to [0, 1] first (`LocationConfig.normalize`); all
        other maps stay as they are.
    Each layer counts once: with gradient checkpointing the second run of a layer is ignored.
    """

    def __init__(
        self,
        tokens: int | Sequence[int] = 0,
        layers: Collection[int] | None = None,
        everywhere: bool = True,
        sources: Sequence[Tensor] = (),
        normalize: str | None = None,
    ) -> None:
        self.tokens = tokens if isinstance(tokens, int) else list(tokens)
        self.layers = None if layers is None else frozenset(layers)
        self.everywhere = everywhere
        self.sources = sources
        self.sums: dict[Size, MapSums] = {}
        self.chosen = self.sums if layers is None else {}  # those of `layers`
        self.located = {} if normalize == "layer" else self.sums  # what `aggregate` averages
        self._looked: list[dict[Size, Tensor]] = [{} for _ in sources]
        self._seen: set[tuple[str, int]] = set()

    @property
    def token_list(self) -> list[int]:
        """The recorded tokens' places in the prompt."""
        return list(range(self.tokens)) if isinstance(self.tokens, int) else self.tokens

    def keeps(self, layer: int) -> bool:
        """Whether this layer is one of `layers`."""
        return self.layers is None or layer in self.layers

    def takes(self, layer: int) -> bool:
        """Whether this layer needs to compute any map at all."""
        return self.everywhere or self.keeps(layer)

    def add_text(self, layer: int, size: Size, tokens: Tensor, subjects: Tensor | None) -> None:
        """Add a layer's text maps. tokens: (R, h·w, S); subjects: (R, h·w, K), the S* mass of each subject, or None."""
        if self.tokens and self.keeps(layer):
            chosen = slice(self.tokens) if isinstance(self.tokens, int) else self.tokens
            self._add("text", layer, size, tokens[..., chosen])
        if subjects is not None:
            self._add("subject", layer, size, subjects)

    def add_visual(self, layer: int, size: Size, mass: Tensor) -> None:
        """Add a layer's visual maps. mass: (R, h·w, K), the mass on each subject's tokens."""
        self._add("visual", layer, size, mass)

    def add_looked(self, layer: int, size: Size, subject: int, weights: Tensor) -> None:
        """Add a layer's weights (R, h·w, n) on one subject's visual tokens, mean over heads."""
        if not self.keeps(layer) or (f"looked{subject}", layer) in self._seen:
            return
        self._seen.add((f"looked{subject}", layer))
        source = self.sources[subject][layer].flatten(1)  # (n, references · patches)
        maps = (weights.float() @ source.to(weights.device).float()).transpose(1, 2).unflatten(2, size)
        sums = self._looked[subject]
        sums[size] = sums[size] + maps if size in sums else maps

    def _add(self, kind: str, layer: int, size: Size, maps: Tensor) -> None:
        if (kind, layer) in self._seen:
            return
        self._seen.add((kind, layer))
        maps = maps.transpose(1, 2).unflatten(2, size).float()
        if self.everywhere and kind != "text" and self.located is not self.sums:
            self.located.setdefault(size, MapSums()).add(kind, minmax(maps))
        if self.everywhere and kind != "text" and self.chosen is not self.sums:
            self.sums.setdefault(size, MapSums()).add(kind, maps)
        if self.keeps(layer):
            self.chosen.setdefault(size, MapSums()).add(kind, maps)

    @property
    def grid(self) -> Size:
        """The finest resolution recorded, (h, w): where maps are brought together by default."""
        if not self.sums and not self.chosen:
            raise ValueError("MapRecorder: nothing was recorded; pass it as state.recorder to unet_forward first.")
        return max([*self.sums, *self.chosen], key=lambda size: size[0] * size[1])

    def mean(self, kind: str, grid: Size | None = None) -> Tensor | None:
        """Mean over the layers of one kind ("text", "subject", "visual"), each resized to `grid` -> (R, c, h, w)."""
        return self._mean(self.chosen, (kind,), grid)

    def looked(self, subject: int, grid: Size | None = None) -> Tensor | None:
        """Which reference patches each place attends to, mean over the layers: (R, h, w, references, patches).

        At each place it sums to the visual map: the mass on this subject's tokens. None without `sources`.
        """
        sums = self._looked[subject] if self.sources else {}
        if not sums:
            return None
        grid, count = grid or self.grid, sum(kind == f"looked{subject}" for kind, _ in self._seen)
        total = sum((resize(maps, grid) for maps in sums.values()), torch.zeros(())) / count
        return total.permute(0, 2, 3, 1).unflatten(-1, self.sources[subject].shape[-2:])

    def location(self) -> Tensor | None:
        """Each subject's map A, see `aggregate`."""
        return aggregate(self)

    def _mean(self, sums: dict[Size, MapSums], kinds: tuple[str, ...], grid: Size | None) -> Tensor | None:
        parts = [(getattr(s, kind), s.counts[kind]) for s in sums.values() for kind in kinds]
        parts = [(maps, count) for maps, count in parts if count]
        if not parts:
            return None
        grid = grid or self.grid
        total = sum(
            (resize(maps, grid) for maps, _ in parts), torch.zeros(())
        )  # resizing is linear: the sum may be resized
        return total / sum(count for _, count in parts)

    def by_resolution(self) -> dict[Size, dict[str, Tensor]]:
        """Means over the layers of each resolution: {(h, w): {"text" | "subject" | "visual": (R, c, h, w)}}."""
        kinds = ("text", "subject", "visual")
        return {
            size: {kind: getattr(s, kind) / s.counts[kind] for kind in kinds if s.counts[kind]}
            for size, s in self.chosen.items()
        }


def resize(maps: Tensor, size: Size) -> Tensor:
    """Resize maps (R, c, h, w) to (R, c, *size), bilinear and antialiased; float32 if the size changes."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.float(), size, mode="bilinear", antialias=True)


def aggregate(recorder: MapRecorder, grid: Size | None = None) -> Tensor | None:
    """Aggregate the recorded maps to A, "the map" of Eq. 8 and of the location mask, (R, K, h, w) in [0, 1].

    It is the average of all visual maps and of the p-th text maps over all layers and heads, each resized to one grid
    (default: the finest recorded).
    What was not recorded is left out: no visual maps without the sink, no text maps without S*. None without both.
    """
    return recorder._mean(recorder.located, ("visual", "subject"), grid)
