# SPDX-License-Identifier: Apache-2.0
"""Random tissues: label and surroundings, and all tissues among themselves, in any order; nothing of the CT is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contourdiff.transforms import RandRemap
from contourdiff_lab.config_files import read_lab_config
from contourdiff_lab.rand_tissues import RandTissues, RandTissuesd

TISSUES = {"fat": 0.2, "muscle": 0.5, "marrow": 0.8, "cortical": 1.0}
"""Gray levels of CT windowed to [-200, 300] HU."""
IMAGE = torch.tensor([[[*TISSUES.values(), TISSUES["marrow"], 0.0]]])
LABEL = torch.tensor([[[0, 0, 0, 0, 1, 1]]])


def draws(transform: RandTissues, count: int = 400) -> np.ndarray:
    """Levels of the tissues, of marrow as a class, and of air: ``(count, 6)``."""
    transform.set_random_state(0)
    return np.stack([np.asarray(transform(IMAGE, LABEL))[0, 0] for _ in range(count)])


def test_label_and_surroundings_are_independent_and_air_stays_dark() -> None:
    """The same CT value inside and outside of the label: no correlation, either order as often."""
    levels = draws(RandTissues())
    assert (levels[:, 5] == 0).all()
    assert 0 <= levels.min() <= levels.max() <= 1
    assert abs(np.corrcoef(levels[:, 2], levels[:, 4])[0, 1]) < 0.1
    assert 0.4 < np.mean(levels[:, 4] > levels[:, 2]) < 0.6


def share_in_order(levels: np.ndarray) -> float:
    return float((np.diff(levels, axis=1) > 0).all(axis=1).mean())


def test_tissues_come_in_any_order_and_the_curve_is_seldom_monotonic() -> None:
    """Every order of four tissues occurs; a random curve that blends with the CT keeps its order far more often."""
    levels, remap = draws(RandTissues())[:, :4], RandRemap(1.0).set_random_state(0)
    assert len({tuple(np.argsort(row)) for row in levels}) == 24
    remapped = np.stack([np.asarray(remap(IMAGE))[0, 0, :4] for _ in range(400)])
    assert share_in_order(levels) < 0.1
    assert share_in_order(remapped) > 0.2


def test_equal_pixels_stay_equal_and_other_keys_are_kept() -> None:
    item = {"image": IMAGE.expand(1, 3, 6), "label": LABEL.expand(1, 3, 6), "other": 1}
    first, second, again = (
        RandTissuesd("image").set_random_state(seed)(item) for seed in (1, 2, 1)
    )
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], second["image"])
    assert torch.equal(first["image"][:, 0], first["image"][:, 2])
    assert first["label"] is item["label"]
    assert first["other"] == 1


def test_too_few_knots_are_refused() -> None:
    with pytest.raises(ValueError, match="2 knots or more"):
        RandTissues(knots=1)


def test_the_overlay_says_nothing_of_the_ct_s_contrast() -> None:
    """The whole augmentation: the label is brighter or darker than the rest, and images fill [0, 1] as in a test."""
    names = ("segmentation_train", "segmentation_ct", "segmentation_randomized")
    parser = read_lab_config(names, {})
    augment = parser.get_parsed_content("augmentation").set_random_state(0)
    image = torch.full((1, 128, 128), 0.5)
    image[:, 44:84, 44:84] = 0.8
    signs = []
    for _ in range(60):
        item = augment({"image": image, "label": (image > 0.6).float()})
        assert item["image"].shape == (1, 128, 128)
        assert (float(item["image"].min()), float(item["image"].max())) == (0, 1)
        inside = item["label"] > 0
        signs.append(float(item["image"][inside].mean() > item["image"][~inside].mean()))
    assert 0.25 < np.mean(signs) < 0.85
