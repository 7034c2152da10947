"""The page when memory gives out, for clients that send anything, and over many pictures: it says so and goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.robustness.endurance import measure
from tests.robustness.judge import deadline
from tests.robustness.makers import LONG_NOUN, NO_NOUNS, NOUNS, PNG_STANDS, PROMPTS, broken_bytes, sendable
from tests.robustness.oracle import NUMBERS_OF_A_RUN, wrong_in
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


@pytest.fixture(scope="module")
def bear(picture: Path) -> str:
    return str(picture)


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


@pytest.mark.slow
def test_generate_through_the_client(judge: Callable, client: Client, bear: str) -> None:
    case, one = judge("page endpoint: /generate"), {"steps": 1, "guidance": 1}
    for prompt in [*filter(sendable, PROMPTS[::12]), None]:
        case.told(wrong_in({"prompt": prompt}), asked, generate, client, prompt, **one)
    for prompt in (3, ["a"]):  # a text field makes text of it
        case.works(asked, generate, client, prompt, **one)
    for name in NUMBERS_OF_A_RUN:
        for value in (-1, 1e308, None, "nan", "many", 2.5):
            if not (name == "steps" and value is None):
                case.told(wrong_in({name: value}), asked, generate, client, "a bear", **(one | {name: value}))
    for base in ("sd15", "../x", ["toyland"]):
        case.refused("model", asked, generate, client, "a bear", steps=1, base=base)
    for nouns in filter(sendable, NOUNS[::5]):
        right = nouns not in (*NO_NOUNS, LONG_NOUN)
        case.told(None if right else "noun|subject 1", asked, generate, client, "a bear", (bear,), steps=1, nouns=nouns)
    for count, nouns in ((1, ""), (1, "a,b"), (0, "bear"), (2, "bear"), (1, "bear,,cat")):
        case.refused("nouns", asked, generate, client, "a bear", (bear,) * count, steps=1, nouns=nouns)
    case.refused("4 subjects", asked, generate, client, "a bear", (bear,) * 5, steps=1, nouns="a,b,c,d,e")
    case.works(asked, generate, client, "a bear", (bear,), steps=1, nouns="bear")


def test_files_through_the_client(judge: Callable, client: Client, bear: str, tmp_path: Path) -> None:
    case, path = judge("page endpoint: /segment"), tmp_path / "p.png"
    segment = partial(client.predict, api_name="/segment")
    for what, data in list(broken_bytes(Path(bear).read_bytes()))[::4]:
        path.write_bytes(data)
        case.told(None if what in PNG_STANDS else "picture", asked, segment, handle_file(str(path)), None)
    path.write_bytes(b"text")
    case.refused("picture", asked, generate, client, "a bear", (str(path),))
    case.works(asked, segment, handle_file(bear), [[48, 48, 1]])
    for points in ([[5, 5]], [[5, 5, 7]], "x", {"a": 1}, [[1, 2, 1]] * 70):
        case.refused("points", asked, segment, handle_file(bear), points)
    case.refused("click", asked, segment, handle_file(bear), [[10**9, 5, 1]])
    case.refused("picture|file", asked, segment, None, None)
    path_of_ours = {"path": "/etc/passwd"}
    for picture in ("x", 3, path_of_ours, path_of_ours | {"meta": {"_type": "gradio.FileData"}}):
        # what nobody uploaded: refused by us, or by gradio before we see it, which says no more than that
        case.refused("picture|file|raised an exception", asked, segment, picture, None)


def test_maps_through_the_client(judge: Callable, page: Served, bear: str) -> None:
    case, visitor = judge("page endpoint: /maps"), page.visitor()
    maps = partial(visitor.predict, api_name="/maps")
    case.refused("Generate a picture", asked, maps, "bear", 0, 0)
    generate(visitor, references=(bear,))  # two steps, one picture
    for word, told in (
        ("bear", None), ("S*", None), ("visual:1", None), ("", "word"), ("visual:9", "subject 9"),
        ("visual:99999999999999999999", "word"), ("\0", "word"), (None, "word"), ("x" * 3000, "word"),
    ):  # fmt: skip
        case.told(told, asked, maps, word, 0, 0)
        case.refused("step 1000000000", asked, maps, word, 10**9, 0)
    for value, step, picture in ((-1, "step -1", "picture -1"), (9, "step 9", "picture 9"), (None, None, None)):
        case.told(step, asked, maps, "bear", value, 0)
        case.told(picture, asked, maps, "bear", 0, value)
    case.works(asked, maps, "bear", 2, 0)
    case.refused("picture 2", asked, maps, "bear", 0, 2)
    for value in (1.5, "x"):
        case.refused("step", asked, maps, "bear", value, 0)
        case.refused("picture", asked, maps, "bear", 0, value)


# ---- many pictures


def test_memory_and_temporary_files_stay_level(page: Served) -> None:
    """A few pictures; `python -m tests.robustness.endurance` makes three hundred."""
    figures = measure(page, 5, warm=2)
    assert figures["failed"] == 0
    assert figures["files after cleaning"] <= figures["files before"] + 2
    assert figures["last_mb"] - figures["first_mb"] < 60, figures
