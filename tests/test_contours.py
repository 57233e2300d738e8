# SPDX-License-Identifier: Apache-2.0
"""Laws of the background filter and the contour: geometry, emptiness, refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.ndimage import label as connected
from skimage.filters import threshold_multiotsu
from skimage.morphology import diamond, erosion, remove_small_holes, remove_small_objects

from contourdiff.contours import (
    background_filter,
    contour_of,
    foreground_mask,
    lowest_multiotsu_threshold,
)
from contourdiff.phantom import lumbar_phantom

REAL_CT = Path(__file__).parents[2] / "shared" / "data" / "ct" / "torso_ct.nii.gz"
SIZES = {
    "min_object_px": 2000,
    "max_hole_px": 600,
}  # of the phantom's slices, 112 x 128 pixels of 2.2 mm
FILTER = {"classes": 4, **SIZES}  # of 2 classes of a CT slice, the lower would be air and fat


def gray_levels(hu: np.ndarray) -> np.ndarray:
    return np.clip((np.asarray(hu, dtype=np.float64) + 200) / 500, 0, 1) * 255


def smooth_image(seed: int) -> np.ndarray:
    image = gaussian_filter(np.random.default_rng(seed).normal(size=(97, 120)), 3)
    return np.clip((image - image.min()) / np.ptp(image) * 765 - 255, 0, 255)


@lru_cache
def phantom_volume() -> np.ndarray:
    return lumbar_phantom()[0]


@lru_cache
def real_volume() -> np.ndarray:
    if not REAL_CT.is_file():
        pytest.skip("the shared CT data are not beside this checkout")
    return np.asanyarray(nib.load(REAL_CT).dataobj)


def assert_contour_turns_with_the_slice(image: np.ndarray) -> None:
    contour = contour_of(image)
    assert contour.sum() > 0
    for axis in (0, 1):
        np.testing.assert_array_equal(contour_of(np.flip(image, axis)), np.flip(contour, axis))
        mask = foreground_mask(image, **SIZES)
        np.testing.assert_array_equal(
            foreground_mask(np.flip(image, axis), **SIZES), np.flip(mask, axis)
        )


@pytest.mark.parametrize("seed", range(4))
def test_contour_of_a_flipped_smooth_image_is_the_flipped_contour(seed: int) -> None:
    assert_contour_turns_with_the_slice(smooth_image(seed))
    assert_contour_turns_with_the_slice(np.round(smooth_image(seed)))


@pytest.mark.parametrize(("axis", "index"), [(0, 10), (0, 24), (0, 34), (1, 50), (2, 60), (2, 90)])
def test_contour_of_a_flipped_phantom_slice_is_the_flipped_contour(axis: int, index: int) -> None:
    assert_contour_turns_with_the_slice(gray_levels(np.take(phantom_volume(), index, axis)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_contour_of_a_flipped_real_slice_is_the_flipped_contour(axis: int, where: float) -> None:
    volume = real_volume()
    assert_contour_turns_with_the_slice(
        gray_levels(np.take(volume, int(volume.shape[axis] * where), axis))
    )


def test_contour_of_a_square_surrounds_it_and_has_its_symmetry() -> None:
    image = np.zeros((40, 40))
    image[10:30, 10:30] = 200
    contour = contour_of(image)
    for other in (contour[::-1], contour[:, ::-1], contour.T):
        np.testing.assert_array_equal(contour, other)
    square = image > 0
    near_rim = ~binary_erosion(square, iterations=2) & ~binary_erosion(
        ~square, iterations=2, border_value=1
    )
    assert contour.sum() >= 4 * 18
    assert not contour[~near_rim].any()


def test_contour_holds_zeros_and_ones_and_leaves_its_input_alone() -> None:
    image = gray_levels(phantom_volume()[24])
    before = image.copy()
    contour = contour_of(image)
    assert contour.dtype == np.float32
    assert contour.shape == image.shape
    assert set(np.unique(contour)) == {0.0, 1.0}
    background_filter(image, **SIZES)
    np.testing.assert_array_equal(image, before)


def test_contour_ignores_the_level_and_shrinks_with_the_thresholds() -> None:
    image = np.clip(gray_levels(phantom_volume()[24]), 0, 200)
    np.testing.assert_array_equal(contour_of(image), contour_of(image + 32))
    loose, strict = contour_of(image), contour_of(image, low_threshold=120, high_threshold=240)
    assert 0 < strict.sum() < loose.sum()
    assert not (strict > loose).any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 0)),
        np.zeros((0, 7)),
        np.zeros((7, 0)),
        np.ones((1, 1)),
        np.eye(2) * 255,
        np.arange(5.0)[None] * 60,
    ]
    + [np.full((64, 64), level) for level in (0.0, 17.5, 255.0)],
    ids=lambda image: "x".join(map(str, image.shape)),
)
def test_empty_tiny_and_constant_slices_have_an_empty_contour(image: np.ndarray) -> None:
    contour = contour_of(image)
    assert contour.shape == image.shape
    assert contour.dtype == np.float32
    assert not contour.any()
    mask = foreground_mask(image)
    assert mask.shape == image.shape
    assert mask.dtype == bool
    assert not mask.any()
    assert background_filter(image).shape == image.shape


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_gray_levels_do_not_fail(classes: int) -> None:
    for levels in ([0, 255], [0, 1, 255], [0, 1, 2, 255]):
        image = np.repeat(np.asarray(levels, dtype=float), 40)[None].repeat(60, axis=0)
        assert foreground_mask(image, classes=classes, min_object_px=10).shape == image.shape


@pytest.mark.parametrize("index", [16, 20, 24, 28, 32])
def test_filter_removes_the_table_and_keeps_the_body(index: int) -> None:
    hu = phantom_volume()[index]
    parts, count = connected(hu > -600)
    sizes = np.bincount(parts.ravel())[1:]
    assert count >= 2
    body = parts == 1 + int(np.argmax(sizes))
    rest = (parts > 0) & ~body
    assert rest.sum() > 200  # the table's slab
    mask = foreground_mask(gray_levels(hu), **FILTER)
    assert not mask[rest].any()
    assert (mask & body).sum() > 0.95 * body.sum()
    filtered = background_filter(gray_levels(hu), **FILTER)
    np.testing.assert_array_equal(filtered, np.where(mask, gray_levels(hu), 0))


def test_without_the_filter_the_table_would_leave_a_contour() -> None:
    image = gray_levels(phantom_volume()[24])
    behind = np.s_[:9]
    assert contour_of(image)[behind].any()
    assert not contour_of(background_filter(image, **FILTER))[behind].any()


def test_filter_fills_bowel_gas() -> None:
    hu = phantom_volume()[24]
    gas = hu < -800
    gas[:60] = gas[92:] = False  # the air around the body
    assert gas.sum() > 20
    assert foreground_mask(gray_levels(hu), **FILTER)[gas].all()


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize(
    ("min_object_px", "max_hole_px"), [(0, 0), (50, 20), (2000, 600), (8000, 3000)]
)
def test_filter_equals_its_four_scikit_image_steps(
    classes: int, min_object_px: int, max_hole_px: int
) -> None:
    for image in (
        gray_levels(phantom_volume()[24]),
        gray_levels(phantom_volume()[:, :, 60]),
        smooth_image(1),
    ):
        expected = image > threshold_multiotsu(image, classes=classes)[0]
        expected = erosion(expected, diamond(1))
        expected = remove_small_objects(expected, max_size=max(min_object_px - 1, 0))
        expected = remove_small_holes(expected, max_size=max_hole_px)
        mask = foreground_mask(
            image, classes=classes, min_object_px=min_object_px, max_hole_px=max_hole_px
        )
        np.testing.assert_array_equal(mask, expected)


def test_body_that_is_cut_by_the_edge_of_the_image_gets_no_frame() -> None:
    image = np.zeros((60, 60))
    image[:, 20:] = 200
    mask = foreground_mask(image, min_object_px=100, max_hole_px=10)
    np.testing.assert_array_equal(mask[:, 21:], True)
    np.testing.assert_array_equal(mask[:, :21], False)


def test_objects_and_holes_are_measured_inclusively() -> None:
    image = np.zeros((60, 60))
    image[10:22, 10:22] = 200  # 100 pixels are left by the erosion, in a square of 10 x 10
    assert foreground_mask(image, min_object_px=100, max_hole_px=0).sum() == 100
    assert foreground_mask(image, min_object_px=101, max_hole_px=0).sum() == 0
    image[10:50, 10:50] = 200
    image[30:33, 30:33] = 0  # 21 pixels with what the erosion adds
    assert foreground_mask(image, min_object_px=100, max_hole_px=21)[31, 31]
    assert not foreground_mask(image, min_object_px=100, max_hole_px=20)[31, 31]


def test_a_small_slice_without_a_body_is_no_hole() -> None:
    image = np.zeros((40, 40))
    image[5:9, 5:9] = 200
    assert not foreground_mask(image, min_object_px=100, max_hole_px=3000).any()


@pytest.mark.parametrize("function", [contour_of, foreground_mask, background_filter])
def test_volumes_and_non_finite_slices_are_refused(
    function: Callable[[np.ndarray], np.ndarray],
) -> None:
    with pytest.raises(
        ValueError, match=r"expected one slice \(H, W\), got an array of shape \(3, 4, 5\)"
    ):
        function(np.zeros((3, 4, 5)))
    for bad in (np.nan, np.inf, -np.inf):
        image = np.zeros((16, 16))
        image[3, 3] = bad
        with pytest.raises(ValueError, match="expected finite gray levels, got NaN or infinity"):
            function(image)


def test_impossible_settings_of_contour_and_filter_are_refused() -> None:
    with pytest.raises(ValueError, match="classes must be 2 or more, got 1"):
        foreground_mask(np.zeros((8, 8)), classes=1)
    for low, high in ((-1.0, 5.0), (9.0, 5.0)):
        with pytest.raises(ValueError, match="expected 0 <= low_threshold <= high_threshold, got"):
            contour_of(np.zeros((8, 8)), low_threshold=low, high_threshold=high)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_lowest_threshold_cuts_where_scikit_image_cuts(classes: int) -> None:
    phantom = phantom_volume()
    images = [gray_levels(phantom[index]) for index in (12, 24, 36)]
    images += [gray_levels(phantom[:, index]) for index in (50, 70)]
    images += [smooth_image(seed) for seed in range(4)]
    images.append(np.repeat([0.0, 40.0, 90.0, 200.0], 5).reshape(4, 5))
    for image in images:
        expected = image > threshold_multiotsu(image, classes=classes)[0]
        found = image > lowest_multiotsu_threshold(image, classes)
        np.testing.assert_array_equal(found, expected)


def test_fewer_gray_levels_than_classes_have_no_threshold() -> None:
    with pytest.raises(ValueError, match="expected 4 gray levels or more, got 3"):
        lowest_multiotsu_threshold(np.array([[0.0, 10.0, 200.0]]), 4)
