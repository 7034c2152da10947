"""Nothing is unpickled, and memory that gives out in mid-picture leaves the model fit for the next."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from customcontrast.pipeline import CustomContrast

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "app.py", *(p for d in ("customcontrast", "train", "examples") for p in (ROOT / d).rglob("*.py"))]
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
