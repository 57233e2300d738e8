# SPDX-License-Identifier: Apache-2.0
"""One volume during its translation, and the result."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from monai.utils import convert_to_dst_type
from torch.nn.functional import pad

from contourdiff.metrics.flicker import contour_box
from contourdiff.sampling.selection import Choice, neighbor_distances


class VolumeResult(NamedTuple):
    """A translated volume with what was chosen for each slice.

    Attributes:
        case: id of the volume.
        choices: the choice for each translated slice, ``None`` for each skipped one.
        network_calls: chains of network calls.
        contours: the contours given, 0 or 1, ``(H, W, D)`` float32 on the CPU.
        gray_levels: ``(1, H, W, D)`` float32 in [0, 255], as the input in type, device and metadata; 0 outside ``box``.
        box: what the network saw.
        spread: standard deviation in gray levels over all requested candidates, ``(H, W, D)`` float32 on the CPU; 0
            where nothing was translated, NaN where a slice had a single candidate; ``None`` unless requested.
        single_distances: for each slice with a neighbor, the distance between the first candidates of both.
        batch_size: the last one used.
    """

    case: str
    choices: list[Choice | None]
    network_calls: int
    contours: torch.Tensor
    gray_levels: torch.Tensor
    box: tuple[slice, slice, slice]
    spread: torch.Tensor | None = None
    single_distances: list[float | None] | None = None
    batch_size: int | None = None


class VolumeState:
    """One volume: what the network sees of it, in a frame, and the translated slices so far.

    ``volume`` has contours of 0 and 1, ``(1, H, W, D)``, slices along ``slice_axis``. The frame around all contours,
    ``margin_px`` wider, is padded to a ``multiple`` in height and width. It shows the contours, or other ``inputs``.
    """

    def __init__(
        self,
        volume: torch.Tensor,
        case: str,
        slice_axis: int,
        multiple: int,
        margin_px: int,
        keep_spread: bool = False,
        inputs: torch.Tensor | None = None,
    ) -> None:
        self.volume = volume
        self.case = case
        self.slice_axis = slice_axis
        contours = _slices(volume, slice_axis)
        self.contours = contours
        self.indices: list[int] = torch.nonzero(contours.flatten(1).any(dim=1)).flatten().tolist()
        self.rows, self.columns = contour_box(contours, margin_px)
        seen = contours if inputs is None else _slices(inputs, slice_axis)
        self.framed = _padded(seen[:, self.rows, self.columns], multiple)
        self.translated = torch.zeros_like(contours)
        self.spread = torch.zeros_like(contours) if keep_spread else None
        self.choices: list[Choice | None] = [None] * len(contours)
        self._single: torch.Tensor | None = None
        self._single_distances = torch.full(
            (len(contours),), torch.nan, dtype=torch.float64, device=contours.device
        )

    def put(self, choice: Choice, image: torch.Tensor, drawn: torch.Tensor | None = None) -> None:
        """Take the chosen ``image (H, W)`` of a slice, and all its candidates ``drawn (N, H, W)``."""
        index = choice.slice_index
        self.choices[index] = choice
        self.translated[index, self.rows, self.columns] = self._cut(image)
        if drawn is None:
            return
        if self.spread is not None:
            deviation = drawn.std(dim=0) if len(drawn) > 1 else torch.full_like(image, torch.nan)
            self.spread[index, self.rows, self.columns] = self._cut(deviation)
        single = self._cut(drawn[0])
        if choice.neighbor is not None and self._single is not None:
            self._single_distances[index : index + 1] = neighbor_distances(
                single[None], self._single
            )
        self._single = single

    def result(self, network_calls: int, batch_size: int) -> VolumeResult:
        """The translated volume, its slices along ``slice_axis``."""
        axis = self.slice_axis
        box = [self.rows, self.columns]
        box.insert(axis, slice(0, len(self.contours)))
        gray_levels = self.translated.moveaxis(0, axis)[None]
        single: list[float] = self._single_distances.tolist()
        return VolumeResult(
            case=self.case,
            choices=self.choices,
            network_calls=network_calls,
            contours=self.contours.moveaxis(0, axis).cpu(),
            gray_levels=convert_to_dst_type(gray_levels, self.volume, dtype=torch.float32)[0],
            box=(box[0], box[1], box[2]),
            spread=None if self.spread is None else self.spread.moveaxis(0, axis).cpu(),
            single_distances=[None if math.isnan(value) else value for value in single],
            batch_size=batch_size,
        )

    def _cut(self, image: torch.Tensor) -> torch.Tensor:
        return image[: self.rows.stop - self.rows.start, : self.columns.stop - self.columns.start]


def _slices(volume: torch.Tensor, slice_axis: int) -> torch.Tensor:
    return torch.as_tensor(volume[0]).as_subclass(torch.Tensor).moveaxis(slice_axis, 0).float()


def _padded(box: torch.Tensor, multiple: int) -> torch.Tensor:
    """Slices ``(N, H, W)``, padded behind with 0 to a multiple."""
    missing = [-size % multiple for size in box.shape[1:]]
    return pad(box, (0, missing[1], 0, missing[0]))
