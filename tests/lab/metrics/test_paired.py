# SPDX-License-Identifier: Apache-2.0
"""Similarity to the real MR of the same person: what each measure notices, and what it does not."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff_lab.metrics.paired import (
    gradient_correlation,
    normalized_correlation,
    similarity,
)


@pytest.fixture(scope="module")
def contrasts(real_data: Path) -> dict[str, np.ndarray]:
    """Three slices of the volunteer's T1, ``(slices, H, W)`` in a box around the spine."""
    volume = nib.load(real_data / "mr_volunteer" / "volunteer_t1.nii.gz").get_fdata()
    slices = np.moveaxis(volume, 2, 0)[6:9, 100:260, 120:320]
    return {"t1": slices, "mask": np.ones(slices.shape, dtype=bool)}


def test_a_volume_equals_itself_and_less_so_its_neighbor(contrasts: dict) -> None:
    t1 = contrasts["t1"]
    mask = contrasts["mask"]
    same = similarity(t1, t1, mask)
    assert same == pytest.approx({"ssim": 1, "ncc": 1, "gradient_correlation": 1})
    shifted = similarity(t1, np.roll(t1, 6, axis=1), mask)
    swapped = similarity(t1, t1[::-1], mask)
    for name in same:
        assert shifted[name] < 0.75
        assert swapped[name] < 0.98


def test_brightness_does_not_count_and_an_inverse_is_the_opposite(contrasts: dict) -> None:
    image = contrasts["t1"][1]
    mask = contrasts["mask"][1]
    assert normalized_correlation(image, 3 * image + 50, mask) == pytest.approx(1)
    assert normalized_correlation(image, -image, mask) == pytest.approx(-1)
    assert gradient_correlation(image, -image, mask) == pytest.approx(-1)


def test_shading_moves_the_correlation_of_levels_more_than_that_of_gradients(
    contrasts: dict,
) -> None:
    image = contrasts["t1"][1]
    mask = contrasts["mask"][1]
    shading = np.linspace(0, 4 * image.max(), image.shape[0])[:, None]
    shaded = image + shading
    assert normalized_correlation(image, shaded, mask) < 0.5
    assert gradient_correlation(image, shaded, mask) > 0.9


def test_only_the_mask_is_compared(contrasts: dict) -> None:
    t1 = contrasts["t1"]
    mask = np.zeros(t1.shape, dtype=bool)
    mask[:, 40:120, 60:140] = True
    other = t1.copy()
    other[:, :20] = 0
    expected = {"ssim": 1, "ncc": 1, "gradient_correlation": 1}
    assert similarity(t1, other, mask) == pytest.approx(expected)
    assert all(math.isnan(value) for value in similarity(t1, other, mask & False).values())


def test_another_grid_is_refused(contrasts: dict) -> None:
    with pytest.raises(ValueError, match="expected volumes and a mask on one grid"):
        similarity(contrasts["t1"], contrasts["t1"][:2], contrasts["mask"])
