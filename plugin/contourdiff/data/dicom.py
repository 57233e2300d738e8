# SPDX-License-Identifier: Apache-2.0
"""Read one CT series of a DICOM folder, after a check of its geometry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

MODALITY, IMAGE_TYPE, DESCRIPTION = "0008|0060", "0008|0008", "0008|103e"
POSITION, ORIENTATION, SPACING, FRAMES = "0020|0032", "0020|0037", "0028|0030", "0028|0008"
MAX_TILT_DEGREES = 0.05
POSITION_TOLERANCE = 0.01
"""Share of the slice distance that the distance of two adjacent slices may differ by; positions are rounded text."""


class Series(NamedTuple):
    """A series of a folder: UID, description, modality, and the header of each file that is no localizer."""

    uid: str
    description: str
    modality: str
    slices: dict[str, dict[str, str]]

    def __str__(self) -> str:
        return f"{self.uid} ({self.modality} {self.description!r}, {len(self.slices)} slices)"


def has_ct_series(folder: str | Path) -> bool:
    """Whether a folder, subfolders included, holds a DICOM series of CT that is more than localizers."""
    return any(one.modality == "CT" and one.slices for one in _series_of(folder))


def read_ct_series(folder: str | Path, series_uid: str | None = None) -> Any:
    """Read the CT series of a DICOM folder, subfolders included, as a SimpleITK image in Hounsfield units.

    Localizers and other modalities are skipped. Voxels are int16, or float32 where the rescaling is not integer.
    Compressed files are read as far as GDCM reads them.

    Args:
        folder: holds the files of one study or more.
        series_uid: SeriesInstanceUID of the series to read; ``None`` if there is one.

    Raises ``ValueError`` if there is no CT series, several and no ``series_uid``, or the slices are not one regular
    stack: a tilted gantry, missing slices, slices at one position, of several orientations or sizes, or multi-frame.
    """
    found = _series_of(folder)
    candidates = [one for one in found if one.modality == "CT" and one.slices]
    listed = "; ".join(map(str, candidates or found)) or "no series"
    if series_uid is not None:
        candidates = [one for one in candidates if one.uid == series_uid]
    if len(candidates) != 1:
        wanted = "one CT series" if series_uid is None else f"the CT series {series_uid}"
        advice = "pass the UID of one as series_uid" if candidates else "pass another folder or UID"
        raise ValueError(f"expected {wanted} in {folder}, got {listed}; {advice}")
    return _read(candidates[0].slices, str(folder))


def _read(slices: dict[str, dict[str, str]], where: str) -> Any:
    files = list(slices)
    ordered, distance = _stack(list(slices.values()), where)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([files[index] for index in ordered])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"expected readable DICOM slices in {where}, got: {reason}; decompress or copy them"
        ) from error
    image.SetSpacing([*image.GetSpacing()[:2], distance])
    voxels = sitk.GetArrayViewFromImage(image)
    integer = voxels.dtype.kind in "iu" or bool((voxels == np.rint(voxels)).all())
    fits = voxels.min() >= -(2**15) and voxels.max() < 2**15
    return sitk.Cast(image, sitk.sitkInt16 if integer and fits else sitk.sitkFloat32)


def _stack(headers: Sequence[dict[str, str]], where: str) -> tuple[list[int], float]:
    """Order of the slices along their normal, and their distance in mm; ``ValueError`` for an irregular stack."""
    if len(headers) < 2:
        raise ValueError(
            f"expected a stack of slices in {where}, got {len(headers)}; pass a volume"
        )
    if any(int(header.get(FRAMES) or 1) > 1 for header in headers):
        raise ValueError(
            f"expected one slice a file in {where}, got multi-frame files; convert them with dcm2niix"
        )
    if any(not header.get(tag) for header in headers for tag in (POSITION, ORIENTATION, SPACING)):
        raise ValueError(
            f"expected position, orientation and spacing in every file of {where}; export them again"
        )
    shapes = {(header["size"], header[SPACING]) for header in headers}
    orientations = np.array([_numbers(header[ORIENTATION]) for header in headers])
    if len(shapes) > 1 or not np.allclose(orientations, orientations[0], atol=1e-3):
        raise ValueError(
            f"expected slices of one orientation, size and pixel spacing in {where}, got a mixture; "
            "move the files of one stack to a folder of their own"
        )
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    positions = np.array([_numbers(header[POSITION]) for header in headers])
    order = np.argsort(positions @ normal)
    offsets = positions[order] - positions[order[0]]
    depths = offsets @ normal
    drift = np.linalg.norm(offsets[-1] - depths[-1] * normal)
    tilt = float(np.degrees(np.arctan2(drift, depths[-1])))
    if depths[-1] > 0 and tilt > MAX_TILT_DEGREES:
        raise ValueError(
            f"expected slices straight above one another in {where}, got a gantry tilt of {tilt:.2f} degrees; "
            "correct it first, as dcm2niix does"
        )
    steps = np.diff(depths)
    distance = float(np.median(steps))
    wrong = np.abs(steps - distance) > POSITION_TOLERANCE * distance
    if distance <= 0 or wrong.any():
        at = int(np.argmax(wrong)) if distance > 0 else 0
        raise ValueError(
            f"expected slices at equal distances in {where}, got {steps[at]:.3f} mm after slice {at + 1} of "
            f"{len(headers)} where others have {distance:.3f} mm (missing or repeated slices); export the series again"
        )
    return [int(index) for index in order], float(depths[-1]) / (len(headers) - 1)


def _series_of(folder: str | Path) -> list[Series]:
    """All series of a folder and its subfolders, sorted by UID."""
    if not Path(folder).is_dir():
        raise ValueError(
            f"expected a DICOM folder at {folder}, found none; pass the folder of the series"
        )
    files: dict[str, list[str]] = {}
    for parent, _, names in sorted(os.walk(folder)):
        if any(is_dicom(Path(parent) / name) for name in names):
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(parent):
                files.setdefault(uid, []).extend(
                    sitk.ImageSeriesReader.GetGDCMSeriesFileNames(parent, uid)
                )
    return [_series(uid, files[uid]) for uid in sorted(files)]


def _series(uid: str, files: Sequence[str]) -> Series:
    headers = {file: _header(file) for file in files}
    images = {file: header for file, header in headers.items() if header}
    first = next(iter(images.values()), {})
    slices = {
        file: header
        for file, header in images.items()
        if "LOCALIZER" not in header.get(IMAGE_TYPE, "").upper()
    }
    return Series(uid, first.get(DESCRIPTION, "").strip(), first.get(MODALITY, "?").strip(), slices)


def _header(file: str) -> dict[str, str]:
    """Tags of a file as text, and its ``size``; empty if it holds no image."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return {}
    tags = (MODALITY, IMAGE_TYPE, DESCRIPTION, POSITION, ORIENTATION, SPACING, FRAMES)
    header = {tag: reader.GetMetaData(tag) for tag in tags if reader.HasMetaDataKey(tag)}
    return header | {"size": str(reader.GetSize()[:2])}


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split("\\")]


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, by the letters DICM at byte 128."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
