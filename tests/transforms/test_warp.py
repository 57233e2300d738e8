# SPDX-License-Identifier: Apache-2.0
"""Warps: image and label as one, rigid in mm, without folds, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contourdiff.transforms.warp import (
    FOLDING_MM,
    UNWARPED,
    Warp,
    WarpStrength,
    random_warp,
    warped,
)

SHAPE = (16, 50, 44)
SPACING_MM = (4.0, 1.5, 1.5)
AS_IT_IS = np.eye(4)


def ball(radius_mm: float = 22.0) -> np.ndarray:
    """A ball at the center of the grid, uint8."""
    center = np.reshape(SHAPE, (3, 1, 1, 1)) / 2 - 0.5
    position_mm = (np.indices(SHAPE) - center) * np.reshape(SPACING_MM, (3, 1, 1, 1))
    return (np.linalg.norm(position_mm, axis=0) < radius_mm).astype(np.uint8)


def apply(label: np.ndarray, warp: Warp) -> tuple[np.ndarray, np.ndarray]:
    image = torch.as_tensor(label[None], dtype=torch.float32)
    return warped(image, label, warp, AS_IT_IS, label.shape, SPACING_MM)


def source_points(warp: Warp) -> np.ndarray:
    return np.concatenate([points for _, points in warp.source_mm(SHAPE, SPACING_MM)], axis=1)


def test_the_shape_that_is_not_warped_is_the_volume_itself() -> None:
    label = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    image, values = apply(label, UNWARPED)
    np.testing.assert_array_equal(values, label)
    np.testing.assert_allclose(image, label, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_image_and_label_are_warped_as_one(seed: int) -> None:
    """An image that is 1 in the label and 0 elsewhere is above a half exactly in the warped label."""
    mask = (np.random.default_rng(seed).random((4, 10, 9)) > 0.6).astype(np.uint8)
    label = mask.repeat(4, axis=0).repeat(5, axis=1).repeat(5, axis=2)[:, :, : SHAPE[2]]
    warp = random_warp(SHAPE, SPACING_MM, WarpStrength(20, 0.2, 12), seed)
    image, values = apply(label, warp)
    is_clear = np.abs(image - 0.5) > 1e-3
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal((image > 0.5)[is_clear], values[is_clear])
    assert np.mean(values != label) > 0.05


def test_a_rotation_is_rigid_in_mm_on_anisotropic_voxels() -> None:
    warp = random_warp(SHAPE, SPACING_MM, WarpStrength(30, 0, 0), 4)
    np.testing.assert_allclose(warp.matrix @ warp.matrix.T, np.eye(3), atol=1e-6)
    label = ball()
    _, values = apply(label, warp)
    assert np.abs(warp.matrix - np.eye(3)).max() > 0.1
    assert np.mean(values[label > 0]) > 0.97  # a ball stays a ball
    assert abs(int(values.sum()) - int(label.sum())) < 0.02 * label.sum()


def test_points_move_by_the_strength_at_most() -> None:
    limits = WarpStrength(0, 0, 7)
    moved = source_points(random_warp(SHAPE, SPACING_MM, limits, 1)) - source_points(UNWARPED)
    assert 2 < np.abs(moved).max() <= 7
    for seed in range(20):
        matrix = random_warp(SHAPE, SPACING_MM, WarpStrength(0, 0.1, 0), seed).matrix
        np.testing.assert_allclose(matrix, np.diag(matrix.diagonal()), atol=1e-7)
        assert 0.9 <= matrix.diagonal().min() <= matrix.diagonal().max() <= 1.1


def test_the_strongest_warp_folds_nothing() -> None:
    """The determinant of the Jacobian stays positive where control points move against each other."""
    shape, spacing_mm = (60, 60, 60), (4.0, 4.0, 4.0)
    controls = random_warp(shape, spacing_mm, WarpStrength(0, 0, 1), 0).shifts_mm
    assert controls is not None
    signs = np.sign(np.random.default_rng(0).normal(size=controls.shape))
    for directions in (signs, np.indices(controls.shape[1:]) % 2 * 2 - 1):
        warp = Warp(np.diag([0.1, 1, 1.9]), directions * 0.999 * FOLDING_MM)
        points = np.concatenate([part for _, part in warp.source_mm(shape, spacing_mm)], axis=1)
        steps = np.stack([np.diff(points, axis=axis + 1)[:, :59, :59, :59] for axis in range(3)])
        assert np.linalg.det(steps.transpose(2, 3, 4, 0, 1)).min() > 0


def test_a_seed_is_a_warp() -> None:
    first, again, other = (random_warp(SHAPE, SPACING_MM, WarpStrength(), n) for n in (1, 1, 2))
    np.testing.assert_array_equal(source_points(first), source_points(again))
    assert np.abs(source_points(first) - source_points(other)).max() > 1


def test_beyond_the_volume_is_its_mirror_image_in_both() -> None:
    label = np.random.default_rng(3).integers(0, 2, SHAPE).astype(np.uint8)
    image = torch.as_tensor(label[None], dtype=torch.float32)
    to_source = np.eye(4)
    to_source[0, 3] = -4
    taller = (SHAPE[0] + 8, *SHAPE[1:])
    gray, values = warped(image, label, UNWARPED, to_source, taller, SPACING_MM)
    expected = np.pad(label, ((4, 4), (0, 0), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(gray, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"rotation_degrees": -1}, "expected rotation_degrees to be a number from 0 to 180"),
        ({"scale": 1}, "expected scale to be a number from 0 to 0.9"),
        ({"elastic_mm": 19.2}, "expected elastic_mm below 19.2, got 19.2, which can fold"),
    ],
)
def test_a_strength_out_of_range_is_refused(strength: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarpStrength(**strength)
