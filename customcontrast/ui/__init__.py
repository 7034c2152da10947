"""The page and its HTTP API; the only package that imports gradio."""
