# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: patients averaged over seeds, then an interval, with missed structures counted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from contourdiff.metrics.intervals import patient_interval
from contourdiff.metrics.segmentation import score_case, write_scores
from contourdiff_lab.experiment.report import write_report
from helpers.volumes import write_nifti

AFFINE = np.diag([4.0, 1.0, 1.0, 1.0])


def write_cell(root: Path, seeds: tuple[int, int], dice: dict[str, float], missed: int = 0) -> None:
    """Scores of a UNet: a case for each Dice, whose first letter is its patient; the last ``missed`` are missed."""
    folder = root / "ours" / f"unet_translation{seeds[0]}_seed{seeds[1]}" / "all"
    (perfect,) = score_case(np.eye(4, dtype=int), np.eye(4, dtype=int), {1: "femur"}, (1, 1), "a")
    rows = []
    for number, (case, value) in enumerate(dice.items()):
        is_missed = number >= len(dice) - missed
        distances = {"assd_mm": 2.0, "assd_penalized_mm": 10.0 if is_missed else 2.0}
        scores = {"dice": value, "missed": is_missed, **distances}
        rows.append({**perfect, "case": case, "patient": case[0], **scores})
    write_scores(rows, folder)
    label = np.ones((1, 20, 30), dtype=np.uint8)
    label[0, 2:9] = 0
    write_nifti(folder / "a_pred.nii.gz", label, AFFINE)


def report_on(root: Path) -> str:
    image = np.random.default_rng(0).random((1, 20, 30))
    write_nifti(root / "mr" / "images" / "a.nii.gz", image, AFFINE)
    label = np.zeros((1, 20, 30), dtype=np.uint8)
    label[0, 5:9, 6:12] = 1
    write_nifti(root / "mr" / "labels" / "a.nii.gz", label, AFFINE)
    return write_report(root, {"all": "*"}, root / "mr").read_text()


def test_a_patient_is_averaged_over_seeds_and_cases_before_any_other(tmp_path: Path) -> None:
    """Patient a has two cases; the second seed misses patient b."""
    write_cell(tmp_path, (0, 0), {"a1": 0.8, "a2": 0.6, "b": 0.5})
    write_cell(tmp_path, (0, 1), {"a1": 0.8, "a2": 0.6, "b": 0.0}, missed=1)
    line = "| ours | unet | femur | 2 | 2 | 0.475 (0.700, 0.250) | n/a | 0.177 | 4.0 (2.0, 6.0) |"
    assert f"{line} 1 of 6 |" in report_on(tmp_path)


def test_the_report_is_a_page_too(tmp_path: Path) -> None:
    pytest.importorskip("markdown", reason="Markdown is not installed")
    write_cell(tmp_path, (0, 0), {"a": 0.5, "b": 0.7})
    report_on(tmp_path)
    assert "<td>0.600 (0.500, 0.700)</td>" in (tmp_path / "table.html").read_text()


def test_spread_of_translation_and_of_training_seeds_stand_apart(tmp_path: Path) -> None:
    for translation, dice in enumerate((0.5, 0.3)):
        for seed in (0, 1):
            write_cell(tmp_path, (translation, seed), {"a": dice})
    assert "| ours | unet | femur | 4 | 1 | 0.400 | 0.141 | 0.000 |" in report_on(tmp_path)


def test_the_interval_is_that_of_the_mean_beside_it(tmp_path: Path) -> None:
    """Nine patients, two seeds that differ: the interval is of the patients' means over both."""
    first = dict(zip("abcdefghi", np.linspace(0.2, 0.8, 9), strict=True))
    second = {patient: value + 0.1 for patient, value in first.items()}
    write_cell(tmp_path, (0, 0), first)
    write_cell(tmp_path, (1, 0), second)
    both = [value + 0.05 for value in first.values()]
    low, high = patient_interval(both, highest=1)
    assert f"| 2 | 9 | 0.550 [{low:.3f}, {high:.3f}] | 0.071 | n/a |" in report_on(tmp_path)


def test_a_measure_without_any_value_is_not_available(tmp_path: Path) -> None:
    write_cell(tmp_path, (0, 0), {"a": math.nan})
    line = "| ours | unet | femur | 1 | 0 | n/a | n/a | n/a | 2.0 | 0 of 1 |"
    assert line in report_on(tmp_path)
