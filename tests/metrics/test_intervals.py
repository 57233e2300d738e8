# SPDX-License-Identifier: Apache-2.0
"""Intervals over patients: they cover the true mean as often as they say, however few the patients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator

from contourdiff.metrics.intervals import MIN_PATIENTS, patient_interval

Draw = Callable[[Generator, int], np.ndarray]


def good_or_missed(random: Generator, count: int) -> np.ndarray:
    """Dice of patients of whom three in ten are all but missed."""
    missed = random.beta(1, 12, count)
    found = random.beta(8, 6, count)
    return np.where(random.random(count) < 0.3, missed, found)


POPULATIONS: dict[str, Draw] = {
    "symmetric": lambda random, count: random.beta(4, 4, count),
    "high Dice": lambda random, count: random.beta(5, 2, count),
    "low Dice": lambda random, count: random.beta(2, 5, count),
    "good or missed": good_or_missed,
}


@pytest.mark.parametrize("count", [8, 12, 20])
def test_intervals_cover_the_true_mean_in_93_to_97_percent(count: int) -> None:
    """A thousand studies of each of four populations of Dice; 1 % of tolerance is twice the error of such a count."""
    random = np.random.default_rng(0)
    shares = []
    for draw in POPULATIONS.values():
        true_mean = draw(random, 1_000_000).mean()
        covered = 0
        for study in range(1000):
            low, high = patient_interval(draw(random, count), highest=1, resamples=500, seed=study)
            covered += low <= true_mean <= high
        shares.append(covered / 1000)
    assert 0.93 <= np.mean(shares) <= 0.97
    assert min(shares) >= 0.92
    assert max(shares) <= 0.98


def test_fewer_than_eight_patients_have_no_interval() -> None:
    values = np.linspace(0.2, 0.8, MIN_PATIENTS)
    assert all(math.isnan(end) for end in patient_interval(values[:-1]))
    assert all(math.isfinite(end) for end in patient_interval(values))


def test_the_interval_moves_and_grows_with_the_values() -> None:
    values = np.array([3.0, 4.0, 4.5, 5.0, 6.0, 7.0, 9.0, 12.0])
    low, high = patient_interval(values)
    assert low < values.mean() < high
    assert patient_interval(2 * values) == pytest.approx((2 * low, 2 * high))
    assert patient_interval(values[::-1]) == pytest.approx((low, high), rel=0.1)
    assert high - values.mean() > values.mean() - low  # the long tail is above


def test_equal_values_have_no_extent_and_dice_stays_in_its_range() -> None:
    assert patient_interval([0.7] * 9, highest=1) == pytest.approx((0.7, 0.7))
    rare = patient_interval([0.0] * 8 + [1.0], highest=1)
    assert 0 <= rare[0] < rare[1] <= 1
