# SPDX-License-Identifier: Apache-2.0
"""Labels as local NIfTI files on the axes of their CT, from NIfTI, NRRD, MetaImage, DICOM SEG or masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from contourdiff.data.checks import check_grid, check_volume, is_same_grid
from contourdiff.data.dicom import is_dicom, read_header
from contourdiff.data.inputs import Source, is_url, local_file, local_nifti
from contourdiff.data.itk_files import TO_LPS
from contourdiff.data.label_files import join_masks, masks_of
from contourdiff.data.nifti import save_like
from contourdiff.data.volumes import open_volume


def local_label(source: Source, path: Path, ct: Path) -> tuple[Path, dict[int, str] | None]:
    """The label itself if it is local NIfTI on the axes of its CT, or the file that is written from it: ``path``.

    With it come the names of its values, where the label has them.

    A label whose axes are those of the CT, flipped or in another order, is turned to them; no voxel is resampled.
    Segments of a DICOM SEG become their numbers, and the masks of a folder one label.

    Args:
        source: the label as it was passed.
        path: NIfTI file to write, where that is necessary.
        ct: the CT, a NIfTI file that was checked.

    Raises:
        ValueError: as [`contourdiff.data.checks.check_label`][] and
            [`contourdiff.data.label_files.join_masks`][], or for DICOM other than a SEG on voxels of the CT,
            or without highdicom.
    """
    local = local_file(source, path)
    names = None
    if masks_of(local):
        names = join_masks(local, ct, path)
        label = path
    elif is_dicom(local):
        names = _convert_dicom(local, path, ct)
        label = path
    else:
        label = _on_axes_of(ct, local_nifti(local, path), path)
    if is_url(source) and label != local:
        local.unlink()
    return label, names


def _on_axes_of(ct: Path, label: Path, path: Path) -> Path:
    voxels = check_volume(label)
    grid = open_volume(ct)
    affine = open_volume(label).affine
    turned, turned_affine = _turned(voxels, affine, grid.affine)
    is_flip = turned.shape == grid.shape and not np.array_equal(turned_affine, affine)
    if is_flip and is_same_grid(turned_affine, grid.affine, grid.shape):
        save_like(turned, ct, path)
        return path
    check_grid(ct, label)
    return label


def _turned(
    voxels: np.ndarray, affine: np.ndarray, like: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, a view, with the axes that are nearest to those of the affine ``like``, and their affine."""
    orientation = io_orientation(np.linalg.inv(like) @ affine)
    turned_affine = affine @ inv_ornt_aff(orientation, voxels.shape)
    return apply_orientation(voxels, orientation), turned_affine


def _convert_dicom(source: Path, path: Path, ct: Path) -> dict[int, str]:
    """Write the segments of a DICOM SEG, by their numbers, on the grid of the CT; return the names of the segments."""
    _check_seg(source)
    voxels, affine, names = _segments_of(source)
    grid = open_volume(ct)
    turned, turned_affine = _turned(voxels, affine, grid.affine)
    to_voxels = np.linalg.inv(grid.affine) @ turned_affine
    shift = np.rint(to_voxels[:3, 3]).astype(int)
    begin = from_matvec(np.eye(3), -shift)
    on_grid = _shifted(turned, shift, grid.shape)
    is_whole = np.count_nonzero(on_grid) == np.count_nonzero(voxels)
    if not is_whole or not is_same_grid(turned_affine @ begin, grid.affine, turned.shape):
        raise ValueError(
            f"expected segments on voxels of the CT in {source.name}, got another grid: {voxels.shape} with affine "
            f"{np.round(affine, 3).tolist()}; resample it, or pass the CT that was segmented"
        )
    save_like(on_grid, ct, path)
    return names


def _check_seg(source: Path) -> None:
    """Raise ``ValueError`` unless a DICOM file is a SEG."""
    header = read_header(source, with_preamble=False)
    modality = "no readable file"
    if header is not None:
        modality = str(header.get("Modality") or "no modality")
    if modality == "SEG":
        return
    advice = "convert it to NIfTI"
    if modality == "RTSTRUCT":
        advice += ", for example with 3D Slicer, or plastimatch convert --output-labelmap"
    raise ValueError(f"expected a DICOM SEG as label in {source.name}, got {modality}; {advice}")


def _shifted(voxels: np.ndarray, shift: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels moved by whole numbers ``(3,)`` to a grid of ``shape``, 0 around them; what lies outside is cut off."""
    start = np.maximum(shift, 0)
    end = np.minimum(shift + voxels.shape, shape)
    stop = np.maximum(start, end)
    inside = tuple(map(slice, start, stop))
    part = tuple(map(slice, start - shift, stop - shift))
    shifted = np.zeros(shape, dtype=voxels.dtype)
    shifted[inside] = voxels[part]
    return shifted


def _segments_of(source: Path) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Numbers of the segments, voxel by voxel, their RAS+ affine, and the names of the segments."""
    try:
        import highdicom
    except ImportError as error:
        raise ValueError(
            f"expected highdicom to read {source.name}, got no highdicom; pip install 'contourdiff[dicom]'"
        ) from error
    try:
        segmentation = highdicom.seg.segread(source)
        volume = segmentation.get_volume(combine_segments=True)
        names = {}
        for number in segmentation.segment_numbers:
            description = segmentation.get_segment_description(number)
            names[int(number)] = description.segment_label
    except Exception as error:  # of a parser, on any bytes
        raise ValueError(
            f"expected a binary DICOM SEG without overlap on one regular grid in {source.name}, got: {error}; "
            "convert it to NIfTI"
        ) from error
    return volume.array, TO_LPS @ volume.affine, names
