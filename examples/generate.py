"""Your subject's picture and a prompt in, a new picture of it out: the `customcontrast generate` command as a script.

    python examples/generate.py --reference bear.png --prompt "a <bear> on the beach" --out out

Writes picture.png, location_strip.png (where the subject is, step by step) and maps.png (where each word acted).
Mark the subject's word in the prompt with <…>, or name it with --noun. The calls are in customcontrast/cli.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from customcontrast.cli import run_generate


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one sentence on the error output."""
    return run_generate(arguments, "examples/generate.py", __doc__)


if __name__ == "__main__":
    sys.exit(main())
