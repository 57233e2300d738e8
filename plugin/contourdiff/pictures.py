# SPDX-License-Identifier: Apache-2.0
"""Pictures of slices: one, or a grid of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

MAX_OUTLINES = 64
"""Label values that are drawn in a slice; each takes a pass over it."""


def image_grid(
    rows: Sequence[Sequence[ArrayLike]],
    titles: Sequence[Sequence[str]] = (),
    *,
    white: float = 255,
    cell_inches: tuple[float, float] = (2.4, 2.4),
) -> Figure:
    """A figure of slices ``(H, W)``, or ``(H, W, 3)`` in color, in rows of any length, H to the right and W upward.

    0 is black; colors are in [0, 1]. ``titles`` are of the slices, row by row; some may be missing. ``cell_inches`` are
    width and height of a slice.
    """
    columns = max(len(row) for row in rows)
    width, height = cell_inches
    figure = Figure(figsize=(width * columns, height * len(rows)))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, row in enumerate(rows):
        row_titles = titles[number] if number < len(titles) else ()
        for column, image in enumerate(row):
            title = row_titles[column] if column < len(row_titles) else ""
            ax = axes[number, column]
            upright = np.asarray(image).swapaxes(0, 1)
            ax.imshow(upright, cmap="gray", origin="lower", vmin=0, vmax=white)
            ax.set_title(title, fontsize=8, loc="left")
    figure.tight_layout(pad=0.3)
    return figure


def draw_outlines(axes: Sequence[Axes], labels: Sequence[np.ndarray]) -> None:
    """Draw the outline of each label ``(H, W)`` onto its slice, a color for each value."""
    for ax, label in zip(axes, labels, strict=True):
        values = np.unique(label[label > 0])
        for value in values[:MAX_OUTLINES]:
            color = f"C{int(value) % 10}"
            inside = value == label.T
            ax.contour(inside, levels=[0.5], colors=[color], linewidths=0.8)
