"""The training losses, one function per equation: Eq. 1, 4, 7, 8 and 9.

Symbols are the paper's. B is the batch of this process, B' that of all processes together (B' = B when there is
one), L the number of cross-attention layers, n the subject's tokens, d a feature width.

Several processes. Every loss is a mean over the anchors of *this* process; the negatives come from all processes
through `gather`, which carries gradients both ways. DistributedDataParallel averages the processes' gradients, so
W processes with B samples each have exactly the loss and the gradient of one process with W·B samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

SIMILARITY_FLOOR = 0.05  # S_ij is clamped to [floor, 1] in Eq. 7, so that α_ij = S_ii / S_ij is in [1, 1 / floor]
LOCATION_EPSILON = 1e-5  # ε in the denominators of Eq. 8


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss whose matrix products stay float32 where autocast is on: their gradients differ by 2 % in bfloat16."""

    @functools.wraps(loss)
    def exact(first: Tensor, *others: Any, **options: Any) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return loss(first, *others, **options)

    return exact


class _AllGather(torch.autograd.Function):
    """Concatenate a tensor over all processes; exact gradient.

    Forward: y = [x_0, …, x_{W−1}] on every process. Process w has its own loss ℓ_w(y), and the objective is their
    sum, so ∂/∂x_r = Σ_w (∂ℓ_w/∂y)_r: the backward pass sums the gradients over the processes and keeps slice r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = x.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """x (B, …) of every process, joined to (B', …) in rank order, with gradients; x itself when there is one process.

    Every process must bring the same B (drop the last, incomplete batch).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _AllGather.apply(x)


def own_columns(rows: int, device: torch.device | str = "cpu") -> Tensor:
    """Where the B rows of this process stand in the gathered B' columns: LongTensor (B,)."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(rank * rows, (rank + 1) * rows, device=device)


def not_negative(subjects: Tensor, subjects_all: Tensor) -> Tensor:
    """True where column j may not be a negative of row i: the same subject (so also j = i). Bool (B, B')."""
    return subjects[:, None] == subjects_all[None, :]


# ---------------------------------------------------------------------------------------------------------- Eq. 1


def diffusion_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What ε_θ is asked to predict, by the scheduler's `prediction_type`; all (B, C, h, w).

    epsilon: ε. v_prediction: v = √ᾱ_t ε − √(1−ᾱ_t) z_0. sample: z_0. Raises ValueError for any other type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(f"scheduler.config.prediction_type is {kind!r}; use epsilon, v_prediction or sample")


@in_float32
def diffusion_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. 1: L_diff = E‖ε − ε_θ(z_t, t, C)‖², the mean over every element, in float32."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    return F.mse_loss(prediction.float(), target.float())


# ---------------------------------------------------------------------------------------------------------- Eq. 4


@in_float32
def cscl_loss(v: Tensor, u: Tensor, subjects: Tensor, temperature: float = 0.07) -> Tensor:
    """Eq. 4, crossmodal semantic contrastive learning over the two CLS features, symmetric as in CLIP.

    v (B, d): visual CLS. u (B, d) or (B, L, d): textual CLS, averaged over l. subjects (B,): integer subject ids;
    two samples of one subject are never each other's negatives. c = cosine, τ = temperature > 0.

        L_CSCL = −1/(2B) Σ_i [ log e^{c(v_i,u_i)/τ} / Σ_j e^{c(v_i,u_j)/τ}
                             + log e^{c(v_i,u_i)/τ} / Σ_j e^{c(v_j,u_i)/τ} ]
    """
    u = u.mean(dim=1) if u.dim() == 3 else u
    v, u = F.normalize(v.float(), dim=-1), F.normalize(u.float(), dim=-1)
    v_all, u_all, subjects_all = gather(v), gather(u), gather(subjects)
    own = own_columns(v.shape[0], v.device)
    excluded = not_negative(subjects, subjects_all)
    excluded[torch.arange(len(own), device=v.device), own] = False  # j = i stands in the denominator of Eq. 4
    v_to_u = (v @ u_all.T / temperature).masked_fill(excluded, -torch.inf)
    u_to_v = (u @ v_all.T / temperature).masked_fill(excluded, -torch.inf)
    return 0.5 * (F.cross_entropy(v_to_u, own) + F.cross_entropy(u_to_v, own))


# ---------------------------------------------------------------------------------------------------------- Eq. 7


@in_float32
def appearance_similarity(embeddings: Tensor, floor: float = SIMILARITY_FLOOR) -> Tensor:
    """S_ij, the cosine of image embeddings of the segmented subjects R_i and R_j, clamped to [floor, 1].

    embeddings (B, e), from any image encoder (CLIP, DINOv2, SigLIP); no gradient. Returns (B, B').
    """
    e = F.normalize(embeddings.detach().float(), dim=-1)
    return (e @ gather(e).T).clamp(floor, 1.0)


@in_float32
def macl_loss(
    s: Tensor,
    s_positive: Tensor,
    similarity: Tensor | None,
    subjects: Tensor,
    temperature: float = 0.07,
) -> Tensor:
    """Eq. 7, multiscale appearance contrastive learning in the S+ space.

    s (B, L, n, d): the S+ tensors; s_positive, the same shape: those of another frame of each subject, at the same
    t. similarity (B, B'): S of `appearance_similarity`, or None for α = 1. subjects (B,): integer subject ids.

        L_MACL = −1/(BL) Σ_l Σ_i log [ e^{c(s_i^l, s_i⁺^l)/τ}
                                     / ( e^{c(s_i^l, s_i⁺^l)/τ} + Σ_{j≠i} e^{α_ij c(s_i^l, s_j^l)/τ} ) ]

    with α_ij = S_ii / S_ij ≥ 1. The cosine is that of the n·d numbers of one layer, taken as one vector.

    Why this gives Eq. 6. The gradient by c_ij is (α_ij/τ) π_ij, π_ij = e^{α_ij c_ij/τ} / (denominator): at equal
    cosine a dissimilar pair (large α) is pushed harder. Unit vectors cannot all be far from each other: their Gram
    matrix G = (c_ij) is positive semidefinite, so Σ_ij c_ij ≥ 0 with c_ii = 1. At the optimum the multiplier Z of
    G ⪰ 0 obeys Z_ij ∝ α_ij (π_ij + π_ji) and ZG = 0; when no subject is more typical than another (equal rows up to
    order) Z is constant, so α_ij π_ij is level over j, which is

        c_ij = S_ij · (k + τ log S_ij),    k = −(1 + τ Σ_{j≠i} S_ij log S_ij) / Σ_{j≠i} S_ij    (from Σ_j c_ij = 0).

    For small τ this is the statement "α_ij c_ij is level, c_ij ∝ S_ij". It grows with S, which is Eq. 6, where
    k + τ (1 + log S_ij) > 0. Averaged over j that says τ · Σ_{j≠i} S_ij > 1: the batch must be larger than 1 / (τ S̄)
    (about 1 / τ = 14 similar subjects at τ = 0.07), or the vectors can still be spread so far that all cosines are
    negative, and then a larger α pushes a dissimilar pair *less* far. Where some subjects are more typical than
    others, Z is not constant and the order holds in rank correlation instead of exactly. The tests show all three.
    """
    if s.shape != s_positive.shape:
        raise ValueError(f"s {tuple(s.shape)} and s_positive {tuple(s_positive.shape)} differ in shape")
    s = F.normalize(s.float().flatten(2), dim=-1)  # (B, L, n·d)
    s_positive = F.normalize(s_positive.float().flatten(2), dim=-1)
    positive = (s * s_positive).sum(-1) / temperature  # (B, L)
    negative = torch.einsum("ild,jld->ilj", s, gather(s)) / temperature  # (B, L, B')
    if similarity is not None:
        negative = negative * (1.0 / similarity)[:, None, :]  # S_ii = 1, so α_ij = 1 / S_ij
    excluded = not_negative(subjects, gather(subjects))
    negative = negative.masked_fill(excluded[:, None, :], -torch.inf)
    logits = torch.cat([positive[..., None], negative], dim=-1)  # the positive stands at index 0
    return (torch.logsumexp(logits, dim=-1) - positive).mean()


# ---------------------------------------------------------------------------------------------------------- Eq. 8


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """M (B, 1, H, W) or (B, H, W), bool or in [0, 1], antialiased to (B, h, w) float32 in [0, 1]."""
    mask = mask.float()
    mask = mask[:, None] if mask.dim() == 3 else mask
    return F.interpolate(mask, size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0].clamp(0, 1)


@in_float32
def location_loss(attention: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Eq. 8 (FastComposer): L_loc = Σ A·(1−M) / Σ(1−M) − Σ A·M / ΣM, per sample, then the mean over B.

    attention A (B, h, w): mass on the subject, averaged over all visual maps and p-th text maps (the one definition
    of "the map", `customcontrast.attention.maps`). mask M (B, 1, H, W). weight (B,): 1 where the subject was given,
    0 where it was dropped (the sample then counts as 0, so that the mean does not depend on who is on which process).
    The range is [−1, 1] when A is in [0, 1]; the best is −1: all mass on the subject, none beside it.
    """
    m = resize_mask(mask, (attention.shape[-2], attention.shape[-1]))
    a = attention.float()
    outside = (a * (1 - m)).sum((1, 2)) / ((1 - m).sum((1, 2)) + LOCATION_EPSILON)
    inside = (a * m).sum((1, 2)) / (m.sum((1, 2)) + LOCATION_EPSILON)
    per_sample = outside - inside
    return (per_sample if weight is None else per_sample * weight.float()).mean()


# ---------------------------------------------------------------------------------------------------------- Eq. 9


@dataclass
class Losses:
    """The terms of Eq. 9, each a scalar tensor with its graph."""

    diffusion: Tensor
    cscl: Tensor
    macl: Tensor
    location: Tensor
    total: Tensor

    def terms(self) -> dict[str, Tensor]:
        """The terms by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def numbers(self) -> dict[str, float]:
        """The terms as plain floats."""
        return {name: float(value.detach()) for name, value in self.terms().items()}


def total_loss(
    diffusion: Tensor,
    cscl: Tensor,
    macl: Tensor,
    location: Tensor,
    lambda_1: float = 1e-2,
    lambda_2: float = 1e-3,
    macl_weight: float = 1.0,
) -> Losses:
    """Eq. 9: L = L_diff + λ_1 (L_CSCL + w L_MACL) + λ_2 L_loc, w = macl_weight, 1 in the paper.

    A term that is off is given as a zero tensor.
    """
    total = diffusion + lambda_1 * (cscl + macl_weight * macl) + lambda_2 * location
    return Losses(diffusion, cscl, macl, location, total)
