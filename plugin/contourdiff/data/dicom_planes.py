# SPDX-License-Identifier: Apache-2.0
"""Where the slices of a DICOM series lie: their planes, and a check that they are one regular stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

GROUP_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
"""Where a multi-frame file has what a file of one slice has at its top."""
GEOMETRY = tuple(GROUP_OF)[:3]
MAX_TILT_DEGREES = 0.05
POSITION_TOLERANCE = 0.01
"""Share of the slice distance that a slice may lie beside its place on the straight line through all."""
ROUNDING_MM = 0.1
"""A slice may lie as far beside it in any case, up to a quarter of the distance: positions are rounded text."""
GRAY = "MONOCHROME2"
CONVERT = "convert it with dcm2niix"


class Plane(NamedTuple):
    """Where a slice lies, in mm, in the coordinates of DICOM."""

    position: np.ndarray
    """Center of the first voxel, ``(3,)``."""
    orientation: np.ndarray
    """Directions in which columns and rows count up, ``(6,)``."""
    spacing: np.ndarray
    """Distance of rows and columns, ``(2,)``."""
    size: tuple[int, int]
    """Number of columns and rows."""

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice, ``(3,)``."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)


def planes_of(header: Dataset, where: str) -> list[Plane]:
    """Planes of the frames of a file, in their order."""
    colors = header.get("PhotometricInterpretation") or GRAY
    if colors != GRAY:
        raise ValueError(
            f"expected gray levels ({GRAY}) in {where}, got {colors}; export the original CT"
        )
    shared = header.get("SharedFunctionalGroupsSequence") or []
    frames = header.get("PerFrameFunctionalGroupsSequence") or [header]
    count = int(header.get("NumberOfFrames") or 1)
    size = (int(header.Columns), int(header.Rows))
    planes = []
    rescalings = set()
    for frame in frames:
        groups = [frame, *shared, header]
        position, orientation, spacing = (values_of(name, groups) for name in GEOMETRY)
        planes.append(Plane(position, orientation, spacing, size))
        slope = values_of("RescaleSlope", groups)
        intercept = values_of("RescaleIntercept", groups)
        rescalings.add((*slope, *intercept))
    if len(frames) != count or len(rescalings) > 1:
        got = f"a multi-frame file of {count} frames with {len(frames)} positions and {len(rescalings)} rescalings"
        raise ValueError(
            f"expected a position for each frame and one rescaling in {where}, got {got}; {CONVERT}"
        )
    return planes


def values_of(name: str, groups: Sequence[Dataset]) -> np.ndarray:
    """Numbers of a tag in the first group that has it; empty if none has. ``ValueError`` for other than numbers."""
    for group in groups:
        items = group.get(GROUP_OF[name]) or [group]
        value = items[0].get(name)
        if value is not None and value != "":
            return np.array(value, dtype=float).ravel()
    return np.zeros(0)


def check_planes(planes: Sequence[Plane], where: str) -> None:
    """Raise ``ValueError`` unless these are two slices or more of one kind."""
    if len(planes) < 2:
        raise ValueError(f"expected a stack of slices in {where}, got {len(planes)}; pass a volume")
    first = planes[0]
    for plane in planes:
        if not _is_placed(plane):
            raise ValueError(
                f"expected position, orientation and spacing in every file of {where}, got a slice without or "
                "with impossible ones; export them again"
            )
        if not _is_like(plane, first):
            raise ValueError(
                f"expected slices of one orientation, size and pixel spacing in {where}, got a mixture; "
                "move the files of one stack to a folder of their own"
            )


def _is_like(plane: Plane, first: Plane) -> bool:
    """Whether two planes have one size, pixel spacing and orientation."""
    if plane.size != first.size:
        return False
    if not np.allclose(plane.spacing, first.spacing):
        return False
    return np.allclose(plane.orientation, first.orientation, atol=1e-3)


def _is_placed(plane: Plane) -> bool:
    """Whether position, orientation and spacing have all their numbers, and the axes are perpendicular unit vectors."""
    counts = (plane.position.size, plane.orientation.size, plane.spacing.size)
    if counts != (3, 6, 2):
        return False
    if not np.isfinite(plane.position).all():
        return False
    if not (plane.spacing > 0).all():
        return False
    axes = plane.orientation.reshape(2, 3)
    products = axes @ axes.T
    return np.allclose(products, np.eye(2), atol=0.02)


def stack_of(planes: Sequence[Plane], where: str) -> tuple[list[int], float]:
    """Order of the slices along their normal, and their distance in mm; ``ValueError`` for an irregular stack."""
    normal = planes[0].normal
    positions = np.array([plane.position for plane in planes])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    positions = positions[order]
    numbers = np.arange(len(planes))
    step, start = np.polyfit(numbers, positions, 1)
    distance = float(step @ normal)
    offsets = positions - start - np.outer(numbers, step)
    beside = np.linalg.norm(offsets, axis=1)
    rounding = min(ROUNDING_MM, distance / 4)
    limit = max(POSITION_TOLERANCE * distance, rounding)
    if distance <= 0 or beside.max() > limit:
        gaps = np.diff(positions, axis=0)
        steps = np.linalg.norm(gaps, axis=1)
        usual = float(np.median(steps))
        departures = np.abs(steps - usual)
        first = int(np.argmax(departures))
        raise ValueError(
            f"expected slices at equal distances in {where}, got {steps[first]:.3f} mm after slice {first + 1} of "
            f"{len(planes)} where others have {usual:.3f} mm (missing or repeated slices); export the series again"
        )
    sideways = step - distance * normal
    drift = float(np.linalg.norm(sideways))
    angle = np.arctan2(drift, distance)
    tilt = float(np.degrees(angle))
    whole_drift = drift * len(planes)
    if tilt > MAX_TILT_DEGREES and whole_drift > 2 * ROUNDING_MM:
        raise ValueError(
            f"expected slices straight above one another in {where}, got a gantry tilt of {tilt:.2f} degrees; "
            "correct it first, as dcm2niix does"
        )
    return order.tolist(), distance
