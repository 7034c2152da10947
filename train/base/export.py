"""Between a run's checkpoints and a folder that diffusers loads: `export` writes it, `adopt` resumes from it."""

import functools
import json
import random
import re
import shutil
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPVisionModelWithProjection

from customcontrast.base_model import FACTS
from customcontrast.layout import POSES
from customcontrast.tensor_files import share_with_umask, write_tensors
from customcontrast.toyland.autoencoder import PatchAutoencoder
from train.base import pool
from train.base.base_config import PretrainConfig
from train.base.networks import (
    CLIP_MEAN,
    CLIP_STD,
    clip_side,
    clip_trainer,
    export_stage,
    make_sampler,
    make_unet,
    make_vae,
)
from train.base.stage import Stage, checkpoint_step
from train.toyland import World, describe, sample_scene
from train.toyland.words import NOUNS, SHAPES


def export(config: PretrainConfig, run: Path, out: Path) -> Path:
    """Write the diffusers folder: 16-bit safetensors in shards under 9 MB."""
    latest = _latest(run, "image", "clip")
    trainer, tokenizer = clip_trainer(config, run, latest)
    clip = export_stage(latest, trainer, config, run).clip.half()
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
    side = clip_side(config)
    pixels = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_sampler(),
        image_encoder=vision,
        feature_extractor=pixels,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(out, max_shard_size="8MB")
    share_with_umask(*out.rglob("*.safetensors"))
    for part in ("text_encoder", "image_encoder"):  # stored in 16 bits, computed in 32 unless asked otherwise
        path = out / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    head = {"text_projection.weight": clip.text_projection.weight, "logit_scale": clip.logit_scale}
    write_tensors({k: v.detach().contiguous() for k, v in head.items()}, out / "clip_head.safetensors")
    facts: dict[str, object] = {"masks_padding": config.unet.mask_padding, "trained": trained(run)}
    if config.unet.layout:
        adopted = json.loads((run / FACTS).read_text()).get("layout") if (run / FACTS).is_file() else None
        facts["layout"] = adopted or layout_prior(run, World.named(config.pool.world))
    (out / FACTS).write_text(json.dumps(facts) + "\n")
    words = shown_words(World.named(config.pool.world), config.word_captions)
    (out / "vocabulary.json").write_text(json.dumps(words, indent=0))
    return out


def layout_prior(run: Path, world: World, each: int = 40) -> dict[str, object]:
    """The table that `customcontrast.layout.LayoutPrior` draws from: at most `each` layouts of a species in a shape.

    Boxes and views come from the pool's pictures of one subject that faces the camera. Raises FileNotFoundError where
    there is no pool.
    """
    kinds: dict[str, list[list[object]]] = {species: [] for species in world.species}
    for shard in pool.shard_paths(run / "pool"):
        for record in json.loads(shard.with_suffix(".json").read_text()):
            subjects, row = record["labels"]["subjects"], record["layout"][3:9]
            if len(subjects) == 1 and abs(row[4]) <= world.frontal:
                rows, shape = kinds[subjects[0]["species"]], subjects[0]["shape"]
                if sum(r[6] == shape for r in rows) < each:
                    rows.append([*(round(x, 3) for x in row[:5]), POSES[int(row[5])], shape])
    kinds = {species: rows for species, rows in kinds.items() if rows}
    if not kinds:
        raise FileNotFoundError(f"{run / 'pool'} has no pictures; render them: python -m train.base pool")
    nouns = {word: species for species in kinds for word in NOUNS[species]}
    shapes = {phrase.split(" ")[0]: shape for shape in world.shapes for phrase in SHAPES[shape] if phrase}
    return {"nouns": nouns, "kinds": kinds, "shapes": shapes}


def trained(run: Path) -> dict[str, dict[str, float]]:
    """Steps and seconds of every stage that has a checkpoint in `run`."""
    found = {}
    for name in ("clip", "image", "vae", "decoder", "unet"):
        if (run / f"{name}.safetensors").exists():
            step, seconds = checkpoint_step(run / f"{name}.safetensors")
            found[name] = {"step": step, "seconds": round(seconds, 1)}
    return found


def _latest(run: Path, later: str, earlier: str) -> str:
    """The stage to export: the later one where it has been run."""
    return later if (run / f"{later}.safetensors").exists() else earlier


@functools.lru_cache(maxsize=4)
def shown_words(world: World, captions: int) -> tuple[str, ...]:
    """All words that occur in `captions` random captions of this world, sorted: a model's training vocabulary."""
    rng = random.Random("words")
    texts = (describe(sample_scene(rng, world), rng).text for _ in range(captions))
    return tuple(sorted({word for text in texts for word in re.findall(r"[a-z0-9']+", text.lower())}))


def adopt(config: PretrainConfig, weights: Path, run: Path) -> dict[str, int]:
    """Write checkpoints into `run` from an exported folder, so that `python -m train.base STAGE` resumes from it.

    Returns the step of each stage, as recorded in the export. The optimiser's moments and the attribute heads of CLIP
    are not exported, so they start anew.

    Raises:
        FileExistsError: `run` has checkpoints already.
        FileNotFoundError: `weights` lacks a part.
        ValueError: `weights` is of another size than the preset.
    """
    for name in ("clip", "vae", "unet"):
        if (run / f"{name}.safetensors").exists():
            raise FileExistsError(f"{run} has a checkpoint of {name!r}: --run must name an empty folder")
    missing = [p for p in ("tokenizer", "text_encoder", "image_encoder", "vae", "unet") if not (weights / p).is_dir()]
    if missing:
        raise FileNotFoundError(f"--weights {weights} has no {missing[0]!r}: name a folder that export wrote")
    shutil.copytree(weights / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    if (weights / FACTS).is_file():
        shutil.copy(weights / FACTS, run / FACTS)  # its layout prior stays, pool or no pool
    trainer, _ = clip_trainer(config, run)
    vae, unet = (
        PatchAutoencoder.from_pretrained(weights / "vae"),
        UNet2DConditionModel.from_pretrained(weights / "unet"),
    )
    text = CLIPTextModel.from_pretrained(weights / "text_encoder").state_dict()
    vision = CLIPVisionModelWithProjection.from_pretrained(weights / "image_encoder").state_dict()
    clip = {f"clip.text_model.{k}": v for k, v in text.items()} | {f"clip.{k}": v for k, v in vision.items()}
    clip |= {f"clip.{k}": v for k, v in load_file(weights / "clip_head.safetensors").items()}
    parts: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {
        "clip": (trainer, clip),
        "vae": (make_vae(config), vae.state_dict()),
    }
    parts["unet"] = (make_unet(config), unet.state_dict())
    steps = {}
    for name, (model, state) in parts.items():
        _fill(model, {k: v.float() for k, v in state.items()}, name)
        stage = Stage(name, model, getattr(config, f"{name}_stage"), run)
        stage.step, stage.seconds = _seen(weights, name)
        stage.save()
        steps[name] = stage.step
    (run / "latents.json").write_text(json.dumps({"scaling_factor": vae.config.scaling_factor}))
    return steps


def _fill(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load exported weights into a model of the preset's size; tensors that were not exported stay as initialised."""
    own = model.state_dict()
    for key, value in state.items():
        if key not in own or own[key].shape != value.shape:
            wanted = "no such tensor" if key not in own else f"{tuple(own[key].shape)}"
            raise ValueError(
                f"{name}: {key} is {tuple(value.shape)} in the weights, the preset has {wanted}; "
                "use the --preset that trained them"
            )
    model.load_state_dict(own | state)


def _seen(weights: Path, name: str) -> tuple[int, float]:
    """(step, seconds) of a stage, as export wrote them; (0, 0) where it did not."""
    facts = json.loads((weights / FACTS).read_text()) if (weights / FACTS).is_file() else {}
    own = facts.get("trained", {}).get(name, {})
    return own.get("step", 0), own.get("seconds", 0.0)
