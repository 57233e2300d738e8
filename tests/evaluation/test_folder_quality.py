# SPDX-License-Identifier: Apache-2.0
"""Quality of a folder of translations, labelled slabs, and their commands."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from contourdiff.cli import main
from contourdiff.evaluation.folder_quality import QualityGrid, folder_quality
from contourdiff.evaluation.label_crop import write_label_crop
from helpers import write_nifti

AFFINE = np.array([[0, 0, 2.2, 5], [3.0, 0, 0, -7], [0, -2.2, 0, 11], [0, 0, 0, 1]])  # A, I, R


def squares(offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Six sagittal slices with a bright square that its label fits, moved by ``offset`` pixels: axes A, I, R."""
    label = np.zeros((60, 64, 6), dtype=np.uint8)
    label[20:36, 24:44, 1:5] = 1
    image = np.roll(label, offset, axis=0) * 160.0 + 40
    image[:, :, 0] = 0
    return image.astype(np.float32), label


def folder_of(tmp_path: Path, offset: int = 0) -> Path:
    image, label = squares(offset)
    affine = np.array([[0, 0, 3.0, 5], [2.2, 0, 0, -7], [0, -2.2, 0, 11], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a_mr.nii.gz", image, affine)
    write_nifti(tmp_path / "a_label.nii.gz", label, affine)
    return tmp_path


def test_labels_that_fit_have_their_boundary_on_a_contour_and_others_do_not(tmp_path: Path) -> None:
    fits = folder_quality(folder_of(tmp_path / "fits"))["cases"][0]
    off = folder_quality(folder_of(tmp_path / "off", offset=8))["cases"][0]
    assert fits["boundary"] == 1.0
    assert fits["labelled_slices"] == 4
    assert off["boundary"] < 0.75
    assert fits["boundary_swapped"] == fits["boundary"]  # the same square in every labelled slice


def test_flicker_is_that_of_the_sagittal_slices(tmp_path: Path) -> None:
    case = folder_quality(folder_of(tmp_path))["cases"][0]
    image = squares()[0]
    differences = [np.mean((image[..., k + 1] - image[..., k]) ** 2) for k in range(1, 5)]
    assert case["pairs"] == 4
    assert case["flicker"] == pytest.approx(np.mean(differences), rel=1e-4)


def test_an_extractor_wants_real_mr_and_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give both or neither"):
        folder_quality(folder_of(tmp_path), mr_dir=tmp_path)


def test_command_writes_and_compares_with_real_mr(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, stride=4), torch.nn.ReLU())
    torch.jit.save(torch.jit.script(network), tmp_path / "features.pt")
    mr = str(real_data / "mr_lumbar_labelled")
    options = ["--mr_dir", mr, "--mr_pattern", "*_t1_*", "--extractor", str(tmp_path / "features.pt")]
    main(["quality", str(folder_of(tmp_path / "mr")), str(tmp_path / "out"), *options])
    written = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert written["set"]["n_real"] == 5
    assert written["set"]["n_translated"] == 4
    assert written["set"]["fid"] > 0
    assert "fid: " in capsys.readouterr().out
    assert (tmp_path / "out" / "quality.csv").is_file()


def test_real_labels_lie_on_contours_of_their_real_mr(real_data: Path) -> None:
    grid = QualityGrid()
    folder = real_data / "mr_lumbar_labelled"
    name = "spider_106_t1_slice07.nii.gz"
    image, label = grid.load(
        {"image": str(folder / "images" / name), "label": str(folder / "labels" / name)}, percentiles=(1, 95)
    )
    assert image.shape == label.shape
    assert abs(image.shape[1] * 2.2 - 280) < 3
    assert image.max() == pytest.approx(255)


@pytest.mark.parametrize("end", ["R", "L"])
def test_slab_keeps_voxels_and_places(tmp_path: Path, end: str) -> None:
    image, label = squares()
    label[0, 0, 0] = 9  # no class: does not widen the slab
    case = {
        "image": str(write_nifti(tmp_path / "ct.nii.gz", image, AFFINE)),
        "label": str(write_nifti(tmp_path / "label.nii.gz", label, AFFINE)),
    }
    write_label_crop(case, {1: [1]}, end, tmp_path / "slab", "a.nii.gz")
    for path, whole in ((tmp_path / "slab" / "a.nii.gz", image), (tmp_path / "slab" / "labels" / "a.nii.gz", label)):
        cut = nib.load(path)
        np.testing.assert_array_equal(np.asanyarray(cut.dataobj), whole[:, :, 1:5])
        np.testing.assert_allclose(cut.affine @ [3, 4, 0, 1], AFFINE @ [3, 4, 1, 1], atol=1e-5)


def test_a_volume_without_a_class_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, label = squares()
    case = {
        "image": str(write_nifti(tmp_path / "ct.nii.gz", image, AFFINE)),
        "label": str(write_nifti(tmp_path / "label.nii.gz", label, AFFINE)),
    }
    write_label_crop(case, {1: [7]}, "R", tmp_path / "slab", "a.nii.gz")
    assert "holds no class" in caplog.text
    assert not (tmp_path / "slab").exists()
