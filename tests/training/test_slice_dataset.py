# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes: along each axis, with foreground, and with seeded transforms."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import RandFlipd

from contourdiff.training.slice_dataset import SliceDataset


def test_a_slice_dataset_cuts_volumes_along_each_axis() -> None:
    volume = torch.zeros(1, 5, 6, 7)
    volume[:, 1:4] = torch.rand(1, 3, 6, 7) + 0.1
    for axis in range(3):
        moved = volume.moveaxis(1, axis + 1)
        dataset = SliceDataset([{"image": moved}, {"image": moved}], slice_axis=axis)
        assert len(dataset) == 6
        for item, position in zip(range(6), (1, 2, 3, 1, 2, 3), strict=True):
            assert torch.equal(dataset[item]["image"], volume[:, position])
    with pytest.raises(ValueError, match="no slice along axis 0 has 5% foreground"):
        SliceDataset([{"image": torch.zeros(1, 2, 4, 4)}])


def test_slice_dataset_seeds_its_transform() -> None:
    dataset = SliceDataset(
        [{"image": torch.rand(1, 1, 8, 8) + 0.1}],
        transform=RandFlipd("image", prob=0.5, spatial_axis=0),
    )
    draws = []
    for seed in (1, 1, 2):
        dataset.set_random_state(seed)
        draws.append(
            [
                bool(torch.equal(dataset[0]["image"], dataset.volumes[0]["image"][:, 0]))
                for _ in range(20)
            ]
        )
    assert draws[0] == draws[1] != draws[2]
