"""Stage “latents”: the pool's pictures through the autoencoder, once."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from customcontrast.precision import autocast
from customcontrast.tensor_files import write_tensors
from customcontrast.toyland.autoencoder import PatchAutoencoder
from train.base import pool
from train.base.base_config import PretrainConfig
from train.base.networks import (
    export_stage,
    make_vae,
)
from train.data.frozen_features import to_pixels


def latents_path(shard: Path) -> Path:
    """The file of the latents of a shard of the pool."""
    return shard.parent.parent / "latents" / shard.name


@torch.no_grad()
def encode_shard(vae: PatchAutoencoder, shard: Path, device: str, mirror: bool, batch: int = 64) -> None:
    """Write a shard's latents, (N, 1 or 2, C, h, w) float16: the mean, unscaled; plain, and mirrored if requested."""
    images, out = pool.read_shard(shard).images, []
    for part in images.split(batch):
        x = to_pixels(part.to(device))
        with autocast(device):
            views = [vae.encode(v).latent_dist.mean.half().cpu() for v in ((x, x.flip(-1)) if mirror else (x,))]
        out.append(torch.stack(views, 1))
    path = latents_path(shard)
    path.parent.mkdir(exist_ok=True)
    write_tensors({"z": torch.cat(out)}, path)


def encode_pool(config: PretrainConfig, run: Path, device: str, minutes: float | None, limit: int | None) -> bool:
    """Encode every shard that has no latents yet, with the finished autoencoder. Returns True: it is done."""
    vae = export_stage("vae", make_vae(config), config, run).to(device).eval()
    shards = pool.shard_paths(run / "pool")[:limit]
    for shard in tqdm([s for s in shards if not latents_path(s).exists()], desc="latents", unit="shard"):
        encode_shard(vae, shard, device, config.unet.mirror)
    return True


def read_latents(shards: list[Path]) -> Tensor:
    """Latents of these shards, joined: (N, 1 or 2, C, h, w) float16."""
    return torch.cat([load_file(latents_path(shard))["z"] for shard in shards])


def latent_scale(run: Path, latents: Tensor) -> float:
    """The factor that scales latents to unit variance; measured once in a run, then read from latents.json."""
    path = run / "latents.json"
    if not path.exists():
        path.write_text(json.dumps({"scaling_factor": 1 / latents[:4096].float().std().item()}))
    return json.loads(path.read_text())["scaling_factor"]
