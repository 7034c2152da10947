"""The page when memory gives out, for clients that send anything, and over many pictures: it says so and goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.robustness.endurance import measure
from tests.robustness.judge import deadline
from tests.robustness.makers import NOUNS, PROMPTS, broken_bytes
from tests.robustness.page import BEAR, Served, generate, served

FULL = (
    MemoryError,
    torch.OutOfMemoryError,
    lambda *_: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def client(page: Served) -> Client:
    return page.visitor()


# ---- memory


@pytest.mark.parametrize("error", FULL, ids=["MemoryError", "OutOfMemoryError", "allocator"])
def test_memory_that_gives_out_in_mid_picture(page: Served, client: Client, error: Callable) -> None:
    """A clear message for one visitor; those who waited behind, and the next, are served; the picture is right."""
    before = generate(client, references=(BEAR,))[0][0]
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:  # the second step of the first picture
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = page.model.base.unet.mid_block.register_forward_hook(fail)
    outcomes: dict[int, object] = {}

    def visit(number: int, visitor: Client) -> None:
        try:
            outcomes[number] = generate(visitor, references=(BEAR,), steps=3)
        except AppError as failure:
            outcomes[number] = failure

    visitors = [page.visitor() for _ in range(3)]
    threads = [threading.Thread(target=visit, args=pair) for pair in enumerate(visitors)]
    with deadline(60):
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    hook.remove()
    failed = [str(outcome) for outcome in outcomes.values() if isinstance(outcome, AppError)]
    assert len(failed) == 1 and "memory" in failed[0] and "Traceback" not in failed[0] and "GiB" not in failed[0]
    after = generate(client, references=(BEAR,))[0][0]
    assert np.array_equal(np.asarray(Image.open(before)), np.asarray(Image.open(after)))


def test_memory_that_gives_out_while_segmenting(page: Served, client: Client, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(page.service.cutouts._get_segmenter(), "auto", full)
        with pytest.raises(AppError, match="memory"):
            client.predict(handle_file(BEAR), None, api_name="/segment")
    assert client.predict(handle_file(BEAR), None, api_name="/segment")[2]["method"]


# ---- endpoints


def asked(call: Callable, *args: object, **options: object) -> None:
    """A call through gradio_client, its AppError as the sentence that the judge wants."""
    try:
        call(*args, **options)
    except AppError as error:
        raise ValueError(str(error)) from None


def test_generate_through_the_client(judge: Callable, client: Client) -> None:
    case = judge("page endpoint: /generate")
    sendable = [p for p in PROMPTS if not any(0xD800 <= ord(c) < 0xE000 for c in p)]
    for prompt in (*sendable[::7], None, 3, ["a"]):
        case(asked, generate, client, prompt, steps=1, guidance=1)
    for name in ("steps", "guidance", "subject_scale", "seed", "pictures"):
        for value in (-1, 1e308, "many", None, "nan"):
            if not (name == "steps" and value is None):
                case(asked, generate, client, "a bear", **({"steps": 1, "guidance": 1} | {name: value}))
    for base in ("sd15", "../x", ["toyland"]):
        case(asked, generate, client, "a bear", steps=1, base=base)
    for nouns in [n for n in NOUNS if not any(0xD800 <= ord(c) < 0xE000 for c in n)][::5]:
        case(asked, generate, client, "a bear", (BEAR,), steps=1, nouns=nouns)
    for count, nouns in ((1, ""), (1, "a,b"), (0, "bear"), (5, "a,b,c,d,e"), (2, "bear")):
        case(asked, generate, client, "a bear", (BEAR,) * count, steps=1, nouns=nouns, says=".")


def test_files_through_the_client(judge: Callable, client: Client, tmp_path: Path) -> None:
    case, path = judge("page endpoint: /segment"), tmp_path / "p.png"
    for _, data in list(broken_bytes(Path(BEAR).read_bytes()))[::4]:
        path.write_bytes(data)
        case(asked, client.predict, handle_file(str(path)), None, api_name="/segment")
    path.write_bytes(b"text")
    case(asked, generate, client, "a bear", (str(path),), says="picture")
    for points in ([[5, 5]], [[5, 5, 7]], "x", {"a": 1}, [[10**9, 5, 1]], [[1, 2, 1]] * 70):
        case(asked, client.predict, handle_file(BEAR), points, api_name="/segment")
    for picture in (
        None,
        "x",
        3,
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    ):
        case(asked, client.predict, picture, None, api_name="/segment", says=".")


def test_maps_through_the_client(judge: Callable, page: Served) -> None:
    case, visitor = judge("page endpoint: /maps"), page.visitor()
    case(asked, visitor.predict, "bear", 0, 0, api_name="/maps", says="Generate")
    generate(visitor, references=(BEAR,))
    for word in ("bear", "", "S*", "visual:1", "visual:9", "visual:99999999999999999999", "\0", None, "x" * 3000):
        for step in (0, 10**9):
            case(asked, visitor.predict, word, step, 0, api_name="/maps")
    for value in (-1, 9, "x", None, 1.5):
        case(asked, visitor.predict, "bear", value, 0, api_name="/maps")
        case(asked, visitor.predict, "bear", 0, value, api_name="/maps")


# ---- many pictures


def test_memory_and_temporary_files_stay_level(page: Served) -> None:
    """A few pictures; `python -m tests.robustness.endurance` makes three hundred."""
    figures = measure(page, 5, warm=2)
    assert figures["failed"] == 0
    assert figures["files after cleaning"] <= figures["files before"] + 2
    assert figures["last_mb"] - figures["first_mb"] < 60, figures
