# SPDX-License-Identifier: Apache-2.0
"""Noise of MR: its distribution, and that it belongs to a name and a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from contourdiff.transforms import RicianNoise, RicianNoised

SHAPE = (1, 64, 64, 16)


def test_noise_is_gaussian_in_tissue_and_rayleigh_in_air() -> None:
    transform = RicianNoise(gray_levels=3.0)
    tissue = np.asarray(transform(torch.full(SHAPE, 150.0), "a")) - 150
    assert tissue.mean() == pytest.approx(0, abs=0.1)
    assert tissue.std() == pytest.approx(3, rel=0.02)
    air = np.asarray(transform(torch.zeros(SHAPE), "a"))
    assert air.min() >= 0
    assert air.mean() == pytest.approx(3 * math.sqrt(math.pi / 2), rel=0.02)


def test_noise_belongs_to_name_and_seed_alone() -> None:
    image = torch.full(SHAPE, 100.0)
    transform = RicianNoise(3.0, seed=1)
    first = transform(image, "a")
    other = transform(image, "b")
    torch.testing.assert_close(transform(image, "a"), first, rtol=0, atol=0)
    assert (first != other).float().mean() > 0.99
    assert (RicianNoise(3.0, seed=2)(image, "a") != first).float().mean() > 0.99


def test_the_dictionary_version_takes_the_name_of_the_item_and_keeps_the_affine() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.full(SHAPE, 100.0), affine=affine)
    out = RicianNoised("pred", 3.0)({"pred": image, "name": "a"})["pred"]
    torch.testing.assert_close(out.as_tensor(), torch.as_tensor(RicianNoise(3.0)(image, "a")))
    torch.testing.assert_close(out.affine, affine)


@pytest.mark.parametrize("gray_levels", [-1.0, 256.0, float("nan")])
def test_noise_out_of_range_is_refused(gray_levels: float) -> None:
    with pytest.raises(ValueError, match="noise_gray_levels"):
        RicianNoise(gray_levels)
