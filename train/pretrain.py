"""Train Toyland's embedded base model from nothing: pictures, tokenizer, CLIP, autoencoder, denoiser, export.

    python -m train.pretrain pool   --preset cpu --count 200 --worker 0 --workers 2
    python -m train.pretrain clip   --preset cpu
    python -m train.pretrain vae    --preset cpu
    python -m train.pretrain latents --preset cpu     # optional: the denoiser encodes what it needs, this is beside it
    python -m train.pretrain unet   --preset cpu --minutes 60
    python -m train.pretrain image  --preset cpu      # beside the denoiser: the image tower goes on alone
    python -m train.pretrain decoder --preset cpu     # beside the denoiser: so does the decoder
    python -m train.pretrain export --preset cpu --out customcontrast/weights/toyland

Every stage goes on from its checkpoint under `runs/base-PRESET`; stop it whenever you like (SIGTERM saves first).
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from customcontrast.autoencoder import PatchAutoencoder

from . import pool
from .pretrain_config import PRESETS, PretrainConfig
from .running import Stage
from .tokenizer import load_or_build
from .toyland import World, describe, sample_scene, vocabulary

CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
FIRST_SHARDS = 20  # of the pool, encoded before the denoiser starts


class Pictures:
    """The pool in memory: uint8 pictures, token ids of every phrasing, labels, groups; `refresh` adds new shards."""

    def __init__(
        self,
        folder: Path,
        tokenizer: CLIPTokenizer | None = None,
        limit: int | None = None,
        ready: Callable[[Path], bool] = lambda shard: True,
    ):
        self.folder, self.tokenizer, self.limit, self.ready = folder, tokenizer, limit, ready
        self.order: list[Path] = []  # shards read so far
        self.images: Tensor = torch.empty(0)
        self.masks: Tensor = torch.empty(0)
        self.ids: Tensor = torch.empty(0)
        self.records: list[dict] = []
        self.refresh()
        if not self.records:
            raise FileNotFoundError(f"no shards in {folder}; run `python -m train.pretrain pool` first")

    def refresh(self) -> None:
        """Read shards that were finished since the last call."""
        new = [p for p in pool.shard_paths(self.folder)[: self.limit] if p not in self.order and self.ready(p)]
        if not new:
            return
        shards = [pool.read_shard(p) for p in new]
        self.order += new
        join = lambda old, parts: torch.cat([old, *parts]) if old.numel() else torch.cat(parts)  # noqa: E731
        self.images = join(self.images, [s.images for s in shards])
        self.masks = join(self.masks, [s.masks for s in shards])
        fresh = [r for s in shards for r in s.records]
        self.records += fresh
        if self.tokenizer is not None:
            texts = [c["text"] for r in fresh for c in r["captions"]]
            ids = tokenize(self.tokenizer, texts).view(len(fresh), -1, self.tokenizer.model_max_length)
            self.ids = join(self.ids, [ids.to(torch.int16)])

    def __len__(self) -> int:
        return len(self.records)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(N, max_tokens) ids, padded with the end token and cut."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def scaled(images: Tensor) -> Tensor:
    """uint8 pictures to -1..1."""
    return images.float() / 127.5 - 1


def clip_pixels(images: Tensor) -> Tensor:
    """uint8 (B,3,H,W) to CLIP's normalised pixels."""
    mean = torch.tensor(CLIP_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def subject_crops(images: Tensor, masks: Tensor, which: Tensor, size: int, margin: float = 0.08) -> Tensor:
    """Segmented subjects on white, cropped square around the mask: the domain of the reference R. All uint8.

    images (B,3,H,W), masks (B,K,H,W) bool, which (B,) the subject's plane.
    """
    out = []
    for image, planes, k in zip(images, masks, which.tolist(), strict=True):
        mask = planes[k]
        rows, cols = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if rows.numel() == 0:
            out.append(torch.full((3, size, size), 255, dtype=torch.uint8))
            continue
        y0, y1, x0, x1 = rows[0].item(), rows[-1].item() + 1, cols[0].item(), cols[-1].item() + 1
        side = round(max(y1 - y0, x1 - x0) * (1 + 2 * margin))
        square = torch.full((3, side, side), 255, dtype=torch.uint8)
        top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
        cut = torch.where(mask[y0:y1, x0:x1], image[:, y0:y1, x0:x1], torch.tensor(255, dtype=torch.uint8))
        square[:, top : top + y1 - y0, left : left + x1 - x0] = cut
        resized = F.interpolate(square[None].float(), size=(size, size), mode="bilinear", antialias=True)[0]
        out.append(resized.round().clamp(0, 255).to(torch.uint8))
    return torch.stack(out)


# --- CLIP -------------------------------------------------------------------------------------------------------


def make_clip(config: PretrainConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Both towers at the preset's size, with random weights."""
    c = config.clip
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = dict(
        hidden_size=c.width, intermediate_size=4 * c.width, num_hidden_layers=c.text_layers,
        num_attention_heads=c.heads, max_position_embeddings=c.max_tokens, vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id, projection_dim=c.projection, **special,
    )  # fmt: skip
    vision = dict(
        hidden_size=c.width, intermediate_size=4 * c.width, num_hidden_layers=c.vision_layers,
        num_attention_heads=c.heads, image_size=config.pool.size, patch_size=c.patch, projection_dim=c.projection,
    )  # fmt: skip
    model_config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=c.projection)
    return CLIPModel._from_config(model_config, attn_implementation="eager")


class ClipTrainer(nn.Module):
    """CLIP with linear attribute heads on both pooled outputs: in a world of few words the heads carry the fine
    attributes (pattern, second colour) that separate too few of a batch's pairs. They are dropped on export."""

    def __init__(self, clip: CLIPModel, labels: dict[str, list[str]], width: int):
        super().__init__()
        self.clip, self.labels = clip, labels
        self.image_heads = nn.ModuleDict({k.replace(" ", "_"): nn.Linear(width, len(v)) for k, v in labels.items()})
        self.text_heads = nn.ModuleDict({k.replace(" ", "_"): nn.Linear(width, len(v)) for k, v in labels.items()})

    def forward(self, pixels: Tensor, ids: Tensor, targets: dict[str, Tensor], paired: Tensor) -> tuple[Tensor, dict]:
        """pixels (B,3,S,S); ids (B,N); targets {label: (B,) index or -100}; paired (B,) bool: rows with a caption.

        Returns (contrastive + attribute loss, terms).
        """
        vision = self.clip.vision_model(pixels).pooler_output
        text = self.clip.text_model(ids[paired]).pooler_output
        v = F.normalize(self.clip.visual_projection(vision[paired]).float(), dim=-1)
        u = F.normalize(self.clip.text_projection(text).float(), dim=-1)
        logits = self.clip.logit_scale.exp().clamp(max=100) * v @ u.T
        own = torch.arange(len(v), device=v.device)
        contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        seen, read = [], []
        for name, target in targets.items():
            seen.append(F.cross_entropy(self.image_heads[name](vision).float(), target))
            read.append(F.cross_entropy(self.text_heads[name](text).float(), target[paired]))
        attributes = torch.stack(seen).mean() + torch.stack(read).mean()
        hits = (logits.argmax(1) == own).float().mean()
        terms = {
            "contrast": contrast,
            "seen": torch.stack(seen).mean(),
            "read": torch.stack(read).mean(),
            "top1": hits,
        }
        return contrast + attributes, {k: x.item() for k, x in terms.items()}


def label_values(world: World) -> dict[str, list[str]]:
    """The values each attribute head tells apart."""
    colors = sorted(set(world.colors) | set(world.accessory_colors))
    return {
        "background": list(world.backgrounds), "style": list(world.styles), "species": list(world.species),
        "color_1": colors, "color_2": colors, "pattern": list(world.patterns), "shape": list(world.shapes),
        "accessory": list(world.accessories), "accessory_color": colors,
    }  # fmt: skip


def label_targets(records: list[dict], which: list[int], crops: list[bool], values: dict[str, list[str]]) -> dict:
    """Class indices (B,) of each label; -100 where it does not apply: a crop has no scene, no accessory no colour."""
    out: dict[str, list[int]] = {k: [] for k in values}
    for record, k, crop in zip(records, which, crops, strict=True):
        labels = record["labels"]
        of = dict(labels["subjects"][k])
        of |= {"background": None if crop else labels["background"], "style": labels["style"]}
        if len(labels["subjects"]) > 1 and not crop:  # which of the two is meant is not visible
            of = {"background": labels["background"], "style": labels["style"]}
        for name, options in values.items():
            value = of.get(name)
            out[name].append(options.index(value) if value in options else -100)
    return {k: torch.tensor(v) for k, v in out.items()}


def clip_trainer(config: PretrainConfig, run: Path) -> tuple[ClipTrainer, CLIPTokenizer]:
    """An untrained ClipTrainer of this preset, and the run's tokenizer."""
    tokenizer = make_tokenizer(config, run)
    values = label_values(getattr(World, config.pool.world)())
    torch.manual_seed(0)
    return ClipTrainer(make_clip(config, tokenizer), values, config.clip.width), tokenizer


def train_clip(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Contrastive training of both towers (Radford et al. 2021) on rendered pictures and their captions."""
    model, tokenizer = clip_trainer(config, run)
    stage = Stage("clip", model.to(device), config.clip_stage, run, seed=1, device=device)
    return _run_clip(stage, config, run, tokenizer, minutes, limit)


def train_image(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """The image tower goes on alone against the locked text tower, so the denoiser can be trained meanwhile."""
    model, tokenizer = clip_trainer(config, run)
    export_stage("clip", model, config, run)
    model.clip.text_model.requires_grad_(False)
    model.clip.text_projection.requires_grad_(False)
    stage = Stage("image", model.to(device), config.image_stage, run, seed=4, device=device)
    return _run_clip(stage, config, run, tokenizer, minutes, limit)


def _run_clip(
    stage: Stage, config: PretrainConfig, run: Path, tokenizer: CLIPTokenizer, minutes: float | None, limit: int | None
) -> bool:
    data = Pictures(run / "pool", tokenizer, limit)
    model, device, batch = stage.model, stage.device, stage.config.batch

    def loss_at(step: int, g: torch.Generator) -> tuple[Tensor, dict]:
        rows = torch.randint(len(data), (batch,), generator=g)
        phrasing = torch.randint(data.ids.shape[1], (batch,), generator=g)
        crop = torch.rand(batch, generator=g) < 0.25
        records = [data.records[i] for i in rows.tolist()]
        which = [int(torch.randint(len(r["ids"]), (1,), generator=g)) for r in records]
        images = data.images[rows]
        cut = crop.nonzero().flatten()
        if len(cut):
            images[cut] = subject_crops(images[cut], data.masks[rows[cut]], torch.tensor(which)[cut], images.shape[-1])
        flip = torch.rand(batch, generator=g) < 0.5
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
        targets = label_targets(records, which, crop.tolist(), model.labels)
        targets = {k: v.to(device) for k, v in targets.items()}
        ids = data.ids[rows, phrasing].long().to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return model(clip_pixels(images.to(device)), ids, targets, (~crop).to(device))

    return stage.run(loss_at, minutes, on_save=data.refresh)


# --- autoencoder -------------------------------------------------------------------------------------------------


def make_vae(config: PretrainConfig) -> PatchAutoencoder:
    """The autoencoder at the preset's size, with random weights."""
    c = config.vae
    return PatchAutoencoder(
        channels=c.channels, layers=c.layers, latent_channels=c.latents, groups=c.groups,
        sample_size=config.pool.size, block_out_channels=(c.channels[0], *c.channels),
    )  # fmt: skip


def train_vae(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """From the principal components of patches: L1 + squared error on pixels and on their differences (edges)."""
    torch.manual_seed(0)
    model = make_vae(config)
    if not (run / "vae.safetensors").exists():
        model.start_from_components(
            scaled(Pictures(run / "pool", limit=FIRST_SHARDS).images[:2000]), config.vae.evenness
        )
    stage = Stage("vae", model.to(device), config.vae_stage, run, seed=2, device=device)
    return _run_vae(stage, config, run, minutes, limit)


def train_decoder(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """The decoder goes on alone: the latents stay what they are, so the denoiser can be trained meanwhile."""
    model = export_stage("vae", make_vae(config), config, run).to(device)
    model.encoder.requires_grad_(False)
    stage = Stage("decoder", model, config.decoder_stage, run, seed=5, device=device)
    return _run_vae(stage, config, run, minutes, limit)


def _run_vae(stage: Stage, config: PretrainConfig, run: Path, minutes: float | None, limit: int | None) -> bool:
    data = Pictures(run / "pool", limit=limit)
    model, device = stage.model, stage.device

    def loss_at(step: int, g: torch.Generator) -> tuple[Tensor, dict]:
        rows = torch.randint(len(data), (stage.config.batch,), generator=g)
        x = scaled(data.images[rows].to(device))
        loud = config.vae.grain * torch.randn(1, generator=g).abs().item()
        with torch.autocast(device.type, torch.bfloat16):
            z = model.encode(x).latent_dist.mode()
            grain = torch.randn(z.shape, generator=g).to(device)
            y = model.decode(z + loud * grain).sample.float()
        error = y - x
        dx, dy = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
        square = error.pow(2).mean()
        loss = error.abs().mean() + 2 * square + 0.5 * (dx + dy) + 1e-4 * z.float().pow(2).mean()
        return loss, {"psnr": (10 * torch.log10(4 / square)).item(), "std": z.float().std().item()}

    return stage.run(loss_at, minutes, on_save=data.refresh)


def latents_path(shard: Path) -> Path:
    """Where the latents of a shard of the pool lie."""
    return shard.parent.parent / "latents" / shard.name


@torch.no_grad()
def encode_shard(vae: PatchAutoencoder, shard: Path, device: str, mirror: bool, batch: int = 64) -> None:
    """Write a shard's latents, (N, 1 or 2, C, h, w) float16: the mean, unscaled; plain, and mirrored if asked."""
    images, out = pool.read_shard(shard).images, []
    for part in images.split(batch):
        x = scaled(part.to(device))
        with torch.autocast(device, torch.bfloat16):
            views = [vae.encode(v).latent_dist.mean.half().cpu() for v in ((x, x.flip(-1)) if mirror else (x,))]
        out.append(torch.stack(views, 1))
    path = latents_path(shard)
    path.parent.mkdir(exist_ok=True)
    save_file({"z": torch.cat(out)}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def encode_pool(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Latents of every shard that has none yet, with the finished autoencoder."""
    vae = export_stage("vae", make_vae(config), config, run).to(device).eval()
    shards = pool.shard_paths(run / "pool")[:limit]
    for shard in tqdm([s for s in shards if not latents_path(s).exists()], desc="latents", unit="shard"):
        encode_shard(vae, shard, device, config.unet.mirror)
    return True


# --- denoiser ----------------------------------------------------------------------------------------------------


def make_unet(config: PretrainConfig) -> UNet2DConditionModel:
    """The denoiser at the preset's size, with random weights; cross-attention at every level."""
    c = config.unet
    levels = len(c.channels)
    unet = UNet2DConditionModel(
        sample_size=config.pool.size // 2 ** (len(config.vae.channels) - 1), in_channels=config.vae.latents,
        out_channels=config.vae.latents, layers_per_block=c.layers, block_out_channels=c.channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels, up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=config.clip.width, attention_head_dim=c.heads, norm_num_groups=c.groups,
    )  # fmt: skip
    unet.set_attn_processor(AttnProcessor())  # on a CPU its backward is faster than the fused kernel's
    return unet


def make_scheduler() -> DDPMScheduler:
    """v-prediction on SD's scaled-linear betas."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        prediction_type="v_prediction",
    )


def read_latents(shards: list[Path]) -> Tensor:
    """Latents of these shards, joined: (N, 1 or 2, C, h, w) float16."""
    return torch.cat([load_file(latents_path(shard))["z"] for shard in shards])


def latent_scale(run: Path, latents: Tensor) -> float:
    """The factor that brings latents to unit variance; measured once in a run, then kept."""
    path = run / "latents.json"
    if not path.exists():
        path.write_text(json.dumps({"scaling_factor": 1 / latents[:4096].float().std().item()}))
    return json.loads(path.read_text())["scaling_factor"]


def start_from(model: nn.Module, checkpoint: Path) -> int:
    """Copy the averaged weights of an earlier stage's checkpoint wherever name and shape agree: a denoiser that
    moves to other latents keeps all but its first and last layer. Returns the number of tensors taken over."""
    own, taken = model.state_dict(), 0
    for name, value in load_file(checkpoint).items():
        name = name.removeprefix("ema.") if name.startswith("ema.") else ""
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)
            taken += 1
    return taken


def train_unet(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Eq. 1 with the v-target, min-SNR weighted, on latents encoded once; captions through the frozen text tower."""
    trainer, tokenizer = clip_trainer(config, run)
    encode_pool(config, run, device, None, FIRST_SHARDS)  # `latents` may be encoding the others meanwhile
    data = Pictures(run / "pool", tokenizer, limit, ready=lambda shard: latents_path(shard).exists())
    text = export_stage("clip", trainer, config, run)
    text = text.clip.text_model.to(device).eval().requires_grad_(False)
    latents = read_latents(data.order)
    scale = latent_scale(run, latents)
    torch.manual_seed(0)
    model = make_unet(config)
    if (run / "unet_start.safetensors").exists() and not (run / "unet.safetensors").exists():
        start_from(model, run / "unet_start.safetensors")
    stage = Stage("unet", model.to(device), config.unet_stage, run, seed=3, device=device)
    noise = make_scheduler()
    empty = tokenize(tokenizer, [""])[0]
    alphas = noise.alphas_cumprod.to(device)

    def refresh() -> None:
        nonlocal latents
        known = len(data.order)
        data.refresh()
        if len(data.order) > known:
            latents = torch.cat([latents, read_latents(data.order[known:])])

    def loss_at(step: int, g: torch.Generator) -> tuple[Tensor, dict]:
        batch = config.unet_stage.batch
        rows = torch.randint(len(data), (batch,), generator=g)
        mirrored = torch.randint(latents.shape[1], (batch,), generator=g)
        phrasing = torch.randint(data.ids.shape[1], (batch,), generator=g)
        ids = data.ids[rows, phrasing].long()
        ids[torch.rand(batch, generator=g) < config.unet.drop_caption] = empty
        z = latents[rows, mirrored].float() * scale
        eps = torch.randn(z.shape, generator=g)
        t = torch.randint(noise.config.num_train_timesteps, (batch,), generator=g)
        z, eps, t, ids = (x.to(device) for x in (z, eps, t, ids))
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            context = text(ids).last_hidden_state
        with torch.autocast(device, torch.bfloat16):
            out = model(noise.add_noise(z, eps, t), t, context).sample
        error = (out.float() - noise.get_velocity(z, eps, t)).pow(2).mean((1, 2, 3))
        snr = alphas[t] / (1 - alphas[t])
        loss = (error * snr.clamp(max=config.unet.snr_gamma) / (snr + 1)).mean() * 4
        return loss, {"v": error.mean().item()}

    return stage.run(loss_at, minutes, on_save=refresh)


# --- export ------------------------------------------------------------------------------------------------------


def make_tokenizer(config: PretrainConfig, run: Path) -> CLIPTokenizer:
    """The run's tokenizer, built from captions of its world and all of Toyland's words, each of which is one token."""
    rng = random.Random("tokenizer")
    world = getattr(World, config.pool.world)()
    texts = [describe(sample_scene(rng, world), rng).text for _ in range(20000 if config.pool.size > 32 else 500)]
    words = sorted(vocabulary()) * 40
    return load_or_build(run / "tokenizer", texts + words, config.clip.vocabulary, config.clip.max_tokens)


def export_stage(name: str, model: nn.Module, config: PretrainConfig, run: Path) -> nn.Module:
    """`model` with the averaged weights of stage `name`.

    Raises FileNotFoundError when that stage has no checkpoint yet.
    """
    if not (run / f"{name}.safetensors").exists():
        raise FileNotFoundError(
            f"stage {name!r} has no checkpoint in {run}; run `python -m train.pretrain {name}` first"
        )
    return Stage(name, model, getattr(config, f"{name}_stage"), run).load_ema()


def export(config: PretrainConfig, run: Path, out: Path) -> Path:
    """Write the diffusers folder: 16-bit safetensors in shards under 9 MB."""
    trainer, tokenizer = clip_trainer(config, run)
    clip = export_stage(_latest(run, "image", "clip"), trainer, config, run).clip.half()
    vae = export_stage(_latest(run, "decoder", "vae"), make_vae(config), config, run).half()
    vae.register_to_config(scaling_factor=json.loads((run / "latents.json").read_text())["scaling_factor"])
    unet = export_stage("unet", make_unet(config), config, run).half()
    text = CLIPTextModel(clip.config.text_config).half()
    text.load_state_dict(
        {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}, strict=True
    )
    vision = CLIPVisionModelWithProjection(clip.config.vision_config).half()
    vision.vision_model.load_state_dict(clip.vision_model.state_dict())
    vision.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    side = config.pool.size
    pixels = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    scheduler = DPMSolverMultistepScheduler.from_config(
        make_scheduler().config, timestep_spacing="trailing", steps_offset=1
    )
    parts = dict(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
    pipe = StableDiffusionPipeline(
        **parts,
        image_encoder=vision,
        feature_extractor=pixels,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(out, max_shard_size="8MB")
    for part in ("text_encoder", "image_encoder"):  # stored in 16 bits, computed in 32 unless asked otherwise
        path = out / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    head = {"text_projection.weight": clip.text_projection.weight, "logit_scale": clip.logit_scale}
    save_file({k: v.detach().contiguous() for k, v in head.items()}, out / "clip_head.safetensors")
    (out / "vocabulary.json").write_text(json.dumps(shown_words(getattr(World, config.pool.world)()), indent=0))
    return out


def _latest(run: Path, later: str, earlier: str) -> str:
    """The stage to export: the later one where it has been run."""
    return later if (run / f"{later}.safetensors").exists() else earlier


def shown_words(world: World, captions: int = 20000) -> list[str]:
    """Every word of this world's captions, sorted: what a model trained on it has been shown."""
    rng = random.Random("words")
    texts = (describe(sample_scene(rng, world), rng).text for _ in range(captions))
    return sorted({word for text in texts for word in re.findall(r"[a-z0-9']+", text.lower())})


STAGES = {
    "clip": train_clip,
    "vae": train_vae,
    "latents": encode_pool,
    "unet": train_unet,
    "image": train_image,
    "decoder": train_decoder,
}


def main(argv: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["pool", *STAGES, "export"])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--run", type=Path, help="folder of checkpoints (default runs/base-PRESET)")
    parser.add_argument("--out", type=Path, default=Path("customcontrast/weights/toyland"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="stop after so long; resume later")
    parser.add_argument("--steps", type=int, help="whole length of the stage, instead of the preset's")
    parser.add_argument("--count", type=int, default=200, help="pool: number of shards in all")
    parser.add_argument("--limit", type=int, help="use only the first so many shards")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads of this process")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    config, run = PRESETS[args.preset], args.run or Path("runs") / f"base-{args.preset}"
    if args.steps:
        key = f"{args.stage}_stage"
        config = replace(config, **{key: replace(getattr(config, key), steps=args.steps)})
    if args.stage == "pool":
        for index, rate in pool.fill(config.pool, run / "pool", args.count, args.worker, args.workers, args.device):
            print(f"shard {index}: {rate:.1f} pictures/s", flush=True)
    elif args.stage == "export":
        print(export(config, run, args.out))
    else:
        done = STAGES[args.stage](config, run, args.device, args.minutes, args.limit)
        print(f"{args.stage}: {'finished' if done else 'stopped; run the same command to go on'}")


if __name__ == "__main__":
    main()
