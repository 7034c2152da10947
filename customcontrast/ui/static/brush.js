// Painting on a cut-out; `NUMBER` becomes the subject's number.
// The label of a stroke is the one chosen at “A click means”, which the server reads; here it only chooses the colour.
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
