"""Curves and scatter plots, by matplotlib's objects alone: no pyplot, hence no state shared between threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from customcontrast.visualize.drawing import INK, LINE, SOFT, SUBJECT_COLORS

MARKERS = "o^sDvP*Xph<>d8"
DPI = 150


def area_plot(
    masks: np.ndarray, names: Sequence[str] | None = None, size: tuple[int, int] = (1000, 360)
) -> Image.Image:
    """Two plots of the location masks over the steps: each subject's area, and the path of its centre.

    Left: the mean of M_t, the subject's share of the picture. Right: its centre of mass, in the picture's own
    proportions, from a hollow dot (first step) to a full one (last).

    Args:
        masks: (T, K, h, w) in 0..1.
        names: one for each subject.
        size: (width, height) in px.

    Raises:
        ValueError: masks of another shape, or empty.
    """
    masks = np.asarray(masks, np.float32)
    if masks.ndim != 4 or 0 in masks.shape:
        raise ValueError(f"masks: got shape {masks.shape}; give (T, K, h, w).")
    T, K, h, w = masks.shape
    names = list(names) if names else [f"subject {k + 1}" for k in range(K)]
    figure = _figure(size)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    area, (x, y) = masks.mean(axis=(2, 3)), _centers(masks)
    steps = np.arange(1, T + 1)
    for k in range(K):
        color = _unit(SUBJECT_COLORS[k % len(SUBJECT_COLORS)])
        left.plot(steps, area[:, k], color=color, lw=1.8, marker="o", ms=2.8, label=names[k])
        right.plot(x[:, k], y[:, k], color=color, lw=1.2, alpha=0.7)
        right.plot(x[:1, k], y[:1, k], "o", ms=6, mfc="white", mec=color)
        right.plot(x[-1:, k], y[-1:, k], "o", ms=6, color=color)
    top = max(1.25 * float(area.max()), 1e-3)  # room for the legend above a flat line
    left.set(xlabel="step", ylim=(0, top), xlim=(0.5, T + 0.5))
    left.set_title("Area of the location mask", loc="left")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.grid(axis="y", color=_unit(LINE), lw=0.7)
    if K > 1 or names[0] != "subject 1":
        left.legend(frameon=False, loc="best")
    right.set(xlim=(0, w), ylim=(h, 0), aspect="equal", xticks=[], yticks=[])
    right.set_title("Path of its centre", loc="left")
    _plain(left)
    _plain(right, box=True)
    return _picture(figure)


def tsne_plot(
    features: np.ndarray,
    subject_ids: Sequence,
    view_ids: Sequence,
    title: str = "",
    size: tuple[int, int] = (760, 640),
    seed: int = 0,
) -> Image.Image:
    """t-SNE of subject representations, as in the paper's Fig. 7: shape = subject, colour = view.

    Args:
        features: (N, d), at least 3 rows.
        subject_ids: N labels, a shape each.
        view_ids: N labels, a colour each.
        title: one line above the plot.
        size: (width, height) in px.
        seed: of the embedding; equal inputs give equal pictures.

    Raises:
        ValueError: fewer than 3 rows, or labels that do not match them.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 3:
        raise ValueError(f"features: got shape {features.shape}; give (N, d) with N ≥ 3.")
    if len(subject_ids) != len(features) or len(view_ids) != len(features):
        raise ValueError(
            f"subject_ids, view_ids: got {len(subject_ids)} and {len(view_ids)} for {len(features)} features; "
            "give one of each for every row."
        )
    points = tsne(features, seed)
    subjects, views = list(dict.fromkeys(subject_ids)), list(dict.fromkeys(view_ids))
    figure = _figure(size)
    axes = figure.subplots()
    for (px, py), subject, view in zip(points, subject_ids, view_ids, strict=True):
        marker, color = _marker(subjects.index(subject)), _view_color(views.index(view))
        axes.plot(px, py, ls="", marker=marker, color=color, ms=8, mec="white", mew=0.8, alpha=0.9)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.07)
    axes.set_title(title, loc="left")
    _plain(axes, box=True)
    shapes = [_key(str(s), _marker(i), SOFT) for i, s in enumerate(subjects[: len(MARKERS)])]
    colors = [_key(str(v), "o", _view_color(i)) for i, v in enumerate(views)]
    options = {"frameon": False, "alignment": "left", "borderaxespad": 0, "handletextpad": 0.3}
    options |= {"fontsize": 7.5, "title_fontproperties": {"size": 7.5, "weight": "bold"}, "labelcolor": _unit(INK)}
    upper = axes.legend(handles=shapes, title="subject", loc="upper left", bbox_to_anchor=(1.02, 1), **options)
    axes.add_artist(upper)
    upper.set_clip_on(False)  # add_artist clips to the axes, and the layout makes no room for what is clipped
    axes.legend(handles=colors, title="view", loc="lower left", bbox_to_anchor=(1.02, 0), **options)
    return _picture(figure)


def atlas_plot(
    places: np.ndarray,
    subject_ids: Sequence[int],
    new: Sequence[tuple[str, np.ndarray]],
    size: tuple[int, int] = (760, 560),
) -> Image.Image:
    """New subjects, as stars with names, among known ones, as grey dots of one shape a subject (Fig. 7).

    places: (N, 2), of the known ones. subject_ids: N numbers. new: (name, place (2,)) of each new subject.
    size: (width, height) in px.
    """
    figure = _figure(size)
    axes = figure.subplots()
    for (px, py), subject in zip(places, subject_ids, strict=True):
        marker = _marker(int(subject))
        axes.plot(px, py, ls="", marker=marker, color=_unit(SOFT), ms=7, mec="white", mew=0.6, alpha=0.45)
    for k, (name, place) in enumerate(new):
        color = _unit(SUBJECT_COLORS[k % len(SUBJECT_COLORS)])
        x, y = place
        axes.plot(x, y, ls="", marker="*", ms=19, mec="white", mew=1.2, color=color, zorder=3)
        axes.annotate(name, (x, y), (9, 9), textcoords="offset points", size=9, weight="bold", color=color, zorder=4)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.08)
    axes.set_title("Your subject among known ones (place by nearest neighbours)", loc="left")
    _plain(axes, box=True)
    return _picture(figure)


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of features (N, d) -> (N, 2): from the principal components, exact up to 600 rows, in one thread.

    Equal features and seed give equal places.
    """
    from sklearn.manifold import TSNE  # half a second to import, for one figure
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    init = "pca" if min(features.shape) >= 2 and features.std() > 0 else "random"
    method = "exact" if len(features) <= 600 else "barnes_hut"
    with threadpool_limits(1):
        embedding = TSNE(2, perplexity=perplexity, init=init, random_state=seed, method=method)
        return embedding.fit_transform(features)


def _centers(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, K, h, w) -> centre of mass x, y, each (T, K) in pixels of the map; NaN where a mask is empty."""
    total = masks.sum(axis=(2, 3))
    total = np.where(total > 1e-6, total, np.nan)
    y = (masks.sum(axis=3) * (np.arange(masks.shape[2]) + 0.5)).sum(-1) / total
    x = (masks.sum(axis=2) * (np.arange(masks.shape[3]) + 0.5)).sum(-1) / total
    return x, y


def _figure(size: tuple[int, int]) -> Figure:
    return Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, layout="constrained")


def _plain(axes: Axes, box: bool = False) -> None:
    """Quiet axes: small type, hairlines, no frame but the axes themselves (or a light box)."""
    for side, spine in axes.spines.items():
        spine.set_visible(box or side in ("left", "bottom"))
        spine.set_color(_unit(LINE if box else SOFT))
        spine.set_linewidth(0.8)
    axes.tick_params(labelsize=7, colors=_unit(SOFT), width=0.6, length=3)
    axes.xaxis.label.set(size=7.5, color=_unit(SOFT))
    axes.yaxis.label.set(size=7.5, color=_unit(SOFT))
    axes.set_title(axes.get_title(loc="left"), loc="left", size=8.5, color=_unit(INK), weight="bold")
    legend = axes.get_legend()
    if legend is not None:
        for text in legend.get_texts():
            text.set(size=7.5, color=_unit(INK))


def _picture(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _key(text: str, marker: str, color: tuple) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=_unit(color), ms=6, mec="white", mew=0.5, label=text)


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _view_color(index: int) -> tuple[float, float, float]:
    return _unit(SUBJECT_COLORS[index % len(SUBJECT_COLORS)])


def _unit(color: tuple) -> tuple[float, float, float]:
    return tuple(c / 255 for c in color) if max(color) > 1 else tuple(color)
