"""Visitors who guess paths and clients that ignore the page: neither gets what is not theirs, nor more than others."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from gradio_client.exceptions import AppError

from customcontrast.config import LIMITS
from tests.robustness.page import BEAR, EXAMPLES, Served, generate, served
from tests.robustness.raw import Raw

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("page"), queue_size=3) as running:
        (running.folder / "secret.txt").write_text("not for visitors")
        yield running


def fetch(page: Served, path: str) -> httpx.Response:
    return httpx.get(f"{page.url.rstrip('/')}{path}", timeout=30)


def spellings(path: Path) -> Iterator[str]:
    """Ways in which a client may ask for a file of the machine."""
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/stream/"):
        for spelled in (str(path), quote(str(path), safe=""), f"/{path}", f"{EXAMPLES}/../{path.name}"):
            yield f"{route}{spelled}"
    up = "../" * 12
    yield from (f"/gradio_api/file={up}{path}", f"/static/{up}{path}", f"/gradio_api/file=file://{path}")
    yield f"/gradio_api/file={quote(up, safe='')}{quote(str(path), safe='')}"
    yield f"/gradio_api/file={quote(quote(str(path), safe=''), safe='')}"


# ---- files


def test_nothing_outside_the_served_folders(page: Served) -> None:
    inside = [ROOT / "app.py", ROOT / "customcontrast" / "ui" / "page.py"]
    machine = [Path("/etc/passwd"), Path("/proc/self/environ"), page.folder / "secret.txt"]
    weights = [page.folder / "tiny" / "adapter.safetensors"]
    for path in (*inside, *machine, *weights):
        known = path.read_bytes()[:200] if path.is_file() else b""
        for address in spellings(path):
            answer = fetch(page, address)
            assert answer.status_code >= 400 or not known or known not in answer.content, address
    assert fetch(page, f"/gradio_api/file={EXAMPLES / 'bear.png'}").status_code == 200  # the check can succeed


def test_another_visitors_files_cannot_be_guessed(page: Served) -> None:
    """A folder has 128 bits of chance in its name; none is listed; a neighbour's name is no help."""
    visitor = page.visitor()
    generate(visitor, "a bear on the beach", (BEAR,))
    generate(visitor, "a bear on the beach", (BEAR,))
    made = sorted(page.cache.rglob("customcontrast-seed3-1.png"))
    assert len(made) >= 2
    folders = {path.parent for path in made}
    assert len(folders) == len(made)
    names = [path.parent.name for path in made if re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", path.parent.name)]
    assert len(names) == len(made) and len(set(names)) == len(names)
    shared = len(_common([name for name in names if len(name) == 32]))
    assert shared < 8, "folder names have a common beginning"
    for folder in (page.cache, *folders, page.cache / "..", page.folder):
        for slash in ("", "/"):
            answer = fetch(page, f"/gradio_api/file={folder}{slash}")
            assert answer.status_code >= 400 or "customcontrast-seed" not in answer.text
    own = fetch(page, f"/gradio_api/file={made[0]}")
    place, name = made[0].parent, made[0].name
    others = [place.with_name(text) for text in ("0" * 32, "*", place.name[:-1] + "?")]
    guesses = [page.cache / name, *(other / name for other in others)]
    assert all(fetch(page, f"/gradio_api/file={guess}").status_code >= 400 for guess in guesses)
    assert own.status_code == 200  # who knows the whole address (its owner) has it


def _common(names: list[str]) -> str:
    pairs = zip(*names, strict=True)
    return "".join(letters[0] for letters in itertools.takewhile(lambda letters: len(set(letters)) == 1, pairs))


def test_another_session_has_neither_run_nor_recipe(page: Served) -> None:
    first, second = page.visitor(), page.visitor()
    secret = "a bear on the beach with a zebra"
    generate(first, secret, (BEAR,))
    with pytest.raises(AppError, match="same session"):
        second.predict("zebra", 0, 0, api_name="/maps")
    raw = Raw(page.url)
    maps = next(d for d in raw.config["dependencies"] if d["api_name"] == "maps")
    for state in (None, {"session": first.session_hash}, first.session_hash, {"path": "x"}, 1):
        answer = json.dumps(raw.send(maps, [state, "zebra", 0, 0]))
        assert secret not in answer and '"success": true' not in answer
    assert secret not in fetch(page, "/config").text and secret not in fetch(page, "/gradio_api/info").text


def test_uploads_of_paths_are_refused(page: Served) -> None:
    """A file named by its path on the server, as if it had been uploaded, is not opened."""
    raw = Raw(page.url)
    segment = next(d for d in raw.config["dependencies"] if d["api_name"] == "segment")
    for path in ("/etc/passwd", str(ROOT / "README.md"), str(page.folder / "secret.txt"), "../../etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png", "url": None}
        answer = json.dumps(raw.send(segment, [file, None]))
        assert '"success": true' not in answer and "not for visitors" not in answer and "Traceback" not in answer
        for address in ("file:///etc/passwd", "http://127.0.0.1:1/x.png"):
            answer = json.dumps(raw.send(segment, [file | {"path": None, "url": address}, None]))
            assert '"success": true' not in answer and "root:" not in answer


# ---- caps


def press(raw: Raw, **changed: object) -> list[dict]:
    """The Generate button, with values that the page would never send."""
    event = next(d for d in raw.events("generate") if d["inputs"])
    data = raw.defaults(event)
    labels = [next(c["props"].get("elem_id") or c["props"].get("label") or "" for c in raw.config["components"]
                   if c["id"] == number) for number in event["inputs"]]  # fmt: skip
    for name, value in {"prompt": "a red car", **changed}.items():
        place = next(i for i, text in enumerate(labels) if str(text).lower().replace(" ", "_").startswith(name))
        data[place] = value
    return raw.send(event, data)


def outcome(messages: list[dict]) -> str:
    return json.dumps(messages[-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 10**6),
        ("seed", -5),
        ("seed", 10**40),
        ("prompt", "x" * 10**6),
        ("steps", "many"),
    ],
)
def test_caps_hold_against_a_client_that_ignores_the_page(page: Served, name: str, value: object) -> None:
    answer = outcome(press(Raw(page.url), **{name: value}))
    assert "cc-error" in answer or '"success": false' in answer
    assert "Traceback" not in answer and ".png" not in answer


def test_a_client_cannot_have_more_pictures_than_the_page_offers(page: Served) -> None:
    with pytest.raises(AppError, match="number of pictures"):
        generate(page.visitor(), pictures=LIMITS["num_images"].public_high + 1)
    with pytest.raises(AppError, match="number of pictures"):
        generate(page.visitor(), pictures=10**9)


def test_the_queue_has_an_end(page: Served) -> None:
    """More waiting clients than --queue-size: the last are told so at once, the first are served."""
    raws = [Raw(page.url) for _ in range(8)]
    event = next(d for d in raws[0].config["dependencies"] if d["api_name"] == "generate")
    data = raws[0].defaults(event)
    data[:5] = [[], "", "a red car", "", 60]
    bodies = [{"data": data, "fn_index": event["id"], "session_hash": raw.session} for raw in raws]
    answers = [r.http.post(f"{r.url}/gradio_api/queue/join", json=b) for r, b in zip(raws, bodies, strict=True)]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused and all("full" in answer.text.lower() for answer in refused)
    assert sum(answer.status_code == 200 for answer in answers) <= 3 + 2


def test_a_body_that_is_too_large_or_no_json_is_refused(page: Served) -> None:
    address = f"{page.url.rstrip('/')}/gradio_api"
    too_large = {"files": ("a.png", b"x" * (33 << 20), "image/png")}
    assert httpx.post(f"{address}/upload", files=too_large, timeout=60).status_code in (400, 413, 500)
    for body in (b"", b"{", b"[]", b"null", b'{"fn_index": 99999, "data": []}', b'{"fn_index": "x"}', b'{"data": 3}'):
        answer = httpx.post(f"{address}/queue/join", content=body, headers={"content-type": "application/json"})
        assert answer.status_code >= 400 and "Traceback" not in answer.text
    assert not [path for path in page.cache.rglob("*") if path.is_file() and path.stat().st_size > 32 << 20]
    assert fetch(page, "/").status_code == 200
