# SPDX-License-Identifier: Apache-2.0
"""NIfTI files on exactly the grid they came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter
from monai.utils import convert_to_numpy

from contourdiff.data.atomic import atomic_write


def save_like(data: np.ndarray, source: str | Path, path: str | Path) -> None:
    """Write ``data (H, W, D)`` with the grid of the NIfTI file ``source``: shape, affine and its codes, bit by bit.

    Raises:
        ValueError: if the shapes differ.
    """
    image = nib.load(source)
    if data.shape != image.shape:
        raise ValueError(
            f"expected the shape {image.shape} of {source}, got {data.shape}; invert every transform first"
        )
    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    with atomic_write(path) as aside:
        nib.save(type(image)(data, image.affine, header), aside)


class SourceGridWriter(NibabelWriter):
    """Writer for ``SaveImaged``: puts the result on the grid of the file that it came from.

    The inverted geometry must agree with the file's to within 1/100 mm (it does, if every spatial transform was
    inverted); then the file's own header is used, so that the affine is equal to the last bit.
    """

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Remember the source's path and the geometry that the data arrive with."""
        meta = {} if meta_dict is None else meta_dict
        self._source = Path(str(meta.get("filename_or_obj", "")))
        self._own_affine = None if meta.get("affine") is None else convert_to_numpy(meta["affine"])
        super().set_metadata(meta_dict, resample, **options)

    def write(self, filename: str | os.PathLike[Any], verbose: bool = False, **kwargs: Any) -> None:
        """Write whole or not at all."""
        data = np.asarray(convert_to_numpy(self.data_obj), dtype=self.output_dtype)
        self.data_obj = None  # SaveImage keeps its writer, which must not keep the volume until the next case
        expected = nib.load(self._source).affine
        if self._own_affine is None or not np.allclose(self._own_affine, expected, atol=1e-2):
            raise ValueError(f"the result is not on the grid of {self._source}; put Invertd before SaveImaged")
        save_like(data, self._source, Path(filename))
