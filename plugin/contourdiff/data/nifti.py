# SPDX-License-Identifier: Apache-2.0
"""Read volumes for MONAI, and write them on exactly the grid of their source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import FolderLayoutBase, NibabelReader, NibabelWriter
from monai.utils import convert_to_numpy, ensure_tuple

from contourdiff.data.atomic import atomic_write
from contourdiff.data.case_files import CaseFiles
from contourdiff.data.itk_files import write_itk
from contourdiff.data.nifti_names import ITK_SUFFIXES, OUTPUT_SUFFIXES, case_of
from contourdiff.data.volumes import open_volume, release_voxels, scaled_voxels
from contourdiff.limits import SettingError

GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""What is taken over from the header of a source; its texts and extensions may name a patient."""


def save_like(data: np.ndarray, source: str | Path, path: str | Path) -> None:
    """Write ``data (H, W, D)`` on the grid of the NIfTI file ``source``, its affine equal to the last bit.

    Nothing else of its header is taken over. A ``path`` with the suffix of a NRRD or MetaImage file is written as such.
    Raises ``ValueError`` if the shapes differ.
    """
    image = open_volume(source)
    if data.shape != image.shape:
        raise ValueError(
            f"expected shape {image.shape} of {source}, got {data.shape}; invert every transform first"
        )
    if Path(path).suffix.lower() in ITK_SUFFIXES:
        write_itk(data, image.affine, path)
        return
    header = type(image.header)()
    for field in GRID_FIELDS:
        header[field] = image.header[field]
    header.set_data_dtype(data.dtype)
    written = type(image)(data, image.affine, header)
    with atomic_write(path) as aside:
        nib.save(written, aside)


class SourceGridReader(NibabelReader):
    """Reader for ``LoadImaged`` that takes the affine as nibabel does: the sform if there is one, or else the qform.

    MONAI's reader prefers the form that agrees with the voxel size of the header, which a sheared sform does not.
    Files are opened and read as in [`contourdiff.data.volumes`][].
    """

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Image of a single file."""
        self.filenames = ensure_tuple(data)
        return open_volume(self.filenames[0])

    def _get_array_data(self, img: nib.Nifti1Image, *args: Any) -> np.ndarray:
        path = str(self.filenames[0])
        voxels = scaled_voxels(path)
        release_voxels([path])  # what follows takes the memory
        voxels.flags.writeable = True
        return voxels


class SourceGridWriter(NibabelWriter):
    """Writer for ``SaveImaged`` that writes a result with the header of its source file.

    The geometry must agree with the file's to within 1/100 mm, as it does if every spatial transform was inverted.
    """

    def set_data_array(self, data_array: Any, *args: Any, **options: Any) -> None:
        """Store a volume of one channel; a last axis of one slice stays, unlike in MONAI's writer."""
        options["squeeze_end_dims"] = False
        super().set_data_array(data_array, *args, **options)

    def set_metadata(
        self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any
    ) -> None:
        """Store the path of the source and the geometry of the data."""
        meta = meta_dict or {}
        self._source = str(meta.get("filename_or_obj", ""))
        self._result_affine = meta.get("affine")
        super().set_metadata(meta_dict, resample, **options)

    def write(self, filename: str | os.PathLike[Any], verbose: bool = False, **kwargs: Any) -> None:
        """Write the file, whole or not at all; ``ValueError`` if the result is on another grid than its source."""
        voxels = convert_to_numpy(self.data_obj)
        data = np.asarray(voxels, dtype=self.output_dtype)
        self.data_obj = None  # SaveImage keeps its writer until the next case; the volume is freed
        affine = convert_to_numpy(self._result_affine)
        expected = open_volume(self._source).affine
        if affine is None or not np.allclose(affine, expected, atol=1e-2):
            raise ValueError(
                f"the result is not on the grid of {self._source}; put Invertd before SaveImaged"
            )
        save_like(data[..., 0], self._source, Path(filename))


@dataclass(eq=False)
class CaseFolderLayout(FolderLayoutBase):
    """Names for ``SaveImaged``: ``<output_dir>/<case>_<postfix><output_ext>``, see [`contourdiff.data.case_files`][].

    MONAI's own layout knows ``.gz`` in lower case only: ``A.NII.GZ`` would become ``A.NII_mr.nii.gz``.

    Args:
        output_dir: folder of the files.
        postfix: ``mr``, ``label`` or another kind of volume.
        output_ext: ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``.

    Raises:
        ValueError: for another extension.
    """

    output_dir: str | Path
    postfix: str
    output_ext: str = ".nii.gz"

    def __post_init__(self) -> None:
        if self.output_ext not in OUTPUT_SUFFIXES:
            raise SettingError(
                f"output_ext must be one of {list(OUTPUT_SUFFIXES)}, got {self.output_ext!r}"
            )

    def filename(
        self, subject: str | Path = "subject", name: str | None = None, **kwargs: Any
    ) -> Path:
        """Path for an image that was read from ``subject``; ``name`` stands for its case id."""
        files = CaseFiles(Path(self.output_dir), name or case_of(subject), self.output_ext)
        return files.volume(self.postfix)


def item_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """``output_name_formatter`` for ``SaveImaged``: files are named after the item, as its metadata ``name`` says."""
    return {"subject": meta.get("filename_or_obj", ""), "name": meta.get("name")}
