# SPDX-License-Identifier: Apache-2.0
"""Neighbor-guided translation: each slice a single sample, given its contour and its neighbor's translation.

After the second version of the paper (MELBA 2025:031): the network has a third input channel, which in training holds
the adjacent real slice with a small probability and is empty otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from contourdiff.sampling.intensity import to_model_range
from contourdiff.sampling.noise import DenoiseItems
from contourdiff.sampling.selection import (
    Choice,
    SelectionRules,
    choose_one,
    neighbor_distances,
    runs_of,
)

EMPTY = 0.0
"""Value of an empty neighbor channel: mid-gray, which no slice with air around it is."""


def first_condition(item: Mapping[str, Any]) -> torch.Tensor:
    """Condition of a slice whose neighbor is not translated yet, ``(C, H, W)``.

    The item's ``contour (1, H, W)``, and an empty neighbor if the item has a ``neighbor``, as those of neighbor-guided
    training have.
    """
    contour = torch.as_tensor(item["contour"])
    return torch.cat([contour, torch.full_like(contour, EMPTY)]) if "neighbor" in item else contour


class GuidedVolume(NamedTuple):
    """A volume to translate: its case, contours ``(slices, H, W)``, and the slices that have one, ascending."""

    case: str
    contours: torch.Tensor
    slice_indices: list[int]


class _Step(NamedTuple):
    """The next slice of a run, and the translation of the slice before it."""

    volume: int
    slice_index: int
    last: int
    translation: torch.Tensor


def translate_guided(
    volumes: Sequence[GuidedVolume], denoise: DenoiseItems, batch_size: int, rules: SelectionRules
) -> Iterator[tuple[int, Choice, torch.Tensor]]:
    """Translate volumes side by side; every run of adjacent slices has one item in a batch.

    A run starts with the best of several candidates, as in [`contourdiff.sampling.selection.choose`][]; of the other
    slices ``rules.distance_threshold`` decides which count as accepted. Only volumes of one size share a batch, of at
    most ``batch_size``; a translation depends on no other volume. ``denoise`` receives conditions ``(N, 2, H, W)``:
    contour, and neighbor in [-1, 1] or ``EMPTY``. Yields the volume's number, the choice, and the ``(H, W)`` slice.
    """
    steps: list[_Step] = []
    for number, volume in enumerate(volumes):
        for run in runs_of(volume.slice_indices):
            choice, image = _start(volume, run[0], denoise, rules)
            steps.append(_Step(number, run[0] + 1, run[-1], image))
            yield number, choice, image
    steps = [step for step in steps if step.slice_index <= step.last]
    while steps:
        size = volumes[steps[0].volume].contours.shape[1:]
        batch = [step for step in steps if volumes[step.volume].contours.shape[1:] == size][
            :batch_size
        ]
        taken = {(step.volume, step.slice_index) for step in batch}
        steps = [step for step in steps if (step.volume, step.slice_index) not in taken]
        conditions = torch.stack(
            [_condition(volumes[s.volume].contours[s.slice_index], s.translation) for s in batch]
        )
        images = denoise(
            conditions, [(volumes[step.volume].case, step.slice_index, 0, 0) for step in batch]
        )
        for step, choice, image in zip(batch, _choices(batch, images, rules), images, strict=True):
            if step.slice_index < step.last:
                steps.append(step._replace(slice_index=step.slice_index + 1, translation=image))
            yield step.volume, choice, image


def _start(
    volume: GuidedVolume, index: int, denoise: DenoiseItems, rules: SelectionRules
) -> tuple[Choice, torch.Tensor]:
    """Choose among candidates without a neighbor."""
    condition = _condition(volume.contours[index], None)

    def draw(slice_index: int, round_: int) -> torch.Tensor:
        items = [
            (volume.case, slice_index, round_, candidate) for candidate in range(rules.candidates)
        ]
        return denoise(condition.expand(len(items), -1, -1, -1), items)

    return choose_one(draw, index, None, None, rules)


def _condition(contour: torch.Tensor, translation: torch.Tensor | None) -> torch.Tensor:
    neighbor = (
        torch.full_like(contour, EMPTY) if translation is None else to_model_range(translation)
    )
    return torch.stack([contour, neighbor])


def _choices(steps: Sequence[_Step], images: torch.Tensor, rules: SelectionRules) -> list[Choice]:
    """Choices of single samples; one transfer from the device."""
    distances = [
        neighbor_distances(image[None], step.translation)
        for step, image in zip(steps, images, strict=True)
    ]
    measures: list[list[float]] = torch.stack(
        [images.double().mean(dim=(1, 2)), torch.cat(distances)]
    ).T.tolist()
    return [
        Choice(
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
        for step, (mean, distance) in zip(steps, measures, strict=True)
    ]
