# SPDX-License-Identifier: Apache-2.0
"""Neighbor-guided translation: each slice a single sample, given its contour and its neighbor's translation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contourdiff.sampling.intensity import to_model_range
from contourdiff.sampling.noise import CandidatePlace, DenoiseCandidates, round_places
from contourdiff.sampling.selection import (
    Choice,
    SelectionRules,
    choose_one,
    neighbor_distances,
    runs_of,
)

EMPTY = 0.0
"""Value of an empty neighbor channel: mid-gray, which no slice with air around it is."""


def first_condition(item: Mapping[str, Any]) -> Tensor:
    """Condition of a slice whose neighbor is not translated yet, ``(C, H, W)``.

    The item's ``contour (1, H, W)``, and an empty neighbor if the item has a ``neighbor``, as those of neighbor-guided
    training have.
    """
    contour = torch.as_tensor(item["contour"])
    if "neighbor" not in item:
        return contour
    neighbor = torch.full_like(contour, EMPTY)
    return torch.cat([contour, neighbor])


class GuidedVolume(NamedTuple):
    """A volume to translate: its case, contours ``(slices, H, W)``, and the slices that have one, ascending."""

    case: str
    contours: Tensor
    slice_indices: list[int]


class _Step(NamedTuple):
    """The next slice of a run of adjacent slices, and the translation of the slice before it."""

    number: int  # of the volume
    volume: GuidedVolume
    slice_index: int
    last: int
    translation: Tensor


def guided_slices(
    volumes: Sequence[GuidedVolume],
    denoise: DenoiseCandidates,
    batch_size: int,
    rules: SelectionRules,
) -> Iterator[tuple[int, Choice, Tensor]]:
    """Translate volumes side by side; every run of adjacent slices has one slice in a batch (MELBA 2025:031).

    A run starts with the best of several candidates, as in [`contourdiff.sampling.selection.choose`][]; of the other
    slices ``rules.distance_threshold`` decides which count as accepted. Only volumes of one size share a batch, of at
    most ``batch_size``; a translation depends on no other volume. ``denoise`` receives conditions ``(N, 2, H, W)``:
    contour, and neighbor in [-1, 1] or ``EMPTY``. Yields the volume's number, the choice, and the ``(H, W)`` slice.
    """
    steps: list[_Step] = []
    for number, volume in enumerate(volumes):
        for first, *following in runs_of(volume.slice_indices):
            choice, image = _start(volume, first, denoise, rules)
            yield number, choice, image
            if following:
                step = _Step(number, volume, following[0], following[-1], image)
                steps.append(step)
    while steps:
        batch, steps = _next_batch(steps, batch_size)
        conditions = []
        places = []
        for step in batch:
            contour = step.volume.contours[step.slice_index]
            neighbor = to_model_range(step.translation)
            conditions.append(torch.stack([contour, neighbor]))
            place = CandidatePlace(step.volume.case, step.slice_index, 0, 0)
            places.append(place)
        images = denoise(torch.stack(conditions), places)
        choices = _choices(batch, images, rules)
        for step, choice, image in zip(batch, choices, images, strict=True):
            if step.slice_index < step.last:
                following_index = step.slice_index + 1
                steps.append(step._replace(slice_index=following_index, translation=image))
            yield step.number, choice, image


def _start(
    volume: GuidedVolume, index: int, denoise: DenoiseCandidates, rules: SelectionRules
) -> tuple[Choice, Tensor]:
    """Choose among candidates without a neighbor."""
    contour = volume.contours[index]
    neighbor = torch.full_like(contour, EMPTY)
    condition = torch.stack([contour, neighbor])
    conditions = condition.expand(rules.candidates, -1, -1, -1)

    def draw(slice_index: int, round_: int) -> Tensor:
        places = round_places(volume.case, slice_index, round_, rules.candidates)
        return denoise(conditions, places)

    return choose_one(draw, index, None, None, rules)


def _next_batch(steps: Sequence[_Step], batch_size: int) -> tuple[list[_Step], list[_Step]]:
    """Up to ``batch_size`` steps of the first one's size, and those that wait."""
    size = steps[0].translation.shape
    batch: list[_Step] = []
    waiting: list[_Step] = []
    for step in steps:
        if step.translation.shape == size and len(batch) < batch_size:
            batch.append(step)
        else:
            waiting.append(step)
    return batch, waiting


def _choices(steps: Sequence[_Step], images: Tensor, rules: SelectionRules) -> list[Choice]:
    """Choices of single samples; one transfer from the device."""
    distances = []
    for step, image in zip(steps, images, strict=True):
        distances.append(neighbor_distances(image[None], step.translation))
    means = images.double().mean(dim=(1, 2))
    all_distances = torch.cat(distances)
    measures = torch.stack([means, all_distances], dim=1)
    choices = []
    for step, (mean, distance) in zip(steps, measures.tolist(), strict=True):
        choice = Choice(
            slice_index=step.slice_index,
            round=0,
            candidate=0,
            rounds=1,
            mean=mean,
            neighbor=step.slice_index - 1,
            neighbor_distance=distance,
            accepted=distance <= rules.distance_threshold,
            reason="single sample, given the neighbor's translation",
        )
        choices.append(choice)
    return choices
