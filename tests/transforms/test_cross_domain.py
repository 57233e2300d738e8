# SPDX-License-Identifier: Apache-2.0
"""Augmentation across modalities: each part does what its name says to a real slice, and geometry stays."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from numpy.random import RandomState
from scipy.ndimage import laplace
from scipy.stats import rankdata

from contourdiff.transforms import RandCrossDomain, RandCrossDomaind
from contourdiff.transforms.cross_domain import FUNCTIONS, PARTS

NONE = dict.fromkeys(PARTS, 0.0)


@pytest.fixture(scope="module")
def item(thorax_slice: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return thorax_slice


def changed(name: str, image: np.ndarray, label: np.ndarray, seed: int = 0) -> np.ndarray:
    part, _ = PARTS[name]
    return part(image, label, RandomState(seed))


@pytest.mark.parametrize("name", PARTS)
def test_every_part_changes_a_slice_and_keeps_its_range(name: str, item: dict) -> None:
    """No level leaves [0, 1] or is undefined, whatever the draw; constant slices and single pixels pass, too."""
    transform = RandCrossDomaind("image", probabilities=NONE | {name: 1.0}).set_random_state(0)
    before = item["label"].copy()
    for _ in range(10):
        image = transform(item)["image"]
        assert image.dtype == np.float32
        assert image.shape == item["image"].shape
        assert np.isfinite(image).all()
        assert 0 <= image.min() < image.max() <= 1
    assert np.abs(image - item["image"]).mean() > 0.005
    assert np.array_equal(item["label"], before)
    for level in (0.0, 0.5, 1.0):
        flat = transform({"image": np.full((1, 16, 16), level), "label": np.zeros((1, 16, 16))})
        assert np.isfinite(flat["image"]).all()


def test_redistribution_gives_every_class_levels_of_its_own(item: dict) -> None:
    """The mean of a vertebra says nothing of its mean in the CT: brighter than the rest as often as darker."""
    vertebra = item["label"] == item["label"].max()
    background = item["label"] == 0
    order = []
    for seed in range(100):
        image = changed("redistribution", item["image"], item["label"], seed)
        order.append(image[vertebra].mean() > image[background].mean())
    assert item["image"][vertebra].mean() > item["image"][background].mean()
    assert 0.35 < np.mean(order) < 0.65


def test_redistribution_keeps_the_texture_of_a_class() -> None:
    """Within a class, far from its border, levels are a line of those before."""
    image = np.linspace(0.3, 0.7, 40, dtype=np.float32)[None, None].repeat(40, axis=1)
    image += 0.02 * np.sin(np.arange(40))[None, :, None]
    label = np.zeros((1, 40, 40))
    label[..., 20:] = 1
    after = changed("redistribution", image, label, seed=3)
    for columns in (slice(0, 15), slice(25, 40)):
        line = np.corrcoef(image[..., columns].ravel(), after[..., columns].ravel())[0, 1]
        assert line > 0.99


def test_an_equalized_level_is_the_share_of_darker_pixels(item: dict) -> None:
    after = changed("equalization", item["image"], item["label"])
    rank = rankdata(item["image"], method="max").reshape(after.shape)
    assert np.corrcoef(rank.ravel(), after.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"sine"}))
def test_monotonic_functions_keep_the_order_of_levels(name: str) -> None:
    levels = np.linspace(0, 1, 101)
    assert (np.diff(FUNCTIONS[name](levels)) > 0).all()


def test_edges_are_the_same_for_bright_and_dark(item: dict) -> None:
    edges = changed("edges", item["image"], item["label"])
    inverse = changed("inverse", item["image"], item["label"])
    of_inverse = changed("edges", inverse, item["label"])
    np.testing.assert_allclose(edges, of_inverse, atol=1e-5)


def test_a_convolution_moves_no_edge(item: dict) -> None:
    """A point far from a changed pixel does not notice it: kernels have 5 px at most."""
    image = item["image"]
    other = image.copy()
    other[0, 60, 60] = 1 - other[0, 60, 60]
    for seed in range(20):
        difference = changed("convolution", image, image, seed)
        difference = difference - changed("convolution", other, image, seed)
        rows = np.abs(difference[0]).max(axis=1)
        scale = np.abs(difference[0]).max()
        if scale < 0.05:
            continue
        far = np.delete(rows, np.arange(55, 66))
        assert far.max() < 0.5 * scale


def test_a_bias_field_does_not_see_the_anatomy(item: dict) -> None:
    """The quotient of after and before is one smooth field for every image."""
    bright = 0.2 + 0.1 * item["image"]
    dark = np.full_like(bright, 0.1)
    quotient = changed("bias_field", bright, item["label"]) / bright
    of_dark = changed("bias_field", dark, item["label"]) / dark
    np.testing.assert_allclose(quotient, of_dark, rtol=1e-4)
    assert np.abs(np.diff(np.log(quotient[0]), axis=0)).max() < 0.15
    assert np.ptp(quotient) > 0.3


def test_low_resolution_loses_detail_and_unsharp_gains_it(item: dict) -> None:
    before = np.abs(laplace(item["image"][0])).mean()
    blurred = changed("low_resolution", item["image"], item["label"])
    sharp = changed("unsharp", item["image"], item["label"])
    assert np.abs(laplace(blurred[0])).mean() < 0.9 * before
    assert np.abs(laplace(sharp[0])).mean() > 1.2 * before


def test_parts_are_used_as_often_as_their_probabilities_say() -> None:
    transform = RandCrossDomain().set_random_state(0)
    counts: Counter[str] = Counter()
    for _ in range(1000):
        transform.randomize()
        counts.update(transform.used)
    for name, (_, chance) in PARTS.items():
        assert abs(counts[name] / 1000 - chance) < 0.05


def test_the_same_seed_gives_the_same_slice_as_array_tensor_and_metatensor(item: dict) -> None:
    image = item["image"]
    label = item["label"]
    results = []
    for version in (image, torch.as_tensor(image), MetaTensor(image)):
        transform = RandCrossDomaind("image").set_random_state(4)
        out = transform({"image": version, "label": label, "case": "a"})
        assert type(out["image"]) is type(version)
        assert out["case"] == "a"
        results.append(np.asarray(out["image"]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    other = RandCrossDomaind("image").set_random_state(5)(item)
    assert not np.array_equal(results[0], other["image"])


def test_it_goes_without_a_label_and_into_the_processes_of_a_loader(item: dict) -> None:
    transform = pickle.loads(pickle.dumps(RandCrossDomaind("image", label_key=None)))
    image = transform.set_random_state(1)({"image": item["image"]})["image"]
    assert not np.array_equal(image, item["image"])


def test_unknown_parts_bad_probabilities_and_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="a part of the augmentation must be one of"):
        RandCrossDomain({"blur": 0.5})
    with pytest.raises(ValueError, match="expected probability of noise to be a number from 0"):
        RandCrossDomain({"noise": 1.5})
    with pytest.raises(ValueError, match=r"expected an image and a label \(1, H, W\)"):
        RandCrossDomain()(np.zeros((1, 4, 4, 4)))
