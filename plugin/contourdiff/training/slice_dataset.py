# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes as a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms import Randomizable, apply_transform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(eq=False, repr=False)
class SliceDataset(Dataset, Randomizable):
    """Every slice with foreground of every volume, as two-dimensional items; a 2-D image is a volume with one slice.

    Volumes are read by index, so a ``CacheDataset`` or ``PersistentDataset`` of MONAI decides whether they stay in
    memory. Each is read once at the start to find its slices with foreground. Raises ``ValueError`` if no slice has
    foreground, or ``neighbors`` is set and a volume has one slice.

    ``index`` has the volume and the position of every item, ``places`` its relative position in the volume, in (0, 1).

    Args:
        volumes: dataset of dictionaries with ``keys`` of shape ``(C, H, W, D)``.
        keys: to cut into slices, the first of which defines the foreground; others are left out.
        optional_keys: to cut into slices, too, where a volume has them.
        slice_axis: spatial axis along which slices are stacked.
        min_foreground: slices with a smaller share of pixels above 0 are left out.
        transform: of each slice, ``(C, H, W)`` per key.
        allow_empty: accept a dataset without slices, such as a validation without held-out patients.
        neighbors: add an adjacent slice of the first key as ``neighbor``, alternately the previous and the next.
    """

    volumes: Sequence[Mapping[str, Tensor]]
    keys: Sequence[str] = ("image",)
    slice_axis: int = 0
    min_foreground: float = 0.05
    transform: Callable[..., Any] | None = None
    allow_empty: bool = False
    neighbors: bool = False
    optional_keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.keys = tuple(self.keys)
        self.index: list[tuple[int, int]] = []
        self.places: list[float] = []
        single_slices = 0
        for number in range(len(self.volumes)):
            volume = self.volumes[number]
            image = torch.as_tensor(volume[self.keys[0]])
            slices = image[0].moveaxis(self.slice_axis, 0)
            single_slices += len(slices) < 2
            is_foreground = slices.flatten(1) > 0
            shares = is_foreground.float().mean(dim=1)
            for position, share in enumerate(shares):
                if share >= self.min_foreground:
                    self.index.append((number, position))
                    self.places.append((position + 0.5) / len(slices))
        if self.neighbors and single_slices:
            raise ValueError(
                "neighbor-guided training learns from adjacent slices: expected volumes of 2 slices or more along axis "
                f"{self.slice_axis}, got {single_slices} single slices among {len(self.volumes)} images; "
                "pass volumes, or set neighbors to false"
            )
        if not self.index and not self.allow_empty:
            share = f"{self.min_foreground:.0%}"
            raise ValueError(
                f"no slice along axis {self.slice_axis} has {share} foreground; check the images"
            )

    def __len__(self) -> int:
        """Return the number of slices of all volumes together."""
        return len(self.index)

    def __getitem__(self, item: int) -> Any:
        """Slice ``item``, transformed."""
        number, position = self.index[item]
        volume = self.volumes[number]
        data: dict[str, Any] = {}
        for key in self.keys:
            data[key] = self._slice(volume[key], position)
        for key in self.optional_keys:
            if key in volume:
                data[key] = self._slice(volume[key], position)
        if self.neighbors:
            image = volume[self.keys[0]]
            last = image.shape[self.slice_axis + 1] - 1
            neighbor = position - 1
            if position == 0 or (position % 2 == 1 and position < last):
                neighbor = position + 1
            data["neighbor"] = self._slice(image, neighbor)
        if "contrast" in volume:
            data["contrast"] = volume["contrast"]
        if self.transform is None:
            return data
        return apply_transform(self.transform, data)

    def _slice(self, image: Tensor, position: int) -> Tensor:
        plain = convert_to_tensor(image, track_meta=False)
        return plain.select(self.slice_axis + 1, position)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> SliceDataset:
        """Seed the random transforms; MONAI's ``DataLoader`` does so in every worker."""
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed, state)
        return self


def slice_weights(dataset: SliceDataset, empty_weight: float = 1.0) -> Tensor:
    """How often each slice is to be drawn: 1 with a ``label`` above 0, ``empty_weight`` without: ``(N,)``."""
    has_label = []
    for volume in dataset.volumes:
        label = torch.as_tensor(volume["label"])[0]
        slices = label.moveaxis(dataset.slice_axis, 0)
        has_label.append(slices.flatten(1).amax(dim=1) > 0)
    weights = [
        1.0 if has_label[number][position] else empty_weight for number, position in dataset.index
    ]
    return torch.tensor(weights, dtype=torch.float64)
