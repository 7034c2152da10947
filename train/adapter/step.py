"""One training step's mathematics: a batch and its noise in, the terms of Eq. 9 out.

It goes the way inference goes: parse_prompt → tokenize → Adapter → encode_contexts → subject_state → unet_forward, so
Eq. 3, S+ and "the map" have one definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from customcontrast.adapter import Adapter, paired
from customcontrast.attention import MapRecorder, aggregate, install_processors, unet_forward
from customcontrast.base_model import BaseModel
from customcontrast.conditioning.prompt import TokenizedPrompt
from customcontrast.conditioning.text_context import TextContext, encode_prompt, subject_state
from customcontrast.encoder.mfi import MFIOutput
from customcontrast.layout_channels import channels
from customcontrast.transfer import sent
from train.adapter import losses
from train.adapter.adapter_config import LossConfig
from train.adapter.losses import Losses
from train.adapter.packed_texts import contexts_of
from train.data.samples import Batch, required


@dataclass(frozen=True)
class Noise:
    """What is random in a step beside the data."""

    t: Tensor  # LongTensor (B,), one timestep per sample
    epsilon: Tensor  # (B, c, h, w)
    t_pairs: Tensor | None = None  # LongTensor, one per pair of `Batch.contrast`; None = there are none

    @classmethod
    def draw(
        cls,
        shape: Sequence[int],
        timesteps: int,
        seed: Sequence[int],
        device: torch.device,
        pairs: int = 0,
        bias: float = 1.0,
    ) -> Noise:
        """From `seed` alone (seed, step, …); drawn on the CPU, so that it is the same on every device.

        bias: t has the density ∝ t^(bias − 1); 1 is Eq. 1, more is noisier.
        """
        generator = torch.Generator().manual_seed(_mix(seed))
        if bias == 1:
            t = torch.randint(timesteps, (shape[0],), generator=generator)
        else:
            u = torch.rand(shape[0], generator=generator, dtype=torch.float64)
            t = (timesteps * u ** (1 / bias)).long().clamp_max(timesteps - 1)
        epsilon = torch.randn(tuple(shape), generator=generator)
        t_pairs = torch.randint(timesteps, (pairs,), generator=generator) if pairs else None
        return cls(sent(t, device), sent(epsilon, device), None if t_pairs is None else sent(t_pairs, device))


def _mix(seed: Sequence[int]) -> int:
    """Several integers → one 63-bit seed; unlike a sum, (1, 2) and (2, 1) differ."""
    value = 0x9E3779B97F4A7C15
    for part in seed:
        value = ((value ^ (part + 0x632BE59BD9B4E019)) * 0xD1342543DE82EF95 + 1) % 2**64
        value ^= value >> 29
    return value >> 1


def prompts_of(base: BaseModel, batch: Batch, placeholder_tokens: int) -> list[TokenizedPrompt]:
    """The tokenised prompt of each row: "… noun S* …", the caption without S*, or the empty prompt.

    S* stands right after the class noun, as in the paper's figure. A dropped subject, or S* dropped alone, leaves the
    caption as it is; a dropped text leaves the empty prompt, which has no place for S*: the subject then acts through
    Eq. 3 alone.
    """
    prompts = []
    no_token = batch.drop_subject if batch.drop_token is None else batch.drop_subject | batch.drop_token
    rows = zip(batch.captions, batch.nouns, batch.drop_text.tolist(), no_token.tolist(), strict=True)
    for caption, (start, end), no_text, no_subject in rows:
        if no_text or no_subject:
            prompts.append(without_subject(base, "" if no_text else caption, placeholder_tokens))
            continue
        noun = caption[start:end]
        marked = f"{caption[:start]}<{noun}>{caption[end:]}"
        prompts.append(encode_prompt(base, marked, [noun], placeholder_tokens))
    return prompts


def without_subject(base: BaseModel, text: str, placeholder_tokens: int) -> TokenizedPrompt:
    """A prompt of a batch of one-subject prompts that has no S*: all its positions are −1."""
    prompt = encode_prompt(base, text)
    absent = torch.full((1, placeholder_tokens), -1, dtype=torch.long)
    return TokenizedPrompt(prompt.ids, absent, prompt.tokens, prompt.words, prompt.text)


def _zero_empty(context: TextContext, empty: Sequence[bool]) -> TextContext:
    """Zeros for the empty prompt, where the base's own pipeline has them (SDXL)."""
    keep = context.hidden.new_tensor([not e for e in empty])
    pooled = None if context.pooled is None else context.pooled * keep[:, None]
    return replace(context, hidden=context.hidden * keep[:, None, None, None], pooled=pooled)


def _float32(recorder: MapRecorder) -> MapRecorder:
    """Under bf16 autocast the subjects' sums are bf16, which antialiased resizing on a CPU does not take."""
    for sums in recorder.sums.values():
        sums.subject = None if sums.subject is None else sums.subject.float()
        sums.visual = None if sums.visual is None else sums.visual.float()
    return recorder


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The attention to train with: plain on a CPU, where the fused kernel's backward is the slower one.

    With gradient checkpointing the backward pass belongs into it too: it runs the forward of a block again.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@dataclass(frozen=True, eq=False)
class Denoised:
    """One UNet call of a batch and what belongs to it."""

    prediction: Tensor  # (B, c, h, w)
    target: Tensor  # what it should be, (B, c, h, w)
    mfi: MFIOutput
    recorder: MapRecorder | None  # None where λ_2 is 0
    present: Tensor  # 1, or 0 where the subject is dropped, (B,)


class AdapterLoss(nn.Module):
    """Eq. 9 of a batch. Its parameters are the adapter's alone; the frozen base is held outside the module tree."""

    def __init__(self, base: BaseModel, adapter: Adapter, config: LossConfig) -> None:
        super().__init__()
        self.adapter = adapter
        self.config = config
        install_processors(base.unet)  # Eq. 3; a second time changes nothing
        self.scheduler = DDPMScheduler.from_config(base.scheduler.config)  # the forward process of Eq. 1
        self._frozen = (base,)  # a tuple hides it from .parameters(), .to() and DistributedDataParallel

    @property
    def base(self) -> BaseModel:
        return self._frozen[0]

    def forward(self, batch: Batch, noise: Noise) -> Losses:
        """batch: with its frozen features (`data.with_features`), on the base's device. Returns scalars with graphs."""
        with attention_kernel(required(batch.latents, "Batch.latents").device):
            return self._losses(batch, noise)

    def _losses(self, batch: Batch, noise: Noise) -> Losses:
        c, made = self.config, self.denoise(batch, noise)
        diffusion = losses.diffusion_loss(made.prediction, made.target)
        zero = diffusion.new_zeros(())
        cscl, macl = zero, zero
        if self.contrasts:
            cscl, macl = self.contrast(*self.contrasted(batch, noise, made.mfi))
        A = aggregate(_float32(made.recorder)) if made.recorder else None
        location = zero if A is None else losses.location_loss(A[:, 0], batch.masks, made.present)
        return losses.total_loss(diffusion, cscl, macl, location, c.lambda_1, c.lambda_2, c.macl_weight)

    @property
    def contrasts(self) -> bool:
        """Whether Eq. 4 or 7 is on."""
        return self.adapter.config.textual and (self.config.cscl or self.config.macl)

    def denoise(self, batch: Batch, noise: Noise) -> Denoised:
        """Noise the batch's latents, and predict what Eq. 1 compares."""
        base, c, adapter = self.base, self.config, self.adapter
        z, t = required(batch.latents, "Batch.latents"), noise.t
        size = (z.shape[-2], z.shape[-1])

        positives = None
        if self.contrasts and c.macl and batch.contrast is None:
            positives = required(batch.positive_states, "Batch.positive_states")
        out = adapter(required(batch.reference_states, "Batch.reference_states"), t, positives)
        prompts = prompts_of(base, batch, adapter.config.placeholder_tokens)
        context = contexts_of(base, prompts, out.mfi.text_tokens)
        if base.zero_empty_prompt:
            context = _zero_empty(context, [prompt.text == "" for prompt in prompts])
        present = sent((~batch.drop_subject).to(z.dtype), z.device)  # λ of a row: 1, or 0 where the subject is dropped
        strength = present if c.visual else torch.zeros_like(present)
        if batch.drop_visual is not None:
            strength = strength * sent((~batch.drop_visual).to(z.dtype), z.device)
        if out.beside is not None and c.visual:  # a dropped picture is the one that guidance will show
            out, strength = out.shown(strength), torch.ones_like(strength)
        recorder = MapRecorder() if c.lambda_2 else None
        state = subject_state(
            base, context, prompts, [out], size=size, strengths=[strength], recorder=recorder, origins=batch.origins
        )

        z_t = self.scheduler.add_noise(z, noise.epsilon, t)
        layout = None
        if base.layout_channels and batch.layouts is not None:
            layout = channels(batch.layouts, *size).to(base.dtype)
        prediction = unet_forward(base, z_t.to(base.dtype), t, state, layout)
        target = losses.diffusion_target(self.scheduler, z, noise.epsilon, t)
        return Denoised(prediction, target, out.mfi, recorder, present)

    def contrasted(self, batch: Batch, noise: Noise, mfi: MFIOutput) -> tuple[Batch, MFIOutput]:
        """What Eq. 4 and 7 compare: the pairs of `batch.contrast`, which only the adapter sees, or the batch itself."""
        pairs = batch.contrast
        if pairs is None:
            return batch, mfi
        encoder, t = self.adapter.encoder, required(noise.t_pairs, "Noise.t_pairs")
        states = required(pairs.reference_states, "Batch.contrast.reference_states")
        if self.config.macl:
            states = paired(states, required(pairs.positive_states, "Batch.contrast.positive_states"))
        return pairs, encoder(encoder.encode_image(states), t, pairs=self.config.macl)

    def contrast(self, batch: Batch, mfi: MFIOutput) -> tuple[Tensor, Tensor]:
        """(L_CSCL, L_MACL); a term that is off is 0 and costs nothing."""
        c, zero = self.config, mfi.visual_cls.new_zeros(())
        cscl = losses.cscl_loss(mfi.visual_cls, mfi.text_cls, batch.subjects, c.temperature) if c.cscl else zero
        if not c.macl:
            return cscl, zero
        s = torch.cat(mfi.text_tokens, dim=-1)
        s_positive = torch.cat(required(mfi.positive_tokens, "MFIOutput.positive_tokens"), dim=-1)
        S = None
        if c.alpha:
            S = losses.appearance_similarity(required(batch.embeddings, "Batch.embeddings"), c.similarity_floor)
        return cscl, losses.macl_loss(s, s_positive, S, batch.subjects, c.macl_temperature)
