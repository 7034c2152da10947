"""Train Toyland's embedded base model from nothing: pictures, tokenizer, CLIP, autoencoder, denoiser, export.

    python -m train.base pool   --preset cpu --count 200 --worker 0 --workers 2
    python -m train.base clip   --preset cpu
    python -m train.base vae    --preset cpu
    python -m train.base latents --preset cpu     # optional: the denoiser encodes what it needs, this is beside it
    python -m train.base unet   --preset cpu --minutes 60
    python -m train.base image  --preset cpu      # beside the denoiser: the image tower goes on alone
    python -m train.base decoder --preset cpu     # beside the denoiser: so does the decoder
    python -m train.base export --preset cpu --out customcontrast/weights/toyland
    python -m train.base adopt  --preset cpu      # instead of the stages: go on from the shipped weights

Every stage goes on from its checkpoint under `runs/base-PRESET`; stop it whenever you like (SIGTERM saves first).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from train.base import pool
from train.base.base_config import PRESETS
from train.base.clip_stages import train_clip, train_image
from train.base.export import adopt, export
from train.base.latents import encode_pool
from train.base.unet_stage import train_unet
from train.base.vae_stages import train_decoder, train_vae

SHIPPED = Path("customcontrast/weights/toyland")


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
