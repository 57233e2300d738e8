# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: everyone is tested once, by a network of others, and the tests together are one test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contourdiff.metrics.segmentation import score_case, write_scores
from contourdiff_lab.experiment.folds import merge_folds, patient_folds, read_scores
from helpers.volumes import write_nifti


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_every_patient_is_in_one_fold_and_no_fold_is_empty(count: int) -> None:
    patients = [f"{number:03}" for number in range(count)]
    folds = patient_folds(reversed(patients * 2))
    assert sorted(patient for fold in folds for patient in fold) == patients
    assert len(folds) == min(count, 5)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_a_single_patient_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"two patients or more, got \['a'\]; pass a patient_pattern"
    ):
        patient_folds(["a", "a"])


def test_scores_of_folds_together_are_those_of_one_test(tmp_path: Path) -> None:
    """With a missed structure, an absent one, and two cases of a patient."""
    random = np.random.default_rng(0)
    rows = []
    for number, case in enumerate("abcd"):
        label = np.full((1, 12, 12), case != "d") & (random.random((1, 12, 12)) > 0.5)
        pred = np.full((1, 12, 12), case != "c") & (random.random((1, 12, 12)) > 0.5)
        scored = score_case(pred.astype(int), label.astype(int), {1: "femur"}, (4, 1, 1), case)
        rows += [row | {"patient": "01" if case == "b" else f"0{number}"} for row in scored]
        write_nifti(
            tmp_path / str(number // 2) / f"{case}_pred.nii.gz", pred.astype(np.uint8), np.eye(4)
        )
    expected = write_scores(rows, tmp_path / "whole")
    for fold in range(2):
        write_scores(rows[2 * fold : 2 * fold + 2], tmp_path / str(fold))
    merge_folds([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    np.testing.assert_equal(read_scores(tmp_path / "merged"), rows)
    whole, merged = (
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("whole", "merged")
    )
    assert merged["summary"] == whole["summary"]
    assert merged["settings"] == {"folds": 2}
    assert expected[0]["structures"] == 3
    assert len(list((tmp_path / "merged").glob("*_pred.nii.gz"))) == 4
    with pytest.raises(ValueError, match="twice"):
        merge_folds([tmp_path / "0", tmp_path / "0"], tmp_path / "twice")
