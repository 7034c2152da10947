"""The wheel: what it holds, and that it works in an empty environment outside the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAX_BYTES = 130 * 2**20


def listed(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))}


def test_requirements_are_those_of_the_package() -> None:
    assert listed("requirements.txt") == set(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    assert listed("requirements-train.txt") == set(extras["train"])
    assert listed("requirements-dev.txt") == set(extras["dev"]) - {"customcontrast[train]"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, so that no build folder is left behind; stored, as weights hardly shrink."""
    copy, out = tmp_path_factory.mktemp("tree") / "tree", tmp_path_factory.mktemp("wheel")
    copy.mkdir()
    for name in ("customcontrast", "examples", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    build.append("--config-settings=--build-option=--compression=stored")
    run = subprocess.run(build, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_page_and_no_logs(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    wanted = ("weights/toyland/adapter.safetensors", "weights/toyland2/base.json", "ui/examples/prompts.json",
              "ui/examples/bear.png", "ui/static/page.css")  # fmt: skip
    assert {f"customcontrast/{name}" for name in wanted} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"customcontrast", f"customcontrast-{PROJECT['version']}.dist-info"}
    assert not [name for name in names if re.search(r"\.jsonl$|/training/|__pycache__", name)]


@pytest.mark.slow
def test_an_installed_wheel_makes_a_picture_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that borrows the libraries, so that nothing is downloaded; nothing of the tree."""
    place = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "-q"]
    install += ["--target", str(place), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    picture = place / "customcontrast" / "ui" / "examples" / "bear.png"
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(place)!r})",
        "from customcontrast.cli import main",
        "sys.exit(main())",
    ]
    code = "\n".join(lines)
    asked = ["generate", "--reference", str(picture), "--prompt", "a <bear> on the beach", "--steps", "2"]
    command = [sys.executable, "-I", "-c", code, *asked, "--out", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "out" / "picture.png").stat().st_size > 1000
    script = (place / "bin" / "customcontrast").read_text()
    assert "from customcontrast.cli import main" in script
