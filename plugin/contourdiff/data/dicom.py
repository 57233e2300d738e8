# SPDX-License-Identifier: Apache-2.0
"""Read one CT series of a DICOM folder, after a check of its geometry."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset

from contourdiff.data.dicom_planes import (
    CONVERT,
    GROUP_OF,
    Plane,
    check_planes,
    planes_of,
    stack_of,
    values_of,
)

CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
)
"""SOP classes: CT image, enhanced CT image, and enhanced CT image converted from single frames."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
FRAMES = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames")
TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "ImageType"),
    *("Rows", "Columns", "PhotometricInterpretation", *FRAMES, *GROUP_OF),
)
WITHOUT_MARK = re.compile(rb"[\x02\x08]\x00.\x00([A-Z]{2}|..\x00\x00)", re.DOTALL)
"""First element of a DICOM file without preamble."""


class Series(NamedTuple):
    """A series, and the header of each of its files that holds a slice or more, and no localizer or picture of text."""

    uid: str
    description: str
    modality: str
    slices: dict[str, Dataset]

    def __str__(self) -> str:
        kind = self.modality or "no modality"
        return f"{self.uid} ({kind} {self.description!r}, {len(self.slices)} slices)"


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, by the letters DICM at byte 128 or, without preamble, by its first element.

    A pipe or another device is none, and is not opened.
    """
    begin = _begin(path)
    return begin[128:] == b"DICM" or WITHOUT_MARK.match(begin) is not None


def read_header(path: str | Path, with_preamble: bool = True) -> Dataset | None:
    """The elements `TAGS` of a DICOM file; ``None`` if it is damaged there, or has no preamble but should."""
    try:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=list(TAGS), force=not with_preamble
        )
        if not header.get("SOPClassUID"):
            header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        for name in GROUP_OF:
            values_of(name, [header])
        int(header.get("NumberOfFrames") or 1)
        is_cut = header.SOPClassUID in CT_CLASSES and not _has_size(header)
    except Exception:  # of a parser, on any bytes
        return None
    if is_cut:
        return None
    return header


def has_ct_series(folder: str | Path) -> bool:
    """Whether a folder or a subfolder holds CT slices, or what may be such; ``ValueError`` if it is no folder."""
    all_series, unreadable = _content_of(folder)
    may_be_ct = _with_slices(all_series, ("CT", ""))
    return bool(unreadable or may_be_ct)


def read_ct_series(folder: str | Path, series_uid: str | None = None) -> Any:
    """Read the CT series of a DICOM folder, subfolders included, as a SimpleITK image in Hounsfield units.

    Localizers, reports and other modalities are skipped. Voxels are int16, or float32 where the rescaling is not
    integer. Compressed files are read as far as GDCM reads them.

    Args:
        folder: holds the files of one study or more.
        series_uid: SeriesInstanceUID of the series to read; ``None`` if there is one.

    Raises ``ValueError`` if there is no CT series, several and no ``series_uid``, a file that cannot be read, or the
    slices are not one regular stack: a tilted gantry, missing slices, slices at one position, of several orientations
    or sizes, or a multi-frame file without a position for each frame.
    """
    series = _ct_series(folder, series_uid)
    return _read(series.slices, str(folder))


def ct_header(folder: str | Path, series_uid: str | None = None) -> Dataset:
    """All elements but the pixels of a file of the series that [`read_ct_series`][] reads; errors are as there."""
    file = next(iter(_ct_series(folder, series_uid).slices))
    return pydicom.dcmread(file, stop_before_pixels=True, force=True)


def _ct_series(folder: str | Path, series_uid: str | None) -> Series:
    all_series, unreadable = _content_of(folder)
    if unreadable:
        raise _unreadable(folder, unreadable)
    candidates = _with_slices(all_series, ("CT",))
    present = candidates or all_series
    expected = "one CT series"
    if series_uid is not None:
        expected = f"the CT series {series_uid}"
        candidates = [series for series in candidates if series.uid == series_uid]
    if len(candidates) != 1:
        advice = "pass another folder or UID"
        if candidates:
            advice = "pass the UID of one as series_uid"
        if not all(series.modality for series in all_series):
            advice += ", or set the tag Modality to CT"
        listed = "; ".join(str(series) for series in present) or "no series"
        raise ValueError(f"expected {expected} in {folder}, got {listed}; {advice}")
    return candidates[0]


def _with_slices(all_series: Sequence[Series], modalities: Sequence[str]) -> list[Series]:
    """The series of some modalities that hold slices."""
    return [series for series in all_series if series.slices and series.modality in modalities]


def _read(slices: dict[str, Dataset], where: str) -> Any:
    planes: list[Plane] = []
    for header in slices.values():
        planes += planes_of(header, where)
    is_multi_frame = len(planes) > len(slices)
    if is_multi_frame and len(slices) > 1:
        raise ValueError(
            f"expected one slice a file in {where}, got several multi-frame files; {CONVERT}"
        )
    try:
        check_planes(planes, where)
        order, distance_mm = stack_of(planes, where)
    except ValueError as error:
        if not is_multi_frame:
            raise
        raise ValueError(f"{error}, or {CONVERT}") from error
    image = _rescaled(list(slices), order, where)
    first = planes[order[0]]
    normal = first.normal
    along_row = first.orientation[:3]
    row = along_row / np.linalg.norm(along_row)
    column = np.cross(normal, row)
    axes = np.stack([row, column, normal], axis=1)
    rows_mm, columns_mm = first.spacing.tolist()
    image.SetDirection(axes.ravel().tolist())
    image.SetSpacing([columns_mm, rows_mm, distance_mm])
    image.SetOrigin(first.position.tolist())
    return image


def _rescaled(files: Sequence[str], order: Sequence[int], where: str) -> Any:
    """Slices in HU, in an order; read as float, as each has a rescaling and a data type of its own."""
    reader: Any
    if len(files) == len(order):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([files[index] for index in order])
    else:
        reader = sitk.ImageFileReader()
        reader.SetFileName(files[0])
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        unreadable = [file for file in files if not _has_voxels(file)]
        raise _unreadable(where, unreadable or files) from error
    voxels = sitk.GetArrayViewFromImage(image)
    if len(files) < len(order):
        image = sitk.GetImageFromArray(voxels[np.asarray(order)])
        voxels = sitk.GetArrayViewFromImage(image)
    if _fits_int16(voxels):
        return sitk.Cast(image, sitk.sitkInt16)
    return image


def _fits_int16(voxels: np.ndarray) -> bool:
    """Whether all voxels are whole numbers within the range of int16."""
    if voxels.min() < -(2**15) or voxels.max() >= 2**15:
        return False
    return all(np.array_equal(plane, np.rint(plane)) for plane in voxels)


def _has_voxels(file: str) -> bool:
    try:
        sitk.ReadImage(file, imageIO="GDCMImageIO")
    except RuntimeError:
        return False
    return True


def _unreadable(folder: str | Path, files: Sequence[str]) -> ValueError:
    names = [os.path.relpath(file, folder) for file in files]
    listed = ", ".join(names[:5])
    if len(names) > 5:
        listed += ", ..."
    advice = "decompress or copy them again, or remove those that are no slices"
    if any(_lacks_preamble(file) for file in files):
        advice = "they lack the preamble and the letters DICM: write them anew, as dcmconv does"
    return ValueError(
        f"expected readable DICOM slices in {folder}, got {len(names)} that cannot be read: {listed}; {advice}"
    )


def _lacks_preamble(file: str) -> bool:
    begin = _begin(Path(file))
    return WITHOUT_MARK.match(begin) is not None


def _begin(path: Path) -> bytes:
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def _content_of(folder: str | Path) -> tuple[list[Series], list[str]]:
    """All series of a folder and its subfolders, sorted by UID, and the files that may be slices but are unreadable."""
    if not Path(folder).is_dir():
        raise ValueError(
            f"expected a DICOM folder at {folder}, found none; pass the folder of the series"
        )
    headers: dict[str, Dataset] = {}
    unreadable: list[str] = []
    for parent, _, names in sorted(os.walk(folder)):
        visible = [name for name in sorted(names) if not name.startswith(".")]
        files = [Path(parent, name) for name in visible]
        dicom = {file for file in files if is_dicom(file)}
        kinds = {_kind(file) for file in dicom}
        for file in files:
            if file not in dicom:
                if dicom and _is_lost(file, kinds):
                    unreadable.append(str(file))
                continue
            header = read_header(file)
            if header is None:
                unreadable.append(str(file))
            else:
                headers[str(file)] = header
    return list(_series_of(headers)), unreadable


def _series_of(headers: dict[str, Dataset]) -> Iterator[Series]:
    files_of: dict[str, list[str]] = defaultdict(list)
    for file, header in headers.items():
        uid = str(header.get("SeriesInstanceUID", ""))
        files_of[uid].append(file)
    for uid, files in sorted(files_of.items()):
        first = headers[files[0]]
        modality = _text_of(first, "Modality")
        if not modality and first.SOPClassUID in CT_CLASSES:
            modality = "CT"
        description = _text_of(first, "SeriesDescription")
        slices = {file: headers[file] for file in files if _is_slice(headers[file])}
        yield Series(uid, description, modality, slices)


def _text_of(header: Dataset, name: str) -> str:
    """Text of a tag without spaces around it; empty if it is absent."""
    value = header.get(name) or ""
    return str(value).strip()


def _has_size(header: Dataset) -> bool:
    return bool(header.get("Rows")) and bool(header.get("Columns"))


def _is_slice(header: Dataset) -> bool:
    """Whether a file holds an image, and neither a localizer nor a picture of text, which lies nowhere."""
    is_capture = str(header.SOPClassUID).startswith(SECONDARY_CAPTURE)
    is_picture = is_capture and "ImagePositionPatient" not in header
    is_localizer = "LOCALIZER" in str(header.get("ImageType", "")).upper()
    return _has_size(header) and not is_picture and not is_localizer


def _kind(file: Path) -> str:
    """Suffix of a file or, without a suffix of letters, its name with each number replaced."""
    if file.suffix[1:].isalpha():
        return file.suffix.lower()
    return re.sub(r"\d+", "0", file.name)


def _is_lost(file: Path, kinds: set[str]) -> bool:
    """Whether a file that is no DICOM may have been a slice: it is named like one, or is empty without a suffix."""
    if _kind(file) in kinds:
        return True
    if file.suffix:
        return False
    try:
        return file.stat().st_size == 0
    except OSError:
        return True
