# SPDX-License-Identifier: Apache-2.0
"""One volume during its translation, and the result."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import Tensor
from torch.nn.functional import pad

from contourdiff.sampling.selection import Choice, neighbor_distances


class VolumeResult(NamedTuple):
    """A translated volume with what was chosen for each slice.

    Attributes:
        case: id of the volume.
        choices: for each slice, ``None`` for a skipped one.
        network_calls: chains of network calls.
        contours: 0 or 1, ``(H, W, D)`` float32 on the CPU.
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
    contours: Tensor
    gray_levels: Tensor
    box: tuple[slice, slice, slice]
    spread: Tensor | None = None
    single_distances: list[float | None] | None = None
    batch_size: int | None = None


class VolumeState:
    """One volume: what a painter sees of it, in a frame, and the slices that are painted so far.

    The frame is the box around all contours, with a margin, padded with 0 behind.

    Args:
        contours: of 0 and 1, ``(1, H, W, D)``.
        case: id of the volume.
        slice_axis: spatial axis along which slices are stacked.
        multiple: height and width of the frame are multiples of this.
        margin_px: on each side of the box, where the volume allows it.
        keep_spread: keep the standard deviation of each slice's candidates.
        image: what the frame shows in place of the contours, as large as they are.
        class_label: contrast to paint, a position in the network's ``contrasts``; ``None`` for the network's own.

    Attributes:
        framed: what the frame shows, ``(slices, height, width)`` float32.
        indices: slices that have a contour, ascending.
    """

    def __init__(
        self,
        contours: Tensor,
        case: str = "",
        *,
        slice_axis: int = 0,
        multiple: int = 1,
        margin_px: int = 0,
        keep_spread: bool = False,
        image: Tensor | None = None,
        class_label: int | None = None,
    ) -> None:
        self.volume = contours
        self.case = case
        self.slice_axis = slice_axis
        self.class_label = class_label
        self.contours = _slices(contours, slice_axis)
        filled = self.contours.flatten(1).any(dim=1)
        self.indices: list[int] = filled.nonzero().flatten().tolist()
        self.rows, self.columns = contour_box(self.contours, margin_px)
        shown = self.contours if image is None else _slices(image, slice_axis)
        box = shown[:, self.rows, self.columns]
        self._height = box.shape[1]
        self._width = box.shape[2]
        right = -self._width % multiple
        below = -self._height % multiple
        self.framed = pad(box, (0, right, 0, below))
        self.translated = torch.zeros_like(self.contours)
        self.spread = torch.zeros_like(self.contours) if keep_spread else None
        count = len(self.contours)
        self.choices: list[Choice | None] = [None] * count
        self.network_calls = 0  # this and the next are set by the painter
        self.batch_size: int | None = None
        self._single: Tensor | None = None  # first candidate of the slice before
        unknown = torch.full((count,), torch.nan, dtype=torch.float64)
        self._single_distances = unknown.to(self.contours.device)

    @property
    def noise_case(self) -> str:
        """The case that keys the noise of this volume: a contrast beyond the first has noise of its own."""
        if not self.class_label:
            return self.case
        return f"{self.case} contrast {self.class_label}"

    @property
    def slice_distance_mm(self) -> float | None:
        """Distance of adjacent slices; ``None`` if the volume is no MetaTensor."""
        if not isinstance(self.volume, MetaTensor):
            return None
        return float(self.volume.pixdim[self.slice_axis])

    def put(self, choice: Choice, image: Tensor, candidates: Tensor | None = None) -> None:
        """Take the chosen ``image (H, W)`` of a slice, and all its candidates ``(N, H, W)`` where there are several."""
        index = choice.slice_index
        self.choices[index] = choice
        place = (index, self.rows, self.columns)
        self.translated[place] = self._cut(image)
        if candidates is None:
            return
        if self.spread is not None:
            deviation = torch.full_like(image, torch.nan)
            if len(candidates) > 1:
                deviation = candidates.std(dim=0)
            self.spread[place] = self._cut(deviation)
        single = self._cut(candidates[0])
        if choice.neighbor is not None and self._single is not None:
            (distance,) = neighbor_distances(single[None], self._single)
            self._single_distances[index] = distance
        self._single = single

    def result(self) -> VolumeResult:
        """The translated volume, its slices along ``slice_axis``."""
        axis = self.slice_axis
        box = [self.rows, self.columns]
        all_slices = slice(0, len(self.contours))
        box.insert(axis, all_slices)
        translated = self.translated.moveaxis(0, axis)[None]
        gray_levels, *_ = convert_to_dst_type(translated, self.volume, dtype=torch.float32)
        spread = None
        if self.spread is not None:
            spread = self.spread.moveaxis(0, axis).cpu()
        distances: list[float] = self._single_distances.tolist()
        return VolumeResult(
            case=self.case,
            choices=self.choices,
            network_calls=self.network_calls,
            contours=self.contours.moveaxis(0, axis).cpu(),
            gray_levels=gray_levels,
            box=tuple(box),  # type: ignore[arg-type]
            spread=spread,
            single_distances=[None if math.isnan(value) else value for value in distances],
            batch_size=self.batch_size,
        )

    def _cut(self, image: Tensor) -> Tensor:
        """An image of the frame without its padding."""
        return image[: self._height, : self._width]


def contour_box(contours: Any, margin_px: int) -> tuple[slice, slice]:
    """Rows and columns of the box around all contours ``(N, H, W)`` with a margin; the whole slice without any."""
    is_contour = torch.as_tensor(contours != 0)
    present = is_contour.any(dim=0)
    in_row = present.any(dim=1)
    in_column = present.any(dim=0)
    return _span(in_row, margin_px), _span(in_column, margin_px)


def _span(lines: Tensor, margin_px: int) -> slice:
    """From the first line that is true to the last, ``(N,)``, with a margin where there is room; all if none is."""
    filled = lines.nonzero().flatten().tolist()
    if not filled:
        return slice(0, len(lines))
    first = filled[0] - margin_px
    last = filled[-1] + margin_px
    stop = min(last + 1, len(lines))
    return slice(max(first, 0), stop)


def _slices(volume: Tensor, slice_axis: int) -> Tensor:
    channel = torch.as_tensor(volume[0])
    plain = channel.as_subclass(Tensor)
    return plain.moveaxis(slice_axis, 0).float()
