"""Bad prompts, numbers and files: by hand what people and programs really send, by hypothesis the rest."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

SAYING = (  # prompts that say what their subject is: a marked word, a word before S*, or an article and a word
    "a bear " * 3000, "a bear S* and a bear S*", "<bear>", "<<bear>>", "<bear><bear>", "S<bear>*", "<bear> S*",
    "a bear" + " " * 20_000 + "!", "<|startoftext|> a bear <|endoftext|>", "\u202ea bear on the beach",
    "\u062f\u0628 S* \u0639\u0644\u0649", "a bear \udfff S*", "\ufeffa bear", "a bear\r\nSet-Cookie: x=1",
    "a" * 5000 + " S*", "\u2003bear\u3000S*", "a bear\u2019s S*",
)  # fmt: skip
PROMPTS = (
    "", " ", "\n\t\r", "\0", "a\0bear", "x" * 19_999, "x" * 30_000, "bear " * 77,
    "S*", "S* S*", "a S* S* S*", "S1* S2* S3* S4* S5*", "S9*", "S0*", "S999999999999999999999*", "s*", "*S", "S**",
    "S\u00b2*", "S\u0661*", "S*S*S*", "S* " * 500, "(S*)", "S*, S1*. S*!",
    "<>", "< >", "<bear", "bear>", "<S*>", "<a|b>", "<bear " * 200,
    "<" + " " * 20_000, "<" + "S*" * 10_000,
    "<" * 3000, "<" * 3000 + ">" * 3000, "{subject}", "{S*}", "%s %n %d", "{0.__class__}",
    "<|endoftext|>", "\ue000 bear", "\ue000\ue001\ue0ff",
    "\u05d3\u05d5\u05d1 \u05e2\u05dc \u05d4\u05d7\u05d5\u05e3",
    "\U0001f43b", "\U0001f43b\u200d\u2744\ufe0f S* \U0001f468\u200d\U0001f469",
    "e" + "\u0301" * 1000, "\ud800", "a\u200bbear", "\U0010ffff", "\ufdfa" * 200,
    "\uff21 \uff42\uff45\uff41\uff52", "\u0130" * 50, "'; DROP TABLE bears; --",
    "<script>alert(1)</script> bear", "../../../etc/passwd", "\x1b[31ma bear", "\x7f\x01\x02",
    "a,b,c;d:e.f!g?h", "!!!", "123 456", "-", "S*'s hat", *SAYING,
)  # fmt: skip
NO_TEXT = (None, 3, 2.5, True, b"a bear", ["a bear"], {"a": "bear"}, object(), float("nan"), Path("bear"))
NO_NOUNS = ("", " ", "<>", "*", "\ud800", "\ue000", "<|endoftext|>")  # nothing that a prompt could hold
LONG_NOUN = "b" * 300  # more tokens than a text encoder takes
NOUNS = (*NO_NOUNS, LONG_NOUN, "S*", "bear", "bear\nbear", "\0", "(", "[a", "a|b", "\U0001f43b",
         "\u05d3\u05d5\u05d1", "bear cat", "a", "\\", "\u0130")  # fmt: skip
NUMBERS = (
    True, False, float("nan"), float("inf"), float("-inf"), -1, 0, 1, 2, 1e308, 10**30, -(10**30), "5", "", "many",
    [], {}, [1], 2.5, -0.0, 1e-320, 1j, b"1", object(), np.float32("nan"), np.array([1, 2]), "1e3", "\u0663",
)  # fmt: skip
text = st.text(st.characters(), max_size=80)
odd_text = st.lists(
    st.one_of(text, st.sampled_from(("S*", "S1*", "S2*", "<bear>", "bear", "<", ">", "*", " and ", "a ", "\n"))),
    max_size=12,
).map("".join)
numbers = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=6), st.lists(st.integers(), max_size=3)
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


def sendable(text: str) -> bool:
    """Whether JSON can carry a text: half characters have no UTF-8."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


PNG_STANDS = ("doubled",)  # of `broken_bytes`, what leaves a PNG whole: its reader stops at its end


def broken_bytes(data: bytes, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(what was done, a file that is no longer whole): cut, emptied, overwritten, doubled, of another kind."""
    rng = np.random.default_rng(seed)
    yield "empty", b""
    for share in (0.001, 0.1, 0.5, 0.9):
        yield f"first {share:.1%}", data[: int(len(data) * share)]
    yield "64 bytes less", data[:-64]
    yield "doubled", data + data
    yield "zeros in front", bytes(64) + data
    yield "zeros", bytes(len(data))
    yield "text", b"this is a letter, not a model\n" * 40
    yield "html", b"<!doctype html><html><body>404 Not Found</body></html>"
    yield "git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "zip", b"PK\x03\x04" + bytes(200)
    for where in (0, 4, 9, 40):
        yield f"noise at {where}", data[:where] + rng.bytes(16) + data[where + 16 :]


def safetensors_header(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a hand-made header; length: what the file says of the header's size."""
    text_ = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text_) if length is None else length) + text_ + body


def broken_safetensors(data: bytes) -> Iterator[tuple[str, bytes]]:
    """`broken_bytes`, and headers that lie."""
    yield from broken_bytes(data)
    yield "header of 2⁶³", safetensors_header({}, length=2**63)
    yield "header of 2⁶⁴ − 1", safetensors_header({}, length=2**64 - 1)
    yield "header longer than the file", safetensors_header({}, length=4000)
    yield "no tensors", safetensors_header({})
    yield "a list", safetensors_header([1, 2])
    yield "deep", safetensors_header(b'{"a":' * 3000)
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield "offsets outside", safetensors_header({"a": one | {"data_offsets": [0, 800]}}, bytes(8))
    yield "offsets swapped", safetensors_header({"a": one | {"data_offsets": [8, 0]}}, bytes(8))
    yield "shape too large", safetensors_header({"a": one | {"shape": [2**40, 2**40]}}, bytes(8))
    yield "unknown type", safetensors_header({"a": one | {"dtype": "F9"}}, bytes(8))
    yield "metadata no text", safetensors_header({"__metadata__": {"format": 3}, "a": one}, bytes(8))
    yield "a hole", safetensors_header({"a": one}, bytes(80))


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)
