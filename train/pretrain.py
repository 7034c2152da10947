"""Train Toyland's embedded base model from nothing: pictures, tokenizer, CLIP, autoencoder, denoiser, export.

    python -m train.pretrain pool   --preset cpu --count 200 --worker 0 --workers 2
    python -m train.pretrain clip   --preset cpu
    python -m train.pretrain vae    --preset cpu
    python -m train.pretrain latents --preset cpu     # optional: the denoiser encodes what it needs, this is beside it
    python -m train.pretrain unet   --preset cpu --minutes 60
    python -m train.pretrain image  --preset cpu      # beside the denoiser: the image tower goes on alone
    python -m train.pretrain decoder --preset cpu     # beside the denoiser: so does the decoder
    python -m train.pretrain export --preset cpu --out customcontrast/weights/toyland
    python -m train.pretrain adopt  --preset cpu      # instead of the stages: go on from the shipped weights

Every stage goes on from its checkpoint under `runs/base-PRESET`; stop it whenever you like (SIGTERM saves first).
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from customcontrast.autoencoder import PatchAutoencoder
from customcontrast.layout import channels, mirrored_rows
from customcontrast.precision import autocast
from customcontrast.tensor_files import write_tensors

from . import pool
from .augment import photographic, with_rim
from .export import adopt, export
from .pretrain_config import PRESETS, PretrainConfig
from .pretrain_models import (
    clip_pixels,
    clip_side,
    clip_trainer,
    denoising_loss,
    export_stage,
    lateness,
    make_scheduler,
    make_unet,
    make_vae,
    noise_weight,
    scaled,
    text_mask,
    tokenize,
)
from .running import Stage
from .sources import segmented

SHIPPED = Path("customcontrast/weights/toyland")
FIRST_SHARDS = 20  # of the pool, encoded before the denoiser starts


def phrasings(record: dict, plain: int = 0) -> list[str]:
    """The captions of a record of the pool, and `plain` of those that name the subject alone."""
    return [c["text"] for c in record["captions"] + record["plain"][:plain]]


class Pictures:
    """The pool in memory: uint8 pictures, token ids of every phrasing, labels, groups, layouts as numbers.

    `refresh` adds new shards.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: CLIPTokenizer | None = None,
        limit: int | None = None,
        ready: Callable[[Path], bool] = lambda shard: True,
        plain: int = 0,
    ):
        self.plain = plain
        self.folder, self.tokenizer, self.limit, self.ready = folder, tokenizer, limit, ready
        self.order: list[Path] = []  # shards read so far
        self.images: Tensor = torch.empty(0)
        self.masks: Tensor = torch.empty(0)
        self.ids: Tensor = torch.empty(0)
        self.layouts: Tensor = torch.empty(0)
        self.mirrored_layouts: Tensor = torch.empty(0)
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
            texts = [text for r in fresh for text in phrasings(r, self.plain)]
            ids = tokenize(self.tokenizer, texts).view(len(fresh), -1, self.tokenizer.model_max_length)
            self.ids = join(self.ids, [ids.to(torch.int16)])
        rows = torch.tensor([r["layout"] for r in fresh])
        self.layouts = join(self.layouts, [rows])
        self.mirrored_layouts = join(self.mirrored_layouts, [mirrored_rows(rows)])

    def __len__(self) -> int:
        return len(self.records)


def subject_crops(images: Tensor, masks: Tensor, which: Tensor, size: int) -> Tensor:
    """Segmented subjects on white, by the crop used at inference: the domain of the reference R. All uint8.

    images (B,3,H,W), masks (B,K,H,W) bool, which (B,) the subject's plane; a plane without a pixel gives white.
    """
    blank = torch.full((3, size, size), 255, dtype=torch.uint8)
    chosen = zip(images, masks[torch.arange(len(which)), which], strict=True)
    return torch.stack([segmented(image, mask, size) if mask.any() else blank for image, mask in chosen])


# --- CLIP -------------------------------------------------------------------------------------------------------


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
        crop = torch.rand(batch, generator=g) < config.clip.crops
        records = [data.records[i] for i in rows.tolist()]
        which = [int(torch.randint(len(r["ids"]), (1,), generator=g)) for r in records]
        images = data.images[rows]
        if stage.name == "image" and config.clip.photographs:
            images = photographic(images, g)
        cut = crop.nonzero().flatten()
        if len(cut):
            masks = data.masks[rows[cut]]
            if stage.name == "image" and config.clip.photographs:
                masks = with_rim(masks, g)
            images[cut] = subject_crops(images[cut], masks, torch.tensor(which)[cut], images.shape[-1])
        flip = torch.rand(batch, generator=g) < 0.5
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
        targets = label_targets(records, which, crop.tolist(), model.labels)
        targets = {k: v.to(device) for k, v in targets.items()}
        ids = data.ids[rows, phrasing].long().to(device)
        with autocast(device):
            return model(clip_pixels(images.to(device), clip_side(config)), ids, targets, (~crop).to(device))

    return stage.run(loss_at, minutes, on_save=data.refresh)


# --- autoencoder -------------------------------------------------------------------------------------------------


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
        with autocast(device):
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
        with autocast(device):
            views = [vae.encode(v).latent_dist.mean.half().cpu() for v in ((x, x.flip(-1)) if mirror else (x,))]
        out.append(torch.stack(views, 1))
    path = latents_path(shard)
    path.parent.mkdir(exist_ok=True)
    write_tensors({"z": torch.cat(out)}, path)


def encode_pool(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Latents of every shard that has none yet, with the finished autoencoder."""
    vae = export_stage("vae", make_vae(config), config, run).to(device).eval()
    shards = pool.shard_paths(run / "pool")[:limit]
    for shard in tqdm([s for s in shards if not latents_path(s).exists()], desc="latents", unit="shard"):
        encode_shard(vae, shard, device, config.unet.mirror)
    return True


# --- denoiser ----------------------------------------------------------------------------------------------------


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
    data = Pictures(
        run / "pool", tokenizer, limit, ready=lambda shard: latents_path(shard).exists(), plain=config.unet.plain
    )
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
        layout = None
        if config.unet.layout:
            known = torch.rand(batch, generator=g) >= config.unet.drop_layout
            chosen = torch.where(mirrored.bool()[:, None], data.mirrored_layouts[rows], data.layouts[rows])
            layout = channels(chosen * known[:, None], *z.shape[-2:]).to(device)
        mask = text_mask(ids, tokenizer.eos_token_id) if config.unet.mask_padding else None
        if mask is not None:  # no longer than the batch's longest prompt
            longest = int(mask.sum(1).max())
            ids, mask = ids[:, :longest], mask[:, :longest].to(device)
        z, eps, t, ids = (x.to(device) for x in (z, eps, t, ids))
        with torch.no_grad(), autocast(device):
            context = text(ids).last_hidden_state
        error = denoising_loss(model, noise, z, eps, t, context, mask, layout)
        snr = alphas[t] / (1 - alphas[t])
        late = lateness(step / config.unet_stage.steps, config.unet.finish)
        loss = (error * noise_weight(snr, config.unet.snr_gamma, late)).mean() * 4
        return loss, {"v": error.mean().item()}

    return stage.run(loss_at, minutes, on_save=refresh)


# --- export ------------------------------------------------------------------------------------------------------


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
    parser.add_argument("stage", choices=["pool", *STAGES, "export", "adopt"])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--run", type=Path, help="folder of checkpoints (default runs/base-PRESET)")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--weights", type=Path, default=SHIPPED, help="adopt: an exported folder to go on from")
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
    elif args.stage == "adopt":
        try:
            print("\n".join(f"{name}: step {step}" for name, step in adopt(config, args.weights, run).items()))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    else:
        done = STAGES[args.stage](config, run, args.device, args.minutes, args.limit)
        print(f"{args.stage}: {'finished' if done else 'stopped; run the same command to go on'}")


if __name__ == "__main__":
    main()
