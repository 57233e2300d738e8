# SPDX-License-Identifier: Apache-2.0
"""A digital lumbar CT phantom with vertebral labels, for tests and first steps without patient data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from contourdiff.data.volumes import write_volume

LABELS = {"L5": 27, "L4": 28, "L3": 29, "L2": 30, "L1": 31}
"""Class numbers of TotalSegmentator, from the lowest lumbar vertebra up."""

SHAPE = (48, 112, 128)
SPACING_MM = (4.0, 2.2, 2.2)
CENTER_MM = (8.0, -30.0, -110.0)

FAT_HU = -100
MUSCLE_HU = 50
MARROW_HU = 180

LEVELS = len(LABELS) + 2  # above L1 the unlabeled T12 and T11
BODY_HALF_DEPTH_MM = 17.0
BODY_HALF_HEIGHT_MM = 13.5


def lumbar_phantom(
    shape: Sequence[int] = SHAPE, spacing_mm: Sequence[float] = SPACING_MM, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """CT volume of a lumbar spine in a body on a table, int16 HU, and its uint8 labels, those of [`LABELS`][] or 0.

    The spine has a fixed size in mm; the body fills the volume left to right and back to front. The default grid spans
    192 x 246 x 282 mm, from the sacrum to T11; a smaller one is cut off at the right, front and top. ``shape`` and
    ``spacing_mm`` are along R, A, S; ``seed`` is of the bowel loops and of the Gaussian noise (12 HU). Raises
    ``ValueError`` unless they are three positive numbers each.
    """
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 1 or min(spacing_mm) <= 0:
        raise ValueError(
            f"expected three positive sizes and spacings (R, A, S), got {shape} and {spacing_mm}"
        )
    rng = np.random.default_rng(seed)
    phantom = _Phantom(shape, spacing_mm)
    phantom.paint_table()
    phantom.paint_soft_tissue(rng)
    phantom.paint_sacrum()
    for level in range(LEVELS):
        phantom.paint_disc(level)
    for level in range(LEVELS):
        phantom.paint_vertebra(level)
    phantom.paint_canal()
    volume = phantom.volume + rng.normal(0.0, 12.0, shape)
    hounsfield = np.rint(volume).clip(-1024, 3071)
    return hounsfield.astype(np.int16), phantom.label


def write_phantom(
    dataset_dir: str | Path,
    case: str = "phantom",
    seed: int = 0,
    *,
    shape: Sequence[int] = SHAPE,
    spacing_mm: Sequence[float] = SPACING_MM,
) -> Path:
    """Write ``<dataset_dir>/<case>.nii.gz`` and ``labels/<case>.nii.gz`` on an oblique grid; return the first path.

    Arguments and errors are those of [`lumbar_phantom`][].
    """
    volume, label = lumbar_phantom(shape, spacing_mm, seed)
    affine = oblique_affine(shape, spacing_mm)
    path = Path(dataset_dir) / f"{case}.nii.gz"
    write_volume(volume, affine, path)
    write_volume(label, affine, path.parent / "labels" / path.name)
    return path


def oblique_affine(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """``(4, 4)`` RAS+ affine in mm: turned by 12 degrees about x and 7 about z, its center off the origin."""
    rotation = euler2mat(x=np.deg2rad(12.0), z=np.deg2rad(7.0))
    axes = rotation @ np.diag(spacing_mm)
    center = (np.asarray(shape) - 1) / 2
    origin = CENTER_MM - axes @ center
    return from_matvec(axes, origin)


class _Phantom:
    """Volume in HU and labels to paint on, and the positions of the voxels in mm, shaped to broadcast."""

    def __init__(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
        self.volume = np.full(shape, -1000, dtype=np.float64)
        self.label = np.zeros(shape, dtype=np.uint8)
        self.width, self.depth, _ = np.multiply(shape, spacing_mm)
        i, j, k = np.indices(shape, sparse=True)
        right, front, up = spacing_mm
        self.x = (i + 0.5) * right - self.width / 2  # from the midline
        self.y = (j + 0.5) * front  # from the back
        self.z = (k + 0.5) * up  # from below
        self.side = np.abs(self.x)
        self.front = self.y - _spine_y(self.z)

    def paint_table(self) -> None:
        """Hollow curved slab, 8.8 mm thick, under the body with air between."""
        surface = 4.0 + 9.0 * (2 * self.x / self.width) ** 2
        depth = self.y - surface
        slab = (depth >= 0) & (depth < 8.8)
        core = (depth >= 2.2) & (depth < 6.6)
        np.copyto(self.volume, 100, where=slab)
        np.copyto(self.volume, -300, where=core)

    def paint_soft_tissue(self, rng: np.random.Generator) -> None:
        """Skin fat, muscle wall and paraspinal muscle; in the cavity fat, psoas, liver, aorta and bowel."""
        position = (self.x, self.y, self.z)
        before_spine = self.front > 8.0
        beside_spine = self.side > 62.0
        cavity = self._body(inset_mm=24.0) & (before_spine | beside_spine)
        psoas = _in_ellipsoid((self.side, self.front), (38, 3), (17, 19))
        liver = _in_ellipsoid(position, (45, 165, 255), (52, 62, 62))
        aorta = _in_ellipsoid((self.x, self.front), (-6, 29), (9.5, 9.5))
        aorta = aorta & (self.z > 85)
        self.volume[self._body(inset_mm=0.0)] = FAT_HU
        self.volume[self._body(inset_mm=14.0)] = MUSCLE_HU
        self.volume[cavity] = FAT_HU
        self.volume[cavity & psoas] = MUSCLE_HU
        self.volume[cavity & liver] = 65
        self.volume[cavity & aorta] = MUSCLE_HU
        for height in np.linspace(20, 205, 14):
            lowest = (-52, 162, height - 8)
            highest = (52, 195, height + 8)
            center = rng.uniform(lowest, highest)
            half_axes = rng.uniform(13, 22, size=3)
            loop = cavity & _in_ellipsoid(position, center, half_axes)
            self.volume[loop] = 35
            if rng.random() < 0.6:
                center[1] += 4.0  # gas rises to the front of a supine patient
                gas = _in_ellipsoid(position, center, half_axes * 0.65)
                self.volume[loop & gas] = -900

    def paint_sacrum(self) -> None:
        """Wedge down and back from the lowest disc, thinner and narrower below."""
        front, up = self._along_spine(45.0, np.tan(np.deg2rad(32.0)))
        taper = np.clip(1 + up / 110.0, 0.3, 1.0)
        from_front = 16.0 * taper - np.abs(front)
        from_side = 42.0 * taper - self.side
        self._paint_bone(np.minimum(-up, np.minimum(from_front, from_side)))

    def paint_disc(self, level: int) -> None:
        """Disc below a vertebra, where the sacrum is not."""
        _, up, radius = self._at_level(level - 0.5)
        disc = (np.abs(up) < 8.0) & (radius < 0.98)
        self.volume[disc & (self.volume < MARROW_HU)] = 80

    def paint_vertebra(self, level: int) -> None:
        """Pedicles, transverse processes, lamina and spinous process; before them the body, which has a waist."""
        front, up, radius = self._at_level(level)
        position = (self.side, front, up)
        pedicles = _in_box(position, (8, 16), (-30, -10), (-1, 11))
        transverse = _in_box(position, (12, 40), (-28, -20), (-1, 9))
        lowered = up - 0.25 * (front + 33)
        position = (self.side, front, lowered)
        spinous = _in_box(position, (-5, 5), (-57, -33), (-12, 4))
        lamina = self._behind_spine(17, 12)
        lamina = lamina & (front < -22)
        lamina = lamina & (np.abs(up + 2) < 9)
        arch = pedicles | transverse | spinous | lamina
        height = up / BODY_HALF_HEIGHT_MM
        from_end = np.clip(1 - height**2, 0, 1)
        waist = 1 - 0.08 * from_end
        from_rim = (1 - radius / waist) * BODY_HALF_DEPTH_MM
        below_surface = np.minimum(from_rim, BODY_HALF_HEIGHT_MM - np.abs(up))
        self.volume[arch] = 420
        self._paint_bone(below_surface)
        if level < len(LABELS):
            self.label[arch | (below_surface > 0)] = list(LABELS.values())[level]

    def paint_canal(self) -> None:
        """Spinal canal, which has no label."""
        canal = self._behind_spine(11, 7.5)
        self.volume[canal] = 5
        self.label[canal] = 0

    def _paint_bone(self, below_surface_mm: np.ndarray) -> None:
        self.volume[below_surface_mm > 0] = 550
        self.volume[below_surface_mm > 2.6] = MARROW_HU

    def _body(self, inset_mm: float) -> np.ndarray:
        """Body shrunk by ``inset_mm``: an ellipse in each axial slice, flattened, with a hollow lower back."""
        back = 26.0 + 9.0 * _bell(self.z, 135, 60)
        belly_z = (self.z - 130) / 130
        belly = 0.92 * self.depth - 5.0 * belly_z**2
        half_width = 0.46 * self.width - inset_mm
        half_depth = np.maximum((belly - back) / 2 - inset_mm, 1e-3)
        y = self.y - (belly + back) / 2
        radius = _radius(self.x / half_width, y / half_depth, 2.4)
        return (half_width > 0) & (radius < 1)

    def _behind_spine(self, half_width: float, half_depth: float) -> np.ndarray:
        """Inside of a tube of elliptic section, above the sacrum's end."""
        position = (self.x, self.front)
        tube = _in_ellipsoid(position, (0, -27), (half_width, half_depth))
        return tube & (self.z > 28.0)

    def _at_level(self, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Front and up from the center of a vertebra, in mm, and the radius in its body, 1 on the rim."""
        center_z = 68.0 + level * 37.0  # L5 is the lowest
        slope = float(_spine_y(center_z + 0.5) - _spine_y(center_z - 0.5))
        front, up = self._along_spine(center_z, slope)
        radius = _radius(self.x / 22.5, front / BODY_HALF_DEPTH_MM, 2.6)
        return front, up, radius

    def _along_spine(self, center_z: float, slope: float) -> tuple[np.ndarray, np.ndarray]:
        """Distances in mm to the front and up from the spine at ``center_z``, of ``slope`` there."""
        cos = 1 / np.hypot(1.0, slope)
        y = self.y - _spine_y(center_z)
        z = self.z - center_z
        return cos * (y - slope * z), cos * (slope * y + z)


def _in_ellipsoid(position: Iterable, center: Iterable, half_axes: Iterable) -> np.ndarray:
    """Mask of the points inside; with two of each coordinates, center and half axes, of a tube."""
    squares = np.zeros(())
    for coordinate, middle, half_axis in zip(position, center, half_axes, strict=True):
        squares = squares + ((coordinate - middle) / half_axis) ** 2
    return squares < 1


def _in_box(position: Iterable[np.ndarray], *ranges: tuple[float, float]) -> np.ndarray:
    """Mask of the points inside the ranges of all coordinates."""
    inside = np.ones((), dtype=bool)
    for coordinate, (low, high) in zip(position, ranges, strict=True):
        inside = inside & (coordinate > low) & (coordinate < high)
    return inside


def _spine_y(z: np.ndarray | float) -> np.ndarray:
    """Lordotic line through the centers of the vertebral bodies: distance from the back in mm, at height ``z``."""
    return 100.0 + 22.0 * _bell(np.asarray(z), 135.0, 70.0)


def _bell(z: np.ndarray, center: float, width: float) -> np.ndarray:
    """Bell curve of height 1."""
    distance = (z - center) / width
    return np.exp(-(distance**2))


def _radius(x: np.ndarray, y: np.ndarray, exponent: float) -> np.ndarray:
    """Distance from the center of a circle that is flattened by an exponent above 2."""
    return (np.abs(x) ** exponent + np.abs(y) ** exponent) ** (1 / exponent)
