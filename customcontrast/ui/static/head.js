// Runs in the head, so that it watches from before the first frame is there.
(() => {
  // Gradio names an empty picture's frame without giving it a role, which screen readers then pass over.
  const name = () => document.querySelectorAll('div.empty[aria-label]:not([role])').forEach(
    (frame) => frame.setAttribute('role', 'img'));
  new MutationObserver(name).observe(document, {childList: true, subtree: true});
  name();
  // Browsers that do not know HEIC give its files no type, and gradio refuses pictures without one.
  const untyped = (file) => !file.type && /\.(heic|heif|hif)$/i.test(file.name);
  const typed = (files) => {
    const all = new DataTransfer();
    for (const file of files) {
      all.items.add(untyped(file) ? new File([file], file.name, {type: 'image/heic'}) : file);
    }
    return all;
  };
  document.addEventListener('change', ({target}) => {
    if (target.type === 'file' && [...target.files].some(untyped)) target.files = typed(target.files).files;
  }, true);
  document.addEventListener('drop', (event) => {
    if (![...event.dataTransfer.files].some(untyped)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const dataTransfer = typed(event.dataTransfer.files);
    event.target.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer}));
  }, true);
  // Ctrl+Enter (or Command+Enter) generates, wherever the visitor writes.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    const button = document.querySelector('#generate');
    if (!button || button.disabled) return;
    event.preventDefault();
    if (document.activeElement) document.activeElement.blur();  // what is being typed is sent first
    setTimeout(() => button.click(), 50);
  });
})();
