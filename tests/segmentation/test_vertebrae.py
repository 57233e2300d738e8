# SPDX-License-Identifier: Apache-2.0
"""The bundle that segments vertebrae in MR, as it is shipped."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff.data.atomic import read_json
from contourdiff.data.label_map import LabelMap
from contourdiff.segmentation import segment
from contourdiff.segmentation.model_bundle import METADATA
from contourdiff.segmentation.results import score_results
from contourdiff.weights import sha256_of
from helpers.paths import REPOSITORY
from helpers.segmentation import verify_with_monai

BUNDLE = REPOSITORY / "bundles" / "contourdiff_vertebrae_mr"
WEIGHTS = BUNDLE / "models" / "model.pt"


def test_metadata_and_network_are_valid_for_monai(tmp_path: Path) -> None:
    verify_with_monai(BUNDLE, tmp_path)


def test_the_card_names_the_weights_and_repeats_the_measures() -> None:
    card = (BUNDLE / "docs" / "README.md").read_text()
    assert sha256_of(WEIGHTS) in card
    assert WEIGHTS.stat().st_size < 20e6
    measures = read_json(BUNDLE / METADATA)["eval_metrics"]
    assert measures
    for name, value in measures.items():
        assert f"| {value:.3f} |" in card, name


@pytest.mark.slow
def test_vertebrae_of_slices_of_both_contrasts_are_found(real_data: Path, tmp_path: Path) -> None:
    """The Dice of all slices of a contrast together is that of the card, of three decimals."""
    data = real_data / "mr_lumbar_labelled"
    results = segment(BUNDLE, data / "images", tmp_path, device="cpu")
    rows = score_results(results, data / "labels", LabelMap(BUNDLE / "label_map.json"))
    measures = read_json(BUNDLE / METADATA)["eval_metrics"]
    for contrast in ("t1", "t2"):
        chosen = [row for row in rows if f"_{contrast}_" in row["case"]]
        common = sum(row["intersection"] for row in chosen)
        voxels = sum(row["pred_voxels"] + row["label_voxels"] for row in chosen)
        assert 2 * common / voxels == pytest.approx(measures[f"dice_spider_{contrast}"], abs=0.003)


@pytest.mark.slow
def test_an_mr_of_any_orientation_keeps_its_grid(real_data: Path, tmp_path: Path) -> None:
    image = nib.load(real_data / "mr_lumbar_space_labelled" / "images" / "space_011_t2space.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    for name, volume in (("a", image), ("b", turned)):
        nib.save(volume, tmp_path / f"{name}.nii.gz")
    first, second = (nib.load(path) for path in segment(BUNDLE, tmp_path, tmp_path / "out"))
    for result, volume in ((first, image), (second, turned)):
        np.testing.assert_allclose(result.affine, volume.affine, atol=1e-4)
        assert result.shape == volume.shape
    one, other = (
        np.asarray(nib.as_closest_canonical(result).dataobj) > 0 for result in (first, second)
    )
    assert one.any()
    assert np.mean(one != other) < 0.001
