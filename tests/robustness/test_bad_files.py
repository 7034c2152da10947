"""Adapters, checkpoints, pools, shards, recipes and configurations that are broken in every layer: each is named."""

from __future__ import annotations

import base64
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

from customcontrast import base_model
from customcontrast.adapter import Adapter
from customcontrast.adapter_files import load_adapter, read_metadata, save_adapter
from customcontrast.base_model import BaseModel, load_base
from customcontrast.segmentation import Segmentation, Segmenter
from customcontrast.ui.service import recipe
from customcontrast.ui.service.request import request_from
from tests.robustness.makers import FEW, PNG_STANDS, Bomb, broken_bytes, broken_safetensors, json_values
from tests.robustness.oracle import wrong_in
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
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    return save_adapter(Adapter.create(tiny_base, **ENCODER), path, note="a" * 64)


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
        case.refused(path.name, load_adapter, path, tiny_base)
        case.refused(path.name, read_metadata, path)
    rng = np.random.default_rng(1)
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    about = header.index(b"a" * 64)  # the note of this adapter: text that says nothing of its weights
    said = header.index(b":", header.index(b"__metadata__")) + 1
    end = json.JSONDecoder().raw_decode(header.decode(), said)[1]  # the rest is keys, types, shapes and places
    for k in range(40):
        note = about + int(rng.integers(64)), int(rng.integers(7))  # seven bits: the text stays ASCII
        weights = int(rng.integers(end, len(header.rstrip()))), int(rng.integers(8))
        for kind, (place, bit), names in (("note", note, None), ("weights", weights, "safetensors|adapter")):
            flipped = bytearray(data)
            flipped[8 + place] ^= 1 << bit
            path = tmp_path / f"{kind}{k}.safetensors"
            path.write_bytes(bytes(flipped))
            case.told(names and path.name, load_adapter, path, tiny_base)


def test_adapters_of_wrong_keys_shapes_and_types(
    judge: Callable, tiny_base: BaseModel, adapter_file: Path, tmp_path: Path
) -> None:
    case = judge("library: adapter contents")
    meta, weights = parts(adapter_file)
    first = next(iter(weights))
    wrong: dict[str, tuple[dict, dict, str | None]] = {
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
        "double": (meta, {k: v.double() for k, v in weights.items()}, None),
        "half": (meta, {k: v.half() for k, v in weights.items()}, None),
        "no metadata": ({}, weights, "not a CustomContrast adapter"),
        "metadata no JSON": (dict.fromkeys(meta, "{"), weights, "cannot be read"),
        "metadata deep": (meta | {"config": "[" * 100_000}, weights, "cannot be read"),
    }
    for key in ("format", "base", "config"):
        what = "base|trained for|adapter" if key == "base" else "not a CustomContrast" if key == "format" else "config"
        wrong[f"without {key}"] = ({k: v for k, v in meta.items() if k != key}, weights, "not a CustomContrast")
        for value in (None, 3, [], {}, "x", True):
            wrong[f"{key} {value!r}"] = (meta | {key: json.dumps(value)}, weights, what)
    config = json.loads(meta["config"])
    for key in config:
        for value in (None, -1, 0, "x", [], 10**12, float("nan"), {"a": 1}, True):
            right = (config[key] is True and value is True) or (key == "text_scales" and value == [])
            about = meta | {"config": json.dumps(config | {key: value})}
            wrong[f"config.{key} {value!r}"] = (about, weights, None if right else key)
    for k, (about, tensors, names) in enumerate(wrong.values()):
        path = tmp_path / f"{k}.safetensors"
        save_file(tensors, path, metadata=about)
        said = case.told(names, load_adapter, path, tiny_base)
        assert not names or not said or path.name in said, said


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
            case.refused(path.name, load_adapter, path, tiny_base)
            clicked = lambda path=path: Segmenter(sam_checkpoint=path).refine(picture(), [(9, 9, 1)])  # noqa: E731
            case.refused("sam_checkpoint", clicked)
            case.refused("PNG", recipe.read_png, path)
            case.refused("image", Segmenter(threads=1).auto, path)
        path = tmp_path / "step-0000003.safetensors"
        path.write_bytes(data)
        case.refused(path.name, training_state.load, path, *learner(tiny_base), AdapterTrainConfig())
    whole = {path.relative_to(tiny_folder): path for path in tiny_folder.rglob("*.safetensors")}
    for relative in whole:  # a base folder with one part pickled
        folder = tmp_path / f"base-{relative.parent}"
        shutil.copytree(tiny_folder, folder)
        (folder / relative).unlink()
        for name in (relative.name, relative.with_suffix(".bin").name, "pytorch_model.bin"):
            (folder / relative.parent / name).write_bytes(buffer.getvalue())
        case.refused("load_base: cannot read", load_base, "toyland", folder, "cpu")
    assert not mark.exists()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))


def learner(base: BaseModel) -> tuple:
    adapter = Adapter.create(base, **ENCODER)
    return adapter, EMA(adapter, 0.9), training_state.make_optimizer(adapter, AdapterTrainConfig().optim)


def test_base_folders(judge: Callable, tiny_folder: Path, tmp_path: Path) -> None:
    case = judge("library: base folders")
    case.works(load_base, "toyland", "", "cpu")  # none: the base's own
    for wrong in ("nowhere", "/", "../..", "a/b/c", "\0", "x" * 5000, 3, str(tmp_path)):
        case.refused("weights", load_base, "toyland", wrong, "cpu")
    for wrong in ("", "sd99", None, 3, ["toyland"]):
        case.refused("base model", load_base, wrong, tiny_folder, "cpu")
    for wrong in ("gpu", "cuda:99", "tpu", 3.5, "\0"):
        case.refused("device", load_base, "toyland", tiny_folder, wrong)


STANDS = {  # files of a base folder and what may become of them: none is needed, or what it lacks has a default
    "model_index.json": (b"", b"{", b"[]", b"null", b'{"_class_name": 3}', None),
    "vocabulary.json": (b"[]", None),
    "feature_extractor/preprocessor_config.json": (b'{"_class_name": 3}',),  # CLIP's own statistics
}
BROKEN_JSON = (b"", b"{", b"[]", b"null", b'{"_class_name": 3}', None)  # None: the file is gone


@pytest.fixture
def whole_parts_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a base whose folder is that of `tiny_folder`, byte for byte, is read once; broken ones are not."""
    read, known = base_model._Parts.read, {}

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def remembered(self: base_model._Parts, cls: type, folder: str, source: str | None = None, **options: object):
        if files(Path(source or self.source) / folder) != files(tiny_folder / folder):
            return read(self, cls, folder, source, **options)
        if (cls, folder) not in known:
            known[cls, folder] = read(self, cls, folder, source, **options)
        return known[cls, folder]

    monkeypatch.setattr(base_model._Parts, "read", remembered)


@pytest.mark.usefixtures("whole_parts_once")
def test_files_of_base_folders(judge: Callable, tiny_folder: Path, tmp_path: Path) -> None:
    """Each file emptied, cut, of another kind, gone: what a base needs is named, what it needs not is not missed."""
    case, folder = judge("library: base folders"), tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    for relative in sorted(path.relative_to(tiny_folder) for path in tiny_folder.rglob("*") if path.is_file()):
        for data in BROKEN_JSON if relative.suffix == ".json" else (b"", None):
            (folder / relative).unlink() if data is None else (folder / relative).write_bytes(data)
            if data in STANDS.get(str(relative), ()):
                case.works(load_base, "toyland", folder, "cpu")
            else:
                said = case.refused("load_base", load_base, "toyland", folder, "cpu")
                assert not said or relative.parts[0] in said.replace(str(folder), "", 1), f"{relative} {data!r}: {said}"
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
    case.works(load, whole)
    for _, broken in broken_safetensors(data):
        path.write_bytes(broken)
        case.refused(path.name, load, path)
    for key in meta:
        save_file(tensors, path, metadata={k: v for k, v in meta.items() if k != key})
        case.refused(path.name, load, path)
        for value in (None, "x", -1, [], {}):
            save_file(tensors, path, metadata=meta | {key: json.dumps(value)})
            case.refused(path.name, load, path)
    first = next(k for k in tensors if k.startswith("weights."))
    last = next(k for k in tensors if k.startswith("ema."))
    for wrong in ({first: torch.zeros(1)}, {last: torch.zeros(1)}, {"weights.more": torch.zeros(1)}):
        save_file(tensors | wrong, path, metadata=meta)
        case.refused("delete it", load, path)
    for gone in (first, last):
        save_file({k: v for k, v in tensors.items() if k != gone}, path, metadata=meta)
        case.refused("delete it", load, path)


def test_a_broken_shard_of_the_pool_is_made_again(
    judge: Callable, tiny_base: BaseModel, tiny_folder: Path, tmp_path: Path
) -> None:
    case, config = judge("train: pool shards"), small_run(tiny_folder, tmp_path / "pool")
    make = lambda: sources.make_source(config.data, tiny_base, progress=False)  # noqa: E731
    whole = make().draw(0, random.Random(0))
    image, latent = whole.image.clone(), whole.latent.clone()  # the file they are mapped from is about to change
    for k, path in enumerate(sorted((tmp_path / "pool").rglob("*.safetensors"))):
        data = path.read_bytes()
        for _, broken in list(broken_bytes(data))[k::3]:  # pictures, latents, CLIP's states: each way once
            path.unlink()
            path.write_bytes(broken)
            case.works(make)
            again = make().draw(0, random.Random(0))
            assert torch.equal(again.image, image) and torch.equal(again.latent, latent), path
    for text in ("", "{", "[]", "null", "3", '{"world": 1}'):
        (tmp_path / "pool" / "pool.json").write_text(text)
        case.refused("data.path", make)
    wrong = replace(config.data, path=str(tmp_path / "pool" / "pool.json"))
    case.refused("data.path", sources.make_source, wrong, tiny_base, False)
    for world in ("large", "", "__init__", "small.x"):
        case.refused("data.world", replace, config.data, path=str(tmp_path / "other"), world=world)


TAR_STANDS = ("64 bytes less", "doubled")  # only zeros behind the last member are gone, or are not reached
MEMBER_STANDS = {  # by kind of file: what is read all the same
    "json": ("gone",),  # pictures without a record are no subject; the other one is whole
    "jpg": ("doubled", "noise at 40"),
    "png": PNG_STANDS,
}


def test_webdataset_shards(judge: Callable, tmp_path: Path) -> None:
    case = judge("train: WebDataset shards")
    write_views(tmp_path / "views")
    free = shards.FilterConfig(area_min=0.01, sharpness=0.0, single=0.1)
    subjects = photos.list_subjects("folder", tmp_path / "views")
    tar = shards.write_shards(subjects, tmp_path / "shards", free, progress=False)[0]
    data, place = tar.read_bytes(), tmp_path / "broken"
    place.mkdir()

    def read(folder: Path = place, what: str = "") -> None:  # what was done to it is told where a case fails
        source = shards.ShardSource(folder, 48, 32)
        for index in range(len(source)):
            source.draw(index, random.Random(1))

    def written(content: dict[str, bytes | None]) -> None:
        with tarfile.open(place / "shard-00000.tar", "w") as file:
            for name, data in content.items():
                if data is not None:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    file.addfile(entry, io.BytesIO(data))

    for what, broken in broken_bytes(data):
        (place / "shard-00000.tar").write_bytes(broken)
        case.told(None if what in TAR_STANDS else "data.path", read, what=what)
    members = {}
    with tarfile.open(tar) as file:
        for member in file:
            members[member.name] = file.extractfile(member).read()
    for name, original in members.items():
        stands = MEMBER_STANDS[name.rpartition(".")[2]]
        for what, broken in (("gone", None), *broken_bytes(original)):
            written(members | {name: broken})
            case.told(None if what in stands else "data.path", read, what=f"{name} {what}")
    record = next(name for name in members if name.endswith(".json"))
    for value in (None, 3, [], {}, {"captions": []}, {"captions": [["a", 9]], "subject": 3}):
        written(members | {record: json.dumps(value).encode()})
        case.refused("data.path", read)
    case.refused("data.path", read, tmp_path / "nowhere")
    for source in ("folder", "mvimgnet", "openimages", "imagenet"):
        case.refused("source" if source == "imagenet" else "input", photos.list_subjects, source, tmp_path / "nowhere")
        for folder in (tmp_path / "shards", place):
            names = {"mvimgnet": photos.MVIMGNET_CLASSES, "openimages": "CSV", "folder": "input"}.get(source, "source")
            case.refused(names, photos.list_subjects, source, folder)


CONFIGURATIONS = {  # a file's text: what is wrong in it
    "": None,
    "null": None,  # nothing is said, and all is as it is by default
    "base": "the file",
    "[]": "the file",
    "- a": "the file",
    "3": "the file",
    "base: 3": "base",
    "seed: x": "seed",
    "seed: 1.5": "seed",
    "optim: 3": "optim",
    "optim: {steps: many}": "optim.steps",
    "optim: {steps: -1}": "optim.steps",
    "optim: {batch: 0}": "batch",
    "optim: {learning_rate: nan}": "optim.learning_rate",
    "optim: {schedule: x}": "optim.schedule",
    "a: b: c": "c.yaml",
    "data: {source: web}": "data.source",
    "data: {drop: 2}": "data.drop",
    "data: {references: 1}": "data.references",
    "\t": "c.yaml",
    "{": "c.yaml",
    "&a [*a]": "the file",
    "!!python/object:os.x": "c.yaml",
    "!!python/object/apply:os.system [x]": "c.yaml",
    "\0": "c.yaml",
    "base: [": "c.yaml",
    "optim: {mixed_precision: fp4}": "optim.mixed_precision",
    "log: 1": "log",
    "x: 1": "x is unknown",
    "encoder: 3": "encoder",
    "data: null": "data",
    "optim: {steps: true}": "optim.steps",
    "? {a: b}": "c.yaml",
    "3: 4": "3 is unknown",
    "3: 4\nx: 1": "3 is unknown",
    "data: {workers: -3}": "data.workers",
    "log: {every: 0}": "log.every",
    "log: {save_every: 0}": "log.save_every",
    "data: {size: -5}": "data.size",
    "data: {subjects: 0}": "data.subjects",
    "optim: {warmup: -1}": "optim.warmup",
}
OVERRIDES = {  # of a preset
    "optim.steps=1e3": None,
    "encoder.width=x": None,  # the encoder's fields are checked with the base that they must fit
    "optim=3": "optim",
    "optim.steps=": "optim.steps",
    "optim.steps=x": "optim.steps",
    "a.b.c=1": "a is unknown",
    "base=3": "base",
    "data.drop=nan": "data.drop",
    "loss.lambda_1=inf": "loss.lambda_1",
    "optim.batch=-4": "batch",
    "log=1": "log",
    **dict.fromkeys(("", "x", "optim", "optim.steps", "optim.steps.x=1", "seed=[", "optim.steps=!!x"), "override"),
    **dict.fromkeys(("=", "optim..steps=1", ".=1"), "override"),
}


def test_training_configurations(judge: Callable, tmp_path: Path) -> None:
    case, path = judge("train: configurations"), tmp_path / "c.yaml"
    for text, names in CONFIGURATIONS.items():
        path.write_text(text)
        case.told(names, load_config, path)
    for data in (b"\xff\xfe\x00", b"\x80abc", bytes(200)):
        path.write_bytes(data)
        case.refused("c.yaml", load_config, path)
    for override, names in OVERRIDES.items():
        case.told(names, load_config, "toyland", [override])
    for name in ("", "nowhere", ".", "/", "..", "\0", "toyland.yml", str(tmp_path)):
        case.refused("config", load_config, name)


@FEW
@given(json_values)
def test_configurations_by_hypothesis(judge: Callable, values: object) -> None:
    judge("train: configurations").told(None if values == {} else "config", AdapterTrainConfig.from_dict, values)


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
    case.works(replay, whole)
    for what, broken in broken_bytes(whole):
        case.told(None if what in PNG_STANDS else "recipe", replay, broken)
    for value in ("", "{", "[]", "null", "3", '"x"', "{}", '{"version": 99}', '{"version": "1"}', "[" * 200_000,
                  '{"version": 1}', '{"version": true}', '{"version": 1e999}', "9" * 9000,
                  '{"version": NaN}'):  # fmt: skip
        case.refused("recipe|prompt", replay, png(chunks | {recipe.KEY: value}))
    settings = ("prompt", "subjects", "seed", "steps", "guidance", "pictures", "subject_scale", "base",
                "negative_prompt", "location_masks")  # fmt: skip
    for key in settings:
        for value in (None, -1, "x", [], {}, True, 10**30, [[]], [{}], {"a": []}, "\ud800"):
            told = "recipe" if key == "subjects" else wrong_in({key: value})
            case.told(told, replay, png(chunks | {recipe.KEY: json.dumps(SETTINGS | {key: value})}))
    reference = f"{recipe.KEY}.subject.1.1"
    for value in ("", "!", "AAAA", "A" * 9999, chunks[reference][:40], chunks[reference][:-8]):
        case.refused("reference", replay, png(chunks | {reference: value}))
    clear = io.BytesIO()
    Image.new("RGBA", (40, 40)).save(clear, "WEBP", lossless=True)
    empty = base64.b64encode(clear.getvalue()).decode()
    case.refused("reference picture .* empty mask", replay, png(chunks | {reference: empty}))
    case.refused("recipe", replay, png({k: v for k, v in chunks.items() if k != reference}))
    case.works(replay, png(chunks | {f"{recipe.KEY}.subject.3.1": chunks[reference]}))  # there is no second subject


@FEW
@given(st.dictionaries(st.sampled_from(["prompt", "subjects", "seed", "steps", "pictures", "base"]), json_values))
def test_recipes_by_hypothesis(judge: Callable, values: dict) -> None:
    case = judge("library: recipes")
    settings = {"prompt": "a bear"} | values
    wrong = [wrong_in({name: value for name, value in settings.items() if name != "subjects"})]
    wrong += [] if settings.get("subjects", []) == [] else ["recipe"]
    case.told("|".join(filter(None, wrong)) or None, request_from, settings, [])
    case.refused("recipe", request_from, values, [[], []])  # by chance no two subjects are described
