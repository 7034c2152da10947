"""Two surfaces to draw on with a finger or a mouse: the brush over a cut-out, and the frame for a subject's place.

Each is an HTML component that shows what the handlers send and tells them what was drawn; it keeps nothing.
"""

from __future__ import annotations

import gradio as gr

from customcontrast.ui.theme import static

BRUSH, BRUSH_SCRIPT, FRAME_SCRIPT = static("brush.html"), static("brush.js"), static("frame.js")
FRAME = '<div class="cc-frame">${value}</div>'


def brush(k: int) -> gr.HTML:
    """The cut-out of slot k to paint on. Its value is the picture's data URL; its event `stroke` tells path and radius.

    Places and radius are in pixels of the picture.
    """
    script = BRUSH_SCRIPT.replace("NUMBER", str(k))
    return gr.HTML("", html_template=BRUSH, js_on_load=script, elem_id=f"brush-{k}", label=f"Brush for subject {k}")


def frame(k: int, value: str) -> gr.HTML:
    """A frame to draw a box in. Its value is an SVG of 100 × 100; its event `place` tells the box in percent."""
    return gr.HTML(value, html_template=FRAME, js_on_load=FRAME_SCRIPT, elem_id=f"frame-{k}", label="Its place")
