# SPDX-License-Identifier: Apache-2.0
"""The limit of contour fidelity separates translations of a contour from those of another patient's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from contourdiff.inference import IndependentCandidates, VolumeInferer
from contourdiff.sampling import Sampler, SelectionRules
from contourdiff_lab.metrics.contour_agreement import contour_agreement
from contourdiff_lab.metrics.fidelity_limit import (
    best_limit,
    centered_on,
    flag_rates,
    own_and_swapped_scores,
)
from helpers.paths import CONFIGS
from helpers.volumes import write_nifti

CT = ("torso", "thorax")
"""Real CT of two patients."""


def random_contour(seed: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random((30, 24)) < share


def test_rates_and_the_limit_that_separates_best() -> None:
    own = [0.9, 0.8, 0.7, 0.3]
    swapped = [0.5, 0.4, 0.2, 0.1]
    assert flag_rates(own, swapped, 0.6) == (0.75, 1.0)
    assert flag_rates(own, swapped, 0.3) == (1.0, 0.5)
    assert best_limit(own, swapped) == pytest.approx(0.6)
    with pytest.raises(
        ValueError, match="expected scores of own and of swapped slices, got 4 and 0"
    ):
        flag_rates(own, [], 0.5)


def test_a_swapped_contour_is_centered_on_the_own_one() -> None:
    contour = np.zeros((12, 9))
    contour[2:5, 3:8] = 1
    reference = np.zeros((20, 30))
    reference[10, 20] = reference[16, 26] = 1
    expected = np.zeros((20, 30), dtype=bool)
    expected[12:15, 21:26] = True
    np.testing.assert_array_equal(centered_on(contour, reference), expected)
    reference[:] = 0
    reference[0, 0] = 1
    assert centered_on(contour, reference).sum() == 2 * 3  # the rest leaves the image
    assert centered_on(contour, np.zeros((20, 30))).sum() == contour.sum()
    assert not centered_on(np.zeros((12, 9)), reference).any()


def test_own_and_swapped_scores_are_those_of_each_pair() -> None:
    contours = [random_contour(1), random_contour(2)]
    own, swapped = own_and_swapped_scores(contours, contours, contours[::-1], 0.0)
    assert own == [1.0, 1.0]
    for score, contour, partner in zip(swapped, contours, contours[::-1], strict=True):
        moved = centered_on(partner, contour)
        assert score == contour_agreement(contour, moved, 0.0).f1
        assert score < 0.3


@pytest.mark.slow
def test_swapped_slices_are_flagged_and_untouched_ones_pass(
    real_data: Path, inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    """Slices of two real CT volumes at the limit that ships, against their own contours and the other patient's."""
    parser = inference_parser(bundle_root=str(CONFIGS.parent), device="$torch.device('cpu')")
    network = parser.get_parsed_content("network").eval()
    check = parser.get_parsed_content("fidelity")
    sampler = Sampler(parser.get_parsed_content("scheduler"), num_inference_steps=4)
    painter = IndependentCandidates(sampler, SelectionRules(candidates=1, max_rounds=1))
    preprocessing = parser.get_parsed_content("preprocessing")
    sources = []
    for name in CT:
        path = write_four_slices(real_data / "ct" / f"{name}_ct.nii.gz", tmp_path)
        sources.append(preprocessing({"image": str(path)})["image"])
    results = VolumeInferer(painter, progress=False).translate(sources, network)
    own = []
    swapped = []
    for result, partner in (results, results[::-1]):
        exchanged = torch.zeros_like(result.contours)
        places = zip(filled(result.contours), filled(partner.contours), strict=True)
        for index, partner_index in places:
            moved = centered_on(partner.contours[partner_index], result.contours[index])
            exchanged[index] = torch.as_tensor(moved)
        for scores, contours in ((own, result.contours), (swapped, exchanged)):
            verdicts = check(contours, result.gray_levels[0], (1.0, 1.1, 1.1), result.box).slices
            scores += [verdict.fidelity for verdict in verdicts if verdict is not None]
    assert len(own) == len(swapped) == 8
    assert flag_rates(own, swapped, check.limit) == (1.0, 1.0), (own, swapped)
    assert flag_rates(own, swapped, best_limit(own, swapped)) == (1.0, 1.0)


def write_four_slices(ct: Path, folder: Path) -> Path:
    """A CT of four sagittal slices of another one, with air between them."""
    image = nib.as_closest_canonical(nib.load(ct))
    slices = np.asarray(image.dataobj)
    volume = np.full((7, *slices.shape[1:]), -1000, np.int16)
    for number, share in enumerate((0.3, 0.4, 0.5, 0.6)):
        volume[2 * number] = slices[int(share * len(slices))]
    return write_nifti(folder / ct.name, volume, image.affine)


def filled(contours: torch.Tensor) -> list[int]:
    """Slices that have a contour."""
    return contours.flatten(1).any(dim=1).nonzero().flatten().tolist()
