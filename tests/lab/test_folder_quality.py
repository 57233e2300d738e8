# SPDX-License-Identifier: Apache-2.0
"""Quality of a folder of translations, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from contourdiff.phantom import write_phantom
from contourdiff_lab.commands import main
from contourdiff_lab.folder_quality import QualityGrid, folder_quality
from helpers.runs import run_tiny_inference
from helpers.volumes import write_nifti

AFFINE = np.array([[0, 0, 3.0, 5], [2.2, 0, 0, -7], [0, -2.2, 0, 11], [0, 0, 0, 1]])
"""In-plane spacing 2.2 mm, axes A, I, R."""


def squares(offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Six sagittal slices with a bright square that its label fits, moved by ``offset`` pixels: axes A, I, R."""
    label = np.zeros((60, 64, 6), dtype=np.uint8)
    label[20:36, 24:44, 1:5] = 1
    image = np.roll(label, offset, axis=0) * 160.0 + 40
    image[:, :, 0] = 0
    return image.astype(np.float32), label


def folder_of(tmp_path: Path, offset: int = 0) -> Path:
    image, label = squares(offset)
    write_nifti(tmp_path / "a_mr.nii.gz", image, AFFINE)
    write_nifti(tmp_path / "a_label.nii.gz", label, AFFINE)
    return tmp_path


def test_labels_that_fit_have_their_boundary_on_a_contour_and_others_do_not(tmp_path: Path) -> None:
    fits = folder_quality(folder_of(tmp_path / "fits"))["cases"][0]
    off = folder_quality(folder_of(tmp_path / "off", offset=8))["cases"][0]
    assert fits["boundary"] == 1.0
    assert fits["labelled_slices"] == 4
    assert off["boundary"] < 0.75
    assert fits["boundary_swapped"] == fits["boundary"]  # the same square in every labelled slice


def test_fidelity_to_the_ct_counts_what_a_translation_invents(tmp_path: Path) -> None:
    """The CT's own contours are true to it; a second square is invented, a missing one lost; no CT, no measure."""
    body = np.zeros((100, 100, 4), dtype=np.int16) - 1000
    body[10:90, 10:90] = 40
    bone = body.copy()
    bone[30:50, 30:50] = 300
    both = bone.copy()
    both[60:80, 60:80] = 300
    write_nifti(tmp_path / "ct" / "a.nii.gz", bone, AFFINE)
    translations = {"same": bone, "invents": both, "loses": body, "other": bone}
    measured = {}
    for name, volume in translations.items():
        gray = (np.clip(volume, -200, 300) + 200) / 500 * 255
        case = "b" if name == "other" else "a"
        write_nifti(tmp_path / name / f"{case}_mr.nii.gz", gray.astype(np.float32), AFFINE)
        write_nifti(tmp_path / name / f"{case}_label.nii.gz", (bone > 200).astype(np.uint8), AFFINE)
        measured[name] = folder_quality(tmp_path / name, ct_dir=tmp_path / "ct")["cases"][0]
    same = measured["same"]
    assert (same["fidelity"], same["invented"], same["lost"]) == (1, 0, 0)
    assert measured["invents"]["invented"] > 0.1 > measured["invents"]["lost"]
    assert measured["loses"]["lost"] > 0.1 > measured["loses"]["invented"]
    assert np.isnan(measured["other"]["fidelity"])


def test_flicker_is_measured_in_the_box_around_the_contours(tmp_path: Path) -> None:
    """As in the record of a translation: background far from the body does not dilute it."""
    case = folder_quality(folder_of(tmp_path), settings={"margin_px": 2})["cases"][0]
    image = squares()[0]
    changes = [
        np.mean((image[18:38, 22:46, k + 1] - image[18:38, 22:46, k]) ** 2) for k in range(1, 4)
    ]
    assert case["pairs"] == 3  # the outer slices are flat
    assert case["flicker"] == pytest.approx(np.mean(changes), abs=30)


def test_flicker_is_that_of_the_record_of_the_translation(
    tmp_path: Path, tiny_weights: Path
) -> None:
    """The same definition; the box differs as far as the translation departs from its contours."""
    write_phantom(tmp_path / "ct", shape=(6, 100, 100), spacing_mm=(12.0, 2.2, 2.2))
    run_tiny_inference(tmp_path / "ct", tmp_path / "mr", tiny_weights, filter_classes=4)
    record = json.loads((tmp_path / "mr" / "phantom_mr.json").read_text())["flicker"]
    (case,) = folder_quality(tmp_path / "mr", overlays=["single"])["cases"]
    assert case["pairs"] == record["pairs"] == 5
    assert case["flicker"] == pytest.approx(record["flicker"], rel=0.1)


def test_hip_and_thigh_are_measured_across_axial_slices(tmp_path: Path) -> None:
    """Axis, spacing and thresholds are those of the translation, not of the lumbar spine."""
    rng = np.random.default_rng(0)
    label = np.zeros((40, 44, 6), dtype=np.uint8)
    label[10:30, 12:32] = 1
    brightness = 120.0 + 40 * (np.arange(6) % 2)
    image = label * brightness + rng.normal(0, 1, label.shape) + 20
    affine = np.diag([1.6, 1.6, 4.0, 1.0])
    write_nifti(tmp_path / "a_mr.nii.gz", image.astype(np.float32), affine)
    write_nifti(tmp_path / "a_label.nii.gz", label, affine)
    quality = folder_quality(tmp_path, overlays=["hip_thigh"])
    assert (quality["grid"]["slice_axis"], quality["grid"]["spacing_mm"]) == (2, 1.1)
    assert quality["cases"][0]["pairs"] == 5
    assert quality["cases"][0]["flicker"] > 300  # every second slice is brighter by 40
    assert quality["cases"][0]["labelled_slices"] == 6


def test_an_unknown_setting_of_the_quality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spacing_mm"):
        folder_quality(folder_of(tmp_path), settings={"spacing": 2.0})


def test_reference_flicker_is_that_of_real_mr_in_gray_levels(tmp_path: Path) -> None:
    """Raw intensities of an MR have any scale; its flicker must not."""
    rng = np.random.default_rng(0)
    label = squares()[1]
    image = squares()[0] + rng.normal(0, 10, label.shape)
    measured = []
    for scale in (1.0, 40.0):
        folder = tmp_path / str(scale)
        write_nifti(folder / "images" / "a.nii.gz", (image * scale).astype(np.float32), AFFINE)
        write_nifti(folder / "labels" / "a.nii.gz", label, AFFINE)
        measured.append(
            folder_quality(folder_of(tmp_path / "mr"), mr_dir=folder)["mean"]["reference_flicker"]
        )
    assert measured[0] == pytest.approx(measured[1], rel=1e-3)
    assert 0 < measured[0] < 255**2


def test_an_extractor_requires_real_mr(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected mr_dir beside the extractor"):
        folder_quality(folder_of(tmp_path), extractor=torch.nn.Identity())


def test_the_command_quality_writes_and_compares_with_real_mr(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, stride=4), torch.nn.ReLU())
    torch.jit.save(torch.jit.script(network), tmp_path / "features.pt")
    mr = str(real_data / "mr_lumbar_labelled")
    options = [
        "--mr_dir",
        mr,
        "--mr_pattern",
        "*_t1_*",
        "--extractor",
        str(tmp_path / "features.pt"),
    ]
    main(["quality", str(folder_of(tmp_path / "mr")), str(tmp_path / "out"), *options])
    written = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert written["set"]["n_real"] == 5
    assert written["set"]["n_translated"] == 4
    assert written["set"]["fid"] > 0
    assert "fid: " in capsys.readouterr().out
    assert (tmp_path / "out" / "quality.csv").is_file()


def test_real_labels_lie_on_contours_of_their_real_mr(real_data: Path) -> None:
    grid = QualityGrid.of_bundle()
    folder = real_data / "mr_lumbar_labelled"
    name = "spider_106_t1_slice07.nii.gz"
    image, label = grid.load(
        {"image": str(folder / "images" / name), "label": str(folder / "labels" / name)},
        percentiles=(1, 95),
    )
    assert image.shape == label.shape
    assert abs(image.shape[1] * 1.1 - 280) < 3
    assert image.max() == pytest.approx(255)
