"""Starts the page and its API; `--help` names every option."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# A folder of one's own: on a shared machine gradio's default may belong to whoever came first.
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / f"gradio-{getattr(os, 'getuid', str)()}"))

from customcontrast.ui.page import EXAMPLES, Page  # isort: skip - first: it imports spaces, before torch

import gradio as gr

from customcontrast.errors import HubError
from customcontrast.hub import safety_folder
from customcontrast.model_options import add_model_options, check_model_options, check_path, checker_source
from customcontrast.specs import BASES
from customcontrast.ui.service.models import ServiceConfig
from customcontrast.ui.service.service import Service
from customcontrast.ui.theme import CSS, HEAD, theme

__all__ = ["Page", "is_public", "launch", "options"]

log = logging.getLogger(__name__)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; every option may also be given in the environment, as CUSTOMCONTRAST_NAME.

    Address, port and sharing are also taken from Gradio's own variables, as containers and Spaces set them.
    """

    def env(name: str, default: str | None = None) -> str | None:
        return os.environ.get(f"CUSTOMCONTRAST_{name.upper()}") or default

    def gradios(name: str, default: str) -> str:
        return os.environ.get(f"GRADIO_{name}") or default

    parser = argparse.ArgumentParser(prog="app.py", description="CustomContrast's page and its API.")
    checker = "on where the page is public: --share, a Space, a --host that others reach; else off"
    add_model_options(parser, env, checker=checker)
    parser.add_argument("--sam-checkpoint", default=env("sam_checkpoint"), help="segment-anything weights for clicks")
    parser.add_argument(
        "--host", default=env("host", gradios("SERVER_NAME", "127.0.0.1")), help="address to listen on (%(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=env("port", gradios("SERVER_PORT", "7860")), help="port (%(default)s)"
    )
    parser.add_argument("--queue-size", type=int, default=env("queue_size", "32"), help="how many may wait")
    yes = ("1", "true", "yes")
    mcp = (env("mcp") or "").lower() in yes
    parser.add_argument("--mcp", action="store_true", default=mcp, help="also serve the API to agents (MCP)")
    share = (env("share", gradios("SHARE", "")) or "").lower() in yes
    parser.add_argument("--share", action="store_true", default=share, help="also open a public link")
    chosen = parser.parse_args(arguments)
    _check(parser, chosen)
    return chosen


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """End with one sentence where a value cannot be used, whether it is of the command line or the environment."""
    check_model_options(parser, chosen)
    check_path(parser, "--sam-checkpoint", chosen.sam_checkpoint)
    for name, most in (("port", 65_535), ("queue_size", None)):
        value = getattr(chosen, name)
        if value < 1 or (most and value > most):
            parser.error(f"--{name.replace('_', '-')}: {value} must be {f'1 to {most}' if most else '1 or more'}.")
    if chosen.mcp and importlib.util.find_spec("mcp") is None:
        parser.error("--mcp needs a package that is not installed: pip install 'gradio[mcp]'.")


def is_public(host: str, share: bool = False) -> bool:
    """Whether others than this machine's own users can open the page: by a share link, a Space, or its address.

    Behind a proxy of one's own, which a page on 127.0.0.1 cannot see, one says --safety-checker on.
    """
    if share or os.environ.get("SPACE_ID"):
        return True
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() != "localhost"


def checker(chosen: argparse.Namespace) -> str | None:
    """Which safety checker a server has: the requested one, else the published one where its page is public."""
    requested = chosen.safety_checker
    public = is_public(chosen.host, chosen.share)
    if requested is None:
        return "on" if public else None
    if public and requested.lower() == "off":
        log.warning("this page is public, and pictures of sd15 and sdxl are shown unchecked (--safety-checker off)")
    return checker_source(requested)


def launch(chosen: argparse.Namespace, block: bool = True) -> tuple[gr.Blocks, str]:
    """Start the server; the model is loaded while the page already answers. Returns the app and its address.

    A page that needs a safety checker has its files before it answers. Raises HubError where they cannot be had.
    """
    safety = checker(chosen)
    if safety is not None and not BASES[chosen.base].embedded:
        log.info("safety checker: %s", safety_folder(safety, chosen.weights or ""))
    config = ServiceConfig(
        chosen.base,
        chosen.weights,
        chosen.adapter,
        chosen.sam_checkpoint,
        chosen.device,
        chosen.image_encoder,
        safety,
        chosen.memory,
    )
    service = Service(config)
    demo = Page(service).build()
    demo.queue(max_size=chosen.queue_size, default_concurrency_limit=4)
    _, url, _ = demo.launch(
        server_name=chosen.host, server_port=chosen.port, share=chosen.share, prevent_thread_lock=True, quiet=not block,
        theme=theme(), css=CSS, head=HEAD, footer_links=["api"], run_history=False, max_file_size="32mb",
        show_error=False, allowed_paths=[str(EXAMPLES)], state_session_capacity=256, ssr_mode=False,
        mcp_server=chosen.mcp,
    )  # fmt: skip
    service.models.start()
    if block:
        demo.block_thread()
    return demo, url


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the page and serve it until it is stopped; 2 and a sentence where it cannot listen."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    chosen = options(arguments)
    try:
        launch(chosen)
    except HubError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        print(
            f"app.py: cannot listen on {chosen.host}:{chosen.port} ({reason}); another app may be there: "
            "choose another --port or --host.",
            file=sys.stderr,
        )
        return 2
    return 0
