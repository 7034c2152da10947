"""Looks of the page: style sheet, theme, and its small building blocks. Nothing is fetched from other machines."""

from __future__ import annotations

from typing import Any

import gradio as gr

from customcontrast.ui.sections import pads

CSS = """
.gradio-container {max-width: 1240px !important; width: 100% !important; margin: 0 auto !important}
.cc-line {align-items: center} .cc-line button {max-height: 2.4rem}
.cc-title h1 {font-size: 1.7rem; margin: .2rem 0 0; font-weight: 650; letter-spacing: -.01em}
.cc-title p {margin: .15rem 0 0; color: var(--body-text-color-subdued)}
.cc-step h2 {font-size: 1.05rem; margin: .3rem 0 0; font-weight: 650}
.cc-step b {display: inline-grid; place-items: center; width: 1.6em; height: 1.6em; margin-right: .5em;
  border-radius: 50%; background: var(--primary-700); color: white; font-size: .85em}
.cc-slot .cc-fold {border: 0 !important; padding: 0 !important; background: none !important}
.cc-fold .html-container {padding: 0 !important}
.cc-slot {border: 1px solid var(--border-color-primary); border-left: 3px solid var(--primary-600);
  border-radius: var(--radius-lg); padding: .6rem; gap: .6rem !important; background: var(--block-background-fill)}
.cc-mode .wrap {gap: .3rem !important; flex-wrap: nowrap} .cc-mode label {padding: .25rem .5rem !important}
.cc-note {padding: .5rem .75rem; border-radius: var(--radius-md); border-left: 3px solid var(--primary-600);
  background: var(--background-fill-secondary); line-height: 1.45; font-size: .92rem; overflow-wrap: anywhere}
.cc-note + .cc-note {margin-top: .35rem}
.cc-error {border-left-color: #dc2626} .cc-warn {border-left-color: #d97706} .cc-good {border-left-color: #16a34a}
.cc-progress {font-size: .92rem} .cc-progress progress {appearance: none; width: 100%; height: .5rem; border: 0;
  border-radius: 1rem; overflow: hidden; background: var(--border-color-primary)}
.cc-progress progress::-webkit-progress-bar {background: var(--border-color-primary)}
.cc-progress progress::-webkit-progress-value {background: var(--primary-600); transition: width .2s}
.cc-progress progress::-moz-progress-bar {background: var(--primary-600)}
.cc-info summary {cursor: pointer; display: inline-block; font-weight: 600; font-size: .92rem; padding: .3rem 0;
  list-style: none}
.cc-info summary::after {content: "i"; display: inline-grid; place-items: center; width: 1.35em; height: 1.35em;
  margin-left: .5em; border: 1px solid currentColor; border-radius: 50%; font: italic 600 .85em Georgia, serif}
.cc-info p {margin: 0 0 .4rem; font-size: .92rem; line-height: 1.5; max-width: 65ch;
  color: var(--body-text-color-subdued)}
.cc-picture img {object-fit: contain !important; width: 100% !important; height: 100% !important}
.cc-view img {object-fit: contain !important; width: 100%} .cc-cut img {cursor: crosshair}
#examples .grid-wrap {height: auto !important; max-height: none !important; min-height: 0 !important; padding: 0}
#examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)) !important; padding: 2px;
  grid-auto-rows: auto !important}
#examples button.thumbnail-item {aspect-ratio: 1 / 1 !important; height: auto !important}
:focus-visible {outline: 2px solid var(--primary-600) !important; outline-offset: 2px}
#examples .caption-label {position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  padding: 0}
button[role=tab].selected {color: var(--primary-700) !important}
.dark button[role=tab].selected {color: var(--primary-300) !important}
.cc-figure .image-container {padding-top: 2.2rem; overflow-x: auto}
.cc-hint {font-size: .92rem !important; line-height: 1.45 !important; margin: 0 !important;
  color: var(--body-text-color-subdued) !important}
.cc-chips {gap: .4rem !important; flex-wrap: wrap} .cc-chips button {flex: 0 0 auto !important; min-width: 0 !important}
.cc-others .grid-wrap {height: auto !important; min-height: 0 !important; padding: 0}
.cc-others .grid-container {grid-template-columns: repeat(auto-fill, minmax(56px, 72px)) !important; padding: 2px}
footer .divider {display: none}
@media (max-width: 640px) {.gradio-container {padding: .5rem !important}
  .cc-figure .image-container {justify-content: flex-start !important; align-items: flex-start !important}
  .cc-figure .image-container > button {width: 680px !important; flex: none !important; margin: 0 !important}
  .cc-figure .image-frame, .cc-figure img {width: 680px !important; max-width: none !important; margin: 0 !important}}
"""
CSS += pads.CSS
# Gradio names an empty picture's frame without giving it a role, which screen readers then pass over. It stands in the
# head, so that it watches from before the first frame is there.
NAMED_FRAMES = """<script>(() => {
  const name = () => document.querySelectorAll('div.empty[aria-label]:not([role])').forEach(
    frame => frame.setAttribute('role', 'img'));
  new MutationObserver(name).observe(document, {childList: true, subtree: true});
  name();
})()</script>"""
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


class Picture(gr.Image):
    """gr.Image that hands over the visitor's file unread, so that every bad file is answered by our sentence."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


class Files(gr.File):
    """gr.File that hands over paths; gradio's own leaves an empty temporary file behind for each."""

    is_template = True

    def preprocess(self, payload: Any) -> list[str] | None:
        return [file.path for file in payload] if payload else None


class UploadButton(gr.UploadButton):
    """gr.UploadButton for one file, with the same cure; what the file holds is judged by whoever reads it."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return payload.path if payload else None


def heading(number: int, text: str) -> gr.HTML:
    return gr.HTML(f"<h2><b>{number}</b>{text}</h2>", elem_classes="cc-step")


def info(title: str, text: str, **options: Any) -> gr.HTML:
    """A title with an (i) that opens an explanation."""
    return gr.HTML(f'<details class="cc-info"><summary>{title}</summary><p>{text}</p></details>', **options)


def view(label: str, name: str, figure: bool = False, **options: Any) -> gr.Image:
    """A picture to look at and to download. figure: it is wide and full of labels, and may be scrolled on a phone."""
    options = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]} | options
    classes = ["cc-view", "cc-figure"] if figure else "cc-view"
    return gr.Image(label=label, show_label=False, elem_id=name, elem_classes=classes, alt_text=label, **options)
