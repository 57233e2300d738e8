# SPDX-License-Identifier: Apache-2.0
"""Validate input files and output folders before the work starts."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from contourdiff.data.memory import check_memory
from contourdiff.data.nifti_names import check_encoding
from contourdiff.data.volumes import corner_voxels, open_volume, scaled_voxels

GRID_TOLERANCE_MM = 0.01
GRID_TOLERANCE_VOXELS = 0.01
"""Distance of the corners of a label from those of its image, at most: the larger of the two."""
MAX_EXTENT_MM = 10_000.0
CT_MINIMUM_HU = -200
MAX_COMPRESSION = 1032
"""Bytes that one byte of a gzip file can stand for, at most."""
UNITS_OTHER_THAN_MM = {1: "meters", 3: "microns"}


def check_volume(path: str | Path) -> np.ndarray:
    """Read a NIfTI volume and return its voxels, ``(H, W, D)``, maybe read-only.

    Raises:
        ValueError: if the file is not readable NIfTI or cannot hold what its header claims, or the volume is not
            three-dimensional, empty, larger than memory, not of one finite number a voxel, or its grid is singular,
            not in mm or longer than 10 m.
    """
    path = Path(path)
    if not path.is_file():
        raise _unreadable(path, "no such file")
    try:
        image = open_volume(path)
        shape = image.shape
        dtype = image.get_data_dtype()
    except Exception as error:  # of a parser, on any bytes
        raise _unreadable(path, error) from error
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"expected a volume (H, W, D) in {path.name}, got shape {shape}; save one 3-D volume a file"
        )
    if dtype.kind not in "iuf":
        got = f"{path.name}, got {image.header.get_value_label('datatype')}"
        raise ValueError(f"expected one number a voxel in {got}; save gray levels or label values")
    _check_size(path, math.prod(shape) * dtype.itemsize)
    _check_affine(path, image)
    check_memory(math.prod(shape) * (dtype.itemsize + 4), f"{path.name} of shape {shape}")
    try:
        voxels = scaled_voxels(path)
    except MemoryError as error:
        raise ValueError(
            f"expected a volume that fits into memory, got {shape} in {path.name}; crop it"
        ) from error
    except Exception as error:  # of a parser, on any bytes
        raise _unreadable(path, error) from error
    if voxels.dtype.kind not in "iu" and not np.isfinite(voxels).all():
        count = int(np.size(voxels) - np.isfinite(voxels).sum())
        raise ValueError(
            f"expected finite voxels in {path.name}, got {count} that are NaN or infinite; replace them"
        )
    return voxels


def _unreadable(path: Path, error: object) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"expected a readable NIfTI file at {path}, got: {reason[:200]}; copy or convert it again"
    )


def _check_affine(path: Path, image: nib.Nifti1Image) -> None:
    affine = image.affine
    voxel_mm = voxel_sizes(affine)
    finite = np.isfinite(affine).all()
    volume = abs(np.linalg.det(affine[:3, :3])) if finite else 0.0
    if not finite or not voxel_mm.all() or volume < 1e-6 * np.prod(voxel_mm):
        raise ValueError(
            f"expected an invertible affine in {path.name}, got {affine.tolist()}; repair it"
        )
    unit = UNITS_OTHER_THAN_MM.get(int(image.header["xyzt_units"]) & 7)
    if unit is not None:
        raise ValueError(
            f"expected a grid in mm in {path.name}, got {unit}; scale the affine and set the unit"
        )
    extent = float((voxel_mm * image.shape).max())
    if extent > MAX_EXTENT_MM:
        got = f"{extent / 1000:.4g} m in {path.name}"
        raise ValueError(
            f"expected a volume of {MAX_EXTENT_MM / 1000:g} m or less, got {got}; repair the voxel size"
        )


def _check_size(path: Path, claimed: int) -> None:
    size = path.stat().st_size
    zipped = path.suffix.lower() == ".gz"
    if claimed > size * (MAX_COMPRESSION if zipped else 1):
        got = f"{path.name} of {size} bytes claims {claimed} bytes of voxels"
        raise ValueError(f"expected a whole file, but {got}; copy or convert it again")


def check_case(image: str | Path) -> list[str]:
    """Validate a CT as [`check_volume`][] does; return warnings, as for a volume that cannot be CT."""
    minimum = float(check_volume(image).min())
    if minimum <= CT_MINIMUM_HU:
        return []
    return [
        f"no voxel of {Path(image).name} lies below {CT_MINIMUM_HU} HU (lowest: {minimum:g}), "
        "so it is probably not CT in Hounsfield units, and its contours may be meaningless"
    ]


def check_label(image: str | Path, label: str | Path) -> np.ndarray:
    """Read a label and return its voxels, ``(H, W, D)``, maybe read-only.

    Raises:
        ValueError: as [`check_volume`][], or if the label is not on its image's grid.
    """
    voxels = check_volume(label)
    check_grid(image, label)
    return voxels


def check_grid(image: str | Path, label: str | Path) -> None:
    """Raise ``ValueError`` unless a label is on its image's grid, to a hundredth of a voxel or 0.01 mm."""
    label_grid = open_volume(label)
    image_grid = open_volume(image)
    expected = f"expected label {Path(label).name} on the image's grid {image_grid.shape}"
    if label_grid.shape != image_grid.shape:
        raise ValueError(f"{expected}, got {label_grid.shape}; resample the label")
    if not is_same_grid(label_grid.affine, image_grid.affine, image_grid.shape):
        distance_mm = _grid_distance_mm(label_grid.affine, image_grid.affine, image_grid.shape)
        raise ValueError(
            f"{expected}, got corners up to {distance_mm:.3g} mm from those of the image, where "
            f"{_grid_limit_mm(image_grid.affine):.3g} mm are allowed, with affine "
            f"{np.round(label_grid.affine, 3).tolist()} against {np.round(image_grid.affine, 3).tolist()}; "
            "resample the label, or give it the affine of the image if that is a matter of rounding"
        )


def is_same_grid(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the corners of two grids of one shape lie within a hundredth of a voxel, or 0.01 mm, of each other."""
    return _grid_distance_mm(affine, other, shape) <= _grid_limit_mm(other)


def _grid_distance_mm(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    apart = apply_affine(affine - other, corner_voxels(shape))
    distances = np.linalg.norm(apart, axis=1)
    return float(distances.max())


def _grid_limit_mm(affine: np.ndarray) -> float:
    voxel_mm = voxel_sizes(affine)
    smallest = float(voxel_mm.min())
    return max(GRID_TOLERANCE_MM, GRID_TOLERANCE_VOXELS * smallest)


def check_output_dir(path: str | Path) -> None:
    """Create the folder if it is absent; raise ``ValueError`` if files cannot be written there."""
    check_encoding(Path(path))
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"expected a folder to write to at {path}, got: {error}; pass another --output_dir"
        ) from error
