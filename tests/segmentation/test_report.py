# SPDX-License-Identifier: Apache-2.0
"""What is known of a segmentation without labels: agreement, sizes, and the order to look at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from contourdiff.segmentation.report import CaseQuality, Size, case_quality, dice, size_of
from helpers.segmentation import AFFINE
from helpers.volumes import write_nifti

VOXEL_ML = 4 * 2 * 2 / 1000
RANGES = {"bone": (Size(1.0, 1), Size(3.0, 2))}
"""Smallest and largest size of the training."""


def block(rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((4, 30, 30), dtype=np.uint8)
    mask[:, 2 : 2 + rows, 2 : 2 + columns] = 1
    return mask


def test_volumes_are_in_ml_on_any_grid_and_crumbs_are_no_parts() -> None:
    mask = block(10, 10) > 0
    mask[0, 20:25, 20:25] = True  # 25 voxels beside 400, below a tenth
    size = size_of(mask, AFFINE)
    assert size.parts == 1
    assert size.volume_ml == pytest.approx(425 * VOXEL_ML)
    mask[:, 20:25, 20:25] = True
    assert size_of(mask, AFFINE).parts == 2
    assert size_of(np.zeros_like(mask), AFFINE) == Size(0.0, 0)


def test_agreement_is_the_mean_dice_with_the_variants(tmp_path: Path) -> None:
    result = write_nifti(tmp_path / "a_seg.nii.gz", block(10, 10), AFFINE)
    same = write_nifti(tmp_path / "same.nii.gz", block(10, 10), AFFINE)
    half = write_nifti(tmp_path / "half.nii.gz", block(10, 5), AFFINE)
    quality = case_quality(result, [same, half], {1: "bone", 2: "disc"}, RANGES)
    assert quality.case == "a"
    assert quality.agreement == pytest.approx((1 + 2 / 3) / 2)
    assert quality.sizes["bone"].volume_ml == pytest.approx(400 * VOXEL_ML)


@pytest.mark.parametrize(
    ("rows", "remarks"),
    [
        (10, ["bone: 6.4 ml, trained on 1.0 to 3.0"]),
        (3, []),
        (1, ["bone: 0.6 ml, trained on 1.0 to 3.0"]),
        (0, ["no bone"]),
    ],
)
def test_sizes_that_no_training_label_had_are_remarked(
    rows: int, remarks: list[str], tmp_path: Path
) -> None:
    result = write_nifti(tmp_path / "a_seg.nii.gz", block(rows, 10), AFFINE)
    assert case_quality(result, [], {1: "bone"}, RANGES).remarks == remarks


def test_what_lacks_a_class_comes_first_then_what_agrees_least() -> None:
    def case(name: str, agreement: float, parts: int) -> CaseQuality:
        return CaseQuality(name, agreement, {"bone": Size(1.0, parts)}, [])

    cases = [case("good", 0.9, 1), case("poor", 0.4, 3), case("empty", math.nan, 0)]
    cases.append(case("lost", 0.8, 0))
    cases.sort(key=lambda quality: quality.urgency)
    assert [quality.case for quality in cases] == ["empty", "lost", "poor", "good"]


def test_dice_of_two_empty_masks_is_no_number() -> None:
    empty = np.zeros(3, dtype=bool)
    assert math.isnan(dice(empty, empty))
    assert dice(empty, ~empty) == 0
