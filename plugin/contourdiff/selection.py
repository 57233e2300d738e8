# SPDX-License-Identifier: Apache-2.0
"""Consistent selection: one walk in slice order that picks, for each slice, the candidate nearest to its neighbor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

Draw = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class SelectionRules:
    """When a candidate is good enough, and when to stop asking.

    Args:
        candidates: candidates a round; the paper draws 4.
        max_rounds: rounds a slice; the paper draws up to 5.
        mean_threshold: a slice without a neighbor wants a mean below this, in gray levels (the paper's m_thresh).
        distance_threshold: any other slice wants a neighbor distance of at most this, in gray levels squared (the
            paper's delta).

    Raises:
        ValueError: unless ``candidates`` and ``max_rounds`` are 1 or more.
    """

    candidates: int = 4
    max_rounds: int = 5
    mean_threshold: float = 110.0
    distance_threshold: float = 50.0

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.max_rounds < 1:
            raise ValueError(
                f"candidates and max_rounds must be 1 or more, got {self.candidates} and {self.max_rounds}"
            )


@dataclass(frozen=True)
class Choice:
    """What was chosen for one slice.

    ``neighbor_distance`` is ``None`` for a slice without a translated neighbor. ``rounds`` counts the rounds that were
    drawn; ``round`` and ``candidate`` name the one chosen; ``accepted`` tells whether it met its threshold.
    """

    slice_index: int
    round: int
    candidate: int
    rounds: int
    mean: float
    neighbor_distance: float | None
    accepted: bool


def neighbor_distances(candidates: torch.Tensor, neighbor: torch.Tensor) -> torch.Tensor:
    """Mean squared difference in gray levels squared: ``(N, H, W)`` and ``(H, W)`` -> ``(N,)`` float64."""
    return (candidates.double() - neighbor.double()).square().mean(dim=(1, 2))


def choose(draw: Draw, slice_indices: Sequence[int], rules: SelectionRules) -> Iterator[tuple[Choice, torch.Tensor]]:
    """Walk through the slices in order and choose one candidate for each (Chen et al. 2024, Algorithm 2).

    A slice whose predecessor in the volume was translated wants the candidate nearest to that translation. A slice
    without one (the first, or the first after a gap) wants a mean below the threshold: the first such candidate in the
    order of rounds and candidates, or the one with the lowest mean if none is. No slice asks for more than
    ``rules.max_rounds`` rounds; then the nearest candidate of all rounds is taken and marked as not accepted.

    Args:
        draw: ``(slice_index, round) -> (candidates, H, W)`` gray levels; asked for a slice's rounds in order, and for
            a further round only where it is needed.
        slice_indices: strictly ascending positions of the slices to translate.
        rules: see :class:`SelectionRules`.

    Yields:
        The choice and the chosen ``(H, W)`` slice, in the order of ``slice_indices``.
    """
    previous_index: int | None = None
    previous: torch.Tensor | None = None
    for slice_index in slice_indices:
        adjacent = previous_index is not None and slice_index == previous_index + 1
        choice, previous = _choose_one(draw, slice_index, previous if adjacent else None, rules)
        previous_index = slice_index
        yield choice, previous


def _choose_one(
    draw: Draw, slice_index: int, neighbor: torch.Tensor | None, rules: SelectionRules
) -> tuple[Choice, torch.Tensor]:
    best: tuple[float, Choice, torch.Tensor] | None = None
    for round_ in range(rules.max_rounds):
        candidates = draw(slice_index, round_)
        means = candidates.double().mean(dim=(1, 2))
        if neighbor is None:
            scores, threshold = means.tolist(), rules.mean_threshold
            passing = [score < threshold for score in scores]
            position = passing.index(True) if any(passing) else scores.index(min(scores))
        else:
            scores, threshold = neighbor_distances(candidates, neighbor).tolist(), rules.distance_threshold
            passing = [score <= threshold for score in scores]
            position = scores.index(min(scores))
        choice = Choice(
            slice_index=slice_index,
            round=round_,
            candidate=position,
            rounds=round_ + 1,
            mean=float(means[position]),
            neighbor_distance=None if neighbor is None else scores[position],
            accepted=passing[position],
        )
        if choice.accepted:
            return choice, candidates[position]
        if best is None or scores[position] < best[0]:
            best = (scores[position], choice, candidates[position])
    _, choice, image = best  # type: ignore[misc]  # max_rounds is 1 or more
    return Choice(**{**vars(choice), "rounds": rules.max_rounds}), image
