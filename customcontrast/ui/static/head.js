// Runs in the head, so that it watches from before the first frame is there.
(() => {
  // Gradio names an empty picture's frame without giving it a role, which screen readers then pass over.
  const name = () => document.querySelectorAll('div.empty[aria-label]:not([role])').forEach(
    (frame) => frame.setAttribute('role', 'img'));
  new MutationObserver(name).observe(document, {childList: true, subtree: true});
  name();
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
