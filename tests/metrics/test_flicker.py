# SPDX-License-Identifier: Apache-2.0
"""Flicker in the record of a run: arithmetic that can be done by hand, and what selection does to it."""

from __future__ import annotations

import math

import pytest
import torch

from contourdiff.inference.volume_state import VolumeResult
from contourdiff.metrics.flicker import flicker_line, flicker_of
from contourdiff.sampling.selection import Choice, SelectionRules
from helpers import as_case, contours, inferer, make_seeded


def choice(index: int, neighbor: int | None, distance: float | None) -> Choice:
    return Choice(index, 0, 0, 1, 50.0, neighbor, distance, True, "by hand")


def by_hand(slice_axis: int = 0) -> VolumeResult:
    volume = torch.zeros(4, 5, 6)
    volume[0, 1:3, 1:3] = volume[1, 1:3, 1:4] = volume[2, 1:3, 1:3] = 1
    choices = [choice(0, None, None), choice(1, 0, 100.0), choice(2, 1, 200.0), None]
    box = [slice(1, 3), slice(1, 5)]
    box.insert(slice_axis, slice(0, 4))
    moved = volume.moveaxis(0, slice_axis)
    return VolumeResult("a", choices, 1, moved, moved, tuple(box), None, [None, 300.0, 100.0, None])  # type: ignore[arg-type]


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_figures_by_hand(slice_axis: int) -> None:
    found = flicker_of(by_hand(slice_axis), slice_axis, reference_flicker=50.0)
    assert found["flicker"] == 150
    assert found["pairs"] == 2
    assert found["contour_change"] == pytest.approx(2 / 8)  # 2 of the box's 2 x 4 pixels, in both pairs
    assert found["of_single_candidates"] == 200
    assert found["to_single_candidates"] == 0.75
    assert found["to_contour_change"] == pytest.approx(600)
    assert found["to_reference"] == 3
    assert flicker_line(found) == "flicker 150 gray levels^2, 0.75 of single candidates', 3.00 of the reference's"


def test_without_neighbors_nothing_is_told() -> None:
    record = by_hand()._replace(choices=[choice(0, None, None), None, None, None], single_distances=None)
    found = flicker_of(record)
    assert found.pop("pairs") == 0
    assert set(found.values()) == {None}
    assert flicker_line(flicker_of(record)) == "flicker unknown, no two adjacent slices"


@pytest.mark.parametrize("walk_start", ["first", "fullest"])
def test_single_candidates_are_those_of_a_run_that_draws_one(walk_start: str) -> None:
    """The comparison costs no run of its own, and equals that of one."""
    found = {}
    for candidates in (3, 1):
        records: list[VolumeResult] = []
        rules = SelectionRules(candidates, 1, mean_threshold=300.0, distance_threshold=0.0)
        inferer(rules=rules, on_volume=records.append, walk_start=walk_start)(
            as_case([contours()], ["a"]), make_seeded()
        )
        found[candidates] = flicker_of(records[0])
    assert math.isclose(found[3]["of_single_candidates"], found[1]["flicker"], rel_tol=1e-6)  # type: ignore[arg-type]
    assert found[1]["to_single_candidates"] == pytest.approx(1)
    assert found[3]["flicker"] < found[1]["flicker"]  # type: ignore[operator]
