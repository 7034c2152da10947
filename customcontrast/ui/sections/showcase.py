"""The first thing a visitor sees: finished pictures, and what the model can draw."""

from __future__ import annotations

import html

import gradio as gr

from customcontrast.ui.handlers import Handlers
from customcontrast.ui.sections.controls import Sections, ShowcaseSection
from customcontrast.ui.theme import static
from customcontrast.ui.wiring import QUIET, Wire

CARDS_SCRIPT = static("cards.js")


PRESS = "() => { setTimeout(() => document.querySelector('#generate').click(), 150); }"


def build(handlers: Handlers) -> ShowcaseSection:
    """Lay the section out."""
    cards = gr.HTML(
        cards_html(handlers.replay.cards()), js_on_load=CARDS_SCRIPT, elem_id="cards",
        label="Finished pictures", visible=bool(handlers.replay.finished),
    )  # fmt: skip
    with gr.Row(elem_classes=["cc-line", "cc-first"]):
        about = gr.HTML(handlers.prompt.about(handlers.service.config.base), elem_id="about", elem_classes="cc-about",
                        min_width=240)  # fmt: skip
        surprise = gr.Button("Surprise me", size="sm", scale=0, min_width=130, elem_id="surprise",
                             visible=bool(handlers.subjects.examples))  # fmt: skip
    return ShowcaseSection(about, cards, surprise)


def cards_html(cards: list[dict]) -> str:
    """Finished examples as buttons: the picture, the subjects in its corner, the prompt below."""
    buttons = []
    for index, card in enumerate(cards):
        given = "".join(f'<img src="{picture}" alt="">' for picture in card["given"])
        prompt = html.escape(card["prompt"])
        buttons.append(
            f'<button type="button" data-index="{index}"><span class="pair"><img src="{card["made"]}" alt="">'
            f'<span class="given">{given}</span></span><span class="words">{prompt}</span></button>'
        )
    return f'<div class="cc-cards" role="group" aria-label="Finished pictures to start from">{"".join(buttons)}</div>'


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """A card fills in everything and shows its picture; a surprise fills in everything and generates."""
    section = sections.showcase
    wire.on(section.cards.card, _card(handlers), {}, sections.everything, drawn=True, **QUIET)
    surprise = wire.on(section.surprise.click, handlers.prompt.surprise, {}, sections.everything, **QUIET)
    surprise.success(None, None, None, js=PRESS, **QUIET)


def _card(handlers: Handlers):
    """The event tells {index}."""

    def chosen(event_data: object) -> dict:
        index = event_data.get("index") if isinstance(event_data, dict) else None
        return handlers.replay.example(index) if isinstance(index, int) else {}

    return chosen
