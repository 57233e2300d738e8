# SPDX-License-Identifier: Apache-2.0
"""A digital lumbar CT phantom with vertebral labels, for tests and first steps without patient data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from contourdiff.data.atomic import atomic_write

LABELS = {"L5": 27, "L4": 28, "L3": 29, "L2": 30, "L1": 31}
"""Class numbers of TotalSegmentator, from the lowest lumbar vertebra up."""

SHAPE = (48, 112, 128)
SPACING_MM = (4.0, 2.2, 2.2)
NOISE_HU = 12.0
AIR_HU, GAS_HU, FAT_HU, CSF_HU, BOWEL_HU, MUSCLE_HU, LIVER_HU, DISC_HU = (
    -1000,
    -900,
    -100,
    5,
    35,
    50,
    65,
    80,
)
MARROW_HU, ARCH_HU, CORTEX_HU = 180, 420, 550
TABLE_CORE_HU, TABLE_SHELL_HU = -300, 100

_LEVELS = len(LABELS) + 2  # above L1 the unlabeled T12 and T11
_LOWEST_CENTER_MM, _PITCH_MM = 68.0, 37.0  # height of L5's center and from one vertebra to the next
_HALF_HEIGHT_MM, _HALF_DEPTH_MM, _HALF_WIDTH_MM = 13.5, 17.0, 22.5  # of a vertebral body
_CORTEX_MM, _SACRUM_TILT = 2.6, np.deg2rad(32.0)


class _Grid(NamedTuple):
    """Voxel centers in mm, shaped to broadcast: ``x`` from the midline, ``y`` from the back, ``z`` from below."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    extent: np.ndarray


def lumbar_phantom(
    shape: Sequence[int] = SHAPE, spacing_mm: Sequence[float] = SPACING_MM, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """CT volume of a lumbar spine in a body on a table, int16 HU, and its uint8 labels, those of [`LABELS`][] or 0.

    The spine has a fixed size in mm; the body fills the volume left to right and back to front. The default grid spans
    192 x 246 x 282 mm, from the sacrum to T11; a smaller one is cut off at the right, front and top.

    Args:
        shape: voxels along R, A, S (left to right, posterior to anterior, inferior to superior).
        spacing_mm: voxel size along the same axes.
        seed: seed of the bowel loops and of the Gaussian noise (12 HU).

    Raises ``ValueError`` unless ``shape`` and ``spacing_mm`` are three positive numbers each.
    """
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 1 or min(spacing_mm) <= 0:
        raise ValueError(
            f"expected three positive sizes and spacings (R, A, S), got {shape} and {spacing_mm}"
        )
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) + 0.5) * step for n, step in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    extent = np.multiply(shape, spacing_mm)
    grid = _Grid(x - extent[0] / 2, y, z, extent)
    volume, label = (
        np.full(tuple(shape), AIR_HU, dtype=np.float64),
        np.zeros(tuple(shape), dtype=np.uint8),
    )
    _paint_table(volume, grid)
    _paint_soft_tissue(volume, grid, rng)
    _paint_sacrum_and_discs(volume, grid)
    for level in range(_LEVELS):
        _paint_vertebra(volume, label, grid, level)
    canal = _canal(grid, 11.0, 7.5)
    volume[canal], label[canal] = CSF_HU, 0
    volume += rng.normal(0.0, NOISE_HU, size=volume.shape)
    return np.clip(np.rint(volume), -1024, 3071).astype(np.int16), label


def write_phantom(
    dataset_dir: str | Path,
    case: str = "phantom",
    seed: int = 0,
    *,
    shape: Sequence[int] = SHAPE,
    spacing_mm: Sequence[float] = SPACING_MM,
) -> Path:
    """Write ``<dataset_dir>/<case>.nii.gz`` and ``labels/<case>.nii.gz`` on an oblique grid; return the first path.

    A file appears whole or not at all. The other arguments are those of [`lumbar_phantom`][].
    """
    affine = oblique_affine(shape, spacing_mm)
    path = Path(dataset_dir) / f"{case}.nii.gz"
    paths = (path, path.parent / "labels" / path.name)
    for array, target in zip(lumbar_phantom(shape, spacing_mm, seed), paths, strict=True):
        image = nib.Nifti1Image(array, affine)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        image.header.set_xyzt_units("mm")
        with atomic_write(target) as aside:
            nib.save(image, aside)
    return path


def oblique_affine(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """``(4, 4)`` RAS+ affine in mm: turned by 12 degrees about x and 7 about z, its center off the origin."""
    about_x, about_z = np.deg2rad([12.0, 7.0])
    cx, sx, cz, sz = np.cos(about_x), np.sin(about_x), np.cos(about_z), np.sin(about_z)
    turn = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array(
        [[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = np.array([8.0, -30.0, -110.0]) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def _paint_table(volume: np.ndarray, grid: _Grid) -> None:
    """Hollow curved slab, 8 mm thick, under the body with air between."""
    depth = grid.y - (4.0 + 9.0 * (2 * grid.x / grid.extent[0]) ** 2)
    slab = (depth >= 0) & (depth < 8.8) & (grid.z >= 0)
    volume[slab] = TABLE_CORE_HU
    volume[slab & ((depth < 2.2) | (depth >= 6.6))] = TABLE_SHELL_HU


def _paint_soft_tissue(volume: np.ndarray, grid: _Grid, rng: np.random.Generator) -> None:
    """Skin fat, muscle wall, abdominal cavity with aorta, liver and bowel; paraspinal muscle behind."""
    side, front = np.abs(grid.x), grid.y - _spine_y(grid.z)
    volume[_outline(grid, 0.0)] = FAT_HU
    volume[_outline(grid, 14.0)] = MUSCLE_HU
    cavity = _outline(grid, 24.0) & ((front > 8.0) | (side > 62.0))
    volume[cavity] = FAT_HU
    volume[cavity & (((side - 38) / 17) ** 2 + ((front - 3) / 19) ** 2 < 1)] = MUSCLE_HU  # psoas
    volume[cavity & _ellipsoid(grid, (45, 165, 255), (52, 62, 62))] = LIVER_HU
    volume[cavity & ((grid.x + 6) ** 2 + (front - 29) ** 2 < 9.5**2) & (grid.z > 85)] = (
        MUSCLE_HU  # aorta
    )
    for height in np.linspace(20, 205, 14):
        x, y, z = (rng.uniform(-52, 52), rng.uniform(162, 195), height + rng.uniform(-8, 8))
        radii = rng.uniform(13, 22, size=3)
        loop = cavity & _ellipsoid(grid, (x, y, z), radii)
        volume[loop] = BOWEL_HU
        if rng.random() < 0.6:  # gas rises to the front of a supine patient
            volume[loop & _ellipsoid(grid, (x, y + 4.0, z), radii * 0.65)] = GAS_HU


def _paint_sacrum_and_discs(volume: np.ndarray, grid: _Grid) -> None:
    """Wedge down and back from the lowest disc, thinner and narrower below; discs up to T12 where it is not."""
    start_z = 45.0
    y, z = grid.y - _spine_y(start_z), grid.z - start_z
    down = -np.sin(_SACRUM_TILT) * y - np.cos(_SACRUM_TILT) * z
    front = np.cos(_SACRUM_TILT) * y - np.sin(_SACRUM_TILT) * z
    taper = np.clip(1 - down / 110.0, 0.3, 1.0)
    inside = np.minimum(
        np.minimum(down, 16.0 * taper - np.abs(front)), 42.0 * taper - np.abs(grid.x)
    )
    volume[inside > 0] = CORTEX_HU
    volume[inside > _CORTEX_MM] = MARROW_HU
    for level in range(_LEVELS):
        up, _, radius = _local(grid, _LOWEST_CENTER_MM + (level - 0.5) * _PITCH_MM)
        volume[(np.abs(up) < 8.0) & (radius < 0.98) & (volume < MARROW_HU)] = DISC_HU


def _paint_vertebra(volume: np.ndarray, label: np.ndarray, grid: _Grid, level: int) -> None:
    """Body with cortical shell and waist, behind it pedicles, transverse processes, lamina and spinous process."""
    up, front, radius = _local(grid, _LOWEST_CENTER_MM + level * _PITCH_MM)
    side = np.abs(grid.x)
    waist = 1 - 0.08 * np.clip(1 - (up / _HALF_HEIGHT_MM) ** 2, 0, 1)
    below_surface = np.minimum(
        (1 - radius / waist) * _HALF_DEPTH_MM, _HALF_HEIGHT_MM - np.abs(up)
    )  # in mm
    body = below_surface > 0
    pedicle = (side > 8) & (side < 16) & (front < -10) & (front > -30) & (np.abs(up - 5) < 6)
    transverse = (side > 12) & (side < 40) & (np.abs(front + 24) < 4) & (np.abs(up - 4) < 5)
    lamina = _canal(grid, 17.0, 12.0) & (front < -22) & (np.abs(up + 2) < 9)
    spinous = (
        (side < 5) & (front < -33) & (front > -57) & (np.abs(up + 4 - 0.25 * (front + 33)) < 8)
    )
    arch = (pedicle | transverse | lamina | spinous) & ~body
    volume[arch] = ARCH_HU
    volume[body] = CORTEX_HU
    volume[below_surface > _CORTEX_MM] = MARROW_HU
    if level < len(LABELS):
        label[body | arch] = list(LABELS.values())[level]


def _outline(grid: _Grid, inset_mm: float) -> np.ndarray:
    """Body outline shrunk by ``inset_mm``: an ellipse in each axial slice, flattened, with a hollow lower back."""
    x, y, z, extent = grid
    back = 26.0 + 9.0 * np.exp(-(((z - 135) / 60) ** 2))
    belly = 0.92 * extent[1] - 5.0 * ((z - 130) / 130) ** 2
    half_width, half_depth = (
        np.maximum(half - inset_mm, 1e-3) for half in (0.46 * extent[0], (belly - back) / 2)
    )
    radius = (np.abs(x) / half_width) ** 2.4 + (np.abs(y - (belly + back) / 2) / half_depth) ** 2.4
    return np.asarray((radius < 1) & (0.46 * extent[0] > inset_mm))


def _spine_y(z: np.ndarray | float) -> np.ndarray:
    """Lordotic line through the centers of the vertebral bodies: distance from the back in mm, at height ``z``."""
    return 100.0 + 22.0 * np.exp(-(((np.asarray(z) - 135.0) / 70.0) ** 2))


def _local(grid: _Grid, center_z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up along the spine and to its front from its line at ``center_z``, in mm; radius in a body, 1 on the rim."""
    slope = float(_spine_y(center_z + 0.5) - _spine_y(center_z - 0.5))
    cos = 1 / np.hypot(1.0, slope)
    y, z = grid.y - _spine_y(center_z), grid.z - center_z
    front = cos * (y - slope * z)
    radius = (
        (np.abs(grid.x) / _HALF_WIDTH_MM) ** 2.6 + (np.abs(front) / _HALF_DEPTH_MM) ** 2.6
    ) ** (1 / 2.6)
    return cos * (slope * y + z), front, radius


def _canal(grid: _Grid, half_width_mm: float, half_depth_mm: float) -> np.ndarray:
    """Tube behind the vertebral bodies, above the sacrum's end."""
    behind = grid.y - (_spine_y(grid.z) - _HALF_DEPTH_MM - 10.0)
    return np.asarray(
        ((grid.x / half_width_mm) ** 2 + (behind / half_depth_mm) ** 2 < 1) & (grid.z > 28.0)
    )


def _ellipsoid(
    grid: _Grid, center: Sequence[float], radii: Sequence[float] | np.ndarray
) -> np.ndarray:
    return np.asarray(
        sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid[:3], center, radii, strict=True)) < 1
    )
