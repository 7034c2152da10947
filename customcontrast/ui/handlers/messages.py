"""Sentences and small pieces of HTML that answer a visitor; the changes of controls that carry them."""

from __future__ import annotations

import contextlib
import html
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from customcontrast.errors import UserError, ViewError, out_of_memory
from customcontrast.ui.service.phrases import sentence

log = logging.getLogger(__name__)

OUR_FAULT = "Something went wrong on the server and was written to its log. Try again, or change the picture."
NO_ROOM = (
    "There was not enough memory for this on the server: ask for fewer or smaller pictures, or try again in a moment."
)

Changes = dict[str, Any]


class Set(dict[str, Any]):
    """New properties of a control, such as Set(value=…, visible=True)."""


def value_or_hidden(value: Any) -> Set:
    """A picture or file, out of sight when there is none."""
    return Set(value=value, visible=value is not None)


def note(text: str, kind: str = "") -> str:
    """A message as HTML; `text` is escaped. kind: "", "good", "warn" or "error"."""
    return f'<div class="cc-note cc-{kind}" role="status">{html.escape(text)}</div>' if text else ""


def notice(texts: str | Sequence[str], kind: str = "warn") -> Set:
    """A message area, which takes no room when there is nothing to say."""
    texts = [texts] if isinstance(texts, str) else texts
    value = "".join(note(text, kind) for text in texts)
    return Set(value=value, visible=bool(value))


def error_text(error: Exception) -> str:
    """The sentence that a visitor reads about an error; a traceback goes to the log alone."""
    if isinstance(error, UserError):
        return sentence(error)
    if out_of_memory(error):
        log.error("memory gave out: %s", error)
        return NO_ROOM
    log.error("request failed", exc_info=error)
    return OUR_FAULT


@contextlib.contextmanager
def in_this_run() -> Iterator[None]:
    """What was requested and is not in a run, as one sentence."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise ViewError("There is no such map in this picture: choose a word, a step and layers of it.") from error


def progress(index: int, total: int, seconds: float, what: str = "") -> str:
    """The progress bar of a run as HTML, with the time that is left. what: put in front, such as “Picture 2 of 4. ”."""
    left = seconds / max(index, 1) * (total - index)
    text = f"{html.escape(what)}Step {index} of {total}"
    text += f", about {left:.0f} s left" if index > 1 and left >= 1 else ""
    bar = f'<progress max="{total}" value="{index}" aria-label="Progress"></progress>'
    return f'<div class="cc-progress">{bar}{text}</div>'
