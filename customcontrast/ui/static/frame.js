// Drawing a subject's box into the frame of the new picture.
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
