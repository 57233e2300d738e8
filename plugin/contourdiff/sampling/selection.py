# SPDX-License-Identifier: Apache-2.0
"""Consistent selection: one walk in slice order that picks, for each slice, the candidate nearest to its neighbor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

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

    ``neighbor`` is the slice that it was compared with, and ``neighbor_distance`` the distance to that slice's
    translation; both are ``None`` for a slice without a translated neighbor. ``rounds`` counts the rounds that were
    drawn; ``round`` and ``candidate`` name the one chosen; ``accepted`` tells whether it met its threshold, and
    ``reason`` why it was taken.
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


def neighbor_distances(candidates: torch.Tensor, neighbor: torch.Tensor) -> torch.Tensor:
    """Mean squared difference in gray levels squared: ``(N, H, W)`` and ``(H, W)`` -> ``(N,)`` float64."""
    return (candidates.double() - neighbor.double()).square().mean(dim=(1, 2))


def runs_of(slice_indices: Sequence[int]) -> list[list[int]]:
    """Strictly ascending positions, cut where one is missing: ``[1, 2, 5] -> [[1, 2], [5]]``."""
    runs: list[list[int]] = []
    for index in slice_indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def walk_order(
    slice_indices: Sequence[int], foreground: Mapping[int, float] | None = None
) -> list[tuple[int, int | None]]:
    """Slices in the order in which they are chosen, each with the neighbor that is chosen before it.

    Every run of adjacent slices is walked by itself: from its first slice to its last, or, given each slice's
    ``foreground``, from the slice that has most of it, to both ends in turns.

    Returns:
        ``(slice, neighbor)``; the neighbor is ``None`` where a run starts.
    """
    order: list[tuple[int, int | None]] = []
    for run in runs_of(slice_indices):
        start = run[0] if foreground is None else max(run, key=lambda index: foreground[index])
        order.append((start, None))
        up = [(index, index - 1) for index in range(start + 1, run[-1] + 1)]
        down = [(index, index + 1) for index in range(start - 1, run[0] - 1, -1)]
        order += [step for pair in zip_longest(up, down) for step in pair if step is not None]
    return order


def choose(
    draw: Draw,
    slice_indices: Sequence[int],
    rules: SelectionRules,
    foreground: Mapping[int, float] | None = None,
) -> Iterator[tuple[Choice, torch.Tensor]]:
    """Walk through the slices in order and choose one candidate for each (Chen et al. 2024, Algorithm 2).

    A slice whose neighbor in the volume was translated wants the candidate nearest to that translation. A slice
    without one (where a run of adjacent slices starts) wants a mean below the threshold: the first such candidate in
    the order of rounds and candidates, or the one with the lowest mean if none is. No slice asks for more than
    ``rules.max_rounds`` rounds; then the nearest candidate of all rounds is taken and marked as not accepted.

    Args:
        draw: ``(slice_index, round) -> (candidates, H, W)`` gray levels; asked for a slice's rounds in order, and for
            a further round only where it is needed.
        slice_indices: strictly ascending positions of the slices to translate.
        rules: see :class:`SelectionRules`.
        foreground: see :func:`walk_order`.

    Yields:
        The choice and the chosen ``(H, W)`` slice, in the order of :func:`walk_order`.
    """
    order = walk_order(slice_indices, foreground)
    waiting = [neighbor for _, neighbor in order]
    chosen: dict[int, torch.Tensor] = {}
    for position, (slice_index, neighbor) in enumerate(order):
        choice, image = choose_one(draw, slice_index, neighbor, None if neighbor is None else chosen[neighbor], rules)
        chosen[slice_index] = image
        ahead = waiting[position + 1 : position + 4]  # a slice's successors come within the next three
        chosen = {index: kept for index, kept in chosen.items() if index in ahead}
        yield choice, image


def choose_one(
    draw: Draw, slice_index: int, neighbor: int | None, translation: torch.Tensor | None, rules: SelectionRules
) -> tuple[Choice, torch.Tensor]:
    """Choose a candidate for one slice, given its neighbor and that neighbor's ``translation (H, W)``, or neither."""
    best: tuple[float, Choice, torch.Tensor] | None = None
    limit = rules.mean_threshold if translation is None else rules.distance_threshold
    for round_ in range(rules.max_rounds):
        candidates = draw(slice_index, round_)
        means, scores = _measures(candidates, translation)
        passing = [score < limit if translation is None else score <= limit for score in scores]
        nearest = scores.index(min(scores))
        position = passing.index(True) if translation is None and any(passing) else nearest
        choice = Choice(
            slice_index=slice_index,
            round=round_,
            candidate=position,
            rounds=round_ + 1,
            mean=means[position],
            neighbor=neighbor,
            neighbor_distance=None if translation is None else scores[position],
            accepted=passing[position],
            reason=_reason(translation is None, passing[position], limit),
        )
        if choice.accepted:
            return choice, candidates[position]
        if best is None or scores[position] < best[0]:
            best = (scores[position], choice, candidates[position])
    _, choice, image = best  # type: ignore[misc]  # max_rounds is 1 or more
    return Choice(**{**vars(choice), "rounds": rules.max_rounds}), image


def _measures(candidates: torch.Tensor, translation: torch.Tensor | None) -> tuple[list[float], list[float]]:
    """Means, and what is compared with the threshold (distances if there is a neighbor); one transfer."""
    means = candidates.double().mean(dim=(1, 2))
    if translation is None:
        found: list[float] = means.tolist()
        return found, found
    both: list[list[float]] = torch.stack([means, neighbor_distances(candidates, translation)]).tolist()
    return both[0], both[1]


def _reason(first: bool, accepted: bool, limit: float) -> str:
    what = "mean" if first else "distance to the neighbor"
    if accepted:
        return f"{what} {'below' if first else 'within'} {limit:g}"
    return f"lowest {what} of all rounds, none {'below' if first else 'within'} {limit:g}"
