# SPDX-License-Identifier: Apache-2.0
"""Contour fidelity: what departs from the given contour is measured, counted and mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from contourdiff.inference import IndependentCandidates, VolumeInferer
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.metrics.contour_agreement import contour_agreement
from contourdiff.metrics.contour_fidelity import (
    ContourFidelityCheck,
    best_limit,
    centered_on,
    fidelity_codes,
    flag_rates,
    own_and_swapped_scores,
    slice_fidelity,
)
from contourdiff.sampling import Sampler, SelectionRules
from contourdiff.transforms import Contour
from helpers import (
    CONFIGS,
    as_case,
)


def random_contour(seed: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random((30, 24)) < share


def boxes(offset: int = 0) -> torch.Tensor:
    """Five slices of gray levels; a bright box in the middle three."""
    volume = torch.zeros(5, 40, 36)
    volume[1:4, 10 + offset : 30 + offset, 8:28] = 200
    return volume


def check(limit: float = 0.7, axis: int = 0) -> ContourFidelityCheck:
    return ContourFidelityCheck(
        Contour(axis, sigma_px=1.0, low_threshold=20, high_threshold=40), 2.2, limit, axis
    )


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (2.2, 2.2), (0.7, 1.9)])
@pytest.mark.parametrize("tolerance_mm", [0.0, 1.9, 2.2])
def test_codes_count_to_the_shares(spacing_mm: tuple[float, float], tolerance_mm: float) -> None:
    found, given = random_contour(1), random_contour(2)
    codes = fidelity_codes(found, given, tolerance_mm, spacing_mm)
    verdict = slice_fidelity(found, given, tolerance_mm, 0.5, spacing_mm)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal((codes == 1) | (codes == 3), given)
    assert (codes == 2).sum() / found.sum() == pytest.approx(verdict.invented)
    assert (codes == 3).sum() / given.sum() == pytest.approx(verdict.lost)
    assert verdict.fidelity == contour_agreement(found, given, tolerance_mm, spacing=spacing_mm).f1
    assert verdict.suspect == (verdict.fidelity < 0.5)


def test_swapping_the_contours_swaps_invented_and_lost() -> None:
    found, given = random_contour(1), random_contour(2)
    one, other = (slice_fidelity(*pair, 1.0, 0.5) for pair in ((found, given), (given, found)))
    assert (one.invented, one.lost) == (other.lost, other.invented)


def test_a_blank_translation_loses_all_and_invents_nothing() -> None:
    blank, given = np.zeros((30, 24)), random_contour(2)
    assert slice_fidelity(blank, given, 1.0, 0.5) == (0.0, 1.0, 0.0, True)
    assert slice_fidelity(given, blank, 1.0, 0.5) == (1.0, 0.0, 0.0, True)
    assert slice_fidelity(blank, blank, 1.0, 0.5) == (0.0, 0.0, 1.0, False)
    np.testing.assert_array_equal(fidelity_codes(blank, given, 1.0), given * 3)
    np.testing.assert_array_equal(fidelity_codes(given, blank, 1.0), given * 2)


def test_what_follows_its_contour_passes_and_what_is_moved_does_not() -> None:
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    good, moved = check()(given, boxes()), check()(given, boxes(offset=5))
    assert [verdict is None for verdict in good.slices] == [True, False, False, False, True]
    assert good.slices[1] == (0.0, 0.0, 1.0, False)
    assert good.suspects == []
    np.testing.assert_array_equal(good.codes, given.numpy())
    assert moved.suspects == [1, 2, 3]
    assert moved.summary()["checked"] == 3
    assert moved.summary()["suspects"] == [1, 2, 3]
    assert moved.summary()["invented_median"] == moved.slices[1].invented > 0.2  # type: ignore[union-attr]
    assert (
        moved.warning() == "3 of 3 slices below the fidelity limit (slices 1, 2, 3): look at them"
    )
    assert moved.warning(most=2).endswith("(slices 1, 2, ...): look at them")
    assert check(limit=0.0)(given, boxes(offset=5)).suspects == []


@pytest.mark.parametrize("axis", [1, 2])
def test_slice_axis_and_in_plane_spacing(axis: int) -> None:
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    spacing_mm = [1.0, 0.5]
    plain = check()(given, boxes(offset=4), [9.0, *spacing_mm])
    spacing_mm.insert(axis, 9.0)
    moved = check(axis=axis)(given.moveaxis(0, axis), boxes(offset=4).moveaxis(0, axis), spacing_mm)
    assert moved.slices == plain.slices
    np.testing.assert_array_equal(np.moveaxis(moved.codes, axis, 0), plain.codes)


def test_the_border_of_the_box_is_no_contour() -> None:
    """Air may be a little gray in the box and is 0 outside it."""
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    translation, box = boxes(), (slice(0, 5), slice(4, 36), slice(3, 33))
    translation[box] = translation[box].clamp(min=60)
    assert check()(given, translation).slices[1].invented > 0.2  # type: ignore[union-attr]
    assert check()(given, translation, box=box).slices[1] == (0.0, 0.0, 1.0, False)


def test_nothing_to_check() -> None:
    nothing = check()(torch.zeros(4, 10, 9), torch.zeros(4, 10, 9))
    assert nothing.slices == [None] * 4
    assert nothing.summary()["fidelity_median"] is None


@pytest.mark.parametrize(("tolerance_mm", "limit"), [(-1.0, 0.5), (2.2, 1.5), (float("nan"), 0.5)])
def test_settings_out_of_range_are_explained(tolerance_mm: float, limit: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected fidelity_tolerance_mm of 0 or more and fidelity_limit in \[0, 1\]",
    ):
        ContourFidelityCheck(Contour(), tolerance_mm, limit)


def test_rates_and_the_limit_that_separates_best() -> None:
    own, swapped = [0.9, 0.8, 0.7, 0.3], [0.5, 0.4, 0.2, 0.1]
    assert flag_rates(own, swapped, 0.6) == (0.75, 1.0)
    assert flag_rates(own, swapped, 0.3) == (1.0, 0.5)
    assert best_limit(own, swapped) == pytest.approx(0.6)
    with pytest.raises(
        ValueError, match="expected scores of own and of swapped slices, got 4 and 0"
    ):
        flag_rates(own, [], 0.5)


def test_a_swapped_contour_is_centered_on_the_own_one() -> None:
    contour, reference = np.zeros((12, 9)), np.zeros((20, 30))
    contour[2:5, 3:8] = 1
    reference[10, 20] = reference[16, 26] = 1
    moved = centered_on(contour, reference)
    expected = np.zeros((20, 30), dtype=bool)
    expected[12:15, 21:26] = True
    np.testing.assert_array_equal(moved, expected)
    reference[:] = 0
    reference[0, 0] = 1
    assert centered_on(contour, reference).sum() == 2 * 3  # the rest leaves the image
    assert centered_on(contour, np.zeros((20, 30))).sum() == contour.sum()
    assert not centered_on(np.zeros((12, 9)), reference).any()


def test_own_and_swapped_scores_are_those_of_each_pair() -> None:
    found = [random_contour(seed) for seed in (1, 2)]
    own, swapped = own_and_swapped_scores(found, found, found[::-1], 0.0)
    assert own == [1.0, 1.0]
    for score, output, mine, other in zip(swapped, found, found, found[::-1], strict=True):
        assert score == contour_agreement(output, centered_on(other, mine), 0.0).f1 < 0.3


def test_swapped_slices_are_flagged_and_untouched_ones_pass(
    real_data: Path, inference_parser: Callable[..., ConfigParser]
) -> None:
    """Slices of two real CT volumes at the limit that ships, against their own contours and the other patient's."""
    parser = inference_parser(bundle_root=str(CONFIGS.parent), device="$torch.device('cpu')")
    network, preprocessing = (
        parser.get_parsed_content(name) for name in ("network", "preprocessing")
    )
    check = parser.get_parsed_content("fidelity")
    records: list[VolumeResult] = []
    sampler = Sampler(parser.get_parsed_content("scheduler"), num_inference_steps=8)
    painter = IndependentCandidates(sampler, SelectionRules(candidates=1, max_rounds=1))
    translator = VolumeInferer(painter, progress=False)
    for name in ("torso_ct", "thorax_ct"):
        volume = preprocessing({"image": str(real_data / "ct" / f"{name}.nii.gz")})["image"]
        given = torch.zeros_like(volume)
        for share in (0.3, 0.4, 0.5, 0.6):
            given[:, int(share * volume.shape[1])] = volume[:, int(share * volume.shape[1])]
        records += translator.translate(
            as_case([MetaTensor(given[0]).as_tensor()], [name]), network.eval()
        )
    own, swapped = [], []
    for record, other in (records, records[::-1]):
        filled = [
            torch.nonzero(item.contours.any(dim=2).any(dim=1)).flatten().tolist()
            for item in (record, other)
        ]
        exchanged = torch.zeros_like(record.contours)
        for index, partner in zip(*filled, strict=True):
            exchanged[index] = torch.as_tensor(
                centered_on(other.contours[partner], record.contours[index])
            )
        for scores, contour in ((own, record.contours), (swapped, exchanged)):
            verdicts = check(contour, record.gray_levels[0], (1.0, 1.1, 1.1), record.box).slices
            scores.extend(verdict.fidelity for verdict in verdicts if verdict is not None)
    assert len(own) == len(swapped) == 8
    assert flag_rates(own, swapped, check.limit) == (1.0, 1.0), (own, swapped)
    assert flag_rates(own, swapped, best_limit(own, swapped)) == (1.0, 1.0)
