# SPDX-License-Identifier: Apache-2.0
"""Picture of a translation: CT, contour, MR, and MR with the label's outline, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor
from nibabel.affines import apply_affine

from contourdiff.data.atomic import save_figure
from contourdiff.data.planes import ResampledPlanes
from contourdiff.data.volumes import open_volume, scaled_voxels
from contourdiff.pictures import image_grid

QUANTILES = (0.1, 0.9)
"""Share of the slices with a label, or else with a contour, at the first and at the last slice shown."""
MAX_OUTLINES = 64
"""Label values that are drawn in a slice; each takes a pass over it."""
WHITE = 255.0


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
        """Write slices as PNG.

        Args:
            path: PNG to write.
            source: NIfTI file of the CT.
            label: NIfTI file of the label on any grid, or ``None``.
            contours: ``(1, H, W, D)``, whose slices are shown.
            translation: gray levels ``(1, H, W, D)`` on any grid.
        """
        axis = self.slice_axis
        positions = self._positions(label, contours)

        def planes(volume: ResampledPlanes, mode: str = "bilinear") -> list[np.ndarray]:
            return [volume.plane(contours, axis, position, mode) for position in positions]

        contour_slices = np.moveaxis(np.asarray(contours[0]), axis, 0)
        mr = [plane / WHITE for plane in planes(ResampledPlanes(translation))]
        rows = {
            "CT": planes(ResampledPlanes(source, self.window_hu)),
            "contour": [contour_slices[position] for position in positions],
            "MR": mr,
        }
        if label is None:
            figure = _titled_grid(rows)
        else:
            figure = _titled_grid({**rows, "MR and label": mr})
            _draw_outlines(figure, planes(ResampledPlanes(label), "nearest"))
        figure.tight_layout(pad=0.3)
        save_figure(figure, path, dpi=90, facecolor="black")

    def _positions(self, label: Path | None, contours: MetaTensor) -> list[int]:
        """Slices to show, evenly spread over those that are filled."""
        if label is None:
            filled = _filled_along(np.asarray(contours[0]), self.slice_axis)
        else:
            filled = filled_slices(label, contours, self.slice_axis)
        if not len(filled):
            return [0]
        shares = np.linspace(*QUANTILES, self.columns)
        return [int(position) for position in np.quantile(filled, shares)]


def filled_slices(label: str | Path, target: MetaTensor, slice_axis: int) -> np.ndarray:
    """Sorted numbers of the slices of ``target (1, H, W, D)`` nearest to the filled slices of a label.

    ``label`` is a NIfTI file on any grid, one of whose axes runs along ``slice_axis`` of ``target``.
    """
    image = open_volume(label)
    target_affine = np.asarray(target.affine, dtype=np.float64)
    to_target = np.linalg.inv(target_affine) @ image.affine
    label_axis = int(np.argmax(np.abs(to_target[slice_axis, :3])))
    filled = _filled_along(scaled_voxels(label), label_axis)
    middle = [(size - 1) / 2 for size in image.shape]
    centers = np.tile(middle, (len(filled), 1))
    centers[:, label_axis] = filled
    positions = apply_affine(to_target, centers)[:, slice_axis]
    numbers = np.rint(positions).astype(int)
    last = target.shape[1 + slice_axis] - 1
    return np.unique(numbers.clip(0, last))


def _filled_along(volume: np.ndarray, axis: int) -> np.ndarray:
    """Positions along an axis of ``volume (H, W, D)`` at which some voxel is not 0."""
    in_slices = np.moveaxis(volume, axis, 0)
    return np.flatnonzero(in_slices.any(axis=(1, 2)))


def _titled_grid(rows: dict[str, list[np.ndarray]]) -> Figure:
    """A row of slices in [0, 1] for each title."""
    titles = [[title] for title in rows]
    figure = image_grid(list(rows.values()), titles, white=1, cell_inches=(2.4, 2.8))
    for ax in figure.axes:
        ax.set_title(ax.get_title(loc="left"), fontsize=9, color="white", loc="left")
        ax.invert_xaxis()
    return figure


def _draw_outlines(figure: Figure, labels: Sequence[np.ndarray]) -> None:
    """Draw the outlines of labels onto the last row of slices."""
    for ax, label in zip(figure.axes[-len(labels) :], labels, strict=True):
        for value in np.unique(label[label > 0])[:MAX_OUTLINES]:
            color = f"C{int(value) % 10}"
            ax.contour(value == label.T, levels=[0.5], colors=[color], linewidths=0.8)
