# SPDX-License-Identifier: Apache-2.0
"""Flicker: arithmetic that can be done by hand, and the effect of selection on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from contourdiff.inference import VolumeResult
from contourdiff.metrics.flicker import Flicker, flicker, flicker_line, flicker_record
from contourdiff.sampling import SelectionRules
from helpers.inferers import as_case, make_inferer, random_contours
from helpers.networks import make_seeded


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    edges = np.zeros((4, 5, 6))
    edges[0, 1:3, 1:3] = edges[1, 1:3, 1:4] = edges[2, 1:3, 1:3] = 1
    images = np.zeros((4, 5, 6))
    images[1], images[2], images[3] = 10, 20, 250
    images[:, 0] = np.arange(4)[:, None] * 77  # outside of the box
    return images, edges


def test_flicker_and_its_ratios_equal_those_by_hand() -> None:
    images, edges = by_hand()
    measured = flicker(images, edges, (slice(1, 3), slice(1, 4)))
    assert measured == Flicker(100.0, 2, pytest.approx(2 / 6))  # the last slice has no contour
    record = flicker_record(measured, [None, 300.0, 100.0, None], reference_flicker=50.0)
    assert record["of_single_candidates"] == 200
    assert record["to_single_candidates"] == 0.5
    assert record["to_contour_change"] == pytest.approx(300)
    assert record["to_reference"] == 2
    assert (
        flicker_line(record)
        == "flicker 100 gray levels^2, 0.50 of single candidates', 2.00 of the reference's"
    )


def test_flicker_is_unknown_without_adjacent_slices() -> None:
    images, edges = by_hand()
    record = flicker_record(
        flicker(images[::2], edges[::2][::-1] * [[[1]], [[0]]], (slice(None), slice(None)))
    )
    assert record.pop("pairs") == 0
    assert set(record.values()) == {None}
    assert flicker_line(record) == "flicker unknown, no two adjacent slices"


def test_a_steady_volume_does_not_flicker_and_noise_does() -> None:
    edges, box = np.ones((20, 30, 30)), (slice(None), slice(None))
    noise = np.random.default_rng(0).normal(0, 3, (20, 30, 30))
    assert flicker(np.full((20, 30, 30), 90.0), edges, box).value == 0
    assert flicker(100 + noise, edges, box).value == pytest.approx(2 * 9, rel=0.05)


def test_flicker_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected finite gray levels and contours"):
        flicker(np.zeros((4, 4)), np.zeros((4, 4)), (slice(None), slice(None)))
    with pytest.raises(ValueError, match="expected finite gray levels and contours"):
        flicker(np.full((2, 4, 4), math.nan), np.ones((2, 4, 4)), (slice(None), slice(None)))


def measured(result: VolumeResult) -> dict[str, float | int | None]:
    volume = flicker(result.gray_levels[0].numpy(), result.contours.numpy(), result.box[1:])
    return flicker_record(volume, result.single_distances)


def test_single_candidates_are_those_of_a_run_that_draws_one() -> None:
    """The comparison costs no run of its own, and equals that of one."""
    records = {}
    for candidates in (3, 1):
        rules = SelectionRules(candidates, 1, mean_threshold=300.0, distance_threshold=0.0)
        (result,) = make_inferer(rules=rules).translate(
            as_case([random_contours()], ["a"]), make_seeded()
        )
        records[candidates] = measured(result)
    assert math.isclose(records[3]["of_single_candidates"], records[1]["flicker"], rel_tol=1e-6)
    assert records[1]["to_single_candidates"] == pytest.approx(1)
    assert records[3]["flicker"] < records[1]["flicker"]
