"""Writes the folder that becomes a Hugging Face Space: the app, its package, examples, requirements and the card.

    python examples/make_space.py --kind cpu --out space            Toyland on a free CPU: nothing to download
    python examples/make_space.py --kind zerogpu --out space        SD-1.5 with a public IP-Adapter on a lent GPU

Then push the folder to the Space's repository (`docs/spaces.md`). Files over 10 MB are refused here, because the hub
would want them in its large file storage.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_BYTES = 10_000_000
TREES = ("customcontrast", "examples")
LEFT_OUT = ("__pycache__", "shots", "*.pyi", "readers.safetensors", "attributes.safetensors")
CARDS = {
    "cpu": {"hardware": "cpu-basic", "base": "toyland", "adapter": ""},
    "zerogpu": {"hardware": "zero-a10g", "base": "sd15", "adapter": "ip-adapter-plus"},
}


def card(kind: str, title: str) -> str:
    """README.md of the Space: the settings that the hub reads from its head."""
    return (
        f"---\ntitle: {title}\nsdk: gradio\napp_file: app.py\npython_version: '3.11'\n"
        f"suggested_hardware: {CARDS[kind]['hardware']}\nlicense: apache-2.0\n---\n\n"
        "Show one picture of your subject, type a prompt, get it in a new scene, and see how the model did it.\n"
    )


def start(kind: str) -> str:
    """app.py of the Space: the page, with the base of this kind unless its variables say otherwise."""
    told = {"CUSTOMCONTRAST_BASE": CARDS[kind]["base"], "CUSTOMCONTRAST_ADAPTER": CARDS[kind]["adapter"]}
    lines = [f"os.environ.setdefault({name!r}, {value!r})" for name, value in told.items() if value]
    return "\n".join(
        [
            '"""The page of this Space."""',
            "",
            "import os",
            "import sys",
            "",
            *lines,
            'os.environ.setdefault("GRADIO_SERVER_NAME", "0.0.0.0")',
            "",
            "from customcontrast.ui.server import main",
            "",
            'if __name__ == "__main__":',
            "    sys.exit(main([]))",
            "",
        ]
    )


def write(kind: str, out: Path, title: str = "CustomContrast") -> list[Path]:
    """Write the folder; returns its files. Raises ValueError for a folder with something in it or a file too large."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty; name a new folder")
    for tree in TREES:
        shutil.copytree(ROOT / tree, out / tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copy2(ROOT / "LICENSE", out / "LICENSE")
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    (out / "requirements.txt").write_text(requirements + ("spaces\n" if kind == "zerogpu" else ""), encoding="utf-8")
    (out / "README.md").write_text(card(kind, title), encoding="utf-8")
    (out / "app.py").write_text(start(kind), encoding="utf-8")
    files = [file for file in sorted(out.rglob("*")) if file.is_file()]
    large = [str(file.relative_to(out)) for file in files if file.stat().st_size > MAX_BYTES]
    if large:
        raise ValueError(f"these files are over {MAX_BYTES:,} bytes: {', '.join(large)}; store them in smaller shards")
    return files


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one sentence on the error output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(CARDS), default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--title", default="CustomContrast")
    options = parser.parse_args(arguments)
    try:
        files = write(options.kind, options.out, options.title)
    except (OSError, ValueError) as error:
        print(f"make_space: {error}", file=sys.stderr)
        return 2
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.0f} MB in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
