# SPDX-License-Identifier: Apache-2.0
"""Consistent selection: in slice order, take the candidate nearest to the neighbor's translation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contourdiff.limits import check_number, check_whole

DrawCandidates = Callable[[int, int], Tensor]
"""``(slice_index, round) -> (candidates, H, W)`` gray levels"""


@dataclass(frozen=True)
class SelectionRules:
    """When a candidate is accepted, and how many are drawn; ``ValueError`` for a value out of range.

    Args:
        candidates: a round, 1 or more; the paper draws 4.
        max_rounds: a slice, 1 or more; the paper draws up to 5.
        mean_threshold: of a slice without a neighbor, in gray levels (the paper's m_thresh).
        distance_threshold: of any other slice to its neighbor, in gray levels squared (the paper's delta).
    """

    candidates: int = 4
    max_rounds: int = 5
    mean_threshold: float = 110.0
    distance_threshold: float = 50.0

    def __post_init__(self) -> None:
        check_whole("candidates", self.candidates, 1, 10**4)
        check_whole("max_rounds", self.max_rounds, 1, 10**4)
        check_number("mean_threshold", self.mean_threshold, 0)
        check_number("distance_threshold", self.distance_threshold, 0)


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen for one slice.

    ``neighbor`` is the slice that it was compared with, and ``neighbor_distance`` the distance to that slice's
    translation, both ``None`` without one. ``rounds`` counts the rounds drawn; ``round`` and ``candidate`` identify the
    choice; ``accepted`` is whether it met its threshold, ``reason`` why it was taken.
    """

    slice_index: int
    round: int
    candidate: int
    rounds: int
    mean: float
    neighbor: int | None
    neighbor_distance: float | None
    accepted: bool
    reason: str


def neighbor_distances(candidates: Tensor, neighbor: Tensor) -> Tensor:
    """Mean squared difference in gray levels squared: ``(N, H, W)`` and ``(H, W)`` -> ``(N,)`` float64."""
    differences = candidates.double() - neighbor.double()
    return differences.square().mean(dim=(1, 2))


def runs_of(slice_indices: Sequence[int]) -> list[list[int]]:
    """Strictly ascending positions, cut where one is missing: ``[1, 2, 5] -> [[1, 2], [5]]``."""
    runs: list[list[int]] = []
    for index in slice_indices:
        if not runs or index != runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(index)
    return runs


def choose(
    draw: DrawCandidates, slice_indices: Sequence[int], rules: SelectionRules
) -> Iterator[tuple[Choice, Tensor]]:
    """Choose one candidate for each slice, in slice order (Chen et al. 2024, Algorithm 2).

    A slice whose neighbor was translated takes the candidate nearest to that translation, if it lies within
    ``rules.distance_threshold``. The first slice of a run of adjacent slices takes the first candidate, in the order
    of rounds and candidates, whose mean is below ``rules.mean_threshold``. Where no candidate qualifies, a further
    round is drawn, up to ``rules.max_rounds``; then the best of all rounds (nearest, or lowest mean) is taken and
    marked as not accepted.

    ``draw`` is called for a slice's rounds in order, and for a further round only where it is needed. Slice indices are
    strictly ascending. Yields the choice and the chosen ``(H, W)`` slice.
    """
    for run in runs_of(slice_indices):
        choice, image = choose_one(draw, run[0], None, None, rules)
        yield choice, image
        for index in run[1:]:
            choice, image = choose_one(draw, index, index - 1, image, rules)
            yield choice, image


def choose_one(
    draw: DrawCandidates,
    slice_index: int,
    neighbor: int | None,
    translation: Tensor | None,
    rules: SelectionRules,
) -> tuple[Choice, Tensor]:
    """Choose a candidate for one slice, given its neighbor and that neighbor's ``translation (H, W)``, or neither."""
    best_score = math.inf
    for round_ in range(rules.max_rounds):
        candidates = draw(slice_index, round_)
        means, scores = _measures(candidates, translation)
        if translation is None:
            position, accepted = _first_below(scores, rules.mean_threshold)
            reason = _reason("mean", "below", rules.mean_threshold, accepted)
        else:
            position = scores.index(min(scores))
            accepted = scores[position] <= rules.distance_threshold
            reason = _reason(
                "distance to the neighbor", "within", rules.distance_threshold, accepted
            )
        if round_ == 0 or accepted or scores[position] < best_score:
            best_score = scores[position]
            image = candidates[position]
            choice = Choice(
                slice_index=slice_index,
                round=round_,
                candidate=position,
                rounds=round_ + 1,
                mean=means[position],
                neighbor=neighbor,
                neighbor_distance=None if translation is None else scores[position],
                accepted=accepted,
                reason=reason,
            )
        if accepted:
            return choice, image
    return replace(choice, rounds=rules.max_rounds), image


def _measures(candidates: Tensor, translation: Tensor | None) -> tuple[list[float], list[float]]:
    """Means, and scores to compare with the threshold; one transfer from the device."""
    means = candidates.double().mean(dim=(1, 2))
    scores = means
    if translation is not None:
        scores = neighbor_distances(candidates, translation)
    measures = torch.stack([means, scores]).tolist()
    return measures[0], measures[1]


def _first_below(means: Sequence[float], threshold: float) -> tuple[int, bool]:
    """Position of the first mean below the threshold, or else of the lowest; and whether it is below."""
    for position, mean in enumerate(means):
        if mean < threshold:
            return position, True
    return means.index(min(means)), False


def _reason(measure: str, relation: str, threshold: float, accepted: bool) -> str:
    if accepted:
        return f"{measure} {relation} {threshold:g}"
    return f"lowest {measure} of all rounds, none {relation} {threshold:g}"
