# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage: the same translation as from NIfTI, on the same grid, in either format."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from contourdiff.data.itk_files import convert_to_nifti, simpleitk_of, write_itk
from contourdiff.data.nifti import CaseFolderLayout
from helpers.runs import run_tiny_inference
from helpers.volumes import ball_ct, nibabel_of, oblique_affine, read_voxels, write_nifti

AFFINE = oblique_affine((3.0, 2.5, 4.0))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_an_itk_file_keeps_voxels_and_grid_both_ways(suffix: str, tmp_path: Path) -> None:
    data = ball_ct((7, 9, 8))
    write_itk(data, AFFINE, tmp_path / f"a{suffix}")
    convert_to_nifti(tmp_path / f"a{suffix}", tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    given = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    back = simpleitk_of(data, nibabel_of(given).affine)
    np.testing.assert_allclose(back.GetDirection(), given.GetDirection(), atol=1e-12)
    np.testing.assert_allclose(back.GetOrigin(), given.GetOrigin(), atol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.nii.gz", f"a{suffix}"])


def test_an_itk_file_that_is_no_volume_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text("NRRD0004\nnothing")
    with pytest.raises(ValueError, match=r"expected a readable volume at .*a\.nrrd"):
        convert_to_nifti(tmp_path / "a.nrrd", tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(tmp_path / "b.nrrd"))
    with pytest.raises(ValueError, match=r"got 3 dimensions, 3 channels"):
        convert_to_nifti(tmp_path / "b.nrrd", tmp_path / "b.nii.gz")
    assert not list(tmp_path.glob("*.nii.gz"))
    with pytest.raises(ValueError, match=r"output_ext must be one of .*, got '\.mhd'"):
        CaseFolderLayout(tmp_path, "mr", output_ext=".mhd")


def test_a_list_of_images_is_no_volume(tmp_path: Path) -> None:
    data = ball_ct((4, 5, 6))
    lines = ("NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior")
    lines += ("sizes: 4 5 6", "encoding: raw", "endian: little", "space origin: (0,0,0)")
    for name, third in (("volume", "(0,0.9,3)"), ("list", "none")):
        header = "\n".join([*lines, f"space directions: (3,0,0) (0,3,0) {third}", "", ""])
        (tmp_path / f"{name}.nrrd").write_bytes(header.encode() + data.tobytes(order="F"))
    convert_to_nifti(tmp_path / "volume.nrrd", tmp_path / "a.nii")
    np.testing.assert_array_equal(read_voxels(tmp_path / "a.nii"), data)
    with pytest.raises(ValueError, match="expected a direction in mm for each axis"):
        convert_to_nifti(tmp_path / "list.nrrd", tmp_path / "b.nii")


@pytest.mark.slow
def test_a_translation_is_the_same_from_and_to_any_format(
    tmp_path: Path, tiny_weights: Path
) -> None:
    ct, label = ball_ct((10, 30, 26)), (ball_ct((10, 30, 26)) > 200).astype(np.uint8) * 30
    for suffix, folder in ((".nii.gz", "nifti"), (".nrrd", "nrrd"), (".mha", "mha")):
        (tmp_path / folder / "labels").mkdir(parents=True)
        for data, path in ((ct, f"a{suffix}"), (label, f"labels/a{suffix}")):
            write = write_nifti if suffix == ".nii.gz" else lambda p, d, a: write_itk(d, a, p)
            write(tmp_path / folder / path, data, AFFINE)
    expected = run_tiny_inference(tmp_path / "nifti", tmp_path / "out_nifti", tiny_weights)
    from_nrrd = run_tiny_inference(tmp_path / "nrrd", tmp_path / "out_nrrd", tiny_weights)
    mr = read_voxels(expected / "a_mr.nii.gz")
    np.testing.assert_allclose(
        read_voxels(from_nrrd / "a_mr.nii.gz"), mr, atol=0.01
    )  # affines are rounded otherwise
    np.testing.assert_array_equal(read_voxels(from_nrrd / "a_label.nii.gz"), label)
    assert json.loads((from_nrrd / "a_mr.json").read_text())["image"] == "a.nrrd"

    to_nrrd = run_tiny_inference(
        tmp_path / "mha", tmp_path / "out_mha", tiny_weights, output_ext=".nrrd"
    )
    own, own_label = (
        nibabel_of(sitk.ReadImage(str(to_nrrd / f"a_{name}.nrrd"))) for name in ("mr", "label")
    )
    np.testing.assert_allclose(np.asarray(own.dataobj), mr, atol=0.01)
    np.testing.assert_array_equal(np.asarray(own_label.dataobj), label)
    np.testing.assert_allclose(own.affine, AFFINE, atol=1e-4)
    assert own.get_data_dtype() == np.float32
    assert own_label.get_data_dtype() == np.uint8
