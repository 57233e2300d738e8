# SPDX-License-Identifier: Apache-2.0
"""Series of DICOM files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_series(
    folder: Path,
    volume: np.ndarray,
    change: Callable[[Any, int], None] = lambda dataset, number: None,
    orientation: tuple[float, ...] = AXIAL,
    uid: str = "1.2.3.1",
) -> Path:
    """Slices ``volume[number]``, rows x columns in HU, 2.5 mm apart along the normal, as files of one series."""
    pydicom = pytest.importorskip(
        "pydicom", minversion="3", reason="files are written by pydicom 3"
    )
    folder.mkdir(parents=True, exist_ok=True)
    row = np.array(orientation[:3])
    column = np.array(orientation[3:])
    for number, pixels in enumerate(volume):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{uid}.{number + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data = pydicom.dataset.Dataset()
        data.file_meta = meta
        data.SOPClassUID = meta.MediaStorageSOPClassUID
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID = uid
        data.StudyInstanceUID = "1.2.3"
        data.Modality = "CT"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.SeriesDescription = f"bone {uid[-1]}"
        data.PatientID = "anna"
        data.InstanceNumber = number + 1
        data.ImageOrientationPatient = list(orientation)
        position = np.cross(row, column) * 2.5 * number + (-20, -31, 12.5)
        data.ImagePositionPatient = [round(float(x), 4) for x in position]
        data.PixelSpacing = [1.5, 0.75]
        data.SliceThickness = 2.5
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated = 16
        data.BitsStored = 16
        data.HighBit = 15
        data.PixelRepresentation = 1
        data.RescaleSlope = 1
        data.RescaleIntercept = -1024
        data.PixelData = (pixels + 1024).astype("<i2").tobytes()
        change(data, number)
        data.save_as(folder / f"{(7 * number) % 101:03}.dcm", enforce_file_format=True)
    return folder
