"""Models in memory, cut-outs, requests and recipes behind the page; no gradio."""
