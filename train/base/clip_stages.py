"""Stages “clip” and “image”: both towers of CLIP, then the image tower alone."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from customcontrast.precision import autocast
from train.base.base_config import PretrainConfig
from train.base.networks import (
    ClipTrainer,
    clip_pixels,
    clip_side,
    clip_trainer,
    export_stage,
)
from train.base.pictures import Pictures
from train.base.stage import Stage, start_from
from train.data.augment import photographic, with_rim
from train.data.references import segmented
from train.toyland.subjects import BUILD


def subject_crops(images: Tensor, masks: Tensor, which: Tensor, size: int) -> Tensor:
    """Segmented subjects on white, cropped as at inference: the domain of the reference R. All uint8.

    images (B,3,H,W), masks (B,K,H,W) bool, which (B,) the subject's plane; a plane without a pixel gives white.
    """
    blank = torch.full((3, size, size), 255, dtype=torch.uint8)
    chosen = zip(images, masks[torch.arange(len(which)), which], strict=True)
    return torch.stack([segmented(image, mask, size) if mask.any() else blank for image, mask in chosen])


def resized(images: Tensor, side: int) -> Tensor:
    """Pictures uint8 (B, 3, H, W) at another side, a multiple of 8 px."""
    smaller = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8)


def label_targets(records: list[dict], which: list[int], crops: list[bool], values: dict[str, list[str]]) -> dict:
    """Class indices (B,) of each label; -100 where it does not apply: a crop has no scene, no accessory no colour."""
    out: dict[str, list[int]] = {k: [] for k in values}
    for record, k, crop in zip(records, which, crops, strict=True):
        labels = record["labels"]
        of = dict(labels["subjects"][k])
        of |= zip(BUILD, of["id"].rsplit("-", 1)[-1], strict=True)
        of |= {"background": None if crop else labels["background"], "style": labels["style"]}
        if len(labels["subjects"]) > 1 and not crop:  # which of the two is meant is not visible
            of = {"background": labels["background"], "style": labels["style"]}
        for name, options in values.items():
            value = of.get(name)
            out[name].append(options.index(value) if value in options else -100)
    return {k: torch.tensor(v) for k, v in out.items()}


def train_clip(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Contrastive training of both towers (Radford et al. 2021) on rendered pictures and their captions."""
    model, tokenizer = clip_trainer(config, run)
    stage = Stage("clip", model.to(device), config.clip_stage, run, seed=1, device=device)
    return _run_clip(stage, config, run, tokenizer, minutes, limit)


def train_image(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Continue training the image tower against the frozen text tower; the denoiser can be trained meanwhile."""
    first, tokenizer = clip_trainer(config, run)
    export_stage("clip", first, config, run)
    model, _ = clip_trainer(config, run, "image")
    model.load_state_dict(first.state_dict(), strict=False)
    if (run / "image_start.safetensors").exists() and not (run / "image.safetensors").exists():
        start_from(model, run / "image_start.safetensors")
    model.clip.text_model.requires_grad_(False)
    model.clip.text_projection.requires_grad_(False)
    stage = Stage("image", model.to(device), config.image_stage, run, seed=4, device=device)
    return _run_clip(stage, config, run, tokenizer, minutes, limit)


def _run_clip(
    stage: Stage[ClipTrainer],
    config: PretrainConfig,
    run: Path,
    tokenizer: CLIPTokenizer,
    minutes: float | None,
    limit: int | None,
) -> bool:
    data = Pictures(run / "pool", tokenizer, limit)
    model, device, batch = stage.model, stage.device, stage.config.batch
    photographs = stage.name == "image" and config.clip.photographs
    crops = config.clip.crops if stage.name == "clip" or config.clip.image_crops is None else config.clip.image_crops
    side = -(-clip_side(config) * 7 // 48) * 8  # enough for a subject that fills most of a picture

    def loss_at(step: int, g: torch.Generator) -> tuple[Tensor, dict]:
        rows = torch.randint(len(data), (batch,), generator=g)
        phrasing = torch.randint(data.ids.shape[1], (batch,), generator=g)
        crop = torch.rand(batch, generator=g) < crops
        records = [data.records[i] for i in rows.tolist()]
        which = [int(torch.randint(len(r["ids"]), (1,), generator=g)) for r in records]
        images = data.images[rows]
        if photographs:
            images = photographic(resized(images, side), g)
        cut = crop.nonzero().flatten()
        if len(cut):
            masks = data.masks[rows[cut]]
            if photographs:
                masks = with_rim(F.interpolate(masks.float(), (side, side), mode="area") > 0.5, g, most=2)
            images[cut] = subject_crops(images[cut], masks, torch.tensor(which)[cut], images.shape[-1])
        flip = torch.rand(batch, generator=g) < 0.5
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
        targets = label_targets(records, which, crop.tolist(), model.labels)
        targets = {k: v.to(device) for k, v in targets.items()}
        ids = data.ids[rows, phrasing].long().to(device)
        with autocast(device):
            return model(clip_pixels(images.to(device), clip_side(config)), ids, targets, (~crop).to(device))

    return stage.run(loss_at, minutes, on_save=data.refresh)
