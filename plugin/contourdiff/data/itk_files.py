# SPDX-License-Identifier: Apache-2.0
"""Volumes that are not NIfTI: NRRD, MetaImage and DICOM in, NRRD and MetaImage out."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec

from contourdiff.data.atomic import atomic_write
from contourdiff.data.dicom import read_ct_series
from contourdiff.data.volumes import write_volume

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the RAS+ coordinates of NIfTI to those of ITK, and back."""

HEADER_BYTES = 2**16
WITHOUT_DIRECTION = re.compile(rb"^space directions:.*none", re.MULTILINE)
"""Of a NRRD, an axis that is a list of images; ITK reads it as one in space."""


def convert_to_nifti(source: str | Path, path: str | Path, series_uid: str | None = None) -> None:
    """Write a NRRD or MetaImage file, or the CT series of a DICOM folder, as NIfTI, whole or not at all.

    The affine is that of the source, rounded to float32; no text of its header is taken over, as it may name a patient.
    Raises ``ValueError`` as [`contourdiff.data.dicom.read_ct_series`][], or if ``source`` is no readable volume of one
    channel.
    """
    image = _read(source, series_uid)
    voxels, affine = voxels_and_affine(image, str(source))
    if Path(source).is_file():
        _check_directions(source)
    write_volume(voxels, affine, path)


def voxels_and_affine(image: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(H, W, D)`` of an image of SimpleITK or ITK, and its RAS+ affine ``(4, 4)``, sheared or not.

    The voxels are a view: keep the image as long. Raises ``ValueError`` unless it is a volume of one
    channel; an axis behind the third may have a single frame.
    """
    channels = image.GetNumberOfComponentsPerPixel()
    spacing = np.array(image.GetSpacing(), dtype=float)
    dimensions = len(spacing)
    voxels = _voxels_of(image)
    frames = math.prod(voxels.shape[3:])
    if dimensions < 3 or channels != 1 or frames != 1:
        raise ValueError(
            f"expected a volume of one channel at {where}, got {dimensions} dimensions, {channels} channels; "
            "save one 3-D volume a file"
        )
    directions = np.array(image.GetDirection(), dtype=float)
    axes = directions.reshape(dimensions, dimensions)
    origin = list(image.GetOrigin())
    affine = from_matvec(axes[:3, :3] * spacing[:3], origin[:3])
    return voxels.reshape(voxels.shape[:3]), TO_LPS @ affine


def _voxels_of(image: Any) -> np.ndarray:
    """View of all voxels, ``(H, W, D, ...)``."""
    if isinstance(image, sitk.Image):
        return sitk.GetArrayViewFromImage(image).T
    import itk

    return itk.array_view_from_image(image).T


def write_itk(data: np.ndarray, affine: np.ndarray, path: str | Path) -> None:
    """Write voxels ``(H, W, D)`` on a RAS+ affine ``(4, 4)`` as the format of the suffix, compressed."""
    image = simpleitk_of(data, affine)
    with atomic_write(path) as aside:
        sitk.WriteImage(image, str(aside), useCompression=True)


def simpleitk_of(data: np.ndarray, affine: np.ndarray) -> Any:
    """Voxels ``(H, W, D)`` with a RAS+ affine ``(4, 4)`` as a SimpleITK image."""
    in_itk_order = np.ascontiguousarray(data.transpose())
    image = sitk.GetImageFromArray(in_itk_order)
    lps = TO_LPS @ affine
    axes = lps[:3, :3]
    origin = lps[:3, 3]
    spacing = np.linalg.norm(axes, axis=0)
    direction = axes / spacing
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


def _read(source: str | Path, series_uid: str | None) -> Any:
    if Path(source).is_dir():
        return read_ct_series(source, series_uid)
    try:
        image = sitk.ReadImage(str(source))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"expected a readable volume at {source}, got: {reason}; convert it again"
        ) from error
    return image


def _check_directions(source: str | Path) -> None:
    with Path(source).open("rb") as file:
        header = file.read(HEADER_BYTES).split(b"\n\n")[0]
    if WITHOUT_DIRECTION.search(header):
        raise ValueError(
            f"expected a direction in mm for each axis of {source}, got none for one; save one 3-D volume a file"
        )
