"""Eq. 1, 4, 7, 8, 9 against loops written straight from the formulas, and the properties they must have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from scipy.stats import spearmanr

from train.adapter import losses
from train.adapter.watch import FiniteWatch

B, L, N, D = 5, 3, 2, 4
ROOT = Path(__file__).resolve().parents[2]


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.flatten(), b.flatten()
    return (a * b).sum() / (a.norm() * b.norm())


@pytest.fixture
def features() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "v": make(B, D),
        "u": make(B, L, D),
        "s": make(B, L, N, D),
        "p": make(B, L, N, D),
        "S": losses.appearance_similarity(make(B, 6) + 0.8),
        "subjects": torch.tensor([0, 1, 2, 1, 3]),
    }


# ---- Eq. 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_target_is_what_the_scheduler_inverts(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind)
    g = torch.Generator().manual_seed(1)
    z, noise = torch.randn(3, 2, 4, 4, generator=g), torch.randn(3, 2, 4, 4, generator=g)
    t = torch.tensor([10, 400, 900])
    z_t = scheduler.add_noise(z, noise, t)
    target = losses.diffusion_target(scheduler, z, noise, t)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    z_0 = {
        "epsilon": (z_t - (1 - a).sqrt() * target) / a.sqrt(),
        "v_prediction": a.sqrt() * z_t - (1 - a).sqrt() * target,
        "sample": target,
    }[kind]
    torch.testing.assert_close(z_0, z, atol=1e-4, rtol=1e-3)
    assert losses.diffusion_loss(target, target) == 0


def test_diffusion_loss_is_the_mean_square_and_checks_shapes() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(losses.diffusion_loss(a, b), ((a - b) ** 2).sum() / a.numel())
    with pytest.raises(ValueError, match="differ in shape"):
        losses.diffusion_loss(a, b[:1])


def test_unknown_prediction_type_is_named() -> None:
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="flow"):
        losses.diffusion_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1))


# ---- Eq. 4


def cscl_loop(v: torch.Tensor, u: torch.Tensor, subjects: torch.Tensor, tau: float) -> torch.Tensor:
    u = u.mean(1)
    total = torch.zeros(())
    for i in range(B):
        others = [j for j in range(B) if j == i or subjects[j] != subjects[i]]
        top = torch.exp(cosine(v[i], u[i]) / tau)
        total = total + torch.log(top / sum(torch.exp(cosine(v[i], u[j]) / tau) for j in others))
        total = total + torch.log(top / sum(torch.exp(cosine(v[j], u[i]) / tau) for j in others))
    return -total / (2 * B)


def macl_loop(
    s: torch.Tensor, p: torch.Tensor, S: torch.Tensor | None, subjects: torch.Tensor, tau: float
) -> torch.Tensor:
    total = torch.zeros(())
    for layer in range(L):
        for i in range(B):
            top = torch.exp(cosine(s[i, layer], p[i, layer]) / tau)
            bottom = top
            for j in range(B):
                if subjects[j] == subjects[i]:
                    continue
                alpha = 1.0 if S is None else S[i, i] / S[i, j]
                bottom = bottom + torch.exp(alpha * cosine(s[i, layer], s[j, layer]) / tau)
            total = total + torch.log(top / bottom)
    return -total / (B * L)


def test_cscl_equals_the_loop_with_gradients(features: dict[str, torch.Tensor]) -> None:
    v, u = features["v"].clone().requires_grad_(), features["u"].clone().requires_grad_()
    fast = torch.autograd.grad(losses.cscl_loss(v, u, features["subjects"], 0.2), (v, u))
    slow = torch.autograd.grad(cscl_loop(v, u, features["subjects"], 0.2), (v, u))
    torch.testing.assert_close(
        losses.cscl_loss(v, u, features["subjects"], 0.2), cscl_loop(v, u, features["subjects"], 0.2)
    )
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_cscl_invariances(features: dict[str, torch.Tensor]) -> None:
    v, u, ids = features["v"], features["u"].mean(1), features["subjects"]
    base = losses.cscl_loss(v, u, ids)
    order = torch.randperm(B)
    torch.testing.assert_close(losses.cscl_loss(v[order], u[order], ids[order]), base)
    torch.testing.assert_close(losses.cscl_loss(3 * v, 0.2 * u, ids), base)  # only the directions count
    torch.testing.assert_close(losses.cscl_loss(u, v, ids), base)  # symmetric as in CLIP
    eye = torch.eye(B)
    assert losses.cscl_loss(eye, eye, torch.arange(B), 0.01) < 1e-6  # matched and orthogonal: solved
    same = torch.ones(B, D)
    torch.testing.assert_close(losses.cscl_loss(same, same, torch.arange(B)), torch.tensor(math.log(B)))


# ---- Eq. 7


@pytest.mark.parametrize("with_alpha", [True, False])
def test_macl_equals_the_loop_with_gradients(features: dict[str, torch.Tensor], with_alpha: bool) -> None:
    s, p = features["s"].clone().requires_grad_(), features["p"].clone().requires_grad_()
    S = features["S"] if with_alpha else None
    fast, slow = losses.macl_loss(s, p, S, features["subjects"], 0.3), macl_loop(s, p, S, features["subjects"], 0.3)
    torch.testing.assert_close(fast, slow)
    for a, b in zip(torch.autograd.grad(fast, (s, p)), torch.autograd.grad(slow, (s, p)), strict=True):
        torch.testing.assert_close(a, b)


def test_same_subject_samples_are_never_negatives() -> None:
    """A batch of one subject has nothing to push away: both losses are 0 and leave other samples untouched."""
    s, v = torch.randn(B, L, N, D, requires_grad=True), torch.randn(B, D, requires_grad=True)
    one = torch.zeros(B, dtype=torch.long)
    macl, cscl = losses.macl_loss(s, s.detach(), None, one), losses.cscl_loss(v, v.detach(), one)
    assert macl == 0 and abs(cscl.item()) < 1e-6
    assert torch.isfinite(torch.autograd.grad(macl, s)[0]).all()


def test_macl_lower_similarity_pushes_harder(features: dict[str, torch.Tensor]) -> None:
    """The gradient by a negative's cosine grows with α_ij (at equal, positive cosine)."""
    s = torch.ones(3, 1, 1, 4) + 0.05 * torch.randn(3, 1, 1, 4, generator=torch.Generator().manual_seed(2))
    s = s.requires_grad_()
    S = torch.tensor([[1.0, 0.9, 0.3], [0.9, 1.0, 0.9], [0.3, 0.9, 1.0]])
    g = torch.autograd.grad(losses.macl_loss(s, s.detach(), S, torch.arange(3), 1.0), s)[0]
    flat = torch.autograd.grad(losses.macl_loss(s, s.detach(), None, torch.arange(3), 1.0), s)[0]
    assert g[2].norm() / g[1].norm() > flat[2].norm() / flat[1].norm()


def minimise_macl(S: torch.Tensor, tau: float, alpha: bool, steps: int = 800, width: int = 48) -> torch.Tensor:
    """Two free vectors per sample (s_i and s_i⁺), Eq. 7 alone; returns the cosines c_ij at the optimum."""
    rows = S.shape[0]
    g = torch.Generator().manual_seed(0)
    s = torch.randn(rows, 1, 1, width, generator=g).requires_grad_()
    p = torch.randn(rows, 1, 1, width, generator=g).requires_grad_()
    optimizer = torch.optim.Adam([s, p], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        losses.macl_loss(s, p, S if alpha else None, torch.arange(rows), tau).backward()
        optimizer.step()
        schedule.step()
    unit = F.normalize(s.detach().flatten(1), dim=-1)
    return unit @ unit.T


def rank_correlation(c: torch.Tensor, S: torch.Tensor) -> float:
    """Eq. 6 speaks of one anchor i and two others j, k: the mean over i of Spearman's ρ over j ≠ i."""
    off = ~torch.eye(len(S), dtype=torch.bool)
    return sum(float(spearmanr(c[i][off[i]], S[i][off[i]]).statistic) for i in range(len(S))) / len(S)


def ring(rows: int, low: float, high: float) -> torch.Tensor:
    """Subjects on a circle, none more typical than another; S falls from `high` to `low` with the angle."""
    angle = 2 * math.pi * torch.arange(rows) / rows
    cos = torch.cos(angle[:, None] - angle[None, :])
    S = low + (high - low) * (cos + 1) / 2
    return S.fill_diagonal_(1.0)


def test_macl_has_equation_6_as_its_consequence() -> None:
    """With α the learned similarities are ordered as S (ρ ≥ 0.95) and equal the closed form; without α they are not."""
    S, tau = ring(24, 0.45, 0.95), 0.25
    c = minimise_macl(S, tau, alpha=True)
    assert rank_correlation(c, S) >= 0.95
    off = ~torch.eye(len(S), dtype=torch.bool)
    row = S[0][off[0]]
    k = -(1 + tau * (row * row.log()).sum()) / row.sum()
    torch.testing.assert_close(c[off], (S * (k + tau * S.log()))[off], atol=5e-3, rtol=0)
    assert abs(rank_correlation(minimise_macl(S, tau, alpha=False), S)) < 0.5


def test_macl_keeps_the_order_of_subjects_at_random_in_rank_correlation() -> None:
    """Real subjects are not equally typical: the order holds in rank correlation, less than exactly."""
    g = torch.Generator().manual_seed(0)
    S = losses.appearance_similarity(torch.randn(24, 12, generator=g) + 1.2)
    assert rank_correlation(minimise_macl(S, 0.2, alpha=True), S) > 0.85
    assert abs(rank_correlation(minimise_macl(S, 0.2, alpha=False), S)) < 0.5


def test_macl_needs_a_batch_larger_than_one_over_tau_s() -> None:
    """Where τ · Σ_{j≠i} S_ij < 1 all cosines turn negative and α orders them backwards (see the docstring)."""
    S = ring(8, 0.35, 0.9)
    tau = 0.15
    assert tau * (S.sum(1).mean() - 1) < 1
    c = minimise_macl(S, tau, alpha=True)
    assert rank_correlation(c, S) < 0


def test_similarity_is_clamped_symmetric_and_carries_no_gradient() -> None:
    e = torch.randn(6, 8, requires_grad=True)
    S = losses.appearance_similarity(e, floor=0.05)
    assert not S.requires_grad and S.min() >= 0.05 and S.max() <= 1
    torch.testing.assert_close(S, S.T)
    torch.testing.assert_close(S.diagonal(), torch.ones(6))


# ---- Eq. 8


def test_location_loss_equals_the_formula_and_its_ends() -> None:
    g = torch.Generator().manual_seed(0)
    A = torch.rand(2, 4, 6, generator=g)
    M = torch.rand(2, 1, 4, 6, generator=g).round()
    expected = 0.0
    for b in range(2):
        outside = inside = area_out = area_in = 0.0
        for y in range(4):
            for x in range(6):
                a, m = A[b, y, x].item(), M[b, 0, y, x].item()
                outside, area_out = outside + a * (1 - m), area_out + 1 - m
                inside, area_in = inside + a * m, area_in + m
        expected += (outside / (area_out + 1e-5) - inside / (area_in + 1e-5)) / 2
    assert losses.location_loss(A, M).item() == pytest.approx(expected, abs=1e-5)
    assert losses.location_loss(M[:, 0], M).item() == pytest.approx(-1, abs=1e-4)
    assert losses.location_loss(1 - M[:, 0], M).item() == pytest.approx(1, abs=1e-4)
    flat = torch.full((2, 4, 6), 0.4)
    assert losses.location_loss(flat, M).item() == pytest.approx(0, abs=1e-4)


def test_location_loss_resizes_antialiased_weighs_and_survives_empty_masks() -> None:
    M = torch.zeros(3, 1, 32, 48, dtype=torch.bool)
    M[:, :, 8:24, 12:36] = True
    small = losses.resize_mask(M, (8, 12))
    assert small.shape == (3, 8, 12) and small.min() >= 0 and small.max() <= 1
    assert small.mean().item() == pytest.approx(M.float().mean().item(), abs=1e-3)
    A = torch.rand(3, 8, 12)
    one = losses.location_loss(A, M, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(one, losses.location_loss(A[:1], M[:1]) / 3)
    for mask in (torch.zeros_like(M), torch.ones_like(M)):
        assert torch.isfinite(losses.location_loss(A, mask))


# ---- Eq. 9


def test_total_is_equation_9_and_bad_terms_are_named() -> None:
    t = [torch.tensor(x) for x in (1.0, 2.0, 3.0, -0.5)]
    out = losses.total_loss(*t, lambda_1=0.1, lambda_2=0.01)
    assert out.total.item() == pytest.approx(1 + 0.1 * 5 - 0.005)
    assert losses.total_loss(*t, lambda_1=0.1, macl_weight=0.5).total.item() == pytest.approx(1 + 0.1 * 3.5 - 5e-4)
    watch = FiniteWatch(torch.device("cpu"))
    watch.see(out, 3)
    bad = losses.total_loss(t[0], t[1], torch.tensor(float("nan")), t[3])
    with pytest.raises(FloatingPointError, match="'macl' is nan at step 7"):
        watch.see(bad, 7)
