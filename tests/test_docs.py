"""The documentation names only what exists: links, anchors, paths, modules, commands and their options."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support import documented

ROOT = Path(__file__).parents[1]
PENDING: tuple[str, ...] = ()  # pages that may still be missing
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("customcontrast", "train", "tests", "examples")
MOST_LINES = 180  # of README

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
PATH = re.compile(r"\.?[\w*-][\w.*-]*(?:/[\w.*-]+)*/?")
MODULE = re.compile(r"(?:customcontrast|train|tests|examples)(?:\.\w+)+")
PLACED = re.compile(r"`(\w+)(?:\.(\w+))?` (?:in|of) `([\w./-]+\.py)`")
RUN = re.compile(r"(?:\S*python[\d.]*|accelerate launch|torchrun)\s+(?:.*?\s)?(-m\s+[\w.]+|[\w./-]+\.py)\b(.*)")


@dataclass(frozen=True)
class Command:
    """One `python -m MODULE …` or `python FILE.py …` of a page."""

    target: str  # dotted module, or a file that ends in .py
    options: tuple[str, ...]  # those that begin with --, without values


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def codes(page: Path) -> list[str]:
    """Everything in single backticks outside fenced blocks."""
    return INLINE.findall(prose(page))


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor or "") of every relative link and picture."""
    for match in LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


def paths(page: Path) -> Iterator[str]:
    """Paths of the repository in backticks: what begins with one of its entries, and every path of a Python file."""
    entries = {entry.name for entry in ROOT.iterdir()} - {".venv", "runs", "out"}
    for code in codes(page):
        if PATH.fullmatch(code) and (("/" in code and code.split("/")[0] in entries) or code.endswith(".py")):
            yield code


def commands(page: Path) -> Iterator[Command]:
    """The Python commands in shell blocks and in backticks."""
    blocks = [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in ("bash", "sh")]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    for line in [*lines, *codes(page)]:
        for part in re.split(r"&&|\|\|?|;", re.sub(r"(^|\s)#.*$", "", line)):
            match = RUN.search(part.strip())
            if match:
                words = shlex.split(re.sub(r"[\[\]…]", " ", match[2]))
                options = [word.split("=")[0] for word in words if word.startswith("--")]
                yield Command(match[1].removeprefix("-m").strip(), tuple(options))


def source(module: str) -> Path | None:
    """The file of a module of this repository, found without importing it."""
    base = ROOT.joinpath(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@functools.cache
def options_of(file: Path, depth: int = 2) -> frozenset[str]:
    """Every "--option" written in a file, and in the modules of this repository that it imports."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"--[\w-]+", node.value):
            found.add(node.value)
        if depth and isinstance(node, ast.ImportFrom) and node.module:
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                if module.startswith(PACKAGES) and source(module):
                    found |= options_of(source(module), depth - 1)
    return frozenset(found)


def entry(target: str) -> Path | None:
    """The file that runs for a command's target; None where there is none."""
    if target.endswith(".py"):
        return ROOT / target if (ROOT / target).is_file() else None
    file = source(target)
    if file is not None and file.name == "__init__.py":
        file = file.with_name("__main__.py")
    return file if file is not None and file.is_file() else None


def defined(file: Path) -> set[str]:
    """Names that a module defines or imports at its top level."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def members(file: Path, name: str) -> set[str]:
    """Methods, properties and fields of a class at a module's top level; {} for what is no class."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), [])
    fields = {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return fields | {node.name for node in body if isinstance(node, ast.FunctionDef)}


def is_here(dotted: str) -> bool:
    """Whether a dotted name is a module or package of this repository, or something defined in one."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:cut]), parts[cut:]
        if source(module) or ROOT.joinpath(*parts[:cut]).is_dir():
            return not rest or (source(module) is not None and rest[0] in defined(source(module)))
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in links(page):
        inside = target == ROOT or ROOT in target.parents
        shown = target.relative_to(ROOT).as_posix() if inside else str(target)
        if shown in PENDING and not target.exists():
            continue
        if not inside or not target.exists():
            broken.append(shown)
        elif anchor and target.suffix == ".md" and anchor not in slugs(target):
            broken.append(f"{shown}#{anchor}")
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_in_backticks_exist(page: Path) -> None:
    assert not [path for path in paths(page) if path not in PENDING and not any(ROOT.glob(path.rstrip("/")))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_stand_in_the_files_that_are_named(page: Path) -> None:
    """`Viewers.show` in `customcontrast/ui/handlers/viewers.py`, and the like."""
    wrong = []
    for first, second, path in PLACED.findall(prose(page)):
        file = ROOT / path
        if first not in defined(file) or (second and second not in members(file, first)):
            wrong.append(f"{first}.{second} in {path}")
    assert not wrong


@pytest.mark.parametrize("task", ["Read Eq. 7", "Change or add a loss", "Add a viewer", "Add a base model"])
def test_a_newcomers_path_names_its_files_step_by_step(task: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(task)}\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL)
    steps = re.findall(r"^\d\. .*(?:\n   .*)*", section[1], re.MULTILINE)
    assert len(steps) >= 4 and len(PLACED.findall(section[1])) >= 2
    for step in steps:
        files = [code for code in INLINE.findall(step) if "/" in code and PATH.fullmatch(code)]
        assert files and all((ROOT / file).exists() for file in files), step


def test_every_public_name_is_documented() -> None:
    import customcontrast

    text = documented.API.read_text(encoding="utf-8")
    assert not [name for name in customcontrast.__all__ if not re.search(rf"\b{name}\b", text)]


def test_documented_signatures_are_those_of_the_code() -> None:
    import customcontrast as cc

    owners = {"CustomContrast": cc.CustomContrast, "model": cc.CustomContrast, "subject": cc.Subject}
    owners["segmenter"] = cc.Segmenter

    def form(function: object) -> list[tuple]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]

    calls = documented.signatures()
    assert {"CustomContrast.load", "model.generate", "load_adapter", "Segmenter"} <= calls.keys()
    for call, text in calls.items():
        owner, _, name = call.rpartition(".")
        function = getattr(owners[owner] if owner else cc, "stream" if call == "model.generate" else name)
        namespace: dict[str, object] = {}
        exec(f"def shown({text}): ...", namespace)
        assert form(namespace["shown"]) == form(function), call
    assert form(cc.CustomContrast.generate)[:2] == form(cc.CustomContrast.stream)[:2]


def test_every_field_of_a_result_is_documented() -> None:
    from customcontrast.output import Result

    assert {field.name for field in dataclasses.fields(Result)} <= set(codes(documented.API))


@pytest.mark.parametrize("endpoint", ["segment", "generate", "maps"])
def test_documented_inputs_of_the_api_are_those_of_the_code(endpoint: str) -> None:
    """In the same order; with the running app, tests/ui/test_app.py compares `view_api` too."""
    tree = ast.parse((ROOT / "customcontrast" / "ui" / "api.py").read_text(encoding="utf-8"))
    function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == endpoint)
    names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "run")]
    assert list(documented.inputs(f"/{endpoint}")) == names


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_in_backticks_exist(page: Path) -> None:
    assert not [code for code in codes(page) if MODULE.fullmatch(code) and not is_here(code)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_can_be_run(page: Path) -> None:
    """The module or file is here, or it is another package's; the options are those that its parser names."""
    wrong = []
    for command in commands(page):
        ours = command.target.endswith(".py") or command.target.split(".")[0] in PACKAGES
        if not ours:
            known = command.target in sys.stdlib_module_names or importlib.util.find_spec(command.target) is not None
            wrong += [] if known else [command.target]
            continue
        file = entry(command.target)
        if file is None:
            wrong.append(command.target)
            continue
        allowed = options_of(file) | {"--help"}
        wrong += [f"{command.target} {option}" for option in command.options if option not in allowed]
    assert not wrong


def test_shell_scripts_that_are_named_exist() -> None:
    named = [
        script for page in PAGES for script in re.findall(r"bash ([\w./-]+\.sh)", page.read_text(encoding="utf-8"))
    ]
    assert named and all((ROOT / script).is_file() for script in named)


def test_the_checks_see_what_they_are_for() -> None:
    """The patterns find commands, paths and links at all, and refuse what is not there."""
    readme = ROOT / "README.md"
    assert {"train.adapter", "app.py"} <= {command.target for page in PAGES for command in commands(page)}
    assert "train/adapter/losses.py" in set(paths(readme)) and any(links(readme))
    assert is_here("customcontrast.config.LocationConfig") and is_here("train.adapter.losses")
    assert not is_here("customcontrast.config.Nothing") and not is_here("train.nothing")
    assert entry("train.nothing") is None and entry("nothing.py") is None
    assert "--limit" in options_of(entry("train.evaluation")) and "--nothing" not in options_of(
        entry("train.evaluation")
    )


def test_tests_that_the_documentation_names_exist() -> None:
    known = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = {(name(page), code) for page in PAGES for code in codes(page) if re.fullmatch(r"test_\w+", code)}
    assert len(named) > 30 and not {one for one in named if one[1] not in known}


def test_the_tour_of_the_page_fits_its_screenshots() -> None:
    """Every cut-out of examples/make_tour.py lies inside its screenshot, which is as wide as the boxes assume."""
    spec = importlib.util.spec_from_file_location("make_tour", ROOT / "examples" / "make_tour.py")
    tour = importlib.util.module_from_spec(spec)
    sys.modules["make_tour"] = tour  # dataclasses look their module up
    spec.loader.exec_module(tour)
    for part in (*tour.LEFT, *tour.RIGHT, *tour.BELOW):
        with Image.open(tour.HERE / "shots" / f"{part.shot}.webp") as shot:
            left, top, right, bottom = part.box
            assert shot.width == tour.WIDTH and 0 <= left < right <= shot.width and 0 <= top < bottom <= shot.height
        width, height = right - left, bottom - top
        assert tour.panel(part, 338).size == (338, round(height * 338 / width) + tour.LINE)


def test_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_package_carries_weights_and_no_logs() -> None:
    """Scores and logs lie under docs/results/data; what is beside the weights goes into every wheel."""
    kinds = {file.suffix for file in (ROOT / "customcontrast" / "weights").rglob("*") if file.is_file()}
    assert kinds == {".safetensors", ".json"}
    assert not list((ROOT / "customcontrast").rglob("training"))


def test_the_citation_is_one() -> None:
    """CITATION.cff and README cite the same paper, with the same authors in the same order."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    authors = re.search(r"author\s*= \{(.+)\}", text)[1].split(" and ")
    assert authors == [f"{person['family-names']}, {person['given-names']}" for person in cited["authors"]]
    assert cited["title"] in text and cited["doi"] in text and cited["doi"].startswith("10.")
