# SPDX-License-Identifier: Apache-2.0
"""Selection: bounded, honest, and equal to a loop written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contourdiff.sampling.selection import (
    SelectionRules,
    choose,
    neighbor_distances,
    runs_of,
)


def candidates_of(slice_index: int, round_: int, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * slice_index + round_)
    level = torch.randint(60, 180, (count, 1, 1), generator=generator)
    return (level + 10 * torch.randn(count, 6, 5, generator=generator)).clamp(0, 255)


def plain_selection(indices: list[int], rules: SelectionRules) -> list[tuple[int, int, int, bool]]:
    """The paper's selection, slice after slice, written out with nothing shared with the implementation."""
    chosen, images = [], {}
    for index in indices:
        neighbor = images.get(index - 1)
        seen = []
        accepted = None
        for round_ in range(rules.max_rounds):
            for number, image in enumerate(candidates_of(index, round_, rules.candidates)):
                score = (
                    image.double().mean()
                    if neighbor is None
                    else ((image.double() - neighbor.double()) ** 2).mean()
                )
                seen.append((float(score), round_, number, image))
            this_round = [item for item in seen if item[1] == round_]
            if neighbor is None:
                passing = [item for item in this_round if item[0] < rules.mean_threshold]
                accepted = passing[0] if passing else None
            else:
                nearest = min(this_round, key=lambda item: item[0])
                accepted = nearest if nearest[0] <= rules.distance_threshold else None
            if accepted:
                break
        _, round_, number, image = accepted or min(seen, key=lambda item: item[0])
        images[index] = image
        chosen.append((index, round_, number, accepted is not None))
    return chosen


@pytest.mark.parametrize("distance", [0.0, 300.0, 2000.0, 1e6])
@pytest.mark.parametrize("mean", [0.0, 90.0, 300.0])
def test_choice_equals_the_selection_written_out(distance: float, mean: float) -> None:
    rules = SelectionRules(4, 5, mean_threshold=mean, distance_threshold=distance)
    indices = [0, 1, 2, 5, 6, 9]
    choices = [choice for choice, _ in choose(candidates_of, indices, rules)]
    got = [
        (choice.slice_index, choice.round, choice.candidate, choice.accepted) for choice in choices
    ]
    assert got == plain_selection(indices, rules)


def test_rounds_are_bounded_and_drawn_only_where_needed() -> None:
    drawn = []

    def draw(index: int, round_: int) -> torch.Tensor:
        drawn.append((index, round_))
        return candidates_of(index, round_)

    list(choose(draw, [0, 1], SelectionRules(4, 3, mean_threshold=300, distance_threshold=0)))
    assert drawn == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_nearest_of_all_rounds_when_none_passes() -> None:
    rules = SelectionRules(4, 5, mean_threshold=300, distance_threshold=0)
    (_, first), (choice, image) = choose(candidates_of, [0, 1], rules)
    all_candidates = torch.cat([candidates_of(1, round_) for round_ in range(5)])
    distances = neighbor_distances(all_candidates, first)
    assert choice.neighbor_distance == pytest.approx(float(distances.min()))
    assert torch.equal(image, all_candidates[distances.argmin()])
    assert (choice.accepted, choice.rounds) == (False, 5)


def test_after_a_gap_the_mean_rule_applies_again() -> None:
    choices = [
        choice
        for choice, _ in choose(candidates_of, [3, 4, 7], SelectionRules(distance_threshold=1e9))
    ]
    assert [choice.neighbor_distance is None for choice in choices] == [True, False, True]


def test_distance_is_honest() -> None:
    """Arithmetic in uint8 would give 0 for an offset of 128 gray levels."""
    neighbor = torch.zeros(8, 8)
    offsets = torch.tensor([0.0, 16.0, 64.0, 128.0, 255.0])
    distances = neighbor_distances(offsets[:, None, None].expand(-1, 8, 8), neighbor)
    assert distances.tolist() == [float(offset) ** 2 for offset in offsets]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"candidates": 0}, "expected candidates to be a whole number from 1 to 10000, got 0"),
        ({"max_rounds": True}, "expected max_rounds to be a whole number .*, got True"),
        ({"mean_threshold": "110"}, "expected mean_threshold to be a number from 0 to inf"),
        ({"distance_threshold": -1}, "expected distance_threshold to be a number .* got -1"),
        ({"distance_threshold": float("nan")}, "got nan; pass another"),
    ],
)
def test_impossible_rules_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectionRules(**rules)


def test_runs_end_where_a_slice_is_missing() -> None:
    assert runs_of([1, 2, 5, 7, 8]) == [[1, 2], [5], [7, 8]]


def test_each_slice_is_compared_with_the_one_before_it_in_its_run() -> None:
    choices = [choice for choice, _ in choose(candidates_of, [1, 2, 5], SelectionRules())]
    assert [(choice.slice_index, choice.neighbor) for choice in choices] == [
        (1, None),
        (2, 1),
        (5, None),
    ]
