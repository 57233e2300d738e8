# SPDX-License-Identifier: Apache-2.0
"""Validate input files and output folders before the work starts."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

GRID_TOLERANCE_MM = 1e-3
CT_MINIMUM_HU = -200


def check_volume(path: str | Path) -> np.ndarray:
    """Read a NIfTI volume and return its voxels, ``(H, W, D)``.

    Raises:
        ValueError: if the file is not readable NIfTI, or the volume is not three-dimensional, empty, not finite, or has
            a singular affine.
    """
    path = Path(path)
    try:
        image = nib.load(path)
        shape, affine = image.shape, image.affine
        if len(shape) != 3 or 0 in shape:
            raise ValueError(
                f"expected a volume (H, W, D) in {path.name}, got shape {shape}; save one 3-D volume a file"
            )
        voxels = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"expected a readable NIfTI file at {path}, got: {error}; copy or convert it again") from error
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"expected an invertible affine in {path.name}, got {np.asarray(affine).tolist()}; repair it")
    if voxels.dtype.kind not in "biu" and not np.isfinite(voxels).all():
        count = int(np.size(voxels) - np.isfinite(voxels).sum())
        raise ValueError(f"expected finite voxels in {path.name}, got {count} that are NaN or infinite; replace them")
    return voxels


def check_case(image: str | Path, label: str | Path | None = None) -> list[str]:
    """Validate a CT and its label.

    Returns:
        Warnings, such as for a volume that cannot be CT.

    Raises:
        ValueError: as :func:`check_volume`, or if the label is on another grid.
    """
    minimum = float(check_volume(image).min())
    if label is not None:
        check_label(image, label)
    if minimum > CT_MINIMUM_HU:
        return [
            f"no voxel of {Path(image).name} lies below {CT_MINIMUM_HU} HU (lowest: {minimum:g}), "
            "so it hardly is CT in Hounsfield units; its contours may mean nothing"
        ]
    return []


def check_label(image: str | Path, label: str | Path) -> np.ndarray:
    """Read a label, validate that it is on its image's grid, and return its voxels, ``(H, W, D)``.

    Raises:
        ValueError: as :func:`check_volume`, or if the grids differ.
    """
    voxels = check_volume(label)
    _check_grid(nib.load(image), nib.load(label), Path(label))
    return voxels


def check_output_dir(path: str | Path) -> None:
    """Create the folder if it is absent, and validate that files can be written there.

    Raises:
        ValueError: if they cannot.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"expected a folder to write to at {path}, got: {error}; pass another --output_dir") from error


def _check_grid(image: nib.Nifti1Image, label: nib.Nifti1Image, path: Path) -> None:
    if image.shape != label.shape or not np.allclose(image.affine, label.affine, atol=GRID_TOLERANCE_MM):
        raise ValueError(
            f"expected label {path.name} on the image's grid {image.shape}, got {label.shape} with affine "
            f"{np.round(label.affine, 3).tolist()} against {np.round(image.affine, 3).tolist()}; resample the label"
        )
