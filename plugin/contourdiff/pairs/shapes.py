# SPDX-License-Identifier: Apache-2.0
"""Shapes of a labelled CT: warped, on the grid of the model, as a folder of CT with labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacing
from monai.utils import convert_to_numpy
from nibabel.affines import from_matvec, voxel_sizes

from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti import SourceGridReader
from contourdiff.data.volumes import write_volume
from contourdiff.transforms import RemapLabels
from contourdiff.transforms.in_plane_resample import InPlaneSmooth
from contourdiff.transforms.warp import UNWARPED, WarpStrength, random_warp, warped

AIR_HU = -1024
FIRST_SHAPE = 0
"""Number of the shape that is not warped: the anatomy itself."""


class ModelGrid(NamedTuple):
    """What the networks see of a CT; settings of ``inference.json``."""

    axcodes: str
    slice_axis: int
    spacing_mm: float
    window_hu: tuple[float, float]


@dataclass(frozen=True)
class Shapes:
    """How shapes are made of a labelled CT. What is drawn depends on (seed, case, number of the shape) alone.

    Args:
        model: the grid and the window; a shape is on this grid, with gray levels of this window in HU.
        strength: of the warp.
        seed: of all that is drawn.
        outline_probability: share of the shapes of a case whose contour gets the outline of the label.
        label_map: the classes that label values of the CT become; ``None`` keeps the values.
        margin_mm: slices that are farther from the label are left out; ``None`` keeps all.
    """

    model: ModelGrid
    strength: WarpStrength
    seed: int = 0
    outline_probability: float = 0.5
    label_map: LabelMap | None = None
    margin_mm: float | None = None

    def is_outlined(self, case: str, number: int) -> bool:
        """Whether a shape gets the outline: ``outline_probability`` of any number of first shapes, rounded.

        Examples:
            >>> shapes = Shapes(ModelGrid("RAS", 0, 1.1, (-200.0, 300.0)), WarpStrength())
            >>> sum(shapes.is_outlined("anna", number) for number in range(8))
            4
        """
        start = _draw(self.seed, case, "outline") / 2**32
        before = math.floor(start + number * self.outline_probability)
        after = math.floor(start + (number + 1) * self.outline_probability)
        return after > before

    def classes_of(self, label: Any) -> np.ndarray:
        """Values of a label of any shape as they are written: int64, or classes of the label map."""
        voxels = convert_to_numpy(label)
        if self.label_map is not None:
            voxels = RemapLabels(self.label_map, "ct")(voxels)
        return np.rint(voxels).astype(np.int64)

    def write(
        self, image: str | Path, label: str | Path, paths: Mapping[int, tuple[Path, Path]]
    ) -> None:
        """Write shapes of a CT: number of the shape -> files of its CT, which comes last, and of its label.

        ``image`` and ``label`` are NIfTI files on one grid.
        """
        volume, classes = self._read(image, label)
        pixel_mm = [self.model.spacing_mm] * 3
        pixel_mm[self.model.slice_axis] = -1.0  # stays
        grid = cast(MetaTensor, Spacing(pixel_mm)(volume, lazy=True))
        affine = convert_to_numpy(grid.peek_pending_affine())
        shape = [int(size) for size in grid.peek_pending_shape()]
        spacing_mm = voxel_sizes(affine).tolist()
        to_source = np.linalg.solve(convert_to_numpy(volume.affine), affine)
        smooth = InPlaneSmooth(self.model.spacing_mm, self.model.slice_axis)
        smoothed = smooth(volume).as_tensor()
        for number, (image_path, label_path) in paths.items():
            warp = UNWARPED
            if number != FIRST_SHAPE:
                seed = _draw(self.seed, image_path.name, "warp")
                warp = random_warp(shape, spacing_mm, self.strength, seed)
            hounsfield, values = warped(smoothed, classes, warp, to_source, shape, spacing_mm)
            whole = np.rint(hounsfield).astype(np.int16)
            whole[whole <= self.model.window_hu[0]] = AIR_HU  # the same gray level, and plainly CT
            kept = self._slices_near(values, spacing_mm)
            first_voxel = [part.start for part in kept]
            kept_affine = affine @ from_matvec(np.eye(3), first_voxel)
            write_volume(values[kept], kept_affine, label_path)
            write_volume(whole[kept], kept_affine, image_path)

    def _slices_near(
        self, label: np.ndarray, spacing_mm: Sequence[float]
    ) -> tuple[slice, slice, slice]:
        """The box of the slices of a label ``(H, W, D)`` that are kept; all of them if the label is empty."""
        axis = self.model.slice_axis
        box = [slice(0, size) for size in label.shape]
        others = tuple(other for other in range(3) if other != axis)
        labelled = np.flatnonzero((label > 0).any(axis=others))
        if self.margin_mm is not None and len(labelled):
            margin = math.floor(self.margin_mm / spacing_mm[axis])
            first, last = labelled[[0, -1]].tolist()
            start = max(first - margin, 0)
            box[axis] = slice(start, last + margin + 1)
        return box[0], box[1], box[2]

    def _read(self, image: str | Path, label: str | Path) -> tuple[MetaTensor, np.ndarray]:
        """CT ``(1, H, W, D)``, clipped to the window, and label ``(H, W, D)``, as their slices are stacked."""
        data = read_oriented({"image": image, "label": label}, self.model.axcodes)
        low, high = self.model.window_hu
        volume = data["image"].clamp(low, high)
        classes = self.classes_of(data["label"][0])
        return volume, classes.astype(smallest_type(classes))


def read_oriented(files: Mapping[str, str | Path], axcodes: str) -> dict[str, Any]:
    """NIfTI volumes by key, MetaTensors ``(1, H, W, D)``, their axes in the order and direction of ``axcodes``."""
    keys = list(files)
    read = Compose(
        [
            LoadImaged(keys, image_only=True, reader=SourceGridReader),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes=axcodes, labels=None),
        ]
    )
    paths = {key: str(path) for key, path in files.items()}
    return dict(read(paths))


def smallest_type(values: np.ndarray) -> np.dtype:
    """The smallest whole type that holds all values."""
    lowest = np.min_scalar_type(int(values.min()))
    highest = np.min_scalar_type(int(values.max()))
    return np.result_type(lowest, highest)


def class_values(label: np.ndarray) -> list[int]:
    """Values above 0 that occur in a label, sorted."""
    values: list[int] = np.unique(label).tolist()
    return [value for value in values if value > 0]


def _draw(seed: int, case: str, purpose: str) -> int:
    """A number from 0 to 2**32 - 1 that depends on these three alone."""
    digest = hashlib.sha256(f"{seed} {purpose} {case}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
