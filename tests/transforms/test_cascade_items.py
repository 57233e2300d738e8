# SPDX-License-Identifier: Apache-2.0
"""What the two networks of a cascade are trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contourdiff.transforms import CoarseStaged, RefinerStaged


@pytest.fixture
def item() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 24, 32, generator=generator) * 2 - 1
    return {
        "image": image,
        "contour": (torch.rand(1, 24, 32, generator=generator) < 0.1).float(),
        "contrast": 1,
    }  # type: ignore[dict-item]


def test_the_first_network_sees_every_contour_pixel(item: dict[str, torch.Tensor]) -> None:
    staged = CoarseStaged()(item)
    assert staged["image"].shape == (1, 12, 16)
    assert staged["contour"].shape == (4, 12, 16)
    assert staged["image"][0, 3, 5] == pytest.approx(float(item["image"][0, 6:8, 10:12].mean()))
    for channel, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        assert torch.equal(staged["contour"][channel], item["contour"][0, row::2, column::2])
    assert staged["contrast"] == 1


def test_without_faults_the_second_network_sees_the_average(item: dict[str, torch.Tensor]) -> None:
    staged = RefinerStaged(noise=0.0)(item)
    assert torch.equal(staged["image"], item["image"])
    assert torch.equal(staged["contour"][:1], item["contour"])
    coarse = torch.nn.functional.avg_pool2d(item["image"], 2)
    # bilinear: a pixel is 9/16 of its own square, 3/16 of two and 1/16 of one neighbor
    a, b, c, d = (coarse[0, 3 + i, 5 + j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    assert staged["contour"][1, 7, 11] == pytest.approx(
        float((9 * a + 3 * b + 3 * c + d) / 16), abs=1e-6
    )


def test_faults_of_a_coarse_image_are_bounded_random_and_repeatable(
    item: dict[str, torch.Tensor],
) -> None:
    plain = RefinerStaged(noise=0.0)(item)["contour"][1]
    seeded = RefinerStaged()
    draws = [seeded.set_random_state(seed)(item)["contour"][1] for seed in (0, 1, 0)]  # type: ignore[func-returns-value, attr-defined]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert all(float(draw.abs().max()) <= 1 for draw in draws)
    assert 0.01 < float((draws[0] - plain).abs().mean()) < 0.6


def test_edges_of_a_coarse_image_move_by_about_the_shift() -> None:
    """A vertical edge: without noise worth mentioning its place moves, by up to a few pixels."""
    image = torch.full((1, 64, 64), -1.0)
    image[:, :, 32:] = 1.0
    item = {"image": image, "contour": torch.zeros_like(image)}
    staged, moved = RefinerStaged(noise=1e-6, shift_px=3.0), []
    for seed in range(20):
        staged.set_random_state(seed)
        coarse = staged(item)["contour"][1].numpy()
        moved.append((coarse > 0).sum(axis=1).mean() - 32)
    assert 0.2 < np.std(moved) < 3


@pytest.mark.parametrize("options", [{"noise": -0.1}, {"shift_px": -1.0}])
def test_negative_faults_of_a_coarse_image_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected (noise|shift_px) to be a number from 0"):
        RefinerStaged(**options)  # type: ignore[arg-type]
