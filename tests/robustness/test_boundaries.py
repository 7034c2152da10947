"""Nothing is unpickled, and memory that gives out in mid-picture leaves the model fit for the next."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from customcontrast.pipeline import CustomContrast

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "app.py",
    *(p for d in ("customcontrast", "page", "train", "examples") for p in (ROOT / d).rglob("*.py")),
]
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def test_no_source_unpickles() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNSAFE & {name.split(".")[0] for name in names}, path
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"), path


@pytest.mark.parametrize("error", [MemoryError, torch.cuda.OutOfMemoryError])
def test_next_picture_after_memory_gave_out(tiny_custom: CustomContrast, error: type, cutout) -> None:
    subject = tiny_custom.subject(cutout(0), "bear")
    ask = {"num_inference_steps": 3, "seed": 5}
    before = tiny_custom.generate("a bear S* on a beach", [subject], **ask).images[0]

    def fail(*_: object) -> None:
        raise error("out of memory")

    hook = tiny_custom.base.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(error):
        tiny_custom.generate("a bear S* on a beach", [subject], **ask)
    hook.remove()
    after = tiny_custom.generate("a bear S* on a beach", [subject], **ask).images[0]
    assert np.array_equal(np.asarray(before), np.asarray(after))


def test_no_library_call_unpickles_either() -> None:
    """Loaders that would read a pickle when safetensors are missing are told not to; numpy and yaml are kept safe."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, words = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert words.get("allow_pickle", "False") == "False", path
            assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"), path
            assert "weights_only" not in words or words["weights_only"] == "True", path
            assert words.get("use_safetensors", "True") == "True" and words.get("trust_remote_code") != "True", path
            assert words.get("shell", "False") == "False", path
