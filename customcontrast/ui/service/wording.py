"""Small words: prompts from presets, sentences from errors, class nouns from file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def names(prompt: str, noun: str) -> bool:
    """Whether a prompt names a subject: by its class word, by <any word>, or by a placeholder such as S* or S2*."""
    if re.search(r"\b[Ss]\d*\*|<[^<>]+>", prompt):
        return True
    return re.search(rf"(?<!\w){re.escape(noun.strip())}(?:s|es)?(?!\w)", prompt, re.IGNORECASE) is not None


def with_article(words: str) -> str:
    """“elephant” → “an elephant”."""
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def fill(template: str, nouns: Sequence[str]) -> str:
    """Put the subjects into a preset such as “a watercolor painting of {subject}”.

    Words inside the braces belong to the first subject: “{tall subject wearing a hat} on the beach”.
    """

    def phrase(match: re.Match[str]) -> str:
        first, *others = [noun for noun in nouns if noun] or ["robot"]
        before, after = match.groups()
        parts = [with_article(before + first) + after, *map(with_article, others)]
        return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]

    return re.sub(r"\{([^{}]*)subject([^{}]*)\}", phrase, template)


def noun_from_name(path: str | Path) -> str:
    """Guess the class word of an example from its file name: “striped-orange-cat_2.png” → “cat”."""
    words = re.findall(r"[a-zA-Z]+", Path(path).stem)
    return words[-1].lower() if words else ""


def shortened(text: str, length: int = 160) -> str:
    """At most `length` characters, cut at a word."""
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def sentence(error: BaseException) -> str:
    """The message of a core error as a sentence for a visitor: without the name of the argument in front."""
    text = re.sub(r"^\w+: ", "", str(error).strip()) or type(error).__name__
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory gave out: Python's own, a GPU's, or torch's allocator on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
