# SPDX-License-Identifier: Apache-2.0
"""The run of a config: cases are checked once for all contrasts, and a record keeps a case for its contrast alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import contourdiff.weights
from contourdiff.data import inputs
from contourdiff.data import translation_cases as module
from contourdiff.networks import ContourUNet
from contourdiff.report import write_report
from contourdiff.translation import translate_path
from helpers.dicom import write_series
from helpers.networks import TINY_NETWORK
from helpers.runs import QUICK_SETTINGS, run_tiny_inference
from helpers.volumes import OBLIQUE, ball_ct, make_dataset, read_voxels, write_nifti

NETWORK = {**TINY_NETWORK, "contrasts": "@contrasts"}
BOTH = {"network_def": NETWORK, "contrasts": ["t1", "t2"], "contrast": "t1,t2", "progress": False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "two.pt"
    built = {key: value for key, value in NETWORK.items() if key != "_target_"}
    torch.save(ContourUNet(**{**built, "contrasts": ["t1", "t2"]}).state_dict(), path)
    return path


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are checked."""
    names: list[str] = []
    check = module.check_case
    monkeypatch.setattr(
        module,
        "check_case",
        lambda image: names.append(Path(image).name) or check(image),
    )
    return names


@pytest.mark.slow
def test_a_case_is_checked_once_for_two_contrasts(
    tmp_path: Path, weights: Path, checked: list[str]
) -> None:
    ct = make_dataset(tmp_path / "ct", ("a", "b"))
    (ct / "c.nii.gz").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^2 of 6 cases failed: c_t1: expected .*; c_t2: expected "
    ):
        run_tiny_inference(ct, tmp_path / "mr", weights, **BOTH)
    assert checked == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "mr").glob("*_mr.json")) == [
        f"{case}_{contrast}_mr.json" for case in "ab" for contrast in ("t1", "t2")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("contrast", ["t1", "t1,t2"])
def test_weights_are_loaded_once_for_all_contrasts(
    contrast: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    load = contourdiff.weights.load_weights
    monkeypatch.setattr(
        "contourdiff.weights.load_weights", lambda **given: loaded.append(given) or load(**given)
    )
    run_tiny_inference(
        make_dataset(tmp_path / "ct", ("a",)),
        tmp_path / "mr",
        weights,
        **{**BOTH, "contrast": contrast},
    )
    assert len(loaded) == 1


@pytest.mark.slow
def test_a_record_keeps_a_case_for_its_contrast(
    tmp_path: Path, weights: Path, checked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ct, mr = make_dataset(tmp_path / "ct", ("a", "b")), tmp_path / "mr"
    run_tiny_inference(ct, mr, weights, **BOTH)
    (mr / "b_t2_mr.json").unlink()
    checked.clear()
    caplog.clear()
    with caplog.at_level("INFO"):
        run_tiny_inference(ct, mr, weights, **BOTH)
    assert checked == ["b.nii.gz"]
    messages = [record.getMessage() for record in caplog.records]
    kept = [message.split(": kept")[0] for message in messages if ": kept" in message]
    done = [message.split(" kept")[0] for message in messages if " translated, " in message]
    assert kept == ["a_t1", "a_t2", "b_t1"]
    assert done == ["1 translated, 3"]
    assert json.loads((mr / "b_t2_mr.json").read_text())["settings"]["contrast"] == "t2"


@pytest.mark.slow
def test_a_dicom_folder_is_listed_once(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "dicom", ball_ct((6, 40, 36)))
    listed: list[Path] = []
    has_series = inputs.has_ct_series
    monkeypatch.setattr(
        inputs, "has_ct_series", lambda folder: listed.append(folder) or has_series(folder)
    )
    monkeypatch.chdir(tmp_path)
    short = {"num_inference_steps": 2, "candidates": 1, "max_rounds": 1, "min_object_mm2": 100.0}
    short |= QUICK_SETTINGS
    (one, other) = translate_path(".", "mr", weights=weights, overlays=["single"], **BOTH, **short)
    assert listed == [Path("dicom")]
    assert (one.case, one.contrast, other.contrast) == ("dicom", "t1", "t2")
    assert nib.load(one.mr).shape == nib.load(one.ct).shape == (36, 40, 6)


@pytest.mark.slow
def test_a_case_of_which_nothing_is_translated_fails_and_says_which_setting(
    tiny_weights: Path, tmp_path: Path
) -> None:
    """An MR of zeros before, with the exit status of success."""
    ct, mr = make_dataset(tmp_path / "ct", ("a", "b")), tmp_path / "mr"
    write_nifti(ct / "b.nii.gz", ball_ct((10, 12, 10)), OBLIQUE)
    (ct / "labels" / "b.nii.gz").unlink()
    write_nifti(ct / "c.nii.gz", np.full((4, 20, 18), -1000, np.int16), OBLIQUE)
    with pytest.raises(ValueError, match="2 of 3 cases failed") as failed:
        run_tiny_inference(ct, mr, tiny_weights, num_inference_steps=1, min_object_mm2=2000.0)
    assert (
        "b: ValueError: expected slices with a contour, got none in 10 slices: "
        "the largest slice of the body has 683 mm2"
    ) in str(failed.value)
    assert "683 mm2, and min_object_mm2 is 2000; lower min_object_mm2" in str(failed.value)
    assert "got none in 4 slices: no voxel lies above -200" in str(failed.value)
    assert not list(mr.glob("b_*")) + list(mr.glob("c_*"))
    assert read_voxels(mr / "a_mr.nii.gz").any()


@pytest.mark.slow
def test_a_case_most_of_which_is_skipped_says_so_in_log_record_run_and_report(
    tiny_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ct = make_dataset(tmp_path / "ct", ("a",))
    volume = ball_ct((10, 30, 26))
    volume[4:] = -1000
    write_nifti(ct / "a.nii.gz", volume, OBLIQUE)
    write_nifti(ct / "labels" / "wrong.nii.gz", volume, OBLIQUE)
    mr = run_tiny_inference(ct, tmp_path / "mr", tiny_weights, num_inference_steps=1)
    (warning,) = json.loads((mr / "a_mr.json").read_text())["warnings"]
    assert warning.startswith("6 of 10 slices have no contour and are 0 in the MR: 7 have no voxel")
    assert "min_object_mm2" in warning
    assert f"a: {warning}" in [record.getMessage() for record in caplog.records]
    summary = json.loads((mr / "run.json").read_text())
    assert summary["cases"][0]["warnings"] == warning
    (note,) = summary["warnings"]
    assert note.startswith("labels/wrong.nii.gz belongs to no case")
    page = write_report(mr).read_text()
    assert warning in page
    assert note in page


@pytest.mark.slow
def test_a_label_that_appears_later_is_added_by_workers_too(
    tiny_weights: Path, tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    ct, options = make_dataset(tmp_path / "ct", ("a", "b")), {"num_inference_steps": 1}
    label = ct / "labels" / "b.nii.gz"
    label.rename(tmp_path / "b.nii.gz")
    mr = run_tiny_inference(ct, tmp_path / "mr", tiny_weights, **options)
    before = (mr / "b_mr.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").rename(label)
    options = {
        **options,
        "overlays": ["single"],
        "network_def": TINY_NETWORK,
        "min_object_mm2": 100.0,
        **QUICK_SETTINGS,
    }
    results = translate_path(ct, mr, workers=1, weights=tiny_weights, **options)
    assert [result.label for result in results] == [mr / f"{name}_label.nii.gz" for name in "ab"]
    np.testing.assert_array_equal(read_voxels(mr / "b_label.nii.gz"), read_voxels(label))
    assert (mr / "b_mr.nii.gz").read_bytes() == before
    rows = json.loads((mr / "run.json").read_text())["cases"]
    assert [(row["case"], row["status"]) for row in rows] == [("a", "kept"), ("b", "kept")]
