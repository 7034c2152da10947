"""The page: how soon it answers, shows a preview and a picture, and is free after Stop; one client, five and twenty."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file

from customcontrast.ui.service.recipe import read_png
from tests.benchmarks.report import Options, Report, table
from tests.robustness.page import EXAMPLES, ROOT, free_port, wait_for
from tests.robustness.raw import Raw

BEAR = str(EXAMPLES / "bear.png")
CROWDS = (1, 5, 20)
EACH = 2  # pictures of each client of a crowd


@contextlib.contextmanager
def server(folder: Path, device: str) -> Iterator[tuple[str, dict[str, float]]]:
    """`python app.py` with the shipped model; (address, seconds until the page answers and a picture is there)."""
    port, log = free_port(), folder / "server.log"
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command, start = [sys.executable, str(ROOT / "app.py"), f"--port={port}", f"--device={device}"], time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=environment)
    url = f"http://127.0.0.1:{port}/"
    try:
        wait_for(url, process, 180, log)
        answered = time.perf_counter() - start
        ask(Client(url, verbose=False, download_files=str(folder / "d0")), steps=1)
        yield url, {"command → page answers": answered, "command → first picture (1 step)": time.perf_counter() - start}
    finally:
        process.terminate()
        process.wait(30)


def ask(client: Client, steps: int, subject: bool = False, seed: int = 0) -> object:
    references, nouns = ([handle_file(BEAR)], "bear") if subject else ([], "")
    return client.predict(
        references, nouns, "a bear on the beach", "", steps, 4.0, 1.0, seed, 1, True, "toyland", api_name="/generate"
    )


def press(raw: Raw, steps: int) -> Iterator[tuple[float, str]]:
    """Upload a subject as the page does, press Generate: (seconds since the click, what came), message by message."""
    with Path(BEAR).open("rb") as file:
        path = raw.http.post(f"{raw.url}/gradio_api/upload", files={"files": ("bear.png", file, "image/png")}).json()[0]
    upload = raw.events("upload-1")[0]
    raw.send(upload, [{"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "bear.png"}])
    event = next(d for d in raw.events("generate") if d["inputs"])
    data = raw.defaults(event)
    ids = {c["id"]: (c["props"].get("elem_id") or c["props"].get("label") or "") for c in raw.config["components"]}
    names = [str(ids[number]).lower() for number in event["inputs"]]
    for name, value in {"prompt": "a bear on the beach", "noun-1": "bear", "steps": steps}.items():
        data[next(i for i, text in enumerate(names) if text.startswith(name))] = value
    yield from raw.follow(event, data)


def click(url: str, steps: int) -> dict[str, float]:
    """Seconds from the click to the first preview and to the picture."""
    preview = None
    for seconds, message in press(Raw(url), steps):
        if preview is None and "gradio_api/file=" in message and "process_generating" in message:
            preview = seconds
    return {"click → first preview": preview or seconds, "click → picture": seconds}


def stop(url: str, folder: Path) -> float:
    """Seconds from Stop, in the middle of a long picture, until another visitor has a picture of one step, less what
    that takes on an idle page."""
    other = Client(url, verbose=False, download_files=str(folder / "stop"))
    idle = min(_timed(lambda: ask(other, 1)) for _ in range(3))
    raw = Raw(url)
    for seconds, message in press(raw, 100):
        if seconds > 1 and "process_generating" in message:
            break
    start = time.perf_counter()
    raw.cancel()
    ask(other, 1)
    return max(0.0, time.perf_counter() - start - idle)


def _timed(call: object) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def crowd(url: str, count: int, steps: int, folder: Path) -> dict[str, float]:
    """So many clients at once, each asking for EACH pictures in turn."""
    clients = [Client(url, verbose=False, download_files=str(folder / f"c{count}-{k}")) for k in range(count)]
    waits: list[list[float]] = [[] for _ in clients]
    failed: list[str] = []
    others: list[int] = []  # seeds of pictures that came to a client who had not asked for them

    def visit(number: int) -> None:
        for turn in range(EACH):
            try:
                began, seed = time.perf_counter(), number * EACH + turn
                files, _, recipe = ask(clients[number], steps, seed=seed)
                waits[number].append(time.perf_counter() - began)
                inside, _ = read_png(files[0])
                others.extend(got["seed"] for got in (recipe, inside) if got["seed"] != seed)
            except Exception as error:  # noqa: BLE001 - counted; the crowd goes on
                failed.append(str(error))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(count)]
    start = time.perf_counter()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    seconds, every = time.perf_counter() - start, [w for client in waits for w in client]
    means = np.array([statistics.mean(client) for client in waits if client])
    return {
        "clients": count, "failed": len(failed), "mixed up": len(others), "pictures a second": len(every) / seconds,
        "median wait": statistics.median(every),
        "longest wait": max(every), "fairness": float(means.sum() ** 2 / (len(means) * (means**2).sum())),
    }  # fmt: skip


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory() as name, server(Path(name), options.device) as (url, figures):
        httpx.get(url)
        clicks = [click(url, options.steps) for _ in range(max(3, options.rounds // 2))]
        figures |= {key: statistics.median(c[key] for c in clicks) for key in clicks[0]}
        figures["Stop → worker free"] = stop(url, Path(name))
        crowds = [crowd(url, count, options.steps, Path(name)) for count in CROWDS]
    lines = [f"{name}: {seconds:.2f} s" for name, seconds in figures.items()]
    lines += table(
        ("clients at once", "failed", "mixed up", "pictures/s", "median wait s", "longest wait s",
         "fairness (Jain, 1 = equal)"),
        [(*(str(c[k]) for k in list(c)[:3]), *(f"{c[k]:.2f}" for k in list(c)[3:])) for c in crowds],
    )  # fmt: skip
    title = f"The page: shipped Toyland, {options.steps} steps, {EACH} pictures a client"
    return Report(title, lines, {"seconds": figures, "crowds": crowds})
