# SPDX-License-Identifier: Apache-2.0
"""Checks before a transfer: what is no MR is refused, what is doubtful is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contourdiff.segmentation.checks import check_mr, field_of_view_warnings
from helpers.segmentation import AFFINE, mr_with_bone
from helpers.volumes import ball_ct, write_nifti


def test_a_ct_among_the_mr_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", ball_ct(), AFFINE)
    with pytest.raises(
        ValueError, match=r"expected MR, got a\.nii\.gz with voxels down to -10.*probably CT"
    ):
        check_mr({"a": path})


def test_an_mr_of_one_gray_level_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.full((3, 8, 8), 4, np.uint8), AFFINE)
    with pytest.raises(ValueError, match="with the value 4 in every voxel; leave it out"):
        check_mr({"a": path})


def test_single_slices_and_mixed_contrasts_are_said(tmp_path: Path) -> None:
    gray, _ = mr_with_bone(0)
    files = {}
    for name, voxels in (("anna_T2w", gray), ("otto_t1", gray[:1])):
        files[name] = write_nifti(tmp_path / f"{name}.nii.gz", voxels, AFFINE)
    slices, contrasts = check_mr(files)
    assert slices.startswith("1 MR are single slices, such as otto_t1")
    assert "t1 and t2" in contrasts
    assert check_mr({"anna_T2w": files["anna_T2w"]}) == []


def test_a_ct_that_shows_less_than_half_of_the_mr_is_said(tmp_path: Path) -> None:
    small = write_nifti(tmp_path / "ct.nii.gz", np.zeros((3, 40, 20)), np.diag([1.0, 2, 2, 1]))
    large = write_nifti(tmp_path / "mr.nii.gz", np.zeros((70, 3, 100)), np.diag([2.0, 2, 2, 1]))
    turned = np.array([[0, 2.0, 0, 0], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    large = write_nifti(tmp_path / "mr.nii.gz", np.zeros((70, 3, 100)), turned)
    (warning,) = field_of_view_warnings([small], [large])
    assert warning.startswith("the CT show 40 mm from foot to head, the MR 200 mm (medians)")
    assert field_of_view_warnings([large], [small]) == []
