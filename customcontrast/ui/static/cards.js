// Cards of finished examples; the event `card` tells which one was chosen.
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (button) trigger('card', {index: Number(button.dataset.index)});
});
