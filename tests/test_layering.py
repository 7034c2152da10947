"""Imports go one way, in the core, on the page and in training; docs/architecture.md draws it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS: dict[str, int] = {  # module or package -> layer; what lies in it may import from its own layer or a lower one
    "customcontrast": 0,  # the package itself names its public parts and imports none
    "customcontrast.errors": 0,
    "customcontrast.specs": 0,
    "customcontrast.precision": 0,
    "customcontrast.tensor_files": 0,
    "customcontrast.transfer": 0,
    "customcontrast.folders": 0,
    "customcontrast.building": 0,
    "customcontrast.layout": 1,
    "customcontrast.memory": 1,
    "customcontrast.layout_channels": 1,
    "customcontrast.output": 1,
    "customcontrast.config": 2,
    "customcontrast.images": 2,
    "customcontrast.segmentation": 2,
    "customcontrast.visualize": 2,
    "customcontrast.toyland": 2,
    "customcontrast.toyland.feature_atlas": 6,
    "customcontrast.attention": 3,
    "customcontrast.encoder": 3,
    "customcontrast.placement": 3,
    "customcontrast.sampling": 3,
    "customcontrast.conditioning": 5,
    "customcontrast.conditioning.prompt": 3,
    "customcontrast.conditioning.text_encoder": 3,
    "customcontrast.base_model": 4,
    "customcontrast.hub": 3,
    "customcontrast.adapter": 5,
    "customcontrast.ip_adapter": 5,
    "customcontrast.warm_start": 5,
    "customcontrast.adapter_files": 6,
    "customcontrast.offload": 6,
    "customcontrast.safety": 4,
    "customcontrast.subject": 5,
    "customcontrast.previews": 5,
    "customcontrast.run_settings": 6,
    "customcontrast.denoiser": 6,
    "customcontrast.map_collector": 6,
    "customcontrast.multi_subject": 7,
    "customcontrast.pipeline": 8,
    "customcontrast.integrations": 9,
    "customcontrast.model_options": 9,
    "customcontrast.ui": 10,
    "customcontrast.ui.service": 10,
    "customcontrast.ui.handlers": 11,
    "customcontrast.ui.theme": 12,
    "customcontrast.ui.wiring": 12,
    "customcontrast.ui.components": 12,
    "customcontrast.ui.sections": 13,
    "customcontrast.ui.api": 14,
    "customcontrast.ui.page": 15,
    "customcontrast.ui.server": 16,
    "customcontrast.cli": 17,
    "train": 20,
    "train.toyland": 20,
    "train.common": 20,
    "train.data": 22,
    "train.data.prepare": 24,  # a command
    "train.base": 23,
    "train.evaluation": 24,
    "train.adapter": 24,
    "train.experiments": 25,
    "train.plan": 25,
}
PICTURES = {"building", "errors", "images", "precision", "segmentation", "visualize"}  # arrays and pictures only
GRADIO = ("customcontrast.ui.sections", "customcontrast.ui.theme", "customcontrast.ui.api", "customcontrast.ui.page",
          "customcontrast.ui.wiring", "customcontrast.ui.server", "customcontrast.ui.components")  # fmt: skip


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


FILES = {name_of(f): f for part in ("customcontrast", "train") for f in sorted((ROOT / part).rglob("*.py"))}


@cache
def imports(module: str, types: bool = True) -> frozenset[str]:
    """Modules that a file imports, anywhere in it. types: also those that only a type checker reads."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if not types and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in inner}
    return frozenset(found)


def layer(module: str) -> int:
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(LAYERS[name] for name in names if name in LAYERS)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    if module.endswith("__main__"):
        return
    ours = {name for name in imports(module, types=False) if name in FILES}
    assert not {name: layer(name) for name in ours if layer(name) > layer(module)}


def test_no_module_is_forgotten() -> None:
    """Every module of the core has a layer of its own or its package's, not the root's."""
    assert not [m for m in FILES if m.startswith("customcontrast.") and layer(m) == 0 and m not in LAYERS]


def test_no_circle_not_even_for_types() -> None:
    ours = {module: {name for name in imports(module) if name in FILES and name != module} for module in FILES}
    left = dict(ours)
    while True:  # what imports nothing that is left cannot be in a circle
        free = {module for module, needs in left.items() if not needs & left.keys()}
        if not free:
            break
        left = {module: needs for module, needs in left.items() if module not in free}
    inside = {module: needs & left.keys() for module, needs in left.items()}
    used = set().union(*inside.values()) if inside else set()
    assert not {module: sorted(needs) for module, needs in inside.items() if module in used}


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("customcontrast")])
def test_the_core_knows_neither_gradio_nor_training(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(module)}
    assert not tops & {"train", "app", "examples", "accelerate"}
    if not module.startswith(GRADIO):
        assert not tops & {"gradio", "spaces"}
    if not module.startswith(("customcontrast.ui", "customcontrast.cli")):
        assert not [name for name in imports(module) if name.startswith("customcontrast.ui")]


@pytest.mark.parametrize("module", FILES)
def test_no_module_knows_its_tests(module: str) -> None:
    assert not [name for name in imports(module) if name.split(".")[0] == "tests"]


def test_data_knows_no_training_not_even_for_types() -> None:
    modules = [m for m in FILES if m.startswith("train.data") and m != "train.data.prepare"]  # that one is a command
    assert not {m: found for m in modules if (found := [n for n in imports(m) if n.startswith("train.adapter")])}


def test_picture_modules_know_no_model() -> None:
    files = [m for m in FILES if m.startswith("customcontrast.") and m.split(".")[1] in PICTURES]
    modules = set().union(*(imports(m) for m in files))
    ours = {name.split(".")[1] for name in modules if name.startswith("customcontrast.")}
    assert ours <= PICTURES and not {name.split(".")[0] for name in modules} & {"diffusers", "transformers"}


def test_no_module_name_occurs_twice() -> None:
    names = Counter(m.rpartition(".")[2] for m, f in FILES.items() if f.name not in ("__init__.py", "__main__.py"))
    assert not {name: count for name, count in names.items() if count > 1}


@pytest.mark.parametrize(
    "module",
    [
        "customcontrast",
        "customcontrast.config",
        "customcontrast.specs",
        "customcontrast.errors",
        "customcontrast.output",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    heavy = "('torch', 'diffusers', 'transformers', 'gradio')"
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import customcontrast

    for name in customcontrast.__all__:
        assert getattr(customcontrast, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = customcontrast.nothing
