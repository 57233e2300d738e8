# SPDX-License-Identifier: Apache-2.0
"""Random contrast keeps edges and air, and may turn the order of tissues."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contourdiff.transforms import RandRemap, RandRemapd


def test_equal_levels_stay_equal_and_air_stays_air() -> None:
    image = torch.tensor([[[0.0, 0.2, 0.2], [0.7, 0.7, 0.0], [1.0, 0.5, 0.5]]])
    remapped = RandRemap(1.0).set_random_state(3)(image)
    assert torch.equal(remapped == 0, image == 0)
    for level in (0.2, 0.7, 0.5):
        assert len(remapped[image == level].unique()) == 1
    assert not torch.equal(remapped, image)
    assert 0 <= float(remapped.min()) <= float(remapped.max()) <= 1


def test_the_order_of_tissues_is_sometimes_turned() -> None:
    image, remap = (
        torch.tensor([[[0.3, 0.8]]]),
        RandRemap(1.0, share=(0.9, 0.9)).set_random_state(0),
    )
    turned = [
        bool(remapped[0, 0, 0] > remapped[0, 0, 1])
        for remapped in (remap(image) for _ in range(200))
    ]
    assert 0.2 < np.mean(turned) < 0.6


def test_a_remap_follows_its_probability_and_seed_and_leaves_other_keys() -> None:
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    item = {"image": image, "label": image > 0.5}
    assert torch.equal(RandRemapd("image", probability=0.0)(item)["image"], image)
    draws = [
        RandRemapd("image", probability=1.0).set_random_state(seed)(item) for seed in (1, 2, 1)
    ]
    assert torch.equal(draws[0]["image"], draws[2]["image"])
    assert not torch.equal(draws[0]["image"], draws[1]["image"])
    assert torch.equal(draws[0]["label"], item["label"])


@pytest.mark.parametrize("options", [{"share": (0.5, 0.2)}, {"share": (0.0, 1.5)}, {"knots": 1}])
def test_bad_ranges_of_a_remap_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="expected 0 <= share"):
        RandRemap(**options)
