# SPDX-License-Identifier: Apache-2.0
"""Segmentations of MR by a bundle: on the grid of their files, in any orientation, and their scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from contourdiff.data.label_map import LabelMap
from contourdiff.segmentation.model_bundle import INFERENCE, train_model
from contourdiff.segmentation.results import check_config, mr_files, score_results, segment
from helpers.segmentation import AFFINE, SMALL, mr_with_bone, write_pairs, write_small_bundle
from helpers.volumes import read_voxels, write_nifti

ORIENTATIONS = ("RAS", "LPS", "ASR", "SAL", "PIR")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    folder = write_small_bundle(root / "model")
    train_model(folder, write_pairs(root / "pairs"), steps=30, **SMALL)
    return folder


@pytest.mark.slow
def test_the_orientation_of_a_file_does_not_change_its_segmentation(
    model: Path, tmp_path: Path
) -> None:
    gray, _ = mr_with_bone(5)
    image = nib.Nifti1Image(gray, AFFINE)
    for axcodes in ORIENTATIONS:
        turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(axcodes))
        turned = image.as_reoriented(turn)
        write_nifti(
            tmp_path / "mr" / f"{axcodes}.nii.gz", np.asarray(turned.dataobj), turned.affine
        )
    results = segment(model, tmp_path / "mr", tmp_path / "out")
    segmentations = {}
    for path in results:
        result = nib.load(path)
        source = nib.load(tmp_path / "mr" / path.name.replace("_seg", ""))
        assert result.shape == source.shape
        np.testing.assert_allclose(result.affine, source.affine, atol=1e-4)
        upright = nib.as_closest_canonical(result)
        segmentations[path.name] = np.asarray(upright.dataobj)
    first = segmentations.pop("RAS_seg.nii.gz")
    assert 0.05 < (first == 1).mean() < 0.6
    for name, other in segmentations.items():
        assert (other != first).mean() < 0.002, name  # resampled from another corner


@pytest.mark.slow
def test_axial_slices_are_segmented_as_sagittal_ones(model: Path, tmp_path: Path) -> None:
    gray, _ = mr_with_bone(5)
    write_nifti(tmp_path / "mr" / "sagittal.nii.gz", gray, np.diag([4.0, 2.0, 2.0, 1.0]))
    (sagittal,) = segment(model, tmp_path / "mr", tmp_path / "out")
    bundle = write_small_bundle(tmp_path / "axial", slice_axis=2)
    shutil.copy(model / "models" / "model.pt", bundle / "models" / "model.pt")
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    write_nifti(tmp_path / "mr_axial" / "axial.nii.gz", np.moveaxis(gray, 0, 2), affine)
    (axial,) = segment(bundle, tmp_path / "mr_axial", tmp_path / "out_axial")
    expected = np.moveaxis(read_voxels(sagittal), 0, 2)
    assert expected.any()
    np.testing.assert_array_equal(read_voxels(axial), expected)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 2])
def test_dense_slices_are_thinned_out_and_results_are_on_their_grid(
    model: Path, tmp_path: Path, axis: int
) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", slice_axis=axis)
    shutil.copy(model / "models" / "model.pt", bundle / "models" / "model.pt")
    parser = ConfigParser()
    parser.read_config(str(bundle / INFERENCE))
    preprocessing = parser.get_parsed_content("preprocessing")
    gray, _ = mr_with_bone(5)
    dense = np.repeat(gray[:4], 3, axis=0)
    for name, volume, slice_mm, slices in (
        ("dense", dense, 1.0, 5),
        ("thick", gray, 4.0, len(gray)),
    ):
        spacing = [2.0] * 3
        spacing[axis] = slice_mm
        volume = np.moveaxis(volume, 0, axis)
        image = write_nifti(tmp_path / "mr" / f"{name}.nii.gz", volume, np.diag([*spacing, 1.0]))
        seen = preprocessing({"image": str(image)})["image"]
        assert seen.shape[1 + axis] == slices
    for result in segment(bundle, tmp_path / "mr", tmp_path / "out"):
        source = nib.load(tmp_path / "mr" / result.name.replace("_seg", ""))
        assert nib.load(result).shape == source.shape
        assert read_voxels(result).any()


@pytest.mark.slow
def test_gray_levels_of_any_scale_are_segmented_alike(model: Path, tmp_path: Path) -> None:
    gray, _ = mr_with_bone(6)
    write_nifti(tmp_path / "mr" / "a.nii.gz", gray, AFFINE)
    write_nifti(tmp_path / "mr" / "b.nii.gz", (10 * gray + 500).round().astype(np.int16), AFFINE)
    first, second = segment(model, tmp_path / "mr", tmp_path / "out")
    different = read_voxels(first) != read_voxels(second)
    assert different.mean() < 0.002


@pytest.mark.slow
def test_a_result_is_kept_until_settings_or_weights_change(model: Path, tmp_path: Path) -> None:
    gray, _ = mr_with_bone(7)
    path = write_nifti(tmp_path / "a.nii.gz", gray, AFFINE)
    (result,) = segment(model, path, tmp_path / "out")
    first = result.stat().st_mtime_ns
    segment(model, path, tmp_path / "out")
    assert result.stat().st_mtime_ns == first
    segment(model, path, tmp_path / "out", overwrite=True)
    second = result.stat().st_mtime_ns
    assert second > first
    segment(model, path, tmp_path / "out", lower_percentile=2.0)
    third = result.stat().st_mtime_ns
    assert third > second
    weights = torch.load(model / "models" / "model.pt", weights_only=True)
    changed = {name: value * 0.9 for name, value in weights.items()}
    torch.save(changed, tmp_path / "model.pt")
    segment(model, path, tmp_path / "out", lower_percentile=2.0, ckpt_path=tmp_path / "model.pt")
    assert result.stat().st_mtime_ns > third


@pytest.mark.slow
def test_small_parts_of_a_result_are_removed_on_request(model: Path, tmp_path: Path) -> None:
    gray, _ = mr_with_bone(8)
    path = write_nifti(tmp_path / "a.nii.gz", gray, AFFINE)
    (result,) = segment(model, path, tmp_path / "all")
    assert (read_voxels(result) == 1).any()
    (result,) = segment(model, path, tmp_path / "large", min_volume_mm3=1e7)
    assert not read_voxels(result).any()


def test_files_of_a_folder_are_those_of_its_images(tmp_path: Path) -> None:
    gray, _ = mr_with_bone(0)
    for name in ("images/b", "images/a_mr", "labels/b"):
        write_nifti(tmp_path / f"{name}.nii.gz", gray, AFFINE)
    assert list(mr_files(tmp_path)) == ["a_mr", "b"]
    assert list(mr_files(tmp_path / "images" / "b.nii.gz")) == ["b"]
    with pytest.raises(FileNotFoundError, match="expected an MR"):
        mr_files(tmp_path / "elsewhere")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the bundle of a segmentation network"):
        segment(tmp_path, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", "$__import__('os').system('touch hacked')"),
        ("device", {"_target_": "os.system", "command": "touch hacked"}),
        ("evaluator", {"_target_": "os.system", "command": "touch hacked"}),
        ("extra", "$print(1)"),
        ("slice_axis", "$print(1)"),
        ("pixdim", ["$print(1)"]),
    ],
)
def test_a_config_that_runs_anything_else_is_refused(
    name: str, value: object, tmp_path: Path
) -> None:
    folder = write_small_bundle(tmp_path / "model")
    check_config(folder)
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    check = {**config, "spacing_mm": 1.7, "batch_size": 3}
    path.write_text(json.dumps(check))
    check_config(folder)
    path.write_text(json.dumps({**config, name: value}))
    with pytest.raises(ValueError, match=f"expected {name} in .*as contourdiff transfer writes it"):
        check_config(folder)


def test_labels_are_scored_by_the_values_of_their_map(tmp_path: Path) -> None:
    _, mask = mr_with_bone(3)
    half = mask.copy()
    half[:2] = False
    write_nifti(tmp_path / "a_seg.nii.gz", half.astype(np.uint8), AFFINE)
    label = np.where(mask, 2, 27).astype(np.uint8)  # 27 is a value of CT
    write_nifti(tmp_path / "labels" / "a.nii.gz", label, AFFINE)
    map_file = write_small_bundle(tmp_path / "model") / "label_map.json"
    results = [tmp_path / "a_seg.nii.gz", tmp_path / "without_label_seg.nii.gz"]
    (row,) = score_results(results, tmp_path / "labels", LabelMap(map_file))
    assert (row["case"], row["class"], row["patient"]) == ("a", "bone", "a")
    assert row["dice"] == pytest.approx(2 / 3)
