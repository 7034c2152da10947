"""Train Toyland's denoiser in a few minutes of a GPU: the CPU cores render, the GPU trains.

    python -m train.base.gpu_session train --minutes 8 --out OUT    # on the machine with the GPU
    python -m train.base.gpu_session render --workers 14            # there: renderers alone, to start earlier
    python -m train.base.gpu_session collect --out OUT              # here: a checkpoint to go on from

`--run` needs the tokenizer and the checkpoints of `clip` and `vae`; the denoiser starts from `unet.safetensors` there
if it is there. Pictures are rendered while it learns, into `--run`/pool. What is written to `--out` comes back in files
under 16 MiB: averaged weights in 16 bits, every `--save-every` seconds, a log, a sheet of pictures beside renders.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
import torch.multiprocessing as mp
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from customcontrast.layout import NUMBERS
from customcontrast.layout_channels import channels, mirrored_rows
from customcontrast.precision import autocast
from customcontrast.tensor_files import write_tensors
from customcontrast.toyland.autoencoder import PatchAutoencoder
from train.base import pool
from train.base.base_config import PRESETS, PretrainConfig
from train.base.networks import (
    clip_trainer,
    denoising_loss,
    export_stage,
    lateness,
    make_sampler,
    make_scheduler,
    make_unet,
    make_vae,
    noise_weight,
    text_mask,
    tokenize,
)
from train.base.pictures import phrasings
from train.base.stage import Stage, checkpoint_step
from train.base.tokenizer import load
from train.common.log import append_line
from train.data.frozen_features import to_pixels

PART = 15 * 2**20  # bytes of one file that comes back
TOKENS = 40  # prompts are truncated to so many tokens
FRESH = "fresh"  # folder in a run: what renderers hand over
EVERY = 10  # steps between two looks at the clock
HELD = 48  # pictures of the first shard, at most, that are held out for the sheet


@dataclass(frozen=True)
class SessionConfig:
    """Settings of one session.

    batch: samples a step. lr: of AdamW. capacity: pictures in the GPU's memory. workers: processes that render.
    """

    minutes: float
    batch: int = 128
    lr: float = 5e-4
    warmup: int = 300  # steps
    decay: float = 0.35  # share of the time, at its end, over which the learning rate falls to 0
    ema: float = 0.9995
    capacity: int = 150_000
    first: int = 8_000  # pictures before the first step
    save_every: float = 90.0  # seconds
    workers: int = 14
    graph: bool = True  # a step is captured once as a CUDA graph: eager launches take several times its time
    channels_last: bool = False  # on an H100 the slower one: group norms go back and forth
    device: str = "cuda"


# --- renderers ---------------------------------------------------------------------------------------------------


def start_renderers(config: PretrainConfig, run: Path, workers: int) -> list[SpawnProcess]:
    """Start `workers` processes that render until they are terminated."""
    start = mp.get_context("spawn").Process
    processes = [
        start(target=render_forever, args=(config, run, w, workers, 10**6), daemon=True) for w in range(workers)
    ]
    for process in processes:
        process.start()
    return processes


def render_forever(config: PretrainConfig, run: Path, worker: int, workers: int, count: int) -> None:
    """Render shards worker, worker + workers, … below count, and hand each over with its token ids; one process."""
    torch.set_num_threads(1)
    tokenizer = load(run / "tokenizer")
    for _ in pool.fill(config.pool, run / "pool", count, worker, workers):
        for shard in pool.shard_paths(run / "pool"):
            if int(shard.stem.split("-")[1]) % workers == worker:
                hand_over(shard, run, tokenizer, config.unet.plain)


def hand_over(shard: Path, run: Path, tokenizer: CLIPTokenizer, plain: int) -> None:
    """Write a shard's pictures, token ids and layouts into the folder that `Store.grow` reads, once."""
    done = run / FRESH / shard.name
    if done.exists():
        return
    done.parent.mkdir(exist_ok=True)
    records = json.loads(shard.with_suffix(".json").read_text())
    ids = tokenize(tokenizer, [text for r in records for text in phrasings(r, plain)])[:, :TOKENS]
    tensors = {"ids": ids.to(torch.int16).view(len(records), -1, TOKENS).contiguous()}
    tensors["rows"] = torch.tensor([r["layout"] for r in records])
    write_tensors(tensors | {"images": load_file(shard)["images"]}, done)


# --- pictures in the GPU's memory ----------------------------------------------------------------------------------


class Store:
    """The training data on the device: latents plain and mirrored, text contexts, layouts; `grow` adds new shards."""

    def __init__(self, config: PretrainConfig, run: Path, capacity: int, device: torch.device):
        self.config, self.run, self.device, self.count = config, run, device, 0
        trainer, self.tokenizer = clip_trainer(config, run)
        self.text = export_stage("clip", trainer, config, run).clip.text_model.to(device).eval().requires_grad_(False)
        name = "decoder" if (run / "decoder.safetensors").exists() else "vae"
        self.vae = export_stage(name, make_vae(config), config, run).to(device).eval().requires_grad_(False)
        self.end = self.tokenizer.eos_token_id
        self.seen: set[Path] = set()
        side, width = config.pool.size // 8, config.clip.width
        self.latents = torch.empty(capacity, 2, config.vae.latents, side, side, dtype=torch.float16, device=device)
        self.rows = torch.empty(capacity, 2, NUMBERS, device=device)
        phrases = config.pool.captions + config.unet.plain
        self.contexts = torch.empty(capacity, phrases, TOKENS, width, dtype=torch.float16, device=device)
        self.masks = torch.empty(capacity, phrases, TOKENS, dtype=torch.bool, device=device)
        self.filled = torch.zeros((), device=device)  # count, where a captured step can read it
        self.held: dict[str, Tensor] = {}
        self.scale = 0.0
        self.empty = self._context(tokenize(self.tokenizer, [""])[:, :TOKENS])

    def _context(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.long().to(self.device)
        with autocast(self.device.type):
            return self.text(ids).last_hidden_state.half(), text_mask(ids, self.end)

    @torch.no_grad()
    def grow(self, most: int = 2) -> int:
        """Encode and add at most `most` new shards. Returns how many were added."""
        fresh = [p for p in sorted((self.run / FRESH).glob("shard-*.safetensors")) if p not in self.seen][:most]
        for path in fresh:
            self.seen.add(path)
            self._take(load_file(path))
        return len(fresh)

    def _take(self, shard: dict[str, Tensor]) -> None:
        x = to_pixels(shard["images"].to(self.device))
        if not self.held:
            held = min(HELD, len(x) // 2)
            self.held = {k: v[:held] for k, v in shard.items()}
            x, shard = x[held:], {k: v[held:] for k, v in shard.items()}
        n = min(len(x), len(self.latents) - self.count)
        if n <= 0:
            return
        at = slice(self.count, self.count + n)
        with autocast(self.device.type):
            views = [self.vae.encode(v).latent_dist.mean.half() for v in (x, x.flip(-1))]
        if not self.scale:
            self.scale = _scale(self.run, views[0])
        rows = shard["rows"]
        self.latents[at] = torch.stack(views, 1)[:n] * self.scale
        self.rows[at] = torch.stack((rows, mirrored_rows(rows)), 1)[:n].to(self.device)
        context, mask = self._context(shard["ids"].flatten(0, 1))
        self.contexts[at] = context.unflatten(0, (len(x), -1))[:n]
        self.masks[at] = mask.unflatten(0, (len(x), -1))[:n]
        self.count += n
        self.filled.fill_(self.count)

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """A random batch: latents (B,C,h,w), contexts (B,N,d), masks (B,N), layout channels (B,13,h,w).

        Captions and layouts are dropped at random, at the configured rates.
        """
        c, d = self.config.unet, self.device
        at = (torch.rand(size, device=d) * self.filled).long().clamp(max=len(self.latents) - 1)
        side, phrase = (torch.randint(n, (size,), device=d) for n in (2, self.contexts.shape[1]))
        bare = (torch.rand(size, device=d) < c.drop_caption)[:, None]
        context, mask = self.contexts[at, phrase], self.masks[at, phrase]
        context = torch.where(bare[..., None], self.empty[0], context)
        mask = torch.where(bare, self.empty[1], mask)
        rows = self.rows[at, side] * (torch.rand(size, device=d) >= c.drop_layout)[:, None]
        z = self.latents[at, side].float()
        return z, context, mask, channels(rows, *z.shape[-2:])


def _scale(run: Path, latents: Tensor) -> float:
    path = run / "latents.json"
    if not path.exists():
        path.write_text(json.dumps({"scaling_factor": 1 / latents.float().std().item()}))
    return json.loads(path.read_text())["scaling_factor"]


# --- training ------------------------------------------------------------------------------------------------------


class Session:
    """The denoiser, its optimiser and its average; `run` trains for the configured minutes."""

    def __init__(self, config: PretrainConfig, session: SessionConfig, run: Path, out: Path):
        self.config, self.session, self.run_folder, self.out = config, session, run, out
        self.device = torch.device(session.device)
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        self.model, self.samples = make_unet(config), 0
        if (run / "unet.safetensors").exists():
            stage = Stage("unet", self.model, config.unet_stage, run)
            stage.load_ema()
            self.samples = stage.step * config.unet_stage.batch
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            self.model.set_attn_processor(AttnProcessor2_0())
        if session.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.model.to(self.device)
        self.parameters = dict(self.model.named_parameters())
        self.ema = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.rate = torch.tensor(session.lr, device=self.device)
        self.late = torch.zeros((), device=self.device)  # see `noise_weight`
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.rate if cuda else session.lr, betas=(0.9, 0.99), weight_decay=0.01,
            fused=cuda, capturable=cuda,
        )  # fmt: skip
        self.noise = make_scheduler()
        self.noise.alphas_cumprod = self.noise.alphas_cumprod.to(self.device)
        self.errors = torch.zeros(2, 4, device=self.device)  # sum and count of v-errors, by quarter of t
        self.step = 0

    def update(self, store: Store) -> None:
        """One optimiser step on a batch of `store`, without a synchronisation: it can be captured as a CUDA graph."""
        z, context, mask, layout = store.batch(self.session.batch)
        t = torch.randint(self.noise.config.num_train_timesteps, (len(z),), device=z.device)
        error = denoising_loss(self.model, self.noise, z, torch.randn_like(z), t, context, mask, layout)
        alphas = self.noise.alphas_cumprod[t]
        weight = noise_weight(alphas / (1 - alphas), self.config.unet.snr_gamma, self.late)
        (error * weight).mean().backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0, foreach=True)
        self.optimizer.step()
        quarter = t * 4 // self.noise.config.num_train_timesteps
        both = torch.stack((error.detach(), torch.ones_like(error)))
        self.errors.index_add_(1, quarter, both)

    def schedule(self, done: float) -> None:
        """Set learning rate and noise weight for when `done` (0..1) of the session has passed."""
        s = self.session
        rate = s.lr * min(1.0, (self.step + 1) / s.warmup) * min(1.0, max(0.0, (1 - done) / s.decay))
        self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = rate
        self.late.fill_(lateness(done, self.config.unet.finish))

    def stepper(self, store: Store) -> Callable[[], None]:
        """A function that makes one step: the replay of a captured CUDA graph, or `update` itself."""

        def eager() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.update(store)

        if not self.session.graph or self.device.type != "cuda":
            return eager
        self.schedule(0.0)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                eager()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.update(store)
        return graph.replay

    def average(self, steps: int) -> None:
        """Update the average of the weights after so many steps."""
        decay = min(self.session.ema, (1 + self.step) / (10 + self.step)) ** steps
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)

    def run(self) -> None:
        """Render and train; writes to `out` as it goes, and a sheet at the end."""
        s, start = self.session, time.monotonic()
        renderers = start_renderers(self.config, self.run_folder, s.workers)
        try:
            store = Store(self.config, self.run_folder, s.capacity, self.device)
            self._say("parts loaded", start)
            while store.count < s.first:
                if not store.grow(8):
                    time.sleep(0.2)
            self._say(f"{store.count} pictures", start)
            self._train(store, start)
        finally:
            for process in renderers:
                process.terminate()
        self.save()
        self.sheet(store, self.out / "sheet-0.png")

    def _train(self, store: Store, start: float) -> None:
        s, end = self.session, start + 60 * self.session.minutes
        advance = self.stepper(store)
        self._say("first steps", start)
        began = saved = logged = time.monotonic()
        sheets = [began + (end - began) * share for share in (0.25, 0.6)]
        last = 0
        while (now := time.monotonic()) < end:
            self.schedule((now - began) / (end - began))
            for _ in range(EVERY):
                advance()
            self.step += EVERY
            self.samples += EVERY * s.batch
            self.average(EVERY)
            if self.step % (2 * EVERY) == 0:
                store.grow(1)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if now - logged > 5:
                self._log(store.count, now - start, (self.step - last) * s.batch / (now - logged))
                logged, last = now, self.step
            if sheets and now > sheets[0]:
                self.sheet(store, self.out / f"sheet-{len(sheets)}.png")
                sheets.pop(0)
            if now - saved > s.save_every:
                self.save()
                saved = now

    def _log(self, pictures: int, seconds: float, rate: float) -> None:
        total, count = self.errors.cpu().clone()
        self.errors.zero_()
        if not torch.isfinite(total).all():
            raise FloatingPointError(f"the error is not finite at step {self.step}; lower --lr")
        quarters = (total / count.clamp(min=1)).tolist()
        line: dict[str, float | list[float]] = {
            "step": self.step,
            "samples": self.samples,
            "seconds": round(seconds, 1),
            "pictures": pictures,
        }
        line |= {"rate": round(rate), "v": round((total.sum() / count.sum()).item(), 5)}
        line["quarters"] = [round(q, 4) for q in quarters]
        append_line(self.out / "session.jsonl", line)
        print(line, flush=True)

    def _say(self, what: str, start: float) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)

    def save(self) -> None:
        """Write averaged weights in 16 bits, in files under 16 MiB; each is whole even after a kill."""
        for n, names in enumerate(parts({k: 2 * v.numel() for k, v in self.ema.items()})):
            path = self.out / f"unet-{n}.safetensors"
            tensors = {k: self.ema[k].half().cpu().contiguous() for k in names}
            write_tensors(tensors, path, {"samples": str(self.samples)})

    @torch.no_grad()
    def sheet(self, store: Store, path: Path, steps: int = 20, guidance: float = 4.0) -> None:
        """Write generated pictures of the held-out prompts at the renders' layouts, each row above its renders."""
        live = {k: p.detach().clone() for k, p in self.parameters.items()}
        for k, p in self.parameters.items():
            p.copy_(self.ema[k])
        context, mask = store._context(store.held["ids"][:, 0])
        layout = channels(store.held["rows"].to(self.device), *store.latents.shape[-2:])
        pictures = draw(self.model, store.vae, store.scale, (context, mask), store.empty, layout, steps, guidance)
        save_sheet(pictures.cpu(), store.held["images"], path)
        for k, p in self.parameters.items():
            p.copy_(live[k])


def parts(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names of tensors in groups of at most PART bytes. sizes: {name: bytes}."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > PART:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


@torch.no_grad()
def draw(
    unet: UNet2DConditionModel,
    vae: PatchAutoencoder,
    scale: float,
    prompt: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    layout: Tensor | None,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 0,
) -> Tensor:
    """Generate pictures of N prompts with classifier-free guidance: uint8 (N,3,H,W).

    prompt, empty: context (N or 1, tokens, d) and mask (N or 1, tokens) of the prompts and of the empty one. layout:
    channels (N,13,h,w) for both halves of guidance, or None. scale: of the latents.
    """
    scheduler = make_sampler()
    scheduler.set_timesteps(steps)
    device, n = prompt[0].device, len(prompt[0])
    side = unet.config.sample_size
    z = torch.randn(n, vae.config.latent_channels, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
    context = torch.cat([empty[0].expand(n, -1, -1), prompt[0]])
    mask = torch.cat([empty[1].expand(n, -1), prompt[1]])
    for t in scheduler.timesteps:
        x = z if layout is None else torch.cat([z, layout], 1)
        with autocast(device.type):
            v = unet(x.repeat(2, 1, 1, 1), t.to(device), context, encoder_attention_mask=mask).sample.float()
        without, with_prompt = v.chunk(2)
        z = scheduler.step(without + guidance * (with_prompt - without), t, z, generator=None).prev_sample
    with autocast(device.type):
        pixels = vae.decode(z / scale).sample.float()
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def save_sheet(pictures: Tensor, renders: Tensor, path: Path, columns: int = 12) -> None:
    """Write rows of generated pictures, each above the row of renders that it should match. uint8 (N,3,H,W) both."""
    from torchvision.utils import make_grid, save_image

    rows = []
    for a, b in zip(pictures.split(columns), renders.split(columns), strict=True):
        rows += [*a, *b]
    save_image(make_grid(torch.stack(rows).float() / 255, nrow=columns, padding=2), path)


def collect(config: PretrainConfig, run: Path, out: Path) -> int:
    """Write the checkpoint `unet.safetensors` in `run` from a session's files; returns the samples it was trained on.

    Raises FileNotFoundError where `out` holds no part of a denoiser, ValueError where parts are of two moments.
    """
    paths = sorted(out.glob("unet-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{out} has no unet-N.safetensors; name the folder that `train` wrote to")
    from safetensors import safe_open

    samples = set()
    state: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, "pt") as f:
            samples.add(int(f.metadata()["samples"]))
        state |= {k: v.float() for k, v in load_file(path).items()}
    if len(samples) > 1:
        raise ValueError(f"{out} holds parts of two moments ({sorted(samples)} samples); fetch them again")
    model = make_unet(config)
    model.load_state_dict(state)
    (run / "unet.safetensors").unlink(missing_ok=True)
    stage = Stage("unet", model, config.unet_stage, run)
    stage.step = samples.pop() // config.unet_stage.batch
    stage.save()
    return checkpoint_step(stage.path)[0] * config.unet_stage.batch


def main(argv: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "render", "collect"])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="toyland2")
    parser.add_argument("--run", type=Path, help="folder of checkpoints (default runs/base-PRESET)")
    parser.add_argument("--out", type=Path, help="folder that comes back")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=SessionConfig.batch)
    parser.add_argument("--lr", type=float, default=SessionConfig.lr)
    parser.add_argument("--first", type=int, default=SessionConfig.first, help="pictures before the first step")
    parser.add_argument("--workers", type=int, default=SessionConfig.workers, help="renderers")
    parser.add_argument("--capacity", type=int, default=SessionConfig.capacity, help="pictures held in memory")
    parser.add_argument("--save-every", type=float, default=SessionConfig.save_every, help="seconds")
    parser.add_argument("--eager", action="store_true", help="do not capture a step as a CUDA graph")
    parser.add_argument("--channels-last", action="store_true", help="weights and pictures channels last")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    config, run = PRESETS[args.preset], args.run or Path("runs") / f"base-{args.preset}"
    if args.what == "render":
        for process in start_renderers(config, run, args.workers):
            process.join()
        return
    if args.out is None:
        parser.error(f"{args.what} needs --out FOLDER")
    if args.what == "collect":
        print(f"{collect(config, run, args.out):,} samples")
        return
    session = SessionConfig(
        args.minutes, batch=args.batch, lr=args.lr, first=args.first, workers=args.workers,
        capacity=args.capacity, save_every=args.save_every, graph=not args.eager,
        channels_last=args.channels_last, device=args.device,
    )  # fmt: skip
    Session(config, session, run, args.out).run()


if __name__ == "__main__":
    main()
