# SPDX-License-Identifier: Apache-2.0
"""Read one CT series of a DICOM folder, after a check of its geometry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

IMAGE_TYPE = "0008|0008"
MODALITY = "0008|0060"
DESCRIPTION = "0008|103e"
POSITION = "0020|0032"
ORIENTATION = "0020|0037"
FRAMES = "0028|0008"
SPACING = "0028|0030"
TAGS = (IMAGE_TYPE, MODALITY, DESCRIPTION, POSITION, ORIENTATION, FRAMES, SPACING)
MAX_TILT_DEGREES = 0.05
POSITION_TOLERANCE = 0.01
"""Share of the slice distance that the distance of two adjacent slices may differ by; positions are rounded text."""
Header = dict[str, str]
"""Tags of a file that are not empty, as text, and its ``size``."""


class Series(NamedTuple):
    """A series, and the header of each of its files that holds an image and is no localizer."""

    uid: str
    description: str
    modality: str
    slices: dict[str, Header]

    def __str__(self) -> str:
        return f"{self.uid} ({self.modality} {self.description!r}, {len(self.slices)} slices)"


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, by the letters DICM at byte 128."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def has_ct_series(folder: str | Path) -> bool:
    """Whether a folder or a subfolder holds a series of CT slices; ``ValueError`` if it is no folder."""
    return len(_ct_of(_series_of(folder))) > 0


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
    all_series = _series_of(folder)
    candidates = _ct_of(all_series)
    listed = "; ".join(map(str, candidates or all_series)) or "no series"
    expected = "one CT series"
    if series_uid is not None:
        expected = f"the CT series {series_uid}"
        candidates = [series for series in candidates if series.uid == series_uid]
    if len(candidates) != 1:
        advice = "pass the UID of one as series_uid" if candidates else "pass another folder or UID"
        raise ValueError(f"expected {expected} in {folder}, got {listed}; {advice}")
    return _read(candidates[0].slices, str(folder))


def _ct_of(all_series: Sequence[Series]) -> list[Series]:
    return [series for series in all_series if series.modality == "CT" and series.slices]


def _read(slices: dict[str, Header], where: str) -> Any:
    headers = list(slices.values())
    _check_headers(headers, where)
    order, slice_distance_mm = _stack(headers, where)
    files = list(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([files[index] for index in order])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"expected readable DICOM slices in {where}, got: {reason}; decompress or copy them"
        ) from error
    image.SetSpacing([*image.GetSpacing()[:2], slice_distance_mm])
    voxels = sitk.GetArrayViewFromImage(image)
    whole = np.issubdtype(voxels.dtype, np.integer) or np.array_equal(voxels, np.rint(voxels))
    fits = voxels.min() >= -(2**15) and voxels.max() < 2**15
    return sitk.Cast(image, sitk.sitkInt16 if whole and fits else sitk.sitkFloat32)


def _check_headers(headers: Sequence[Header], where: str) -> None:
    """Raise ``ValueError`` unless these are slices of one kind, one in each file."""
    if len(headers) < 2:
        raise ValueError(
            f"expected a stack of slices in {where}, got {len(headers)}; pass a volume"
        )
    if any(int(header.get(FRAMES, 1)) > 1 for header in headers):
        raise ValueError(
            f"expected one slice a file in {where}, got multi-frame files; convert them with dcm2niix"
        )
    if any({POSITION, ORIENTATION, SPACING} - header.keys() for header in headers):
        raise ValueError(
            f"expected position, orientation and spacing in every file of {where}; export them again"
        )
    sizes = {(header["size"], header[SPACING]) for header in headers}
    orientations = _numbers(headers, ORIENTATION)
    if len(sizes) > 1 or not np.allclose(orientations, orientations[0], atol=1e-3):
        raise ValueError(
            f"expected slices of one orientation, size and pixel spacing in {where}, got a mixture; "
            "move the files of one stack to a folder of their own"
        )


def _stack(headers: Sequence[Header], where: str) -> tuple[list[int], float]:
    """Order of the slices along their normal, and their distance in mm; ``ValueError`` for an irregular stack."""
    orientation = _numbers(headers, ORIENTATION)[0]
    normal = np.cross(orientation[:3], orientation[3:])
    positions = _numbers(headers, POSITION)
    order = np.argsort(positions @ normal)
    offsets = positions[order] - positions[order[0]]
    depths = offsets @ normal
    height = float(depths[-1])
    drift = np.linalg.norm(offsets[-1] - height * normal)
    tilt = float(np.degrees(np.arctan2(drift, height)))
    if height > 0 and tilt > MAX_TILT_DEGREES:
        raise ValueError(
            f"expected slices straight above one another in {where}, got a gantry tilt of {tilt:.2f} degrees; "
            "correct it first, as dcm2niix does"
        )
    steps = np.diff(depths)
    distance = float(np.median(steps))
    irregular = np.abs(steps - distance) > POSITION_TOLERANCE * distance
    if distance <= 0 or irregular.any():
        first = int(np.argmax(irregular))
        raise ValueError(
            f"expected slices at equal distances in {where}, got {steps[first]:.3f} mm after slice {first + 1} of "
            f"{len(headers)} where others have {distance:.3f} mm (missing or repeated slices); export the series again"
        )
    return order.tolist(), height / (len(headers) - 1)


def _numbers(headers: Sequence[Header], tag: str) -> np.ndarray:
    """Values of a tag, a row for each header."""
    return np.array([header[tag].split("\\") for header in headers], dtype=float)


def _series_of(folder: str | Path) -> list[Series]:
    """All series of a folder and its subfolders, sorted by UID."""
    if not Path(folder).is_dir():
        raise ValueError(
            f"expected a DICOM folder at {folder}, found none; pass the folder of the series"
        )
    files_of: dict[str, list[str]] = {}
    for parent, _, names in sorted(os.walk(folder)):
        if not any(is_dicom(Path(parent, name)) for name in names):
            continue
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(parent):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(parent, uid)
            files_of.setdefault(uid, []).extend(files)
    return [_series(uid, files_of[uid]) for uid in sorted(files_of)]


def _series(uid: str, files: Sequence[str]) -> Series:
    first: Header = {}
    slices: dict[str, Header] = {}
    for file in files:
        header = _header(file)
        first = first or header
        if header and "LOCALIZER" not in header.get(IMAGE_TYPE, "").upper():
            slices[file] = header
    description = first.get(DESCRIPTION, "").strip()
    modality = first.get(MODALITY, "?").strip()
    return Series(uid, description, modality, slices)


def _header(file: str) -> Header:
    """Header of a file; empty if it holds no image."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return {}
    header = {"size": str(reader.GetSize()[:2])}
    for tag in TAGS:
        if reader.HasMetaDataKey(tag) and reader.GetMetaData(tag):
            header[tag] = reader.GetMetaData(tag)
    return header
