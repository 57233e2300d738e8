# SPDX-License-Identifier: Apache-2.0
"""Contours with the faults of CT: weak lines go first, second lines lie beside edges, short ones vanish."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, zoom

from contourdiff.contours import contour_of
from contourdiff.transforms import RandContour
from contourdiff.transforms.contour_faults import (
    contour_fragments,
    contour_with_faults,
    second_lines,
    without_short_lines,
)
from helpers.paths import DATA

CONTOUR = {"sigma_px": 1.5, "low_threshold": 20.0, "high_threshold": 40.0}


def stripes() -> np.ndarray:
    """Body of 100 with two columns, one bright and one hardly brighter."""
    image = np.full((120, 100), 100.0)
    image[:, 20:32] = 250
    image[:, 60:72] = 170
    return image


def draws(image: np.ndarray, count: int = 200) -> np.ndarray:
    contour = contour_of(image, **CONTOUR)
    settings = {"sigma_px": 1.5, "high_threshold": 40.0}
    return np.stack(
        [
            contour_with_faults(contour, image, np.random.default_rng(seed), **settings)
            for seed in range(count)
        ]
    )


def test_weak_lines_are_lost_more_often_than_strong_ones() -> None:
    image = stripes()
    contour = contour_of(image, **CONTOUR) > 0
    rate = draws(image).mean(0)
    strong, weak = (
        rate[:, part][contour[:, part]].mean() for part in (slice(15, 40), slice(55, 80))
    )
    assert strong > 0.8
    assert 0.3 < weak < strong - 0.15


def test_second_lines_lie_at_the_distance_on_the_side_of_the_gradient() -> None:
    contour = np.zeros((30, 40), dtype=bool)
    contour[:, 20] = True
    fragments, count = contour_fragments(contour, 12)
    slopes = np.stack([np.zeros(count), np.full(count, 7.0)])
    chosen = np.arange(count) != 1
    for distance in (3.0, -4.0):
        lines = second_lines(fragments, chosen, slopes, distance)
        expected = np.zeros_like(contour)
        expected[np.isin(fragments[:, 20], 1 + np.flatnonzero(chosen)), 20 + int(distance)] = True
        np.testing.assert_array_equal(lines, expected)
    assert not second_lines(fragments, np.zeros(count, bool), slopes, 3.0).any()
    assert second_lines(fragments, chosen, slopes, 300.0)[:, -1].any()  # on the rim


def test_only_short_lines_vanish() -> None:
    contour = np.zeros((20, 20), dtype=bool)
    contour[2, 2:9] = contour[10, 3:6] = True
    kept = without_short_lines(contour, 4.0)
    assert kept[2, 2:9].all()
    assert kept.sum() == 7
    assert not without_short_lines(np.zeros((5, 5), bool), 4.0).any()


def test_no_contour_stays_none_and_equal_seeds_draw_equal_faults() -> None:
    image = np.full((40, 40), 90.0)
    assert not draws(image, 20).any()
    first, second = draws(stripes(), 3), draws(stripes(), 3)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_the_random_contour_draws_it_with_the_given_probability() -> None:
    image = stripes()[None].astype(np.float32)
    settings = {"sigma_px": (1.5, 1.5), "high_threshold": (40.0, 40.0)}
    plain = np.asarray(RandContour(**settings)(image))
    changed = [
        not np.array_equal(
            np.asarray(RandContour(**settings, faults=0.5).set_random_state(seed)(image)), plain
        )
        for seed in range(120)
    ]
    assert 0.25 < np.mean(changed) < 0.5  # half are drawn, and some of these change nothing
    with pytest.raises(ValueError, match="expected faults to be a number from 0 to 1"):
        RandContour(faults=2)


@pytest.mark.skipif(not DATA.is_dir(), reason="real images are not beside the repository")
def test_on_real_mr_much_of_the_contour_stays_and_second_lines_are_near() -> None:
    path = sorted((DATA / "mr_lumbar" / "t1").glob("*.nii.gz"))[0]
    image = nib.load(path)
    factors = [size / 1.1 for size in image.header.get_zooms()[1:]]
    slice_ = zoom(np.asarray(image.dataobj)[0].astype(float), factors, order=1)
    slice_ = np.clip(slice_ / np.percentile(slice_, 95) * 255, 0, 255)
    contour = contour_of(slice_, **CONTOUR) > 0
    drawn = draws(slice_, 40)
    kept = (drawn & contour).sum((1, 2)) / contour.sum()
    assert 0.4 < kept.mean() < 0.9
    new = drawn & ~contour
    assert new.any()
    distance = distance_transform_edt(~contour)
    assert np.median([distance[one].max() for one in new if one.any()]) < 60
