"""Every command line: wrong words, numbers and files end in exit status 1 or 2 and a sentence that names the option."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from customcontrast.pipeline import CustomContrast
from customcontrast.ui import server as app
from tests.robustness.judge import command
from tests.robustness.makers import LONG_NOUN, NO_NOUNS, NOUNS, PNG_STANDS, PROMPTS, broken_bytes, sendable
from tests.robustness.runs import small_run, write_views
from tests.support.serving import ROOT
from train.adapter import train
from train.base import pretrain
from train.data import prepare
from train.evaluation import atlas, evaluate
from train.experiments import ablation

WORDS = ("", "-1", "nan", "many", "1e99", "\u0663", "None", "[]", "0x5")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("generate_example", ROOT / "examples" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module.main


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was loaded is loaded no second time in this test; one that cannot be loaded is tried each time."""
    monkeypatch.setattr(CustomContrast, "load", functools.cache(CustomContrast.load))


def shell_takes(word: str) -> bool:
    """Whether a shell can pass this word."""
    return "\0" not in word and len(word) < 100_000 and sendable(word)


@pytest.mark.usefixtures("loaded_once")
def test_generate_example(judge: Callable, example: Callable, weights: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    case, call = judge("command: examples/generate.py", out), command(example)
    good = {"--reference": str(picture), "--prompt": "a <bear> on the beach", "--out": str(tmp_path / "right"),
            "--steps": "1", "--weights": str(weights)}  # fmt: skip

    def words(**changed: str | None) -> list[str]:
        options = good | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        return [f"{name}={value}" for name, value in options.items() if value is not None]

    case.works(call, words())
    good["--out"] = str(out)  # where nothing may be left
    for name, right in (("steps", "\u0663"), ("seed", "\u0663"), ("subject_scale", "-1 \u0663")):
        for word in WORDS:
            ends = case.works if word in right.split() else partial(case.refused, name.replace("_", "."))
            ends(call, words(**{name: word}, **({"out": good["--out"] + "x"} if word in right.split() else {})))
    for name in ("reference", "prompt", "out"):
        case.refused(f"required: --{name}", call, words(**{name: None}))
    broken = tmp_path / "broken.png"
    for what, content in list(broken_bytes(picture.read_bytes()))[::3]:
        broken.write_bytes(content)
        if what in PNG_STANDS:
            case.works(call, words(reference=str(broken), out=str(tmp_path / "right")))
        else:
            case.refused("image", call, words(reference=str(broken)))
    for path in ("", "/nowhere.png", str(tmp_path), "/dev/null", "/etc/passwd"):
        case.refused("image", call, words(reference=path))
        case.refused("adapter", call, words(adapter=path or "/"))
        case.refused("load_base|weights", call, words(weights=path or "/nowhere"))
    for base in ("", "sd99", "TOYLAND", "../toyland"):
        case.refused("base model", call, words(base=base))
    for prompt in ("", " ", "<>", "bear"):
        case.refused("mark its word", call, words(prompt=prompt))
    case.works(call, words(prompt="on the beach", out=str(tmp_path / "right")))
    (tmp_path / "file").touch()
    for folder in (str(tmp_path / "file"), str(tmp_path / "file" / "x"), "/proc/nowhere/out"):
        case.refused("--out", call, words(out=folder))


@pytest.mark.usefixtures("loaded_once")
def test_generate_example_prompts(
    judge: Callable, example: Callable, weights: Path, picture: Path, tmp_path: Path
) -> None:
    case, call = judge("command: examples/generate.py"), command(example)
    out = str(tmp_path / "out")
    ask = ["--reference", str(picture), "--out", out, "--steps", "1", "--weights", str(weights)]
    for prompt in filter(shell_takes, PROMPTS[5::18]):
        too_long = prompt.startswith("a" * 5000)
        case.told("prompt" if too_long else None, call, [*ask, "--noun", "bear", f"--prompt={prompt}"])
    for noun in filter(shell_takes, NOUNS[::3]):
        # an empty noun is none, and the prompt is asked for it
        told = None if noun not in (*NO_NOUNS[1:], LONG_NOUN) else "prompt" if noun == LONG_NOUN else "noun"
        case.told(told, call, [*ask, "--prompt", "a bear", f"--noun={noun}"])


def test_app_options(judge: Callable, tmp_path: Path) -> None:
    case, call = judge("command: app.py"), command(lambda words: bool(app.options(words)) - 1)
    for name, right in (("port", ("\u0663",)), ("queue-size", ("\u0663", "99999999", "70000"))):
        for word in (*WORDS, "0", "99999999", "-5", "70000"):
            case.told(None if word in right else f"--{name}", call, [f"--{name}={word}"])
    for name in ("weights", "adapter", "sam-checkpoint", "base", "device", "host"):
        for word in ("/nowhere", "./nowhere", "../x", "sd99"):
            # a name that is no path may be one of the hub; whether a host is one, the system says when the page starts
            right = name == "host" or (name == "weights" and word == "sd99")
            case.told(None if right else f"--{name}", call, [f"--{name}={word}"])
    for device in ("cpu", "cuda", "cuda:1"):
        case.works(call, [f"--device={device}"])
    case.refused("--nonsense", call, ["--nonsense"])


SETTINGS = {  # --set of a training run: what the sentence names where that is not the field itself
    "base=sd99": "base model", "base=sdxl": "load_base", "weights=/nowhere": "weights",
    "data.source=folder": "data.path", "data.source=shards": "data.path",
    "optim.batch=0": "batch", "optim.steps=0": "steps",
    "encoder.width=33": "width", "encoder.heads=0": "heads", "encoder.x=1": "field x", "encoder.depth=1000000": "depth",
    "encoder.width=x": "width", "encoder.textual=3": "textual",
    "optim.steps": "override", "=": "override",
} | {setting: setting.partition("=")[0] for setting in (
    "data.source=web", "data.path=/dev/null", "data.path=/proc/x", "data.world=moon", "data.subjects=0",
    "data.targets=0", "data.references=1", "data.size=7", "data.size=-8", "data.workers=-1", "data.drop=0.9",
    "optim.batch=1.5", "optim.learning_rate=-1", "optim.learning_rate=nan", "optim.ema=2", "optim.warmup=-1",
    "optim.clip_norm=-1", "optim.schedule=linear", "optim.mixed_precision=fp4", "log.every=0", "log.save_every=0",
    "log.keep=0", "log.validate_every=-1", "encoder=3", "loss.temperature=0", "loss.macl_temperature=-1",
    "loss.lambda_1=nan", "seed=x", "seed=-1", "x=1", "data=[]", "log.save_minutes=x", "loss.similarity_floor=2",
    "optim.weight_decay=nan", "data.reference_size=0",
)}  # fmt: skip


def test_training(judge: Callable, weights: Path, tmp_path: Path) -> None:
    case, call, good = judge("command: train.adapter"), command(train.main), tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(small_run(weights, tmp_path / "pool", steps=1).to_dict()))
    start = ["--config", str(good), "--output", str(tmp_path / "run"), "--cpu"]
    for setting, names in SETTINGS.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        case.refused("x is unknown" if setting == "x=1" else names, call, [*start, "--set", setting])
    for words in (["--config", "nowhere"], ["--config", "/"], ["--minutes", "x"], ["--minutes", "nan"],
                  ["--minutes", "-1"], ["--resume", "nowhere"], ["--resume", "/"], ["--resume", ""],
                  ["--output", "/proc/x"], ["--output", "/dev/null"], ["--nonsense"], ["--set"]):  # fmt: skip
        AcceleratorState._reset_state(reset_partial_state=True)
        case.refused(words[0].strip("-"), call, [*start, "--output", str(tmp_path / f"r{len(words[-1])}"), *words])


def test_preparing_data(judge: Callable, tmp_path: Path) -> None:
    case, call, out = judge("command: train.data prepare"), command(prepare.main), tmp_path / "shards"
    write_views(tmp_path / "views")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "ball").mkdir(parents=True)
    (tmp_path / "bad" / "ball" / "1.jpg").write_bytes(b"no picture")
    named = {"folder": "input", "mvimgnet": "mvimgnet_category", "openimages": "CSV"}
    for source in ("folder", "mvimgnet", "openimages", "imagenet", ""):
        for place in ("nowhere", "empty", "bad", "views", "views/ball a/0.png"):
            words = ["prepare", f"--source={source}", f"--input={tmp_path / place}", f"--output={out / place[:5]}"]
            names = "--source" if source not in named else named[source] if "/" not in place else "input"
            names = "input" if place == "nowhere" and source in named else names
            right = source == "folder" and place in ("bad", "views")  # of "bad" nothing is kept, and that is told
            case.told(None if right else names, call, words)
    given = ["prepare", "--source=folder", f"--input={tmp_path / 'views'}"]
    for k, words in enumerate((["--size=0"], ["--size=-4"], ["--size=x"], ["--views=0"], ["--views=-1"])):
        case.refused(words[0].partition("=")[0], call, [*given, f"--output={out}{k}", *words])
    case.works(call, [*given, f"--output={out}9", "--views=99"])  # no subject has so many, and that is told
    for words in ([], ["--output=/proc/x"], ["--output=/dev/null"]):
        case.refused("output", call, [*given, *words])
    for words, names in (([], "command"), (["x"], "command"), (["prepare", "--config", "nowhere"], "config"),
                         (["prepare", "--set", "data.path=/dev/null"], "data.path"),
                         (["prepare", "--set", "data.world=moon"], "data.world"),
                         (["prepare", "--set", "x"], "override")):  # fmt: skip
        case.refused(names, call, words)


def test_evaluating(judge: Callable, weights: Path, tmp_path: Path) -> None:
    case, call, out = judge("command: train.evaluation"), command(evaluate.main), f"--out={tmp_path / 'out'}"
    for words in (["--base=sd99"], ["--weights=/nowhere"], ["--adapter=/nowhere"], ["--limit=x"], ["--limit=0"],
                  ["--limit=-3"], ["--world=moon"], ["--readers=/nowhere"], ["--benchmark=/nowhere"], ["--steps=0"],
                  ["--seed=x"], ["--seed=-1"], ["--subject-scale=nan"], ["--guidance=nan"], []):  # fmt: skip
        name = words[0].partition("=")[0].strip("-") if words else "readers"
        given = ["adapter", f"--weights={weights}", out, "--readers=/nowhere", *words]
        case.refused(name.replace("-", "."), call, given)
    for words, names in (([], "command"), (["x"], "command"), (["adapter", "--nonsense"], "--nonsense")):
        case.refused(names, call, words)
    for words, names in (([], "--folder"), (["--folder=/nowhere"], "folder"), (["--base=sd15"], "--base"),
                         (["--limit=0"], "--limit"), (["--steps=x"], "--steps")):  # fmt: skip
        case.refused(names, call, ["photographs", f"--weights={weights}", out, *(words and ["--folder=/tmp"]), *words])
    call = command(atlas.main)
    for words, names in (([], "--adapter"), (["--adapter=/nowhere"], "--adapter"),
                         (["--adapter=a=/nowhere"], "load_adapter"), (["--adapter=a=b", "--base=sd99"], "--base"),
                         (["--adapter=a=b", "--world=moon"], "world"),
                         (["--adapter=a=b", "--subjects=x"], "--subjects"),
                         (["--adapter=a=b", "--views=0"], "--views"),
                         (["--adapter=a=b", "--subjects=0"], "--subjects"),
                         (["--adapter=", "--subjects=2"], "--adapter")):  # fmt: skip
        case.refused(names, call, [f"--weights={weights}", out, "--subjects=2", "--views=2", *words])


def test_experiments_and_the_base(judge: Callable, weights: Path, tmp_path: Path) -> None:
    case, call = judge("command: train.experiments, train.base"), command(ablation.main)
    for words, names in ((["--config=nowhere"], "config"), (["--ids", "99"], "--ids"), (["--ids", "x"], "--ids"),
                         (["--seeds", "x"], "--seeds"), (["--set", "x"], "override"),
                         (["--set", "optim.batch=0"], "batch"), (["--limit=x"], "--limit"), (["--limit=0"], "limit"),
                         (["--steps=x"], "--steps"), (["--steps=0"], "steps")):  # fmt: skip
        case.refused(names, call, [f"--out={tmp_path / 'out'}", "--cpu", "--set", f"weights={weights}", *words])
    for words, names in (([], "stage"), (["x"], "stage"), (["clip", "--preset=x"], "--preset"),
                         (["clip", "--steps=x"], "--steps"), (["pool", "--count=x"], "--count"),
                         (["unet", "--minutes=x"], "--minutes")):  # fmt: skip
        case.refused(names, command(pretrain.main), words)
