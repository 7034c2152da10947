"""Phrases: prompts from presets, sentences from errors, class nouns from file names."""

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


# What cameras, browsers and tools call a picture; such a name says nothing of its subject.
NO_NOUNS = frozenset(
    "image img imgp pic pict picture photo photos foto dsc dscf dscn dcim pxl gopr wa whatsapp screenshot screen shot "
    "download downloads unnamed untitled file scan copy final edit edited cropped crop jpg jpeg png webp front side "
    "back small large new old test tmp temp upload uploads view reference ref".split()
)


def noun_from_name(path: str | Path) -> str:
    """Guess the class word from a file's name, else its folder's: “striped-orange-cat_2.png”, “cat/01.png” → “cat”."""
    path = Path(path)
    for name in (path.stem, path.parent.name):
        words = [word.lower() for word in re.findall(r"[^\W\d_]+", name)]
        words = [word for word in words if word not in NO_NOUNS]
        if words and not re.fullmatch(r"[0-9a-f]{16,}", name):  # a digest is no name
            return words[-1]
    return ""


def shortened(text: str, length: int = 160) -> str:
    """At most `length` characters, cut at a word."""
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def sentence(error: BaseException) -> str:
    """The message of a core error as a sentence for a visitor: without the name of the argument in front."""
    text = re.sub(r"^\w+: ", "", str(error).strip()) or type(error).__name__
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
