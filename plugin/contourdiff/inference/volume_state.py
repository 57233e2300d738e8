# SPDX-License-Identifier: Apache-2.0
"""A volume on its way: the contours given, the slices made so far, and what will be told of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from contourdiff.sampling.selection import Choice, neighbor_distances


class VolumeResult(NamedTuple):
    """What happened to one volume: a choice for each translated slice, ``None`` for each skipped one.

    All volumes are float32 ``(H, W, D)`` on the model's grid, on the CPU: ``contours``, 0 or 1, that were given;
    ``translation`` in gray levels, 0 outside the ``box`` that the network saw; ``spread``, for each voxel the
    sample standard deviation in gray levels over all candidates that the selection asked for. ``spread`` is 0
    where nothing was translated, and NaN where a single candidate was drawn for a slice; it is ``None`` unless the
    inferer was asked for it. ``single_distances`` has, for each slice that was compared with a neighbor, the distance
    in gray levels squared that a run without selection would have had there: that of the first candidates of both.
    ``batch_size`` is the one that was used at last.
    """

    case: str
    choices: list[Choice | None]
    network_calls: int
    contours: torch.Tensor
    translation: torch.Tensor
    box: tuple[slice, slice, slice]
    spread: torch.Tensor | None = None
    single_distances: list[float | None] | None = None
    batch_size: int | None = None


class VolumeState:
    """One volume: its contours, ``(slices, H, W)``, framed for the network, and the result as it grows.

    Args:
        contours: 0 or 1.
        case: id of the volume.
        distance_mm: distance of its slices.
        multiple: height and width of the frame are padded to multiples of this.
        margin_px: margin of the frame around all contours.
        keep_spread: keep the spread of the candidates, too.
    """

    def __init__(
        self, contours: torch.Tensor, case: str, distance_mm: float, multiple: int, margin_px: int, keep_spread: bool
    ) -> None:
        self.contours = contours
        self.case = case
        self.distance_mm = distance_mm
        self.indices: list[int] = torch.nonzero(contours.flatten(1).any(dim=1)).flatten().tolist()
        self.rows, self.columns, self.framed = _frame(contours, multiple, margin_px)
        self.result = torch.zeros_like(contours)
        self.spread = torch.zeros_like(contours) if keep_spread else None
        self.choices: list[Choice | None] = [None] * len(contours)
        self._singles: dict[int, torch.Tensor] = {}
        self._single_distances = torch.full((len(contours),), torch.nan, dtype=torch.float64, device=contours.device)

    def foreground(self) -> dict[int, float]:
        """For each slice with a contour, the area in pixels of the box around it."""
        bounds = {}
        for index in self.indices:
            rows, columns = (self.contours[index].any(dim=axis).nonzero() for axis in (1, 0))
            bounds[index] = float((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
        return bounds

    def put(self, choice: Choice, image: torch.Tensor, drawn: torch.Tensor | None = None) -> None:
        """Take the chosen ``image (H, W)`` of a slice.

        ``drawn (N, H, W)`` are all its candidates, the first of which stands for a run without selection.
        """
        index = choice.slice_index
        self.choices[index] = choice
        self.result[index, self.rows, self.columns] = self._cut(image)
        if drawn is None:
            return
        if self.spread is not None:
            of_all = drawn.std(dim=0) if len(drawn) > 1 else torch.full_like(image, torch.nan)
            self.spread[index, self.rows, self.columns] = self._cut(of_all)
        self._compare_single(index, choice.neighbor, drawn[0])

    def single_distances(self) -> list[float | None]:
        """See :class:`VolumeResult`; one transfer from the device."""
        values: list[float] = self._single_distances.tolist()
        return [None if math.isnan(value) else value for value in values]

    def record(self, network_calls: int, batch_size: int, slice_axis: int) -> VolumeResult:
        """All that is told of the volume, with its slices along ``slice_axis``."""
        box = [self.rows, self.columns]
        box.insert(slice_axis, slice(0, len(self.contours)))
        return VolumeResult(
            case=self.case,
            choices=self.choices,
            network_calls=network_calls,
            contours=self.contours.moveaxis(0, slice_axis).cpu(),
            translation=self.result.moveaxis(0, slice_axis).cpu(),
            box=(box[0], box[1], box[2]),
            spread=None if self.spread is None else self.spread.moveaxis(0, slice_axis).cpu(),
            single_distances=self.single_distances(),
            batch_size=batch_size,
        )

    def _compare_single(self, index: int, neighbor: int | None, single: torch.Tensor) -> None:
        if neighbor is None:
            self._singles = {}
        else:
            self._single_distances[index : index + 1] = neighbor_distances(single[None], self._singles[neighbor])
        self._singles[index] = single
        ends = {min(self._singles), max(self._singles)}  # the walk goes on from these two alone
        self._singles = {kept: image for kept, image in self._singles.items() if kept in ends}

    def _cut(self, image: torch.Tensor) -> torch.Tensor:
        return image[: self.rows.stop - self.rows.start, : self.columns.stop - self.columns.start]


def _frame(contours: torch.Tensor, multiple: int, margin: int) -> tuple[slice, slice, torch.Tensor]:
    """Box around all contours: its rows and columns, and the contours in it, padded behind to a multiple."""
    bounds = []
    for axes, size in (((0, 2), contours.shape[1]), ((0, 1), contours.shape[2])):
        filled = torch.nonzero(contours.amax(dim=axes) > 0).flatten().tolist() if contours.numel() else []
        first, last = (filled[0], filled[-1]) if filled else (0, size - 1)
        bounds.append(slice(max(first - margin, 0), min(last + margin + 1, size)))
    rows, columns = bounds
    box = contours[:, rows, columns]
    missing = [-size % multiple for size in box.shape[1:]]
    return rows, columns, pad(box, (0, missing[1], 0, missing[0]))
