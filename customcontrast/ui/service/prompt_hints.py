"""What is worth saying about a prompt before it is used."""

from __future__ import annotations

from collections.abc import Sequence

from customcontrast.ui.service.models import Models
from customcontrast.ui.service.phrases import names, sentence, shortened
from customcontrast.ui.service.request import MAX_PROMPT

MAX_UNKNOWN = 4  # unknown words named at once


def prompt_hints(models: Models, prompt: str, nouns: Sequence[str], base: str | None = None) -> list[str]:
    """Sentences about a prompt as it stands; fewer while the model is not loaded, which is not waited for."""
    hints = [
        f"“{noun}” is not in the prompt: name your subject there, or it is put in front."
        for noun in nouns
        if not names(prompt, noun)
    ]
    if not models.ready(base):
        return hints
    from customcontrast.conditioning.prompt import IN_FRONT  # after the model, see models.IMPORTS
    from customcontrast.conditioning.text_context import encode_prompt

    model = models.model(base)
    placeholders = model.adapter.config.placeholder_tokens if model.adapter else 0
    try:
        read = encode_prompt(model.base, prompt[:MAX_PROMPT], list(nouns), placeholders)
    except ValueError as error:
        return [*hints, sentence(error)]
    hints += [note for note in read.notes if not (hints and getattr(note, "kind", "") == IN_FRONT)]
    if read.truncated:
        hints.append(f"The prompt is too long for this model; left out: “{shortened(read.truncated)}”.")
    for word, nearest in model.unknown_words(read.text)[:MAX_UNKNOWN]:
        hint = f" The nearest word it knows is “{nearest}”." if nearest else ""
        hints.append(f"This model was never shown the word “{word}”.{hint}")
    return hints
