# SPDX-License-Identifier: Apache-2.0
"""Grids that agree up to rounding are one grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contourdiff.data.checks import check_label
from helpers.volumes import ball_ct, write_nifti

CT = ball_ct((6, 7, 8))


@pytest.mark.parametrize("voxel_mm", [0.5, 3.0])
def test_a_label_within_a_hundredth_of_a_voxel_is_accepted(voxel_mm: float, tmp_path: Path) -> None:
    affine = np.diag([voxel_mm, voxel_mm, 2 * voxel_mm, 1])
    ct = write_nifti(tmp_path / "ct.nii", CT, affine)
    limit_mm = max(0.01, voxel_mm / 100)
    moved = affine.copy()
    moved[1, 3] = 0.9 * limit_mm
    label = write_nifti(tmp_path / "near.nii", CT, moved)
    np.testing.assert_array_equal(check_label(ct, label), CT)
    moved[1, 3] = 1.2 * limit_mm
    label = write_nifti(tmp_path / "far.nii", CT, moved)
    distances = (
        f"{1.2 * limit_mm:.3g} mm from those of the image, where {limit_mm:.3g} mm are allowed"
    )
    with pytest.raises(ValueError, match=distances):
        check_label(ct, label)
