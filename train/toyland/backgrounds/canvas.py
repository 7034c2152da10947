"""The painter's tools: coordinates, gradients, soft shapes and noise on a batch of empty pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from train.toyland.noise import hash01, lattice, smooth

Color = tuple[float, float, float]


def dimmed(color: Color, share: float) -> Color:
    """A colour at this share of its brightness."""
    red, green, blue = color
    return red * share, green * share, blue * share


class Canvas:
    """n pictures of size × size; x in [-1, 1] to the right, y in [-1, 1] upwards, everything per picture.

    seed: (n,) int64; elevation: (n,) degrees, raises the horizon.
    """

    def __init__(self, seed: Tensor, elevation: Tensor, size: int) -> None:
        self.n, self.size, self.device, self.seed = seed.shape[0], size, seed.device, seed
        axis = (torch.arange(size, device=seed.device) + 0.5) * (2.0 / size) - 1.0
        self.x, self.y = axis.view(1, 1, size), -axis.view(1, size, 1)
        self.px = 2.0 / size
        self.horizon = (-0.13 + 0.016 * (elevation - 5.0)).view(-1, 1, 1)
        self._calls = 0

    def rand(self, key: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(n, 1, 1) uniform."""
        return low + (high - low) * hash01(self.seed, key).view(-1, 1, 1)

    def noise(self, key: int, rows: int, cols: int, octaves: int = 1) -> Tensor:
        """(n, size, size) smooth noise, about [0, 1]."""
        return smooth(self.seed, key, rows, cols, self.size, octaves)[:, 0]

    def table(self, key: int, count: int) -> Tensor:
        """(n, count) uniform numbers, to be looked up with `pick`."""
        return lattice(self.seed, key, 1, count)[:, 0, 0]

    @staticmethod
    def pick(table: Tensor, index: Tensor) -> Tensor:
        """table (n, m) looked up by integer maps (n or 1, h, w) → (n, h, w)."""
        n = table.shape[0]
        flat = index.long().clamp(0, table.shape[1] - 1).expand(n, -1, -1)
        return table.gather(1, flat.reshape(n, -1)).view(flat.shape)

    def edge(self, distance: Tensor, soft: float = 0.0) -> Tensor:
        """Coverage of a shape from its signed distance (negative inside), one pixel of softness at least."""
        width = max(self.px * 1.4, soft)
        return (0.5 - distance / width).clamp(0, 1)

    def fill(self, color: Color) -> Tensor:
        c = torch.tensor(color, device=self.device).view(1, 3, 1, 1)
        return c.expand(self.n, 3, self.size, self.size)

    def ramp(self, t: Tensor, stops: Sequence[tuple[float, Color]]) -> Tensor:
        """Colour gradient (n, 3, H, W) of a scalar map t (n, H, W) through (position, colour) stops."""
        t = t.expand(self.n, self.size, self.size) if t.shape[0] == 1 or t.shape[-1] == 1 else t
        out = self.fill(stops[0][1])
        for (p0, _), (p1, c1) in pairwise(stops):
            out = self.over(out, c1, ((t - p0) / (p1 - p0)).clamp(0, 1))
        return out

    def over(self, base: Tensor, color: Color | Tensor, alpha: Tensor) -> Tensor:
        """Lay a colour ((3,) tuple or (n, 3, H, W)) over the base with coverage alpha (n, H, W)."""
        c = torch.tensor(color, device=self.device).view(1, 3, 1, 1) if isinstance(color, tuple) else color
        return base + (c - base) * alpha[:, None]

    def disc(self, cx: Tensor | float, cy: Tensor | float, r: Tensor | float, soft: float = 0.0) -> Tensor:
        return self.edge(((self.x - cx) ** 2 + (self.y - cy) ** 2).sqrt() - r, soft)

    def oval(
        self, cx: Tensor, cy: Tensor, rx: Tensor | float, ry: Tensor | float, angle: Tensor | float = 0.0
    ) -> Tensor:
        """A rotated ellipse's coverage."""
        a = angle if isinstance(angle, Tensor) else torch.tensor(angle, device=self.device)
        dx, dy = self.x - cx, self.y - cy
        u, v = dx * a.cos() + dy * a.sin(), dy * a.cos() - dx * a.sin()
        q = ((u / rx) ** 2 + (v / ry) ** 2).sqrt()
        small = torch.minimum(torch.as_tensor(rx, device=self.device), torch.as_tensor(ry, device=self.device))
        return self.edge((q - 1.0) * small)

    def leaf(
        self, cx: Tensor, cy: Tensor, long: Tensor | float, wide: Tensor | float, angle: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A pointed leaf from its stem at (cx, cy): coverage, and the distance from the midrib (0..1)."""
        dx, dy = self.x - cx, self.y - cy
        u = (dx * angle.cos() + dy * angle.sin()) / long
        v = dy * angle.cos() - dx * angle.sin()
        t = u.clamp(0, 1)
        half = wide * 4.0 * t * (1.0 - t) * (1.15 - 0.3 * t)
        inside = self.edge(v.abs() - half) * ((u > 0) & (u < 1))
        return inside, (v.abs() / (half + 1e-3)).clamp(0, 1)

    def ridge(self, key: int, base: Tensor | float, height: float, waves: int, octaves: int = 2) -> Tensor:
        """A skyline (n, 1, W): y of a smooth random ridge."""
        line = smooth(self.seed, key, 1, waves, self.size, octaves)[:, 0, :1, :]
        return base + height * (line - 0.5) * 2.0

    def below(self, line: Tensor | float, soft: float = 0.0) -> Tensor:
        return self.edge(self.y - line, soft).expand(self.n, self.size, self.size)

    def specks(self, key: int, cells: int, radius: tuple[float, float], chance: float, soft: float = 0.0) -> Tensor:
        """Round specks, at most one in each cell of a cells × cells grid (n, H, W)."""
        gx, gy = (self.x + 1.0) * 0.5 * cells, (1.0 - self.y) * 0.5 * cells
        ix, iy = gx.floor().clamp(0, cells - 1), gy.floor().clamp(0, cells - 1)
        index = (iy * cells + ix).expand(1, self.size, self.size)
        t = lattice(self.seed, key, 4, cells * cells)[:, 0]
        rx, ry, rr, on = (self.pick(t[:, i], index) for i in range(4))
        r = radius[0] + (radius[1] - radius[0]) * rr * rr
        m = radius[1] * cells * 0.5 + 0.04
        dx, dy = gx - ix - (m + (1 - 2 * m) * rx), gy - iy - (m + (1 - 2 * m) * ry)
        d = (dx * dx + dy * dy).sqrt() * (2.0 / cells) - r
        return self.edge(d, soft) * (on < chance)

    def ground(self, color: Sequence[Color], key: int, rough: float, cols: int = 5) -> Tensor:
        """Ground plane below the horizon: far → near gradient, streaked by noise of strength rough."""
        t = ((self.horizon - self.y) / (self.horizon + 1.0)).clamp(0, 1)
        n = self.noise(key, 22, cols, 2) - 0.5
        base = self.ramp(t.expand(self.n, self.size, self.size), ((0.0, color[0]), (1.0, color[1])))
        return (base * (1.0 + rough * n[:, None])).clamp(0, 1)
