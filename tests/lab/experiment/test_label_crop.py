# SPDX-License-Identifier: Apache-2.0
"""The labelled part of a volume, cut out voxel for voxel."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff_lab.experiment.label_crop import write_label_crop
from helpers.volumes import write_nifti

AFFINE = np.array([[0, 0, 2.2, 5], [3.0, 0, 0, -7], [0, -2.2, 0, 11], [0, 0, 0, 1]])
"""Axes A, I, R."""


def write_case(folder: Path) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Six sagittal slices, class 1 in the middle four, and a voxel of no class in the first."""
    image = np.random.default_rng(0).normal(0, 50, (20, 24, 6)).astype(np.float32)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[6:12, 8:14, 1:5] = 1
    label[0, 0, 0] = 9
    paths = {
        "image": str(write_nifti(folder / "ct.nii.gz", image, AFFINE)),
        "label": str(write_nifti(folder / "label.nii.gz", label, AFFINE)),
    }
    return paths, image, label


@pytest.mark.parametrize("end", ["R", "L"])
def test_a_crop_keeps_voxels_and_positions(tmp_path: Path, end: str) -> None:
    case, image, label = write_case(tmp_path)
    write_label_crop(case, {1: [1]}, end, tmp_path / "crop", "a.nii.gz")
    for path, whole in (
        (tmp_path / "crop" / "a.nii.gz", image),
        (tmp_path / "crop" / "labels" / "a.nii.gz", label),
    ):
        cut = nib.load(path)
        np.testing.assert_array_equal(np.asanyarray(cut.dataobj), whole[:, :, 1:5])
        np.testing.assert_allclose(cut.affine @ [3, 4, 0, 1], AFFINE @ [3, 4, 1, 1], atol=1e-5)


def test_a_volume_without_a_class_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case, *_ = write_case(tmp_path)
    write_label_crop(case, {1: [7]}, "R", tmp_path / "crop", "a.nii.gz")
    assert "holds no class" in caplog.text
    assert not (tmp_path / "crop").exists()


def test_existing_files_are_kept(tmp_path: Path) -> None:
    case, *_ = write_case(tmp_path)
    for path in (tmp_path / "crop" / "a.nii.gz", tmp_path / "crop" / "labels" / "a.nii.gz"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept")
    write_label_crop(case, {1: [1]}, "R", tmp_path / "crop", "a.nii.gz")
    assert (tmp_path / "crop" / "a.nii.gz").read_text() == "kept"
