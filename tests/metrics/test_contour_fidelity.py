# SPDX-License-Identifier: Apache-2.0
"""Contour fidelity: what departs from the given contour is measured, counted and mapped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contourdiff.metrics.contour_fidelity import (
    ContourFidelityCheck,
    SliceFidelity,
    fidelity_codes,
    slice_fidelity,
)
from contourdiff.transforms import Contour
from contourdiff_lab.metrics.contour_agreement import contour_agreement


def random_contour(seed: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random((30, 24)) < share


def verdict_of(
    found: np.ndarray, given: np.ndarray, tolerance_mm: float, limit: float
) -> SliceFidelity:
    return slice_fidelity(fidelity_codes(found, given, tolerance_mm), found, limit)


def boxes(offset: int = 0) -> torch.Tensor:
    """Five slices of gray levels; a bright box in the middle three."""
    volume = torch.zeros(5, 40, 36)
    volume[1:4, 10 + offset : 30 + offset, 8:28] = 200
    return volume


def check(limit: float = 0.7, axis: int = 0) -> ContourFidelityCheck:
    return ContourFidelityCheck(
        Contour(axis, sigma_px=1.0, low_threshold=20, high_threshold=40), 2.2, limit, axis
    )


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (2.2, 2.2), (0.7, 1.9)])
@pytest.mark.parametrize("tolerance_mm", [0.0, 1.9, 2.2])
def test_fidelity_codes_count_to_the_shares(
    spacing_mm: tuple[float, float], tolerance_mm: float
) -> None:
    found, given = random_contour(1), random_contour(2)
    codes = fidelity_codes(found, given, tolerance_mm, spacing_mm)
    verdict = slice_fidelity(codes, found, 0.5)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal((codes == 1) | (codes == 3), given)
    assert (codes == 2).sum() / found.sum() == pytest.approx(verdict.invented)
    assert (codes == 3).sum() / given.sum() == pytest.approx(verdict.lost)
    assert verdict.fidelity == contour_agreement(found, given, tolerance_mm, spacing=spacing_mm).f1
    assert verdict.suspect == (verdict.fidelity < 0.5)


def test_swapping_the_contours_swaps_invented_and_lost() -> None:
    found, given = random_contour(1), random_contour(2)
    one, other = (verdict_of(*pair, 1.0, 0.5) for pair in ((found, given), (given, found)))
    assert (one.invented, one.lost) == (other.lost, other.invented)


def test_a_blank_translation_loses_all_and_invents_nothing() -> None:
    blank, given = np.zeros((30, 24)), random_contour(2)
    assert verdict_of(blank, given, 1.0, 0.5) == (0.0, 1.0, 0.0, True)
    assert verdict_of(given, blank, 1.0, 0.5) == (1.0, 0.0, 0.0, True)
    assert verdict_of(blank, blank, 1.0, 0.5) == (0.0, 0.0, 1.0, False)
    np.testing.assert_array_equal(fidelity_codes(blank, given, 1.0), given * 3)
    np.testing.assert_array_equal(fidelity_codes(given, blank, 1.0), given * 2)


def test_what_follows_its_contour_passes_and_what_is_moved_does_not() -> None:
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    good, moved = check()(given, boxes()), check()(given, boxes(offset=5))
    assert [verdict is None for verdict in good.slices] == [True, False, False, False, True]
    assert good.slices[1] == (0.0, 0.0, 1.0, False)
    assert good.suspects == []
    np.testing.assert_array_equal(good.codes, given.numpy())
    assert moved.suspects == [1, 2, 3]
    assert moved.summary()["checked"] == 3
    assert moved.summary()["suspects"] == [1, 2, 3]
    assert moved.summary()["invented_median"] == moved.slices[1].invented > 0.2  # type: ignore[union-attr]
    assert (
        moved.warning() == "3 of 3 slices below the fidelity limit (slices 1, 2, 3): look at them"
    )
    assert moved.warning(most=2).endswith("(slices 1, 2, ...): look at them")
    assert check(limit=0.0)(given, boxes(offset=5)).suspects == []


@pytest.mark.parametrize("axis", [1, 2])
def test_fidelity_is_the_same_along_every_slice_axis(axis: int) -> None:
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    spacing_mm = [1.0, 0.5]
    plain = check()(given, boxes(offset=4), [9.0, *spacing_mm])
    spacing_mm.insert(axis, 9.0)
    moved = check(axis=axis)(given.moveaxis(0, axis), boxes(offset=4).moveaxis(0, axis), spacing_mm)
    assert moved.slices == plain.slices
    np.testing.assert_array_equal(np.moveaxis(moved.codes, axis, 0), plain.codes)


def test_the_border_of_the_box_is_no_contour() -> None:
    """Air may be a little gray in the box and is 0 outside it."""
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    translation, box = boxes(), (slice(0, 5), slice(4, 36), slice(3, 33))
    translation[box] = translation[box].clamp(min=60)
    assert check()(given, translation).slices[1].invented > 0.2  # type: ignore[union-attr]
    assert check()(given, translation, box=box).slices[1] == (0.0, 0.0, 1.0, False)


def test_a_volume_without_contours_has_no_fidelity() -> None:
    nothing = check()(torch.zeros(4, 10, 9), torch.zeros(4, 10, 9))
    assert nothing.slices == [None] * 4
    assert nothing.summary()["fidelity_median"] is None


@pytest.mark.parametrize(("tolerance_mm", "limit"), [(-1.0, 0.5), (2.2, 1.5), (float("nan"), 0.5)])
def test_fidelity_settings_out_of_range_are_refused(tolerance_mm: float, limit: float) -> None:
    with pytest.raises(ValueError, match=r"expected fidelity_(tolerance_mm|limit) to be a number"):
        ContourFidelityCheck(Contour(), tolerance_mm, limit)
