# SPDX-License-Identifier: Apache-2.0
"""The whole way from labelled CT to segmented MR, on the phantom."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import contourdiff
from contourdiff import cli
from contourdiff.data.atomic import read_json
from contourdiff.limits import SettingError
from contourdiff.phantom import lumbar_phantom, oblique_affine, write_phantom
from contourdiff.segmentation.model_bundle import INFERENCE, TRAIN
from contourdiff.segmentation.stages import transfer
from helpers.volumes import read_voxels, write_nifti

SHAPE = (3, 80, 70)
SPACING_MM = (13.0, 2.0, 2.2)
CLASSES = {"lower": "27-29", "upper": "30,31"}
QUICK = ["--shapes", "1", "--contrast", "t1", "--steps", "2", "--device", "cpu"]


def write_mr(folder: Path, labels: bool = False) -> Path:
    """Something like an MR of the phantom: bone dark, no voxel below 0."""
    ct, label = lumbar_phantom(SHAPE, SPACING_MM, seed=3)
    affine = oblique_affine(SHAPE, SPACING_MM)
    gray = np.where(ct < -500, 0, 300 - np.clip(ct, -100, 250))
    write_nifti(folder / "anna_t1.nii.gz", gray.astype(np.int16), affine)
    if labels:
        write_nifti(folder / "labels" / "anna_t1.nii.gz", label, affine)
    return folder


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_phantom(tmp_path_factory.mktemp("ct"), shape=SHAPE, spacing_mm=SPACING_MM)
    return path.parent


@pytest.fixture(scope="module")
def done(ct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a transfer by the command, and of its MR."""
    folder = tmp_path_factory.mktemp("transfer")
    write_mr(folder / "mr", labels=True)
    classes = [f"{name}={values}" for name, values in CLASSES.items()]
    command = ["transfer", str(ct), str(folder / "mr"), str(folder / "out")]
    cli.main([*command, "--classes", *classes, *QUICK])
    return folder


@pytest.mark.slow
def test_a_transfer_leaves_pairs_a_bundle_and_a_report(done: Path) -> None:
    out = done / "out"
    assert [path.name for path in sorted(out.iterdir())] == [
        *("classes.json", "model", "pairs", "report", "transfer.json")
    ]
    values = np.unique(read_voxels(out / "pairs" / "phantom_s0_t1_label.nii.gz"))
    assert set(values) == {0, 1, 2}
    segmented = read_voxels(out / "report" / "segmentations" / "anna_t1_seg.nii.gz")
    assert segmented.shape == SHAPE
    with (out / "report" / "cases.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "anna_t1"
    for number, name in enumerate(CLASSES, start=1):
        volume_ml = (segmented == number).sum() * np.prod(SPACING_MM) / 1000
        assert float(row[f"{name}, ml"]) == pytest.approx(volume_ml, rel=1e-3)
    text = (out / "report" / "report.md").read_text()
    assert "there is one CT" in text
    assert "Against the labels of the MR" in text
    assert (out / "report" / "scores.csv").is_file()


@pytest.mark.slow
def test_the_same_command_again_computes_nothing_anew(done: Path, ct: Path) -> None:
    out = done / "out"
    kept = [out / "model" / "models" / "model.pt", *out.rglob("*_mr.nii.gz")]
    kept += out.rglob("*_seg.nii.gz")
    assert len(kept) == 6  # weights, a pair, a result and three variants
    before = {path: path.stat().st_mtime_ns for path in kept}
    transfer(ct, done / "mr", out, classes=CLASSES, shapes=1, contrast="t1", device="cpu")
    assert {path: path.stat().st_mtime_ns for path in kept} == before


@pytest.mark.slow
def test_a_transfer_of_hips_segments_axial_slices(ct: Path, tmp_path: Path) -> None:
    mr = write_mr(tmp_path / "mr")
    model = transfer(
        *(ct, mr, tmp_path / "out"),
        anatomy="hip_thigh",
        classes=CLASSES,
        bone=list(CLASSES)[:1],
        shapes=1,
        steps=1,
        min_object_mm2=100.0,
        device="cpu",
    )
    config = read_json(model / INFERENCE)
    assert (config["slice_axis"], config["pixdim"][2]) == (2, -1)
    assert read_json(model / TRAIN)["bone_classes"] == [1]
    assert "Slices are axial" in (model / "docs" / "README.md").read_text()
    (result,) = (tmp_path / "out" / "report" / "segmentations").glob("*_seg.nii.gz")
    assert read_voxels(result).shape == SHAPE


@pytest.mark.slow
def test_a_folder_of_another_transfer_is_refused(done: Path, ct: Path) -> None:
    arguments = {"classes": CLASSES, "shapes": 1, "contrast": "t1", "device": "cpu"}
    for changed, reason in (
        ({"seed": 1}, "seed"),
        ({"steps": 3}, "a transfer with steps 3 .*, found one with 2"),
        ({"preset": "gpu"}, "a transfer with preset 'gpu' .*, found one with 'cpu'"),
        ({"classes": {"all": "27-31"}}, "classes"),
        ({"bone": list(CLASSES)}, "bone_values"),
    ):
        with pytest.raises(ValueError, match=reason):
            contourdiff.transfer(ct, done / "mr", done / "out", **{**arguments, **changed})


@pytest.mark.slow
def test_the_model_segments_another_mr_by_the_command(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mr = write_mr(tmp_path / "mr")
    cli.main(["segment", str(done / "out" / "model"), str(mr), str(tmp_path / "results")])
    path = tmp_path / "results" / "anna_t1_seg.nii.gz"
    assert capsys.readouterr().out == f"{path}\n"
    expected = done / "out" / "report" / "segmentations" / path.name
    np.testing.assert_array_equal(read_voxels(path), read_voxels(expected))


def test_what_cannot_be_transferred_is_refused_before_any_work(ct: Path, tmp_path: Path) -> None:
    mr = write_mr(tmp_path / "mr")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="probably CT"):
        transfer(ct, ct, out, classes=CLASSES)
    with pytest.raises(ValueError, match="expected a label for each CT"):
        transfer(mr, mr, out, classes=CLASSES)
    with pytest.raises(FileNotFoundError, match="expected an MR"):
        transfer(ct, tmp_path / "none", out, classes=CLASSES)
    with pytest.raises(SettingError, match="expected steps or minutes, got both"):
        transfer(ct, mr, out, steps=3, minutes=1)
    with pytest.raises(SettingError, match="expected a label map or classes, got both"):
        transfer(ct, mr, out, classes=CLASSES, label_map="map.json")
    assert not list(out.glob("*/*"))
