# SPDX-License-Identifier: Apache-2.0
"""Surroundings of bone: fat and muscle outside, a dark rim at the border, and labels that still fit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt

from contourdiff.limits import SettingError
from contourdiff.transforms import RandBoneSurroundings, RandBoneSurroundingsd

PIXEL_MM = 1.5
BONE = 2


@pytest.fixture(scope="module")
def item(thorax_slice: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A slice whose vertebrae are class 2."""
    return {**thorax_slice, "label": BONE * (thorax_slice["label"] > 0)}


def transform(seed: int = 0, **options: object) -> RandBoneSurroundingsd:
    arguments = {"classes": [BONE], "pixel_mm": PIXEL_MM, "probability": 1.0, **options}
    made = RandBoneSurroundingsd("image", **arguments)
    made.set_random_state(seed)
    return made


def depth_mm(bone: np.ndarray) -> np.ndarray:
    """Distance from the border of the bone, negative inside."""
    return PIXEL_MM * (distance_transform_edt(~bone) - distance_transform_edt(bone))


def test_the_surroundings_change_and_the_range_and_the_label_stay(item: dict) -> None:
    before = item["label"].copy()
    far = depth_mm(item["label"][0] > 0) > 55
    assert far.sum() > 500
    for seed in range(10):
        image = transform(seed)(item)["image"]
        assert image.dtype == np.float32
        assert image.shape == item["image"].shape
        assert 0 <= image.min() < image.max() <= 1
        assert np.abs(image - item["image"]).mean() > 0.01
        ratio = image[0][far] / np.maximum(item["image"][0][far], 1e-3)
        assert np.ptp(ratio[item["image"][0][far] > 0.1]) < 0.03  # scaled at most
    assert np.array_equal(item["label"], before)


def test_bone_is_darker_at_its_border_than_inside(item: dict) -> None:
    """In CT it is brighter there. The rim is narrower than a pixel, so its level is a mean."""
    distance = depth_mm(item["label"][0] > 0)
    border, inside = distance == -PIXEL_MM, distance < -3
    assert item["image"][0][border].mean() > item["image"][0][inside].mean()
    for seed in range(5):
        image = transform(seed)(item)["image"][0]
        assert image[border].mean() < image[inside].mean()


def test_fat_is_brighter_than_bone_in_some_slices_and_muscle_darker(item: dict) -> None:
    distance = depth_mm(item["label"][0] > 0)
    around, inside = (distance > 3) & (distance < 20), distance < -3
    brighter, darker = [], []
    for seed in range(20):
        image = transform(seed)(item)["image"][0]
        level = np.median(image[inside])
        brighter.append(np.mean(image[around] > 1.1 * level))
        darker.append(np.mean(image[around] < 0.6 * level))
    assert max(brighter) > 0.4
    assert max(darker) > 0.4
    assert np.ptp(brighter) > 0.2


def test_fat_is_where_the_ct_has_it(item: dict) -> None:
    """In the image, a windowed CT, fat is the darker one."""
    ct = 500 * item["image"] - 200
    distance = depth_mm(item["label"][0] > 0)
    around = (distance > 3) & (distance < 20)
    fat = around & (ct[0] > -130) & (ct[0] < -70)
    muscle = around & (ct[0] > 20) & (ct[0] < 90)
    assert min(fat.sum(), muscle.sum()) > 200
    assert item["image"][0][fat].mean() < item["image"][0][muscle].mean()
    for seed in range(10):
        image = transform(seed, ct_share=1.0)({**item, "ct": ct})["image"][0]
        assert image[fat].mean() > 1.2 * image[muscle].mean()


def test_gas_in_the_ct_is_black(item: dict) -> None:
    """A lung beside a vertebra, whatever the translation made of it."""
    ct = 500 * item["image"] - 200
    distance = depth_mm(item["label"][0] > 0)
    lung = (distance > 6) & (distance < 20)
    lung[:, : lung.shape[1] // 2] = False
    ct[0][lung] = -850
    image = item["image"].copy()
    image[0][lung] = 0.8
    deep = lung & (distance > 9) & (distance < 17)
    assert deep.sum() > 200
    dark = []
    for seed in range(10):
        made = transform(seed, ct_share=1.0)({**item, "image": image, "ct": ct})["image"][0]
        dark.append(np.mean(made[deep] < 0.1))
    assert np.mean(dark) > 0.5  # of the regions that change
    assert max(dark) > 0.9


def test_the_ct_is_used_in_its_share_of_the_slices(item: dict) -> None:
    ct = 500 * item["image"] - 200
    never, made, without = (transform(0, ct_share=share) for share in (0.0, 0.6, 0.6))
    no_fat = np.full_like(ct, 60)
    assert np.array_equal(
        never({**item, "ct": ct})["image"],
        transform(0, ct_share=0.0)({**item, "ct": no_fat})["image"],
    )
    assert np.array_equal(without(item)["image"], transform(0)(item)["image"])
    used = 0
    for seed in range(60):
        made.set_random_state(seed)
        with_fat = made({**item, "ct": ct})["image"]
        made.set_random_state(seed)
        used += not np.array_equal(with_fat, made({**item, "ct": no_fat})["image"])
    assert 25 < used < 47


def test_other_classes_empty_slices_and_probability_0_change_nothing(item: dict) -> None:
    for other in (transform(classes=[]), transform(classes=[1]), transform(probability=0.0)):
        np.testing.assert_array_equal(other(item)["image"], item["image"])
    empty = {"image": item["image"], "label": np.zeros_like(item["label"])}
    np.testing.assert_array_equal(transform()(empty)["image"], item["image"])


def test_half_of_the_slices_change_by_default(item: dict) -> None:
    default = RandBoneSurroundingsd("image", classes=[BONE])
    default.set_random_state(3)
    changed = [not np.array_equal(default(item)["image"], item["image"]) for _ in range(60)]
    assert 0.3 < np.mean(changed) < 0.7


def test_the_same_seed_gives_the_same_slice(item: dict) -> None:
    first = transform(5)
    copy = pickle.loads(pickle.dumps(first))
    image = first(item)["image"]
    np.testing.assert_array_equal(image, copy(item)["image"])
    np.testing.assert_array_equal(image, transform(5)(item)["image"])
    assert not np.array_equal(image, transform(6)(item)["image"])


def test_air_stays_dark(item: dict) -> None:
    image = item["image"].copy()
    image[:, :40] = 0
    changed = transform(1)({"image": image, "label": item["label"] * (image > 0)})["image"]
    assert changed[:, :36].max() < 0.05


def test_a_tensor_with_metadata_stays_one(item: dict) -> None:
    data = {"image": MetaTensor(item["image"]), "label": MetaTensor(item["label"])}
    image = transform()(data)["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), transform()(item)["image"])


@pytest.mark.parametrize("options", [{"pixel_mm": 0}, {"probability": 1.5}, {"ct_share": -0.1}])
def test_values_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        RandBoneSurroundings(**options)
