"""Fig. 2(a): the Multimodal Feature Injection encoder (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from customcontrast.config import EncoderConfig
from customcontrast.encoder.perceiver import PerceiverAttention, PerceiverBlock, QFormer
from customcontrast.encoder.queries import SpatiotemporalQueries, VisualQueries


@dataclass(frozen=True)
class MFIOutput:
    """The encoder's output for a batch of subjects at their timesteps."""

    text_tokens: list[Tensor]  # per text encoder (B, L, n, d_text): s_i of Eq. 5; [] when textual is off
    text_cls: Tensor | None  # u, textual CLS, (B, L, d); Eq. 4 takes its mean over l
    visual_tokens: Tensor  # f_tv, input of the visual cross-attention (B, L, n, d); f_v (B, L, m, d) without TV Fusion
    visual_cls: Tensor  # v, visual CLS, (B, d)
    positive_tokens: list[Tensor] | None = None  # in training, text_tokens of each subject's other reference


class MFIEncoder(nn.Module):
    """Visual Q-Former, Textual Q-Former and TV Fusion over the features of three CLIP layers.

    `forward(f_I, t)` takes either a batch of subjects with one t each, or one subject at many t.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = self.config = config
        layers = len(c.image_layers)
        self.image_norms = nn.ModuleList(nn.LayerNorm(c.image_width) for _ in range(layers))
        self.image_projections = nn.ModuleList(nn.Linear(c.image_width, c.width) for _ in range(layers))
        self.image_layer_embedding = nn.Parameter(torch.randn(layers, c.width) * c.width**-0.5)

        self.visual_queries = VisualQueries(c.visual_queries, c.width)
        self.visual_qformer = QFormer(c.width, c.heads, c.depth, c.feedforward)
        if c.textual:
            self.text_queries = SpatiotemporalQueries(
                c.text_queries, c.width, c.num_layers, c.num_train_timesteps, c.fourier_bands
            )
            self.text_qformer = QFormer(c.width, c.heads, c.depth, c.feedforward)
            heads = nn.ModuleList(nn.Linear(c.width, width) for width in c.text_widths)
            self.text_heads = cast("Sequence[nn.Linear]", heads)
            self._scale_text_heads()
        if c.tv_fusion:
            alone = PerceiverAttention(c.width, c.heads, c.fusion_values)
            self.tv_fusion = alone if c.fusion == "pa" else PerceiverBlock(c.width, c.heads, c.feedforward)
            self.tv_norm = nn.LayerNorm(c.width)

    def _scale_text_heads(self) -> None:
        """Start S* at the magnitude of the text encoder's own tokens (their input has unit variance)."""
        scales = self.config.text_scales or (0.02,) * len(self.text_heads)
        for head, scale in zip(self.text_heads, scales, strict=True):
            nn.init.normal_(head.weight, std=scale * self.config.width**-0.5)
            nn.init.zeros_(head.bias)

    def encode_image(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Project hidden states of three CLIP layers, each (B, N, d_I), to f_I (B, 3N, d).

        Raises ValueError for another number of layers.
        """
        if len(hidden_states) != len(self.image_norms):
            raise ValueError(
                f"encode_image: hidden_states has {len(hidden_states)} layers; this encoder takes "
                f"{len(self.image_norms)} (image_layers={self.config.image_layers})."
            )
        dtype = self.image_layer_embedding.dtype
        parts = zip(hidden_states, self.image_norms, self.image_projections, self.image_layer_embedding, strict=True)
        return torch.cat([proj(norm(h.to(dtype))) + layer for h, norm, proj, layer in parts], dim=1)

    def textual(self, f_I: Tensor, t: Tensor, layers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the textual Q-Former: f_t, its n features (B, R, n, d), and u, the textual CLS (B, R, d).

        f_I: (B, 3N, d), or (1, 3N, d) for one subject at many t. t: (B,). layers: indices l (R,); None = all.
        """
        q = self.text_queries(t, layers)
        B, R, count, d = q.shape
        if len(f_I) == 1 and B > 1:  # one subject, many t: more rows over the same keys
            q = q.reshape(1, B * R, count, d)
        f_t = self.text_qformer(f_I, q).reshape(B, R, count, d)
        return f_t[:, :, :-1], f_t[:, :, -1]

    def text_tokens(self, f_t: Tensor) -> list[Tensor]:
        """Map f_t (B, R, n, d) to S* tokens at the input of each text encoder, [(B, R, n, d_text)]."""
        return [head(f_t) for head in self.text_heads]

    def visual(self, f_I: Tensor) -> tuple[Tensor, Tensor]:
        """Run the visual Q-Former on f_I (B, 3N, d): f_v (B, m, d), and v, the visual CLS (B, d)."""
        f_v = self.visual_qformer(f_I, self.visual_queries(len(f_I)))[:, 0]
        return f_v[:, :-1], f_v[:, -1]

    def fuse(self, f_v: Tensor, f_t: Tensor) -> Tensor:
        """Fuse textual and visual features: f_tv = norm(PA(f_v[:m], f_t[:n])), Eq. 2, with f_t as queries.

        f_v: (B or 1, m, d). f_t: (B, R, n, d). Returns f_tv (B, R, n, d).
        """
        B, R, n, d = f_t.shape
        if len(f_v) == 1 and B > 1:
            f_t = f_t.reshape(1, B * R, n, d)
        return self.tv_norm(self.tv_fusion(f_v, f_t)).reshape(B, R, n, d)

    def forward(
        self, f_I: Tensor, t: Tensor, visual: tuple[Tensor, Tensor] | None = None, pairs: bool = False
    ) -> MFIOutput:
        """Encode subjects at their timesteps, for all L layers (Fig. 2(a)); shapes of the result: see MFIOutput.

        f_I: (B, 3N, d), or one subject's (1, 3N, d) at many timesteps. t: (B,).
        visual: the result of `visual(f_I)`, if it is cached; it depends on neither t nor l.
        pairs: f_I is (2B, 3N, d), and its second half are other references of the same subjects, whose S* at the same
            timesteps (`MFIOutput.positive_tokens`) come out of the same pass.
        Raises ValueError where f_I and t do not fit.
        """
        both = f_I
        f_I = f_I[: len(t)] if pairs else f_I
        if t.ndim != 1 or len(f_I) not in (1, len(t)):
            raise ValueError(
                f"MFIEncoder: t has shape {tuple(t.shape)} for f_I {tuple(f_I.shape)}; give one t per subject (B,), "
                "or one subject at many t."
            )
        f_v, visual_cls = self.visual(f_I) if visual is None else visual
        visual_cls = visual_cls.expand(len(t), -1)
        if not self.config.textual:
            return MFIOutput([], None, self._same_everywhere(f_v, len(t)), visual_cls)

        f_t, text_cls = self.textual(both, t.repeat(2) if pairs else t)
        positive_tokens = None
        if pairs:
            positive_tokens = self.text_tokens(f_t[len(t) :])
            f_t, text_cls = f_t[: len(t)], text_cls[: len(t)]
        f_tv = self.fuse(f_v, f_t) if self.config.tv_fusion else self._same_everywhere(f_v, len(t))
        return MFIOutput(self.text_tokens(f_t), text_cls, f_tv, visual_cls, positive_tokens)

    def _same_everywhere(self, f_v: Tensor, batch: int) -> Tensor:
        """f_v (B or 1, m, d) shown to every layer: a view (B, L, m, d)."""
        return f_v[:, None].expand(batch, self.config.num_layers, -1, -1)
