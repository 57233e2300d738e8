# SPDX-License-Identifier: Apache-2.0
"""Picture of a translation: CT, contour, MR, and MR with the label's outline, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor

from contourdiff.data.atomic import save_figure
from contourdiff.data.planes import ResampledPlanes
from contourdiff.pictures import show_slice

QUANTILES = (0.1, 0.9)
"""Share of the slices with a label, or else with a contour, at the first and at the last slice shown."""

MAX_OUTLINES = 64
"""Label values that are drawn in a slice; each takes a pass over it."""


@dataclass(frozen=True)
class Preview:
    """Draw some slices of a translated case, spread over those with a label, or else with a contour.

    Only the slices shown are resampled.

    Args:
        slice_axis: axis along which the slices of the contours are stacked.
        window_hu: CT values shown black and white.
        columns: number of slices; an odd number shows the middle one.
    """

    slice_axis: int = 0
    window_hu: tuple[float, float] = (-200.0, 300.0)
    columns: int = 7

    def save(
        self,
        path: str | Path,
        source: Path,
        label: Path | None,
        contours: MetaTensor,
        translation: MetaTensor,
    ) -> None:
        """Write slices of ``contours (1, H, W, D)``, CT ``source``, label and ``translation (1, H, W, D)`` as PNG."""
        positions = self._positions(label, contours)

        def planes(
            volume: Path | MetaTensor, mode: str, window: tuple[float, float] | None = None
        ) -> list[np.ndarray]:
            resampled = ResampledPlanes(volume, window)
            return [
                resampled.plane(contours, self.slice_axis, position, mode) for position in positions
            ]

        given = np.moveaxis(np.asarray(contours[0]), self.slice_axis, 0)
        mr = planes(translation, "bilinear")
        rows = [
            ("CT", planes(source, "bilinear", self.window_hu), 1),
            ("contour", [given[position] for position in positions], 1),
            ("MR", mr, 255),
        ]
        if label is not None:
            rows.append(("MR and label", mr, 255))
        figure = _grid_of_images(rows, None if label is None else planes(label, "nearest"))
        save_figure(figure, path, dpi=90, facecolor="black")

    def _positions(self, label: Path | None, contours: MetaTensor) -> list[int]:
        """Slices to show, evenly spread over those that are filled."""
        if label is None:
            others = tuple(axis for axis in range(3) if axis != self.slice_axis)
            filled = np.flatnonzero(np.asarray(contours[0]).any(axis=others))
        else:
            filled = filled_slices(label, contours, self.slice_axis)
        if not len(filled):
            return [0]
        return [
            int(position) for position in np.quantile(filled, np.linspace(*QUANTILES, self.columns))
        ]


def filled_slices(label: str | Path, target: MetaTensor, slice_axis: int) -> np.ndarray:
    """Sorted numbers of the slices of ``target (1, H, W, D)`` nearest to the filled slices of a label.

    ``label`` is a NIfTI file on any grid, one of whose axes runs along ``slice_axis`` of ``target``.
    """
    image = nib.load(label)
    to_target = np.linalg.inv(np.asarray(target.affine, dtype=np.float64)) @ image.affine
    own_axis = int(np.argmax(np.abs(to_target[slice_axis, :3])))
    others = tuple(axis for axis in range(3) if axis != own_axis)
    filled = np.flatnonzero(np.asanyarray(image.dataobj).any(axis=others))
    centers = np.repeat([[(size - 1) / 2 for size in image.shape]], len(filled), axis=0)
    centers[:, own_axis] = filled
    slices = np.rint(centers @ to_target[slice_axis, :3] + to_target[slice_axis, 3]).astype(int)
    return np.unique(np.clip(slices, 0, target.shape[1 + slice_axis] - 1))


def _grid_of_images(
    rows: Sequence[tuple[str, list[np.ndarray], float]], outlines: list[np.ndarray] | None
) -> Figure:
    """A titled row for each ``(name, images, white)``; the outlines of labels are drawn onto the last row."""
    columns = len(rows[0][1])
    figure = Figure(figsize=(2.4 * columns, 2.8 * len(rows)))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images, white) in enumerate(rows):
        for ax, image in zip(axes[row], images, strict=True):
            show_slice(ax, image, white=white)
        axes[row, 0].set_title(name, fontsize=9, color="white", loc="left")
    for ax, outline in zip(axes[-1], outlines or [], strict=False):
        for value in np.unique(outline[outline > 0])[:MAX_OUTLINES]:
            ax.contour(
                value == outline.T, levels=[0.5], colors=[f"C{int(value) % 10}"], linewidths=0.8
            )
    for ax in axes.flat:
        ax.invert_xaxis()
    figure.tight_layout(pad=0.3)
    return figure
