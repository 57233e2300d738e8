# SPDX-License-Identifier: Apache-2.0
"""Neighbor-guided translation: each slice a single sample, given its contour and its neighbor's translation.

After the second version of the paper (MELBA 2025:031): the network has a third input channel, which in training holds
the adjacent real slice with a small probability and is empty else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from contourdiff.sampling.selection import Choice, SelectionRules, choose_one, neighbor_distances

EMPTY = 0.0
"""What the neighbor's channel holds where there is none: mid-gray, which no slice with air around it is."""

Denoise = Callable[[torch.Tensor, Sequence[tuple[str, int, int, int]]], torch.Tensor]


def first_condition(item: Mapping[str, Any]) -> torch.Tensor:
    """What the network is given beside the noisy slice where no neighbor is translated yet: ``(C, H, W)``.

    The item's ``contour (1, H, W)``, and an empty neighbor if the item has a ``neighbor``, as those of neighbor-guided
    training have.
    """
    contour = torch.as_tensor(item["contour"])
    return torch.cat([contour, torch.full_like(contour, EMPTY)]) if "neighbor" in item else contour


class Walk(NamedTuple):
    """A volume to walk through: its case, contours ``(slices, H, W)``, and the order of :func:`walk_order`."""

    case: str
    contours: torch.Tensor
    order: list[tuple[int, int | None]]


class _Step(NamedTuple):
    walk: int
    slice_index: int
    neighbor: int
    translation: torch.Tensor


def guided(
    walks: Sequence[Walk], denoise: Denoise, batch_size: int, rules: SelectionRules
) -> Iterator[tuple[int, Choice, torch.Tensor]]:
    """Translate all walks side by side; every end of every run of slices has one item in a batch.

    Where a run starts, the best of several candidates is taken, as in :func:`contourdiff.sampling.selection.choose`. Only walks
    whose contours have the same size share a batch. What is translated depends on no other walk.

    Args:
        walks: one for each volume.
        denoise: ``(conditions (N, 2, H, W), (case, slice, round, candidate) of each) -> (N, H, W)`` gray levels; the
            conditions are contour and neighbor, the latter in [-1, 1] or ``EMPTY``.
        batch_size: items in a call of ``denoise``, at most.
        rules: of the selection at the starts; ``distance_threshold`` decides what the others are told to have passed.

    Yields:
        Number of the walk, what was chosen, and the ``(H, W)`` slice.
    """
    queue: deque[_Step] = deque()

    def condition(walk: int, index: int, translation: torch.Tensor | None) -> torch.Tensor:
        contour = walks[walk].contours[index]
        return torch.stack(
            [contour, torch.full_like(contour, EMPTY) if translation is None else translation / 127.5 - 1]
        )

    def go_on(walk: int, index: int, image: torch.Tensor) -> None:
        queue.extend(_Step(walk, after, index, image) for after, neighbor in walks[walk].order if neighbor == index)

    for number, walk in enumerate(walks):
        for start in (index for index, neighbor in walk.order if neighbor is None):

            def draw(index: int, round_: int, number: int = number, case: str = walk.case) -> torch.Tensor:
                items = [(case, index, round_, candidate) for candidate in range(rules.candidates)]
                return denoise(condition(number, index, None).expand(len(items), -1, -1, -1), items)

            choice, image = choose_one(draw, start, None, None, rules)
            go_on(number, start, image)
            yield number, choice, image
    while queue:
        size = walks[queue[0].walk].contours.shape
        together = [step for step in queue if walks[step.walk].contours.shape[1:] == size[1:]][:batch_size]
        for step in together:
            queue.remove(step)
        conditions = torch.stack([condition(step.walk, step.slice_index, step.translation) for step in together])
        images = denoise(conditions, [(walks[step.walk].case, step.slice_index, 0, 0) for step in together])
        for step, choice, image in zip(together, _choices(together, images, rules), images, strict=True):
            go_on(step.walk, step.slice_index, image)
            yield step.walk, choice, image


def _choices(steps: Sequence[_Step], images: torch.Tensor, rules: SelectionRules) -> list[Choice]:
    """What is told of single samples; one transfer from the device."""
    distances = torch.cat(
        [neighbor_distances(image[None], step.translation) for step, image in zip(steps, images, strict=True)]
    )
    told: list[list[float]] = torch.stack([images.double().mean(dim=(1, 2)), distances]).T.tolist()
    return [
        Choice(
            slice_index=step.slice_index,
            round=0,
            candidate=0,
            rounds=1,
            mean=mean,
            neighbor=step.neighbor,
            neighbor_distance=distance,
            accepted=distance <= rules.distance_threshold,
            reason="single sample, given the neighbor's translation",
        )
        for step, (mean, distance) in zip(steps, told, strict=True)
    ]
