"""Imports go one way: config ← encoder, attention ← conditioning, bases, checkpoint ← pipeline."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "customcontrast"
RANK = {  # a module may import only from modules of its own rank or below
    "config": 0,
    "precision": 0,
    "autoencoder": 0,
    "layout": 0,
    "tensor_files": 0,
    "encoder": 1,
    "attention": 1,
    "placement": 1,
    "prompt": 1,
    "sampling": 1,
    "text_encoder": 1,
    "conditioning": 2,
    "bases": 2,
    "checkpoint": 2,
    "contexts": 2,
    "features": 2,
    "plan": 2,
    "result": 2,
    "subject": 2,
    "passes": 3,
    "pipeline": 3,
    "diffusers_inputs": 3,
    "diffusers_pipeline": 3,
}
PICTURES = {"segmentation", "imageio", "visualize", "precision"}  # arrays and pictures only


def imports(file: Path) -> set[str]:
    """Modules a file imports when it runs (not those only for type checkers)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_core_knows_neither_gradio_nor_training(file: Path) -> None:
    tops = {name.split(".")[0] for name in imports(file)}
    assert not tops & {"gradio", "spaces", "train", "app", "examples", "accelerate"}


@pytest.mark.parametrize("file", [f for f in FILES if part(f) in RANK], ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    inner = {name.split(".")[1] for name in imports(file) if name.startswith("customcontrast.")}
    too_high = {name for name in inner if RANK.get(name, 99) > RANK[part(file)]}
    assert not too_high


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_picture_modules_know_no_model(name: str) -> None:
    files = [file for file in FILES if part(file) == name]
    assert files
    modules = set().union(*(imports(file) for file in files))
    assert {module.split(".")[1] for module in modules if module.startswith("customcontrast.")} <= PICTURES
    assert not {module.split(".")[0] for module in modules} & {"diffusers", "transformers"}


def test_the_package_itself_is_light() -> None:
    code = "import sys, customcontrast; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import customcontrast

    for name in customcontrast.__all__:
        assert getattr(customcontrast, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = customcontrast.nothing
