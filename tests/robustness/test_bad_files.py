"""Adapters, checkpoints, pools, shards, recipes and configurations that are broken in every layer."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import save_file

from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter, read_metadata, save_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.segmentation import Segmentation, Segmenter
from customcontrast.ui.service import recipe
from customcontrast.ui.service.request import request_from
from tests.robustness.makers import FEW, Bomb, broken_bytes, broken_safetensors, json_values
from tests.robustness.runs import small_run, write_views
from train.adapter import training_state
from train.adapter.adapter_config import AdapterTrainConfig, load_config
from train.adapter.training_state import Progress
from train.common.ema import EMA
from train.data import photos, shards, sources

ENCODER = {"width": 32, "heads": 2, "depth": 1, "visual_queries": 5, "text_queries": 3, "fourier_bands": 3}


@pytest.fixture(scope="module")
def adapter_file(tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_adapter(Adapter.create(tiny_base, **ENCODER), tmp_path_factory.mktemp("adapter") / "a.safetensors")


def parts(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(str(path), "pt") as file:
        return dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


# ---- adapters


def test_adapter_files_broken_in_every_layer(
    judge: Callable, tiny_base: BaseModel, adapter_file: Path, tmp_path: Path
) -> None:
    case = judge("library: adapter files")
    data = adapter_file.read_bytes()
    for k, (_, broken) in enumerate(broken_safetensors(data)):
        path = tmp_path / f"{k}.safetensors"
        path.write_bytes(broken)
        case(load_adapter, path, tiny_base)
        case(read_metadata, path)
    rng = np.random.default_rng(1)
    for k in range(40):  # bits flipped in the header, where the structure is
        flipped = bytearray(data)
        flipped[int(rng.integers(8, 3000))] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"flip{k}.safetensors"
        path.write_bytes(bytes(flipped))
        case(load_adapter, path, tiny_base)


def test_adapters_of_wrong_keys_shapes_and_types(
    judge: Callable, tiny_base: BaseModel, adapter_file: Path, tmp_path: Path
) -> None:
    case = judge("library: adapter contents")
    meta, weights = parts(adapter_file)
    first = next(iter(weights))
    wrong: dict[str, tuple[dict, dict, str]] = {
        "a key less": (meta, {k: v for k, v in weights.items() if k != first}, "lacks"),
        "a key more": (meta, weights | {"more": torch.zeros(2)}, "unknown"),
        "a key renamed": (meta, {f"x.{k}": v for k, v in weights.items()}, "lacks"),
        "a shape": (meta, weights | {first: torch.zeros(3, 3, 3)}, "shape"),
        "a scalar": (meta, weights | {first: torch.zeros(())}, "shape"),
        "no weights": (meta, {}, "lacks"),
        "whole numbers": (meta, {k: v.long() for k, v in weights.items()}, "type"),
        "booleans": (meta, {k: v > 0 for k, v in weights.items()}, "type"),
        "nan": (meta, weights | {first: torch.full_like(weights[first], float("nan"))}, "finite"),
        "infinity": (meta, weights | {first: torch.full_like(weights[first], float("inf"))}, "finite"),
        "double": (meta, {k: v.double() for k, v in weights.items()}, ""),
        "half": (meta, {k: v.half() for k, v in weights.items()}, ""),
        "no metadata": ({}, weights, "not a CustomContrast adapter"),
        "metadata no JSON": (dict.fromkeys(meta, "{"), weights, "cannot be read"),
        "metadata deep": (meta | {"config": "[" * 100_000}, weights, "cannot be read"),
    }
    for key in ("format", "base", "config"):
        wrong[f"without {key}"] = ({k: v for k, v in meta.items() if k != key}, weights, "")
        for value in (None, 3, [], {}, "x", True):
            wrong[f"{key} {value!r}"] = (meta | {key: json.dumps(value)}, weights, "")
    config = json.loads(meta["config"])
    for key in config:
        for value in (None, -1, 0, "x", [], 10**12, float("nan"), {"a": 1}, True):
            wrong[f"config.{key} {value!r}"] = (meta | {"config": json.dumps(config | {key: value})}, weights, "")
    for k, (about, tensors, says) in enumerate(wrong.values()):
        save_file(tensors, tmp_path / f"{k}.safetensors", metadata=about)
        case(load_adapter, tmp_path / f"{k}.safetensors", tiny_base, says=says)


def test_nothing_is_unpickled_whatever_its_name(
    judge: Callable, tiny_base: BaseModel, tiny_folder: Path, adapter_file: Path, tmp_path: Path
) -> None:
    case, mark = judge("library: pickles"), tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # the layout of a .pth
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/version", "3")
    for data in (bomb, buffer.getvalue()):
        for name in ("a.safetensors", "a.pth", "a.bin", "a.ckpt", "a.pt", "a.pkl"):
            path = tmp_path / name
            path.write_bytes(data)
            case(load_adapter, path, tiny_base, says="safetensors")
            case(lambda path=path: Segmenter(sam_checkpoint=path).refine(picture(), [(9, 9, 1)]), says="sam_checkpoint")
            case(recipe.read_png, path, says="PNG")
            case(Segmenter(threads=1).auto, path, says="image")
        path = tmp_path / "step-0000003.safetensors"
        path.write_bytes(data)
        case(
            lambda path=path: training_state.load(path, *learner(tiny_base), AdapterTrainConfig()),
            says="cannot be read",
        )
    whole = {path.relative_to(tiny_folder): path for path in tiny_folder.rglob("*.safetensors")}
    for relative in whole:  # a base folder with one part pickled
        folder = tmp_path / f"base-{relative.parent}"
        shutil.copytree(tiny_folder, folder)
        (folder / relative).unlink()
        for name in (relative.name, relative.with_suffix(".bin").name, "pytorch_model.bin"):
            (folder / relative.parent / name).write_bytes(buffer.getvalue())
        case(load_base, "toyland", folder, "cpu", says="load_base")
    assert not mark.exists()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))


def learner(base: BaseModel) -> tuple:
    adapter = Adapter.create(base, **ENCODER)
    return adapter, EMA(adapter, 0.9), training_state.make_optimizer(adapter, AdapterTrainConfig().optim)


def test_base_folders(judge: Callable, tiny_folder: Path, tmp_path: Path) -> None:
    case = judge("library: base folders")
    for wrong in ("", "nowhere", "/", "../..", "a/b/c", "\0", "x" * 5000, 3, str(tmp_path)):
        case(load_base, "toyland", wrong, "cpu", says="load_base" if wrong else "")
    for wrong in ("", "sd99", None, 3, ["toyland"]):
        case(load_base, wrong, tiny_folder, "cpu", says="load_base")
    for wrong in ("gpu", "cuda:99", "tpu", 3.5, "\0"):
        case(load_base, "toyland", tiny_folder, wrong, says="device")
    names = [path.relative_to(tiny_folder) for path in tiny_folder.rglob("*") if path.is_file()]
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    for relative in names:
        for data in (b"", b"{", b"[]", b"null", b'{"_class_name": 3}', None):
            (folder / relative).unlink() if data is None else (folder / relative).write_bytes(data)
            case(load_base, "toyland", folder, "cpu")
        (folder / relative).unlink(missing_ok=True)
        shutil.copy(tiny_folder / relative, folder / relative)


# ---- training: checkpoints, pools, shards, configurations


def test_checkpoints_of_training(judge: Callable, tiny_base: BaseModel, tmp_path: Path) -> None:
    case, config = judge("train: checkpoints"), replace(AdapterTrainConfig(), encoder=ENCODER)
    adapter, ema, optimizer = learner(tiny_base)
    whole = training_state.save(tmp_path, adapter, ema, optimizer, Progress(3, 1.0), config, keep=9)
    data, (meta, tensors) = whole.read_bytes(), parts(whole)

    def load(path: Path) -> None:
        training_state.load(path, *learner(tiny_base), config)

    path = tmp_path / "broken.safetensors"
    for _, broken in broken_safetensors(data):
        path.write_bytes(broken)
        case(load, path)
    for key in meta:
        save_file(tensors, path, metadata={k: v for k, v in meta.items() if k != key})
        case(load, path)
        for value in (None, "x", -1, [], {}):
            save_file(tensors, path, metadata=meta | {key: json.dumps(value)})
            case(load, path)
    first = next(k for k in tensors if k.startswith("weights."))
    last = next(k for k in tensors if k.startswith("ema."))
    for wrong in ({first: torch.zeros(1)}, {last: torch.zeros(1)}, {"weights.more": torch.zeros(1)}):
        save_file(tensors | wrong, path, metadata=meta)
        case(load, path, says="delete it")
    for gone in (first, last):
        save_file({k: v for k, v in tensors.items() if k != gone}, path, metadata=meta)
        case(load, path, says="delete it")


def test_a_broken_shard_of_the_pool_is_made_again(
    judge: Callable, tiny_base: BaseModel, tiny_folder: Path, tmp_path: Path
) -> None:
    case, config = judge("train: pool shards"), small_run(tiny_folder, tmp_path / "pool")
    make = lambda: sources.make_source(config.data, tiny_base, progress=False)  # noqa: E731
    whole = make().draw(0, random.Random(0))
    image, latent = whole.image.clone(), whole.latent.clone()  # the file they are mapped from is about to change
    for path in sorted((tmp_path / "pool").rglob("*.safetensors")):
        data = path.read_bytes()
        for _, broken in broken_bytes(data):
            path.unlink()
            path.write_bytes(broken)
            case(make)
            again = make().draw(0, random.Random(0))
            assert torch.equal(again.image, image) and torch.equal(again.latent, latent), path
    for text in ("", "{", "[]", "null", "3", '{"world": 1}'):
        (tmp_path / "pool" / "pool.json").write_text(text)
        case(make, says="data.path")
    case(sources.make_source, replace(config.data, path=str(tmp_path / "pool" / "pool.json")), tiny_base, False)
    for world in ("large", "", "__init__", "small.x"):
        case(replace, config.data, path=str(tmp_path / "other"), world=world, says="data.world")


def test_webdataset_shards(judge: Callable, tmp_path: Path) -> None:
    case = judge("train: WebDataset shards")
    write_views(tmp_path / "views")
    free = shards.FilterConfig(area_min=0.01, sharpness=0.0, single=0.1)
    subjects = photos.list_subjects("folder", tmp_path / "views")
    tar = shards.write_shards(subjects, tmp_path / "shards", free, progress=False)[0]
    data, place = tar.read_bytes(), tmp_path / "broken"
    place.mkdir()

    def read(folder: Path = place) -> None:
        source = shards.ShardSource(folder, 48, 32)
        for index in range(len(source)):
            source.draw(index, random.Random(1))

    for _, broken in broken_bytes(data):
        (place / "shard-00000.tar").write_bytes(broken)
        case(read)
    members = {}
    with tarfile.open(tar) as file:
        for member in file:
            members[member.name] = file.extractfile(member).read()
    for name, original in members.items():
        for _, broken in (("gone", None), *broken_bytes(original)):
            with tarfile.open(place / "shard-00000.tar", "w") as file:
                for other, content in (members | {name: broken}).items():
                    if content is not None:
                        entry = tarfile.TarInfo(other)
                        entry.size = len(content)
                        file.addfile(entry, io.BytesIO(content))
            case(read)
    record = next(name for name in members if name.endswith(".json"))
    for value in (None, 3, [], {}, {"captions": []}, {"captions": [["a", 9]], "subject": 3}):
        with tarfile.open(place / "shard-00000.tar", "w") as file:
            for other, content in (members | {record: json.dumps(value).encode()}).items():
                entry = tarfile.TarInfo(other)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        case(read, says="data.path")
    case(read, tmp_path / "nowhere", says="data.path")
    for folder in (tmp_path / "nowhere", tmp_path / "shards", place):
        for source in ("folder", "mvimgnet", "openimages", "imagenet"):
            case(photos.list_subjects, source, folder)


def test_training_configurations(judge: Callable, tmp_path: Path) -> None:
    case, path = judge("train: configurations"), tmp_path / "c.yaml"
    texts = ["", "base", "[]", "- a", "3", "null", "base: 3", "seed: x", "seed: 1.5", "optim: 3",
    "optim: {steps: many}",
             "optim: {steps: -1}", "optim: {batch: 0}", "optim: {learning_rate: nan}", "optim: {schedule: x}",
             "a: b: c",
             "data: {source: web}", "data: {drop: 2}", "data: {references: 1}", "\t", "{", "&a [*a]",
             "!!python/object:os.x",
             "!!python/object/apply:os.system [x]", "\0", "base: [", "optim: {mixed_precision: fp4}", "log: 1", "x: 1",
             "encoder: 3", "data: null", "optim: {steps: true}", "? {a: b}", "3: 4", "data: {workers: -3}",
             "log: {every: 0}", "log: {save_every: 0}", "data: {size: -5}", "data: {subjects: 0}",
             "optim: {warmup: -1}"]  # fmt: skip
    for text in texts:
        path.write_text(text)
        case(load_config, path)
    for data in (b"\xff\xfe\x00", b"\x80abc", bytes(200)):
        path.write_bytes(data)
        case(load_config, path)
    for override in ("", "=", "x", "optim", "optim=3", "optim.steps", "optim.steps=", "optim.steps=x", "a.b.c=1",
                     "optim.steps.x=1", "base=3", "optim.steps=1e3", "seed=[", "data.drop=nan", "optim..steps=1",
                     ".=1", "loss.lambda_1=inf", "optim.batch=-4", "encoder.width=x", "log=1",
                     "optim.steps=!!x"):  # fmt: skip
        case(load_config, "toyland", [override])
    for name in ("", "nowhere", ".", "/", "..", "\0", "toyland.yml", str(tmp_path)):
        case(load_config, name)


@FEW
@given(json_values)
def test_configurations_by_hypothesis(judge: Callable, values: object) -> None:
    judge("train: configurations")(AdapterTrainConfig.from_dict, values)


# ---- recipes


def png(chunks: dict[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in chunks.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def replay(data: bytes) -> None:
    request_from(*recipe.read_png(data))


SETTINGS = {"version": 1, "prompt": "a bear", "subjects": [{"noun": "bear", "strength": 1.0}], "seed": 3}


def test_recipes(judge: Callable) -> None:
    case = judge("library: recipes")
    found = Segmentation(Image.new("RGB", (32, 32), "red"), np.ones((32, 32), bool))
    chunks = recipe.text_chunks(SETTINGS, [[found]])
    whole = png(chunks)
    replay(whole)
    for _, broken in broken_bytes(whole):
        case(replay, broken)
    for value in ("", "{", "[]", "null", "3", '"x"', "{}", '{"version": 99}', '{"version": "1"}', "[" * 200_000,
                  '{"version": 1}', '{"version": true}', '{"version": 1e999}', "9" * 9000,
                  '{"version": NaN}'):  # fmt: skip
        case(replay, png(chunks | {recipe.KEY: value}), says="recipe|prompt")
    for key in ("prompt", "subjects", "seed", "steps", "guidance", "pictures", "subject_scale", "base",
    "negative_prompt",
                "location_masks"):  # fmt: skip
        for value in (None, -1, "x", [], {}, True, 10**30, [[]], [{}], {"a": []}, "\ud800"):
            case(replay, png(chunks | {recipe.KEY: json.dumps(SETTINGS | {key: value})}))
    reference = f"{recipe.KEY}.subject.1.1"
    for value in ("", "!", "AAAA", "A" * 9999, chunks[reference][:40], chunks[reference][:-8]):
        case(replay, png(chunks | {reference: value}), says="reference")
    clear = io.BytesIO()
    Image.new("RGBA", (40, 40)).save(clear, "WEBP", lossless=True)
    import base64

    case(replay, png(chunks | {reference: base64.b64encode(clear.getvalue()).decode()}), says="empty mask")
    case(replay, png({k: v for k, v in chunks.items() if k != reference}), says="recipe")
    case(replay, png(chunks | {f"{recipe.KEY}.subject.3.1": chunks[reference]}))


@FEW
@given(st.dictionaries(st.sampled_from(["prompt", "subjects", "seed", "steps", "pictures", "base"]), json_values))
def test_recipes_by_hypothesis(judge: Callable, values: dict) -> None:
    case = judge("library: recipes")
    case(request_from, {"prompt": "a bear"} | values, [])
    case(request_from, values, [[], []])
