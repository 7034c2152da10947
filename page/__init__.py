"""The page: looks, layout, wiring and API. What the actions do is the desk's affair; `app.py` starts it."""
