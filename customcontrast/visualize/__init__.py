"""Arrays -> pictures that explain a run: no model code, no state, safe to call from many threads.

overlays.py shows attention and location maps, sheets.py puts pictures side by side and writes animations, plots.py
draws curves and t-SNE, drawing.py holds the typography they share.
"""

from typing import Any

from customcontrast.visualize.drawing import SUBJECT_COLORS
from customcontrast.visualize.overlays import (
    heat_map,
    location_strip,
    overlay,
    strip_steps,
    subjects_overlay,
    token_grid,
)
from customcontrast.visualize.sheets import (
    animation,
    checkerboard,
    compare_row,
    contact_sheet,
    labelled_grid,
    save_small,
)


def __getattr__(name: str) -> Any:  # the plots; matplotlib's figures are slow to import
    if name not in ("area_plot", "atlas_plot", "tsne", "tsne_plot"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from customcontrast.visualize import plots

    return getattr(plots, name)


__all__ = [
    "SUBJECT_COLORS",
    "animation",
    "area_plot",
    "atlas_plot",
    "checkerboard",
    "compare_row",
    "contact_sheet",
    "heat_map",
    "labelled_grid",
    "location_strip",
    "overlay",
    "save_small",
    "strip_steps",
    "subjects_overlay",
    "token_grid",
    "tsne",
    "tsne_plot",
]
