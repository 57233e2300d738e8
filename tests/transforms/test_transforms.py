# SPDX-License-Identifier: Apache-2.0
"""Transforms: slice by slice, with the image's geometry kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange
from skimage.data import camera

from contourdiff.contours import background_filter, contour_of
from contourdiff.transforms import (
    BackgroundFilter,
    BackgroundFilterd,
    Contour,
    Contourd,
    GrayLevels,
    Slicewise,
    Slicewised,
)

VOLUME = np.stack([np.roll(camera()[::8, ::8], 5 * k, axis=0) for k in range(4)])[None].astype(
    np.float32
)
AFFINE = np.array([[3.0, 0, 0, 5], [0, 2, 0, -7], [0, 0, 1.5, 11], [0, 0, 0, 1]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_contour_and_filter_of_a_volume_equal_those_of_its_slices(axis: int) -> None:
    volume = np.moveaxis(VOLUME, 1, axis + 1)
    contour = Contour(axis, sigma_px=1, low_threshold=20, high_threshold=40)(volume)
    filtered = BackgroundFilter(axis, classes=2, min_object_mm2=50, max_hole_mm2=30)(volume)
    for index in range(4):
        source = VOLUME[0, index]
        expected = contour_of(source, sigma_px=1, low_threshold=20, high_threshold=40)
        np.testing.assert_array_equal(np.take(contour[0], index, axis), expected)
        expected = background_filter(source, classes=2, min_object_px=50, max_hole_px=30)
        np.testing.assert_array_equal(
            np.take(filtered[0], index, axis), expected.astype(np.float32)
        )


def test_metatensor_keeps_affine_meta_and_history() -> None:
    image = MetaTensor(
        torch.as_tensor(VOLUME), affine=AFFINE, meta={"filename_or_obj": "case.nii.gz"}
    )
    image.push_applied_operation({"class": "Something"})
    data = Contourd("image", output_keys="contour")(
        BackgroundFilterd("image", min_object_mm2=10)({"image": image})
    )
    for key in ("image", "contour"):
        assert isinstance(data[key], MetaTensor)
        np.testing.assert_array_equal(data[key].affine, AFFINE)
        assert data[key].meta["filename_or_obj"] == "case.nii.gz"
        assert data[key].applied_operations == image.applied_operations
    assert set(np.unique(data["contour"])) == {0.0, 1.0}


def test_sizes_of_the_background_filter_are_physical() -> None:
    """The same sizes in mm² remove the same things at twice the spacing."""
    calls = []
    for spacing in (1.0, 2.0):
        size = int(128 / spacing)
        image = np.zeros((1, 1, size, size), dtype=np.float32)
        image[..., : size // 2, : size // 2] = 200
        image[..., -size // 8 :, -size // 8 :] = 180
        affine = np.diag([4, spacing, spacing, 1])
        mask = BackgroundFilter(min_object_mm2=1000, max_hole_mm2=0)(
            MetaTensor(torch.as_tensor(image), affine=affine)
        )
        calls.append((bool(mask[..., 10, 10].all()), bool(mask[..., -4, -4].any())))
    assert calls == [(True, False)] * 2


def test_two_dimensional_image_is_one_slice() -> None:
    image = VOLUME[:, 0]
    np.testing.assert_array_equal(Contour()(image), Contour()(image[:, None])[:, 0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slicewise_changes_no_bit_of_the_windowing(axis: int) -> None:
    """Of MONAI's transform of the whole volume, that is."""
    hu = torch.as_tensor(
        np.random.default_rng(0).uniform(-1100, 2000, (1, 9, 8, 7)).astype(np.float32)
    )
    volume = MetaTensor(hu, affine=torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0])))
    window = ScaleIntensityRange(a_min=-200, a_max=300, b_min=0, b_max=255, clip=True)
    whole = window(volume)
    sliced = Slicewised("image", transform=window, slice_axis=axis)({"image": volume})["image"]
    assert torch.equal(sliced.as_tensor(), whole.as_tensor())
    assert torch.equal(sliced.affine, volume.affine)
    assert torch.equal(volume.as_tensor(), hu)
    assert torch.equal(Slicewise(window, slice_axis=axis)(volume).as_tensor(), whole.as_tensor())


def test_a_slicewise_transform_refuses_an_image_without_channel() -> None:
    with pytest.raises(
        ValueError, match=r"expected \(C, H, W\) or \(C, H, W, D\), got shape \(4, 4\); add Ensure"
    ):
        Contour()(np.zeros((4, 4)))


def test_an_unknown_argument_of_the_array_transform_is_refused() -> None:
    with pytest.raises(TypeError, match="sigma_mm"):
        Contourd("image", sigma_mm=1.0)


def test_output_keys_are_one_for_each_key() -> None:
    with pytest.raises(ValueError, match="expected one output key for each of"):
        Contourd(["image", "other"], output_keys="contour")


def test_a_missing_key_is_allowed_on_demand() -> None:
    assert Contourd("image", allow_missing_keys=True)({"other": 1}) == {"other": 1}
    with pytest.raises(KeyError):
        Contourd("image")({"other": 1})


def test_gray_levels_clip_and_round() -> None:
    image = torch.tensor([-3.0, 0.4, 0.6, 254.6, 300.0])
    assert GrayLevels("uint8")(image).tolist() == [0, 0, 1, 255, 255]
    assert GrayLevels()(image).tolist() == pytest.approx([0, 0.4, 0.6, 254.6, 255])
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'int8'"):
        GrayLevels("int8")
