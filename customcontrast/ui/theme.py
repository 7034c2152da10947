"""Looks of the page: style sheet, scripts of the head, theme. Nothing is fetched from other machines."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"


def static(name: str) -> str:
    """A style sheet, script or template of the page; each is read once, when its module is imported."""
    return (STATIC / name).read_text("utf-8")


CSS = "".join(static(name) for name in ("page.css", "pads.css", "figures.css"))
HEAD = f"<script>{static('head.js')}</script>"
TOGGLE = "() => { document.body.classList.toggle('dark'); }"
THEME = {
    "block_title_background_fill": "none", "block_title_padding": "0", "block_title_text_weight": "600",
    "block_title_text_color": "*body_text_color", "block_title_text_size": "*text_sm",
    "block_label_background_fill": "*background_fill_primary", "block_label_text_weight": "500",
    "block_label_text_color": "*body_text_color", "block_label_text_size": "*text_sm",
    "block_border_width": "1px", "block_border_width_dark": "1px", "block_shadow": "none",
    "button_secondary_border_color": "*neutral_300", "button_secondary_border_color_dark": "*neutral_600",
    "body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300",
    "input_border_width": "1px", "input_shadow": "none", "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_600", "slider_color": "*primary_600",
    "button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
    "checkbox_label_background_fill_selected": "*primary_700", "checkbox_background_color_selected": "*primary_700",
    "button_primary_background_fill_dark": "*primary_700", "button_primary_background_fill_hover_dark": "*primary_800",
    "checkbox_label_background_fill_selected_dark": "*primary_700",
    "checkbox_background_color_selected_dark": "*primary_700",
    "block_label_background_fill_dark": "*background_fill_secondary", "block_label_text_color_dark": "*body_text_color",
    "block_title_background_fill_dark": "none", "block_title_text_color_dark": "*body_text_color",
}  # fmt: skip


def theme() -> gr.themes.Base:
    """One calm theme, light and dark, in the fonts a machine has."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    hues = {"primary_hue": "teal", "secondary_hue": "teal", "neutral_hue": "slate"}
    return gr.themes.Soft(**hues, font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"]).set(**THEME)
