// A word's map over the picture while the pointer or the focus is on the word; a click or tap keeps it there.
const picture = () => element.querySelector('.cc-hover img');
const word = (event) => event.target.closest('.cc-hover-words button');
const kept = () => element.querySelector('.cc-hover-words button[aria-pressed=true]');
const show = (button) => {
  const image = picture();
  if (image) image.src = button ? button.dataset.map : image.dataset.picture;
};
for (const name of ['pointerover', 'focusin']) {
  element.addEventListener(name, (event) => { if (word(event)) show(word(event)); });
}
for (const name of ['pointerout', 'focusout']) {
  element.addEventListener(name, (event) => { if (word(event)) show(kept()); });
}
element.addEventListener('click', (event) => {
  const button = word(event);
  if (!button) return;
  const before = kept();
  if (before) before.setAttribute('aria-pressed', 'false');
  if (before !== button) button.setAttribute('aria-pressed', 'true');
  show(kept());
});
