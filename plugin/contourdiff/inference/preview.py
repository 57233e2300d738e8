# SPDX-License-Identifier: Apache-2.0
"""Picture of a translation: CT, contour, MR, and MR with the label's outline, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor
from nibabel.affines import apply_affine

from contourdiff.data.atomic import save_figure
from contourdiff.data.planes import ResampledPlanes
from contourdiff.data.volumes import open_volume, scaled_voxels
from contourdiff.pictures import draw_outlines, image_grid


@dataclass(frozen=True)
class Preview:
    """Draw ``columns`` slices of a translated case, spread over those with a label, or else with a contour.

    ``slice_axis`` is that of the contours; ``window_hu`` has the CT values shown black and white.
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
        """Write slices of the ``contours (1, H, W, D)`` as PNG.

        ``source`` and ``label`` are NIfTI files, ``translation`` has gray levels ``(1, H, W, D)``, each on any grid.
        """
        positions = self._positions(label, contours)

        def planes(volume: ResampledPlanes, mode: str = "bilinear") -> list[np.ndarray]:
            axis = self.slice_axis
            return [volume.plane(contours, axis, position, mode) for position in positions]

        mr = [plane / 255.0 for plane in planes(ResampledPlanes(translation))]
        volume = np.asarray(contours[0])
        contour = np.moveaxis(volume, self.slice_axis, 0)
        rows = {
            "CT": planes(ResampledPlanes(source, self.window_hu)),
            "contour": list(contour[positions]),
            "MR": mr,
        }
        if label is not None:
            rows["MR and label"] = mr
        figure = _titled_grid(rows)
        if label is not None:
            outlined = planes(ResampledPlanes(label), "nearest")
            last_row = figure.axes[-len(outlined) :]
            draw_outlines(last_row, outlined)
        figure.tight_layout(pad=0.3)
        save_figure(figure, path, dpi=90, facecolor="black")

    def _positions(self, label: Path | None, contours: MetaTensor) -> list[int]:
        """Slices to show, evenly spread over those that are filled."""
        if label is None:
            volume = np.asarray(contours[0])
            filled = _filled_along(volume, self.slice_axis)
        else:
            filled = filled_slices(label, contours, self.slice_axis)
        if not len(filled):
            return [0]
        shares = np.linspace(0.1, 0.9, self.columns)
        positions = np.quantile(filled, shares)
        return positions.astype(int).tolist()  # type: ignore[no-any-return]


def filled_slices(label: str | Path, target: MetaTensor, slice_axis: int) -> np.ndarray:
    """Sorted numbers of the slices of ``target (1, H, W, D)`` nearest to the filled slices of a label.

    ``label`` is a NIfTI file on any grid, one of whose axes runs along ``slice_axis`` of ``target``.
    """
    image = open_volume(label)
    target_affine = np.asarray(target.affine, dtype=np.float64)
    from_world = np.linalg.inv(target_affine)
    to_target = from_world @ image.affine
    steps = np.abs(to_target[slice_axis, :3])
    label_axis = int(np.argmax(steps))
    filled = _filled_along(scaled_voxels(label), label_axis)
    middle = [(size - 1) / 2 for size in image.shape]
    centers = np.tile(middle, (len(filled), 1))
    centers[:, label_axis] = filled
    positions = apply_affine(to_target, centers)
    numbers = np.rint(positions[:, slice_axis]).astype(int)
    last = target.shape[1 + slice_axis] - 1
    return np.unique(numbers.clip(0, last))


def _filled_along(volume: np.ndarray, axis: int) -> np.ndarray:
    """Positions along an axis of ``volume (H, W, D)`` at which some voxel is not 0."""
    in_slices = np.moveaxis(volume, axis, 0)
    return np.flatnonzero(in_slices.any(axis=(1, 2)))


def _titled_grid(rows: dict[str, list[np.ndarray]]) -> Figure:
    """A row of slices in [0, 1] for each title."""
    titles = [[title] for title in rows]
    images = list(rows.values())
    figure = image_grid(images, titles, white=1, cell_inches=(2.4, 2.8))
    for ax in figure.axes:
        title = ax.get_title(loc="left")
        ax.set_title(title, fontsize=9, color="white", loc="left")
        ax.invert_xaxis()
    return figure
