# SPDX-License-Identifier: Apache-2.0
"""Laws of the agreement of two contours."""

from __future__ import annotations

import numpy as np
import pytest

from contourdiff.metrics.contour_fidelity import LARGEST_DISC_PX
from contourdiff_lab.metrics.contour_agreement import contour_agreement


def random_contour(seed: int, share: float = 0.1, shape: tuple[int, int] = (12, 9)) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < share).astype(np.float32)


def share_near(points: np.ndarray, others: np.ndarray, tolerance_px: float) -> float:
    near = total = 0
    for y, x in np.argwhere(points):
        total += 1
        near += any((y - v) ** 2 + (x - u) ** 2 <= tolerance_px**2 for v, u in np.argwhere(others))
    return near / total


def oracle(
    contour: np.ndarray, reference: np.ndarray, tolerance_px: float
) -> tuple[float, float, float]:
    if not contour.any() and not reference.any():
        return 1.0, 1.0, 1.0
    if not contour.any() or not reference.any():
        return 0.0, 0.0, 0.0
    precision = share_near(contour, reference, tolerance_px)
    recall = share_near(reference, contour, tolerance_px)
    return (
        precision,
        recall,
        2 * precision * recall / (precision + recall) if precision + recall else 0.0,
    )


@pytest.mark.parametrize("tolerance_px", [0, 1, 2, 2.5])
@pytest.mark.parametrize(
    ("share", "other_share"), [(0.1, 0.1), (0.02, 0.3), (0, 0.1), (0.1, 0), (0, 0), (1, 0.05)]
)
def test_contour_agreement_equals_plain_loops(
    share: float, other_share: float, tolerance_px: float
) -> None:
    for seed in range(5):
        contour, reference = random_contour(seed, share), random_contour(100 + seed, other_share)
        assert contour_agreement(contour, reference, tolerance_px) == pytest.approx(
            oracle(contour, reference, tolerance_px)
        )


def test_a_contour_agrees_with_itself() -> None:
    contour = random_contour(0)
    assert contour_agreement(contour, contour, 0) == (1, 1, 1)


def test_a_shift_within_the_tolerance_does_not_matter() -> None:
    contour = np.zeros((40, 40))
    contour[10:30, 10] = contour[10:30, 29] = contour[10, 10:30] = contour[29, 10:30] = 1
    assert contour_agreement(np.roll(contour, 1, axis=0), contour, 2) == (1, 1, 1)
    shifted = contour_agreement(np.roll(contour, 5, axis=0), contour, 2)
    assert max(shifted) < 1
    assert min(shifted) > 0


def test_swapping_the_arguments_swaps_precision_and_recall() -> None:
    contour, reference = random_contour(1, 0.05), random_contour(2, 0.2)
    there, back = contour_agreement(contour, reference, 1), contour_agreement(reference, contour, 1)
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.precision != there.recall
    assert there.f1 == pytest.approx(back.f1)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_flipping_both_contours_changes_no_agreement(axes: tuple[int, ...]) -> None:
    contour, reference = random_contour(3), random_contour(4)
    flipped = contour_agreement(np.flip(contour, axes), np.flip(reference, axes), 1)
    assert flipped == contour_agreement(contour, reference, 1)


def test_a_larger_tolerance_never_agrees_less() -> None:
    agreements = [
        contour_agreement(random_contour(5), random_contour(6), t).f1 for t in (0, 1, 2, 3, 20)
    ]
    assert agreements == sorted(agreements)
    assert agreements[-1] == 1


def test_contours_of_two_shapes_and_a_negative_tolerance_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(4, 4\) and \(4, 5\)"):
        contour_agreement(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="compare slice by slice"):
        contour_agreement(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    with pytest.raises(
        ValueError, match="expected tolerance_px to be a number from 0 to inf, got -1"
    ):
        contour_agreement(np.zeros((4, 4)), np.zeros((4, 4)), -1)


def share_within(
    points: np.ndarray, others: np.ndarray, tolerance_mm: float, spacing: tuple[float, float]
) -> float:
    places, targets = np.argwhere(points) * spacing, np.argwhere(others) * spacing
    near = [
        min(float(np.hypot(*(place - target))) for target in targets) <= tolerance_mm
        for place in places
    ]
    return sum(near) / len(near)


@pytest.mark.parametrize("spacing", [(0.7, 2.3), (2.3, 0.7), (1.9, 1.9)])
def test_with_a_spacing_the_tolerance_is_in_its_unit(spacing: tuple[float, float]) -> None:
    for seed in range(5):
        contour, reference = random_contour(seed), random_contour(100 + seed)
        agreement = contour_agreement(contour, reference, 2.0, spacing=spacing)
        assert agreement.precision == pytest.approx(share_within(contour, reference, 2.0, spacing))
        assert agreement.recall == pytest.approx(share_within(reference, contour, 2.0, spacing))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9)])
@pytest.mark.parametrize("radius_px", [LARGEST_DISC_PX - 1.5, LARGEST_DISC_PX, 2 * LARGEST_DISC_PX])
def test_a_large_tolerance_is_measured_as_a_small_one(
    radius_px: float, spacing: tuple[float, float]
) -> None:
    tolerance = radius_px * min(spacing)
    contour = random_contour(9, 0.001, (70, 90))
    reference = random_contour(10, 0.05, (70, 90))
    recall = contour_agreement(contour, reference, tolerance, spacing=spacing).recall
    assert 0 < recall < 1
    assert recall == pytest.approx(share_within(reference, contour, tolerance, spacing))


def test_a_spacing_of_one_changes_nothing_and_a_common_factor_cancels() -> None:
    contour, reference = random_contour(7), random_contour(8)
    plain = contour_agreement(contour, reference, 1.5)
    assert contour_agreement(contour, reference, 1.5, spacing=(1, 1)) == plain
    assert contour_agreement(contour, reference, 4.5, spacing=(3, 3)) == plain


@pytest.mark.parametrize("pixel", [1.1, float(np.float32(1.1))])
def test_three_pixels_of_1_1_mm_are_within_3_3_mm(pixel: float) -> None:
    contour, reference = np.zeros((9, 9)), np.zeros((9, 9))
    contour[1, 4] = reference[4, 4] = 1
    assert contour_agreement(contour, reference, 3.3, spacing=(pixel, pixel)) == (1, 1, 1)
    assert contour_agreement(contour, reference, 3.29, spacing=(pixel, pixel)) == (0, 0, 0)


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (0.0, 1.0), (1.0, float("nan"))])
def test_a_wrong_spacing_is_an_error(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacing must be two positive numbers"):
        contour_agreement(np.zeros((4, 4)), np.zeros((4, 4)), spacing=spacing)
