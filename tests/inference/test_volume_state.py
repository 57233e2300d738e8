# SPDX-License-Identifier: Apache-2.0
"""The result of a volume: contours, box, spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from contourdiff.inference import VolumeResult
from contourdiff.inference.volume_state import contour_box
from contourdiff.sampling import SelectionRules
from helpers.inferers import as_case, denoiser_of, make_inferer, random_contours
from helpers.networks import make_seeded


def recorded(volume: torch.Tensor, **options: Any) -> VolumeResult:
    (result,) = make_inferer(**options).translate(as_case([volume], ["a"]), make_seeded())
    return result


def test_unconditional_translations_know_the_box_and_the_slices_alone() -> None:
    """Other contours in the same box give the same output; with contours they do not."""
    first, second = random_contours(0), random_contours(1)
    for volume in (first, second):
        volume[1, [0, -1], [0, -1]] = 1  # the corners of one box
    one, other = (recorded(volume, unconditional=True) for volume in (first, second))
    assert not torch.equal(first, second)
    assert one.box == other.box
    assert torch.equal(one.gray_levels, other.gray_levels)
    assert torch.equal(one.contours, first)
    assert not one.gray_levels[0][[0, 3]].any()
    assert one.gray_levels[0][[1, 2, 4, 5, 6]].flatten(1).any(dim=1).all()
    conditional = [recorded(volume).gray_levels[0] for volume in (first, second)]
    assert not torch.equal(*conditional)
    assert not torch.equal(one.gray_levels[0], conditional[0])


@pytest.mark.parametrize("axis", [0, 2])
def test_the_result_holds_contours_translation_and_box(axis: int) -> None:
    volume = random_contours().moveaxis(0, axis).contiguous()
    record = recorded(volume, slice_axis=axis)
    assert torch.equal(record.contours, volume)
    assert record.gray_levels[0].shape == volume.shape
    assert record.spread is None
    outside = record.gray_levels[0].clone()
    outside[record.box] = 0
    assert not outside.any()
    assert record.contours[record.box].sum() == volume.sum()


def test_spread_is_the_deviation_over_every_candidate_of_every_round() -> None:
    """Candidates drawn one by one, each in a batch of its own, padded to the same size."""
    volume, rules = (
        random_contours(shape=(5, 12, 8)),
        SelectionRules(candidates=3, max_rounds=2, distance_threshold=0.0),
    )
    record = recorded(volume, rules=rules, keep_spread=True, margin_px=99)
    assert record.spread is not None
    plain, network = make_inferer(rules=rules, margin_px=99), make_seeded()
    for index in (1, 2, 4):
        choice = record.choices[index]
        assert choice is not None
        contour = volume[index][None, None].expand(4, -1, -1, -1)
        keys = [
            ("a", index, round_, number) for round_ in range(choice.rounds) for number in range(3)
        ]
        images = torch.stack([denoiser_of(plain, network)(contour, [key] * 4)[0] for key in keys])
        torch.testing.assert_close(record.spread[index], images.std(dim=0))
    assert not record.spread[[0, 3]].any()


def test_spread_of_a_single_candidate_is_unknown() -> None:
    rules = SelectionRules(candidates=1, max_rounds=2, mean_threshold=256.0, distance_threshold=1e9)
    record = recorded(random_contours(), rules=rules, keep_spread=True)
    assert record.spread is not None
    assert record.spread[1][record.box[1:]].isnan().all()
    with pytest.raises(ValueError, match="an uncertainty map requires 2 candidates a slice"):
        make_inferer(rules=SelectionRules(candidates=1, max_rounds=1), keep_spread=True)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_the_box_surrounds_all_contours_with_a_margin_where_there_is_room(kind: Any) -> None:
    edges = np.zeros((2, 5, 6))
    edges[0, 1, 2] = edges[1, 2, 3] = 1
    assert contour_box(kind(edges), 0) == (slice(1, 3), slice(2, 4))
    assert contour_box(kind(edges), 1) == (slice(0, 4), slice(1, 5))
    assert contour_box(kind(edges), 9) == (slice(0, 5), slice(0, 6))
    assert contour_box(kind(np.zeros((2, 5, 6))), 1) == (slice(0, 5), slice(0, 6))
