"""What docs/api.md says of the library and of the HTTP API, to be held against the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api.md"


def signatures() -> dict[str, str]:
    """The calls of the page's list, such as "model.run" → "config, subjects=()"."""
    text = API.read_text(encoding="utf-8")
    block = next(body for body in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "from_parts(" in body)
    return dict(re.findall(r"^([\w.]+)\((.*?)\)$", block, re.M | re.S))


def inputs(endpoint: str) -> dict[str, str]:
    """The inputs of an endpoint, "/generate" say, in the order of its table, each with the next column's text."""
    section = re.search(rf"^### {endpoint}\n(.*?)(?=^#|\Z)", API.read_text(encoding="utf-8"), re.M | re.S)
    assert section, f"docs/api.md has no section {endpoint}"
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", section[1], re.M))
