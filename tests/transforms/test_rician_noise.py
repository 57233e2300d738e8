# SPDX-License-Identifier: Apache-2.0
"""Noise of MR: its distribution, and that it belongs to a name and a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from contourdiff.transforms import RicianNoised
from contourdiff.transforms.rician_noise import with_rician_noise

SHAPE = (1, 64, 64, 16)


def test_noise_is_gaussian_in_tissue_and_rayleigh_in_air() -> None:
    tissue = np.asarray(with_rician_noise(torch.full(SHAPE, 150.0), 3.0, 0, "a")) - 150
    assert tissue.mean() == pytest.approx(0, abs=0.1)
    assert tissue.std() == pytest.approx(3, rel=0.02)
    air = np.asarray(with_rician_noise(torch.zeros(SHAPE), 3.0, 0, "a"))
    assert air.min() >= 0
    assert air.mean() == pytest.approx(3 * math.sqrt(math.pi / 2), rel=0.02)


def test_noise_belongs_to_name_and_seed_alone() -> None:
    image = torch.full(SHAPE, 100.0)
    first = torch.as_tensor(with_rician_noise(image, 3.0, 1, "a"))
    another_name = torch.as_tensor(with_rician_noise(image, 3.0, 1, "b"))
    another_seed = torch.as_tensor(with_rician_noise(image, 3.0, 2, "a"))
    again = torch.as_tensor(with_rician_noise(image, 3.0, 1, "a"))
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert (first != another_name).float().mean() > 0.99
    assert (first != another_seed).float().mean() > 0.99


def test_the_dictionary_version_takes_the_name_of_the_item_and_keeps_the_affine() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.full(SHAPE, 100.0), affine=affine)
    out = RicianNoised("pred", 3.0)({"pred": image, "name": "a"})["pred"]
    expected = torch.as_tensor(with_rician_noise(image.as_tensor(), 3.0, 0, "a"))
    torch.testing.assert_close(out.as_tensor(), expected)
    torch.testing.assert_close(out.affine, affine)


@pytest.mark.parametrize("gray_levels", [-1.0, 256.0, float("nan")])
def test_noise_out_of_range_is_refused(gray_levels: float) -> None:
    with pytest.raises(ValueError, match="noise_gray_levels"):
        RicianNoised("pred", gray_levels)
