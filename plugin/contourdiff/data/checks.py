# SPDX-License-Identifier: Apache-2.0
"""Validate input files and output folders before the work starts."""

from __future__ import annotations

import math
import tempfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

GRID_TOLERANCE_MM = 1e-3
CT_MINIMUM_HU = -200
MAX_COMPRESSION = 1032
"""Bytes that one byte of a gzip file can stand for, at most."""


def check_volume(path: str | Path) -> np.ndarray:
    """Read a NIfTI volume and return its voxels, ``(H, W, D)``.

    Raises ``ValueError`` if the file is not readable NIfTI or cannot hold what its header claims, or the volume is not
    three-dimensional, empty, larger than memory, not finite, or has a singular affine.
    """
    path = Path(path)
    try:
        image = nib.load(path)
        shape, affine = image.shape, image.affine
        if len(shape) != 3 or 0 in shape:
            got = f"{path.name}, got shape {shape}"
            raise ValueError(f"expected a volume (H, W, D) in {got}; save one 3-D volume a file")
        _check_size(path, math.prod(shape) * image.get_data_dtype().itemsize)
        voxels = np.asanyarray(image.dataobj)
    except MemoryError as error:
        raise ValueError(f"expected a volume that fits into memory, got {shape} in {path.name}; crop it") from error
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"expected a readable NIfTI file at {path}, got: {error}; copy or convert it again") from error
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"expected an invertible affine in {path.name}, got {np.asarray(affine).tolist()}; repair it")
    if voxels.dtype.kind not in "biu" and not np.isfinite(voxels).all():
        count = int(np.size(voxels) - np.isfinite(voxels).sum())
        raise ValueError(f"expected finite voxels in {path.name}, got {count} that are NaN or infinite; replace them")
    return voxels


def _check_size(path: Path, claimed: int) -> None:
    size = path.stat().st_size
    if claimed > size * (MAX_COMPRESSION if path.suffix.lower() == ".gz" else 1):
        got = f"{path.name} of {size} bytes claims {claimed} bytes of voxels"
        raise ValueError(f"expected a whole file, but {got}; copy or convert it again")


def check_case(image: str | Path, label: str | Path | None = None) -> list[str]:
    """Validate a CT and its label as [`check_label`][] does; return warnings, as for a volume that cannot be CT."""
    minimum = float(check_volume(image).min())
    if label is not None:
        check_label(image, label)
    if minimum <= CT_MINIMUM_HU:
        return []
    return [
        f"no voxel of {Path(image).name} lies below {CT_MINIMUM_HU} HU (lowest: {minimum:g}), "
        "so it hardly is CT in Hounsfield units; its contours may mean nothing"
    ]


def check_label(image: str | Path, label: str | Path) -> np.ndarray:
    """Read a label and return its voxels, ``(H, W, D)``.

    Raises ``ValueError`` as [`check_volume`][], or if the label is not on its image's grid.
    """
    voxels = check_volume(label)
    own, other = nib.load(label), nib.load(image)
    if own.shape != other.shape or not np.allclose(other.affine, own.affine, atol=GRID_TOLERANCE_MM):
        raise ValueError(
            f"expected label {Path(label).name} on the image's grid {other.shape}, got {own.shape} with affine "
            f"{np.round(own.affine, 3).tolist()} against {np.round(other.affine, 3).tolist()}; resample the label"
        )
    return voxels


def check_output_dir(path: str | Path) -> None:
    """Create the folder if it is absent; raise ``ValueError`` if files cannot be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"expected a folder to write to at {path}, got: {error}; pass another --output_dir") from error
