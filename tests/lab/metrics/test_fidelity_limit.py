# SPDX-License-Identifier: Apache-2.0
"""The limit of contour fidelity separates translations of a contour from those of another patient's."""

from __future__ import annotations

import numpy as np
import pytest

from contourdiff.metrics.contour_agreement import contour_agreement
from contourdiff_lab.metrics.fidelity_limit import (
    best_limit,
    centered_on,
    flag_rates,
    own_and_swapped_scores,
)


def random_contour(seed: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random((30, 24)) < share


def test_rates_and_the_limit_that_separates_best() -> None:
    own = [0.9, 0.8, 0.7, 0.3]
    swapped = [0.5, 0.4, 0.2, 0.1]
    assert flag_rates(own, swapped, 0.6) == (0.75, 1.0)
    assert flag_rates(own, swapped, 0.3) == (1.0, 0.5)
    assert best_limit(own, swapped) == pytest.approx(0.6)
    with pytest.raises(
        ValueError, match="expected scores of own and of swapped slices, got 4 and 0"
    ):
        flag_rates(own, [], 0.5)


def test_a_swapped_contour_is_centered_on_the_own_one() -> None:
    contour = np.zeros((12, 9))
    contour[2:5, 3:8] = 1
    reference = np.zeros((20, 30))
    reference[10, 20] = reference[16, 26] = 1
    expected = np.zeros((20, 30), dtype=bool)
    expected[12:15, 21:26] = True
    np.testing.assert_array_equal(centered_on(contour, reference), expected)
    reference[:] = 0
    reference[0, 0] = 1
    assert centered_on(contour, reference).sum() == 2 * 3  # the rest leaves the image
    assert centered_on(contour, np.zeros((20, 30))).sum() == contour.sum()
    assert not centered_on(np.zeros((12, 9)), reference).any()


def test_own_and_swapped_scores_are_those_of_each_pair() -> None:
    contours = [random_contour(1), random_contour(2)]
    own, swapped = own_and_swapped_scores(contours, contours, contours[::-1], 0.0)
    assert own == [1.0, 1.0]
    for score, contour, partner in zip(swapped, contours, contours[::-1], strict=True):
        moved = centered_on(partner, contour)
        assert score == contour_agreement(contour, moved, 0.0).f1
        assert score < 0.3
