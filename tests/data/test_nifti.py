# SPDX-License-Identifier: Apache-2.0
"""Names and grids of written files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage, SaveImage

from contourdiff.data.nifti import CaseFolderLayout, SourceGridWriter
from contourdiff.data.nifti_names import case_of, nifti_by_case
from helpers.volumes import assert_same_grid, oblique_affine, write_nifti

NAMES = ("a.b.nii.gz", "a.b.nii", "a.b.NII.GZ", "a.b.NII", "a.b.nii.GZ")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_named_after_its_case_in_any_spelling(name: str, tmp_path: Path) -> None:
    lower = write_nifti(
        tmp_path / "ct" / name.lower(),
        np.ones((3, 4, 5), np.int16),
        oblique_affine((2.0, 3.0, 4.0)),
    )
    source = lower.rename(tmp_path / "ct" / name)
    assert case_of(source) == "a.b"
    assert nifti_by_case(tmp_path / "ct") == {"a.b": source}
    image = LoadImage(image_only=True, ensure_channel_first=True)(source)
    layout = CaseFolderLayout(tmp_path / "mr", "mr")
    SaveImage(folder_layout=layout, output_ext=".nii.gz", resample=False, writer=SourceGridWriter)(
        image
    )
    assert [path.name for path in (tmp_path / "mr").iterdir()] == ["a.b_mr.nii.gz"]
    assert_same_grid(nib.load(tmp_path / "mr" / "a.b_mr.nii.gz"), nib.load(source))


def test_hidden_files_and_folders_are_no_cases(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / ".hidden.nii.gz").touch()
    assert nifti_by_case(tmp_path) == {}
    assert nifti_by_case(tmp_path / "absent") == {}
