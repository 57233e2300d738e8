# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: means over seeds, with missed structures counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contourdiff_lab.experiment.report import write_report
from helpers.volumes import write_nifti

AFFINE = np.diag([4.0, 1.0, 1.0, 1.0])


def report_of(root: Path, *seeds: tuple[float | None, int]) -> str:
    """The report on a UNet of each seed, with its Dice and its number of missed structures (0 or 1)."""
    image = write_nifti(
        root / "mr" / "images" / "a.nii.gz", np.random.default_rng(0).random((1, 20, 30)), AFFINE
    )
    label = np.zeros((1, 20, 30), dtype=np.uint8)
    label[0, 5:9, 6:12] = 1
    write_nifti(root / "mr" / "labels" / image.name, label, AFFINE)
    for seed, (dice, missed) in enumerate(seeds):
        folder = root / "ours" / f"unet_translation{seed // 2}_seed{seed % 2}" / "all"
        write_nifti(folder / "a_pred.nii.gz", label * (1 - missed), AFFINE)
        measures = {"dice": dice, "assd_penalized_mm": 2.0 + 8 * missed, "hd95_penalized_mm": 3.0}
        ends = {f"{name}_{end}": None for name in measures for end in ("low", "high")}
        summary = {
            "class": "femur",
            "cases": 1,
            "structures": 1,
            "missed": missed,
            "invented": 0,
            "dice_pooled": dice,
            **measures,
            **ends,
            "assd_mm": None,
            "hd95_mm": None,
        }
        (folder / "scores.json").write_text(json.dumps({"summary": [summary, summary]}))
    return write_report(root, {"all": "*"}, root / "mr").read_text()


def test_missed_structures_in_a_report_are_counted_and_seeds_averaged(tmp_path: Path) -> None:
    report = report_of(tmp_path, (0.5, 0), (0.0, 1))
    assert (
        "| ours | unet | femur | 2 | 0.250 ± 0.354 | n/a | 0.354 | 6.0 ± 5.7 | 1 of 2 |" in report
    )


def test_the_report_is_a_page_too(tmp_path: Path) -> None:
    pytest.importorskip("markdown", reason="Markdown is not installed")
    report_of(tmp_path, (0.5, 0), (0.0, 1))
    assert "<td>0.250 ± 0.354</td>" in (tmp_path / "table.html").read_text()


def test_spread_of_translation_and_of_training_seeds_stand_apart(tmp_path: Path) -> None:
    report = report_of(tmp_path, (0.5, 0), (0.5, 0), (0.3, 0), (0.3, 0))
    assert "| ours | unet | femur | 4 | 0.400 ± 0.115 | 0.141 | 0.000 |" in report


def test_a_measure_without_any_value_is_not_available(tmp_path: Path) -> None:
    assert "| ours | unet | femur | 1 | n/a | n/a | n/a | 2.0 | 0 of 1 |" in report_of(
        tmp_path, (None, 0)
    )
