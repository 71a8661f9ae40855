"""The book's figures: axes in, axes out. The only module that imports matplotlib.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; what differs in colour differs
in a label, marker or line style too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
DIVERGING = "RdBu_r"

STYLE = {
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def subplots(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 2.8, **kwargs: Any
) -> tuple[Figure, Any]:
    """A figure in the book's style, `width` by `height` inches, and its axes as matplotlib gives them."""
    plt.style.use(STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), **kwargs)


def directions(ax: Axes, W: Any, labels: Sequence[str] | None = None, limit: float = 1.6) -> Axes:
    """Feature directions in two dimensions: an arrow from the origin for each column of W [2, features]."""
    W = np.asarray(W)
    ax.axhline(0, color="0.88", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.88", linewidth=0.8, zorder=0)
    for i, (x, y) in enumerate(W.T):
        color = COLORS[i % len(COLORS)]
        ax.plot([0, x], [0, y], color=color, linewidth=2, solid_capstyle="round")
        ax.plot(x, y, "o", color=color, markersize=4.5)
        if labels and np.hypot(x, y) > 0.15:
            ax.text(1.17 * x, 1.17 * y, labels[i], ha="center", va="center", color=color, fontweight="bold")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    return ax


def matrix(ax: Axes, values: Any, *, limit: float = 1.0, digits: int = 1) -> Axes:
    """A small matrix as a heat map, blue below and red above zero, from -limit to limit, with its numbers."""
    values = np.asarray(values)
    ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        if abs(value) >= 0.5 * 10**-digits:
            color = "white" if abs(value) > 0.6 * limit else "black"
            ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7.5, color=color)
    return ax


def categories(
    ax: Axes, values: Any, names: Sequence[str], colors: Sequence[str] = tuple(COLORS), **kwargs: Any
) -> Axes:
    """A map of whole numbers, one colour each, with a legend below; kwargs go to `pcolormesh` (x and y edges)."""
    x, y = kwargs.pop("x"), kwargs.pop("y")
    ax.pcolormesh(x, y, np.asarray(values), cmap=ListedColormap(colors[: len(names)]), vmin=-0.5, vmax=len(names) - 0.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors[: len(names)]]
    ax.figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return ax


def circuit(
    ax: Axes, places: Mapping[str, tuple[float, float]], edges: Mapping[tuple[str, str, str], float], **labels: str
) -> Axes:
    """A circuit: each node's name (or label) at its place (x, y), edges as arrows, wide for large weights.

    An edge is (sender, receiver, input) and blue, or orange and dashed if its weight is negative. Up to fifteen edges
    have their input and weight written on them: at the middle, or where no other edge passes. Several edges between
    the same two nodes are drawn as bows.
    """
    ax.axis("off")
    widest = max((abs(weight) for weight in edges.values()), default=0.0) or 1.0
    ax.set(xlim=(min(x for x, _ in places.values()) - 0.6, max(x for x, _ in places.values()) + 0.6))
    ax.set(ylim=(min(y for _, y in places.values()) - 0.4, max(y for _, y in places.values()) + 0.4))
    boxes = {}
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": "0.3", "lw": 0.9}
        boxes[name] = ax.text(x, y, labels.get(name, name), ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    ax.figure.canvas.draw()  # boxes get their sizes, at which arrows are to end
    to_data = ax.transData.inverted()  # ends in data coordinates: a later crop of the figure does not move them
    ends = {}
    for name, node in boxes.items():
        if (patch := node.get_bbox_patch()) is not None:
            (x, y), (x1, y1) = patch.get_window_extent().transformed(to_data).get_points()
            ends[name] = Rectangle((x, y), x1 - x, y1 - y, transform=ax.transData)
    pairs = [edge[:2] for edge in edges]
    texts: list[tuple[float, float]] = []
    for i, ((sender, receiver, side), weight) in enumerate(edges.items()):
        (x0, y0), (x1, y1) = places[sender], places[receiver]
        bow = 0.6 * (pairs[:i].count((sender, receiver)) - (pairs.count((sender, receiver)) - 1) / 2)
        color, style = (COLORS[0], "-") if weight >= 0 else (COLORS[1], "--")
        arrow = {
            "arrowstyle": "-|>",
            "connectionstyle": f"arc3,rad={bow}",
            "color": color,
            "lw": 0.7 + 3.3 * abs(weight) / widest,
            "ls": style,
            "patchA": ends[sender],
            "patchB": ends[receiver],
        }
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=arrow, zorder=1)
        if len(edges) > 15:
            continue
        text = f"{side} {abs(weight):.1f}".strip()
        others = [pair for pair in pairs if pair != (sender, receiver)]
        for part in (0.5, 0.32, 0.68, 0.5):
            x, y = x0 + part * (x1 - x0) + bow / 2 * (y1 - y0), y0 + part * (y1 - y0) - bow / 2 * (x1 - x0)
            near_text = any(np.hypot(x - a, y - b) < 0.2 for a, b in texts)
            if not near_text and all(_distance((x, y), places[a], places[b]) > 0.08 for a, b in others):
                break
        texts.append((x, y))
        blank = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"}
        ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=color, bbox=blank, zorder=4)
    return ax


def _distance(point: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """How far a point is from a line between two places."""
    p, a, b = np.array(point), np.array(start), np.array(end)
    along = np.clip((p - a) @ (b - a) / max((b - a) @ (b - a), 1e-12), 0, 1)
    return float(np.hypot(*(p - a - along * (b - a))))
