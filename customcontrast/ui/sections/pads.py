"""Two surfaces to draw on with a finger or a mouse: the brush over a cut-out, and the frame for a subject's place.

Each is an HTML component that shows what the desk sends and tells the desk what was drawn; it keeps nothing.
"""

from __future__ import annotations

import gradio as gr

CSS = """
.cc-pad {position: relative; touch-action: none; border-radius: var(--radius-md); overflow: hidden; line-height: 0;
  max-width: 480px; margin: 0 auto} .cc-pad[hidden] {display: none}
.cc-pad img {width: 100%; height: auto; margin: 0 !important; user-select: none; -webkit-user-drag: none}
.cc-pad canvas {position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair}
.cc-pad canvas:focus-visible {outline: 3px solid var(--primary-600); outline-offset: -3px}
.cc-size {display: flex; align-items: center; gap: .6rem; font-size: .92rem; margin: 0 0 .5rem}
.cc-size input {flex: 1; accent-color: var(--primary-600); min-width: 0}
.cc-empty {font-size: .92rem; color: var(--body-text-color-subdued)} .cc-empty[hidden] {display: none}
.cc-frame {touch-action: none; max-width: 200px; cursor: crosshair; user-select: none; line-height: 0}
.cc-frame svg {width: 100%; height: auto; display: block} .cc-frame text {fill: var(--body-text-color-subdued);
  font-size: 7.5px; text-anchor: middle} .cc-frame .ground {fill: var(--background-fill-secondary);
  stroke: var(--border-color-primary)} .cc-frame .place {fill: var(--primary-600); fill-opacity: .3;
  stroke: var(--primary-600); stroke-width: 1.2}
"""
BRUSH = """
<label class="cc-size">Brush size <input type="range" min="3" max="40" value="12" aria-label="Brush size"></label>
<p class="cc-empty">Give a picture first; then you can paint on its cut-out.</p>
<div class="cc-pad" hidden><img alt="The cut-out, to paint on"><canvas tabindex="0" role="application"
aria-label="Paint on the cut-out: arrow keys move the brush, space starts and ends a stroke, Escape drops it"
></canvas></div>
"""
# The label of a stroke is the one chosen at “A click means”, which the server reads; here it only chooses the colour.
BRUSH_SCRIPT = """
const find = (what) => element.querySelector(what);
const pad = find('.cc-pad'), image = find('img'), canvas = find('canvas'), size = find('input');
let path = null, drawn = [], cursor = null, timer = 0;
const color = () => {
  const chosen = document.querySelector('#mode-NUMBER input:checked');
  return chosen && chosen.value === '0' ? '220, 38, 38' : '22, 163, 74';
};
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const paint = () => {
  const sharp = window.devicePixelRatio || 1, pen = canvas.getContext('2d');
  canvas.width = canvas.clientWidth * sharp;
  canvas.height = canvas.clientHeight * sharp;
  pen.scale(sharp, sharp);
  pen.lineCap = pen.lineJoin = 'round';
  for (const stroke of path ? [...drawn, path] : drawn) {
    pen.strokeStyle = `rgba(${stroke.color}, .55)`;
    pen.lineWidth = 2 * stroke.radius;
    pen.beginPath();
    stroke.places.forEach(([x, y]) => pen.lineTo(x, y));
    pen.lineTo(stroke.places[0][0] + (stroke.places.length > 1 ? NaN : .01), stroke.places[0][1]);
    pen.stroke();
  }
  if (!cursor) return;
  for (const [width, look] of [[3, 'white'], [1.5, `rgb(${color()})`]]) {
    pen.lineWidth = width;
    pen.strokeStyle = look;
    pen.beginPath();
    pen.arc(cursor[0], cursor[1], Number(size.value), 0, 7);
    pen.stroke();
  }
};
const clear = () => { drawn = []; paint(); };
const show = () => {
  pad.hidden = !props.value;
  find('.cc-empty').hidden = !!props.value;
  if (props.value) image.src = props.value; else image.removeAttribute('src');
};
const end = () => {
  if (!path) return;
  const scale = image.naturalWidth / canvas.clientWidth;
  const round = (value) => Math.round(value * scale * 10) / 10;
  trigger('stroke', {path: path.places.map(([x, y]) => [round(x), round(y)]), radius: path.radius * scale});
  drawn.push(path);
  path = null;
  clearTimeout(timer);
  timer = setTimeout(clear, 4000);  // an answer that changes nothing is no news to the image
};
canvas.addEventListener('pointerdown', (event) => {
  if (event.button || !image.naturalWidth) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  path = {places: [place(event)], radius: Number(size.value), color: color()};
  cursor = event.pointerType === 'mouse' ? place(event) : null;
  paint();
});
canvas.addEventListener('pointermove', (event) => {
  const at = place(event);
  cursor = event.pointerType === 'mouse' ? at : null;
  if (path) {
    const last = path.places[path.places.length - 1];
    if (Math.hypot(at[0] - last[0], at[1] - last[1]) >= 2 && path.places.length < 4000) path.places.push(at);
  }
  paint();
});
canvas.addEventListener('pointerup', end);
canvas.addEventListener('pointercancel', () => { path = null; paint(); });
canvas.addEventListener('pointerleave', () => { cursor = null; paint(); });
const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
canvas.addEventListener('keydown', (event) => {
  const arrow = arrows[event.key], at = cursor || middle();
  if (!image.naturalWidth || !(arrow || event.key === ' ' || event.key === 'Escape')) return;
  event.preventDefault();
  if (arrow) {
    const far = event.shiftKey ? 20 : 5;
    cursor = [0, 1].map((k) => Math.min(Math.max(at[k] + far * arrow[k], 0), 2 * middle()[k]));
    if (path && path.places.length < 4000) path.places.push(cursor);
  } else if (event.key === 'Escape') path = null;
  else if (path) end();
  else path = {places: [cursor = at], radius: Number(size.value), color: color()};
  paint();
});
canvas.addEventListener('focus', () => {
  if (canvas.matches(':focus-visible')) { cursor = cursor || middle(); paint(); }
});
canvas.addEventListener('blur', () => { end(); cursor = null; paint(); });
image.addEventListener('load', () => { clearTimeout(timer); clear(); });
watch('value', show);
show();
"""
FRAME = '<div class="cc-frame">${value}</div>'
FRAME_SCRIPT = """
let start = null, box = null;
const place = (event) => {
  const edges = element.querySelector('svg').getBoundingClientRect();
  const part = (value, size) => Math.round(Math.min(Math.max(value / size, 0), 1) * 100);
  return [part(event.clientX - edges.left, edges.width), part(event.clientY - edges.top, edges.height)];
};
const show = () => {
  const rect = element.querySelector('.place'), [x0, y0, x1, y1] = box;
  Object.entries({x: x0, y: y0, width: x1 - x0, height: y1 - y0}).forEach(([k, v]) => rect.setAttribute(k, v));
  element.querySelectorAll('text').forEach((text) => text.remove());
};
element.addEventListener('pointerdown', (event) => {
  if (event.button || !event.target.closest('svg')) return;
  event.preventDefault();
  element.setPointerCapture(event.pointerId);
  start = place(event);
});
element.addEventListener('pointermove', (event) => {
  if (!start) return;
  const [x, y] = place(event);
  box = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
  show();
});
const end = () => {
  if (start && box) trigger('place', {box});
  start = box = null;
};
element.addEventListener('pointerup', end);
element.addEventListener('pointercancel', end);
"""


def brush(k: int) -> gr.HTML:
    """The cut-out of slot k to paint on. Its value is the picture's data URL; its event `stroke` tells path and radius.

    Places and radius are in pixels of the picture.
    """
    script = BRUSH_SCRIPT.replace("NUMBER", str(k))
    return gr.HTML("", html_template=BRUSH, js_on_load=script, elem_id=f"brush-{k}", label=f"Brush for subject {k}")


def frame(k: int, value: str) -> gr.HTML:
    """A frame to draw a box in. Its value is an SVG of 100 × 100; its event `place` tells the box in percent."""
    return gr.HTML(value, html_template=FRAME, js_on_load=FRAME_SCRIPT, elem_id=f"frame-{k}", label="Its place")
