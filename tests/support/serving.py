"""What the tests of the page share: a tiny model on disk, and the server as README starts it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from customcontrast.adapter_files import save_adapter
from customcontrast.base_model import FACTS, load_base
from customcontrast.layout import LAYOUT_CHANNELS
from tests.support.tiny_models import random_adapter, save_tiny_toyland

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def tiny_model(folder: Path) -> Path:
    """A tiny base with a random adapter beside it, as `--weights` wants it."""
    save_tiny_toyland(folder)
    save_adapter(random_adapter(load_base("toyland", weights=folder, device="cpu")), folder / "adapter.safetensors")
    return folder


LAYOUTS = {  # what a base with layout says of its world, see `layout.LayoutPrior`
    "nouns": {"bear": "bear", "teddy": "bear", "cat": "cat"},
    "kinds": {
        "bear": [[0.2, 0.1, 0.7, 0.9, 10.0, "standing", "normal"], [0.3, 0.2, 0.8, 0.9, -20.0, "sitting", "normal"]],
        "cat": [[0.2, 0.2, 0.6, 0.9, 5.0, "standing", "normal"]],
    },
    "shapes": {},
}


def tiny_layout_model(folder: Path) -> Path:
    """`tiny_model` of a base that is told how subjects are turned."""
    save_tiny_toyland(folder)
    config = UNet2DConditionModel.load_config(folder / "unet")
    shutil.rmtree(folder / "unet")
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(config, in_channels=config["out_channels"] + LAYOUT_CHANNELS)
    unet.conv_in.weight.data *= 2
    unet.save_pretrained(folder / "unet")
    (folder / FACTS).write_text(json.dumps({"masks_padding": True, "layout": LAYOUTS}))
    save_adapter(random_adapter(load_base("toyland", weights=folder, device="cpu")), folder / "adapter.safetensors")
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(weights: Path, log: Path, timeout: float = 120.0, arguments: Sequence[str] = ()) -> Iterator[str]:
    """`python app.py` in a process of its own, with further `arguments`; yields its address.

    weights: of the base "toyland", unless `arguments` name another.
    """
    port = free_port()
    cache = {"GRADIO_TEMP_DIR": str(log.parent / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "app.py"), "--base", "toyland", "--weights", str(weights)]
    command += ["--port", str(port), *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent, env=os.environ | cache)
    url = f"http://127.0.0.1:{port}/"
    try:
        wait_for(url, process, timeout, log)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], timeout: float, log: Path) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not answer at {url}; its log:\n{log.read_text()[-3000:]}")
