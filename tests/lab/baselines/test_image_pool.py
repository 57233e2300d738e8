# SPDX-License-Identifier: Apache-2.0
"""The pool keeps every image or gives it back, and goes on from a checkpoint as if it had not stopped."""

from __future__ import annotations

import pytest
import torch

from contourdiff_lab.baselines.image_pool import ImagePool


def image(number: int) -> torch.Tensor:
    return torch.full((1, 1, 2, 2), float(number))


def test_a_filling_pool_returns_what_is_new_and_a_full_one_loses_nothing() -> None:
    pool = ImagePool(3)
    torch.manual_seed(0)
    returned = [float(pool(image(number))[0, 0, 0, 0]) for number in range(200)]
    assert returned[:3] == [0, 1, 2]
    kept = [float(old[0, 0, 0]) for old in pool.images]
    assert sorted(returned[3:] + kept) == list(range(200))  # the first three are returned and kept
    assert len(kept) == 3


def test_half_of_the_images_are_exchanged() -> None:
    pool = ImagePool(5)
    torch.manual_seed(0)
    same = [bool((pool(image(number)) == number).all()) for number in range(2005)][5:]
    assert 0.46 < sum(same) / len(same) < 0.54


def test_a_pool_without_room_returns_every_image_without_its_gradient() -> None:
    new_image = image(4).requires_grad_()
    returned = ImagePool(0)(new_image)
    assert torch.equal(returned, new_image)
    assert not returned.requires_grad
    with pytest.raises(ValueError, match="pool_size must be 0 or more, got -1"):
        ImagePool(-1)


def test_a_later_change_of_an_image_does_not_reach_the_pool() -> None:
    pool = ImagePool(1)
    new_image = image(4)
    pool(new_image)
    new_image.zero_()
    assert pool.images[0].unique().tolist() == [4]


def test_a_pool_goes_on_from_its_state() -> None:
    pool, resumed = ImagePool(4), ImagePool(4)
    for number in range(10):
        pool(image(number))
    resumed.load_state_dict(pool.state_dict())
    results = []
    for continued in (pool, resumed):
        torch.manual_seed(3)
        results.append([continued(image(number)) for number in range(20, 40)])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
