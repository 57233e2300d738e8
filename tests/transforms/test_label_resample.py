# SPDX-License-Identifier: Apache-2.0
"""Labels between their voxels: linear interpolation of the one-hot label, and the largest share."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from contourdiff.transforms.label_resample import LabelSampler, resample_label

VALUES = (0, 3, 27, 28)


def random_label(seed: int, shape: tuple[int, int, int] = (7, 9, 8)) -> np.ndarray:
    return np.random.default_rng(seed).choice(VALUES, shape).astype(np.int16)


def test_the_class_with_the_largest_linear_share_wins() -> None:
    label = random_label(0)
    points = np.random.default_rng(1).uniform(-1, 9, (3, 4000))
    shares = []
    for value in VALUES:
        one_hot = (label == value).astype(np.float64)
        shares.append(map_coordinates(one_hot, points, order=1, mode="nearest"))
    ranked = np.sort(shares, axis=0)
    is_clear = ranked[-1] - ranked[-2] > 1e-5
    expected = np.array(VALUES)[np.argmax(shares, axis=0)]
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(LabelSampler(label)(points)[is_clear], expected[is_clear])


def test_a_label_is_itself_at_its_own_voxels_whatever_its_classes() -> None:
    for label in (random_label(2), np.zeros((2, 3, 4), np.uint8), np.full((2, 3, 4), 5)):
        resampled = resample_label(label, np.eye(4), label.shape)
        np.testing.assert_array_equal(resampled, label)
        assert resampled.dtype == label.dtype


def test_a_ball_on_coarse_voxels_becomes_rounder_than_its_nearest_voxels() -> None:
    """3 mm to 1 mm; errors of the radius at the surface, of its own voxels and of linear shares."""
    coarse = np.indices((21, 21, 21)) * 3.0 - 30
    label = (np.linalg.norm(coarse, axis=0) < 20).astype(np.uint8)
    fine = np.indices((61, 61, 61)) - 30.0
    ball = np.linalg.norm(fine, axis=0) < 20
    to_label = np.diag([1 / 3, 1 / 3, 1 / 3, 1])
    linear = resample_label(label, to_label, ball.shape)
    nearest = label[tuple(np.rint(np.indices(ball.shape) / 3).astype(int))]
    wrong = np.count_nonzero(linear != ball)
    assert wrong < 0.6 * np.count_nonzero(nearest != ball)
