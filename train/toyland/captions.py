"""Captions that bind every attribute to its subject, in several phrasings, and where each class noun is."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from train.toyland.scene import Placement, ToyScene
from train.toyland.words import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOR_WORDS,
    JOIN,
    NOUNS,
    PATTERNS,
    PLURAL,
    POSES,
    SHAPES,
    STILL,
    STYLES,
    WEAR,
)

_OPEN, _CLOSE = "\x01", "\x02"
Option = TypeVar("Option")


@dataclass(frozen=True)
class Caption:
    """A caption, and the character span (start, end) of each subject's class noun, in placement order."""

    text: str
    nouns: tuple[tuple[int, int], ...]

    @property
    def marked(self) -> str:
        """The text with each class noun in <angle brackets>: where S* goes."""
        marked = self.text
        for start, end in sorted(self.nouns, reverse=True):
            marked = f"{marked[:start]}<{marked[start:end]}>{marked[end:]}"
        return marked


def describe(
    scene: ToyScene, rng: random.Random | None = None, subject_words: Literal["full", "noun"] = "full"
) -> Caption:
    """A caption of the scene. rng None: the canonical wording; else a random phrasing.

    subject_words "full": every attribute; "noun": without what is the subject's own (colours, pattern),
    which then has to come from the subject's picture. Raises ValueError for any other subject_words.
    """
    if subject_words not in ("full", "noun"):
        raise ValueError(f"subject_words is {subject_words!r}; choose 'full' or 'noun'")
    full = subject_words == "full"
    who = [_subject(p, rng, full) for p in scene.placements]
    joint = rng.choice(JOIN) if len(who) == 2 and rng is not None else " and "
    body = joint.join(who)
    place = _pick(BACKGROUNDS[scene.background], rng)
    before, after = _pick(STYLES[scene.style], rng)
    first = rng is not None and not before and rng.random() < 0.15
    text = f"{place}, {body}{after}" if first else f"{before}{body} {place}{after}"
    return _spans(text)


def _pick(options: Sequence[Option], rng: random.Random | None) -> Option:
    """The first (canonical) option; with an rng that one in four of ten cases, else any."""
    return options[0] if rng is None or rng.random() < 0.4 else rng.choice(options)


def _subject(p: Placement, rng: random.Random | None, full: bool) -> str:
    """One noun phrase; the class noun between markers."""
    noun = _pick(NOUNS[p.subject.species], rng if rng is not None and rng.random() < 0.3 else None)
    words, tail = [_pick(SHAPES[p.shape], rng)], ""
    if full:
        adjective, tail = _pick(PATTERNS[p.subject.pattern], rng)
        pair = {
            "a": _pick(COLOR_WORDS[p.subject.color_1], _rare(rng)),
            "b": _pick(COLOR_WORDS[p.subject.color_2], _rare(rng)),
        }
        words.append(adjective.format(**pair))
        tail = tail.format(**pair)
    head = " ".join(w for w in words if w)
    start = f"{head} " if head else ""
    parts = [f"{start}{_OPEN}{noun}{_CLOSE}", tail]
    if p.pose in POSES and p.subject.species not in STILL and rng is not None and rng.random() < 0.35:
        parts.append(_pick(POSES[p.pose], rng))
    if p.accessory != "none":
        thing = _pick(ACCESSORIES[p.accessory], rng)
        color = _pick(COLOR_WORDS[p.accessory_color], _rare(rng))
        wear = "wearing" if rng is None or (tail and rng.random() < 0.7) else rng.choice(WEAR)
        parts.append(f"{wear} {color} {thing}" if p.accessory in PLURAL else f"{wear} {article(color)} {thing}")
    phrase = " ".join(x for x in parts if x)
    return article(phrase)


def _rare(rng: random.Random | None) -> random.Random | None:
    return rng if rng is not None and rng.random() < 0.25 else None


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    letter = phrase.lstrip(_OPEN)[:1]
    return f"{'an' if letter in 'aeio' else 'a'} {phrase}"


def _spans(marked: str) -> Caption:
    text, spans, start = "", [], 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if piece == _OPEN:
            start = len(text)
        elif piece == _CLOSE:
            spans.append((start, len(text)))
        else:
            text += piece
    return Caption(text, tuple(spans))


def vocabulary() -> set[str]:
    """Every word a caption can hold, lower case, with every synonym."""
    words: list[str] = ["a", "an", "and", "of", "with", "in", "next", "to", "beside", *WEAR]
    for table in (NOUNS, BACKGROUNDS, SHAPES, ACCESSORIES, COLOR_WORDS, POSES):
        for options in table.values():
            words.extend(options)
    for pairs in (*STYLES.values(), *PATTERNS.values()):
        words.extend(" ".join(pair) for pair in pairs)
    text = " ".join(words).replace("{a}", "").replace("{b}", "")
    return set(re.findall(r"[a-z0-9]+", text.lower()))
