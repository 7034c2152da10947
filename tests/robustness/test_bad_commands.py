"""Every command line: wrong words, numbers and files end in exit status 1 or 2 and one sentence, and leave nothing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from customcontrast.ui import server as app
from tests.robustness.makers import NOUNS, PROMPTS, broken_bytes
from tests.robustness.runs import small_run, write_views
from tests.support.serving import EXAMPLES, ROOT, tiny_model
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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("generate_example", ROOT / "examples" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module.main


def sendable(words: list[str]) -> bool:
    """Whether a shell can pass these words."""
    return all("\0" not in word and len(word) < 100_000 and not any(0xD800 <= ord(c) < 0xE000 for c in word) for word in words)  # fmt: skip # noqa: E501


def test_generate_example(judge: Callable, example: Callable, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    case = judge("command: examples/generate.py", out)
    bear = str(EXAMPLES / "bear.png")
    good = {"--reference": bear, "--prompt": "a <bear> on the beach", "--out": str(out), "--steps": "1",
            "--weights": str(weights)}  # fmt: skip

    def run(says: str = "", **changed: str | None) -> None:
        options = good | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        words = [f"{name}={value}" for name, value in options.items() if value is not None]
        if sendable(words):
            case.command(example, words, says)

    for name in ("steps", "seed", "subject_scale"):
        for word in WORDS:
            run(**{name: word})
    for name in ("reference", "prompt", "out"):
        run(says="required", **{name: None})
    broken = tmp_path / "broken.png"
    for _, content in list(broken_bytes((EXAMPLES / "bear.png").read_bytes()))[::3]:
        broken.write_bytes(content)
        run(reference=str(broken))
    for path in ("", "/nowhere.png", str(tmp_path), "/dev/null", "/etc/passwd"):
        run(says=".", reference=path)
        run(says=".", adapter=path or "/")
        run(says=".", weights=path or "/nowhere")
    for base in ("", "sd99", "TOYLAND", "../toyland"):
        run(says="base", base=base)
    for prompt in ("", " ", "<>", "bear", "on the beach", "\ud800"):
        run(prompt=prompt)
    (tmp_path / "file").touch()
    run(says=".", out=str(tmp_path / "file"))
    run(says=".", out="/proc/nowhere/out")


def test_generate_example_prompts(judge: Callable, example: Callable, weights: Path, tmp_path: Path) -> None:
    case = judge("command: examples/generate.py")
    bear = str(EXAMPLES / "bear.png")
    ask = ["--reference", bear, "--out", str(tmp_path / "out"), "--steps", "1", "--weights", str(weights)]
    for prompt in PROMPTS[5::18]:
        if sendable([prompt]):
            case.command(example, [*ask, "--noun", "bear", f"--prompt={prompt}"])
    for noun in NOUNS[::5]:
        if sendable([noun]):
            case.command(example, [*ask, "--prompt", "a bear", f"--noun={noun}"])


def test_app_options(judge: Callable, tmp_path: Path) -> None:
    case = judge("command: app.py")
    for name in ("port", "queue-size"):
        for word in (*WORDS, "0", "99999999", "-5", "70000"):
            case.command(lambda words: bool(app.options(words)) - 1, [f"--{name}={word}"])
    for name in ("weights", "adapter", "sam-checkpoint", "base", "device", "host"):
        for word in ("/nowhere", "./nowhere", "../x", "sd99"):
            case.command(lambda words: bool(app.options(words)) - 1, [f"--{name}={word}"])
    case.command(lambda words: bool(app.options(words)) - 1, ["--nonsense"], says="nonsense")


def test_training(judge: Callable, weights: Path, tmp_path: Path) -> None:
    import yaml

    case, good = judge("command: train.adapter.train"), tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(small_run(weights, tmp_path / "pool", steps=1).to_dict()))
    start = ["--config", str(good), "--output", str(tmp_path / "run"), "--cpu"]
    for setting in (
        "base=sd99", "base=sdxl", "weights=/nowhere", "data.source=web", "data.source=folder", "data.source=shards",
        "data.path=/dev/null", "data.path=/proc/x", "data.world=moon", "data.subjects=0", "data.targets=0",
        "data.references=1", "data.size=7", "data.size=-8", "data.workers=-1", "data.drop=0.9", "optim.batch=0",
        "optim.batch=1.5", "optim.steps=0", "optim.learning_rate=-1", "optim.learning_rate=nan", "optim.ema=2",
        "optim.warmup=-1", "optim.clip_norm=-1", "optim.schedule=linear", "optim.mixed_precision=fp4", "log.every=0",
        "log.save_every=0", "log.keep=0", "log.validate_every=-1", "encoder.width=33", "encoder.heads=0", "encoder.x=1",
        "encoder.depth=1000000", "encoder.width=x", "encoder=3", "loss.temperature=0", "loss.macl_temperature=-1",
        "loss.lambda_1=nan", "seed=x", "seed=-1", "x=1", "optim.steps", "=", "optim={}", "data=[]",
        "log.save_minutes=x",
        "loss.similarity_floor=2", "optim.weight_decay=nan", "data.reference_size=0", "encoder.textual=3",
    ):  # fmt: skip
        AcceleratorState._reset_state(reset_partial_state=True)
        case.command(train.main, [*start, "--set", setting])
    for words in (["--config", "nowhere"], ["--config", "/"], ["--minutes", "x"], ["--resume", "nowhere"],
                  ["--resume", "/"], ["--output", "/proc/x"], ["--output", "/dev/null"], ["--nonsense"],
                  ["--resume", ""], ["--minutes", "nan"], ["--set"]):  # fmt: skip
        AcceleratorState._reset_state(reset_partial_state=True)
        case.command(train.main, [*start, "--output", str(tmp_path / f"r{len(words[-1])}"), *words])


def test_preparing_data(judge: Callable, tmp_path: Path) -> None:
    case, out = judge("command: train.data.samples"), tmp_path / "shards"
    write_views(tmp_path / "views")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "ball").mkdir(parents=True)
    (tmp_path / "bad" / "ball" / "1.jpg").write_bytes(b"no picture")
    for source in ("folder", "mvimgnet", "openimages", "imagenet", ""):
        for place in ("nowhere", "empty", "bad", "views", "views/ball a/0.png"):
            case.command(
                prepare.main, ["prepare", f"--source={source}", f"--input={tmp_path / place}", f"--output={out}"]
            )
    given = ["prepare", "--source=folder", f"--input={tmp_path / 'views'}"]
    for words in ([], ["--output=/proc/x"], ["--output=/dev/null"], [f"--output={out}2", "--size=0"],
                  [f"--output={out}3", "--size=-4"], [f"--output={out}4", "--size=x"], [f"--output={out}5",
                  "--views=0"],
                  [f"--output={out}6", "--views=99"], [f"--output={out}7", "--views=-1"]):  # fmt: skip
        case.command(prepare.main, [*given, *words])
    for words in ([], ["x"], ["prepare", "--config", "nowhere"], ["prepare", "--set", "data.path=/dev/null"],
                  ["prepare", "--set", "data.world=moon"], ["prepare", "--set", "x"]):  # fmt: skip
        case.command(prepare.main, words, says=".")


def test_other_commands(judge: Callable, weights: Path, tmp_path: Path) -> None:
    case = judge("command: evaluate, features, ablate")
    out = f"--out={tmp_path / 'out'}"
    for words in (["--base=sd99"], ["--weights=/nowhere"], ["--adapter=/nowhere"], ["--limit=x"], ["--limit=0"],
                  ["--limit=-3"], ["--world=moon"], ["--readers=/nowhere"], ["--benchmark=/nowhere"], ["--steps=0"],
                  ["--seed=x"], ["--subject-scale=nan"], ["--guidance=nan"]):  # fmt: skip
        case.command(evaluate.main, ["adapter", f"--weights={weights}", out, "--readers=/nowhere", *words], says=".")
    for words in ([], ["x"], ["adapter", "--nonsense"]):
        case.command(evaluate.main, words)
    for words in ([], ["--adapter=/nowhere"], ["--adapter=a=/nowhere"], ["--adapter=a=b", "--base=sd99"],
                  ["--adapter=a=b", "--world=moon"], ["--adapter=a=b", "--subjects=x"], ["--adapter=a=b", "--views=0"],
                  ["--adapter=a=b", "--subjects=0"], ["--adapter=", "--subjects=2"]):  # fmt: skip
        case.command(atlas.main, [f"--weights={weights}", out, "--subjects=2", "--views=2", *words], says=".")
    for words in (["--config=nowhere"], ["--ids", "99"], ["--ids", "x"], ["--seeds", "x"], ["--set", "x"],
                  ["--set", "optim.batch=0"], ["--limit=x"], ["--steps=x"]):  # fmt: skip
        case.command(ablation.main, [out, "--cpu", "--set", f"weights={weights}", *words], says=".")
    for words in (
        [],
        ["x"],
        ["clip", "--preset=x"],
        ["clip", "--steps=x"],
        ["pool", "--count=x"],
        ["unet", "--minutes=x"],
    ):
        case.command(pretrain.main, words, says=".")
