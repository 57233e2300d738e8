# SPDX-License-Identifier: Apache-2.0
"""In-plane resampling: smoothing and MONAI's resampling in one invertible transform, of images but not of labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, Spacingd
from skimage.data import camera
from skimage.transform import resize

from contourdiff.transforms import InPlaneResampled
from contourdiff.transforms.in_plane_resample import InPlaneSmooth
from helpers.volumes import oblique_affine

VOLUME = np.stack([np.roll(camera()[::8, ::8], 5 * k, axis=0) for k in range(4)])[None].astype(
    np.float32
)
SPACING_MM = 2.2


def oblique() -> MetaTensor:
    values = torch.rand(1, 9, 23, 31, generator=torch.Generator().manual_seed(0)) * 255
    return MetaTensor(
        values, affine=oblique_affine((3.1, 1.3, 1.1)), meta={"filename_or_obj": "a.nii.gz"}
    )


def test_smoothing_is_that_of_a_resize_and_leaves_the_slice_axis_alone() -> None:
    image = MetaTensor(torch.as_tensor(VOLUME), affine=np.diag([4, 1, 1, 1]))
    smooth = InPlaneSmooth(spacing_mm=2.0)(image)
    expected = resize(
        VOLUME[0, 2], (32, 32), order=1, anti_aliasing=True, mode="edge", preserve_range=True
    )
    halved = np.asarray(smooth)[0, 2].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(halved - expected)[2:-2, 2:-2].max() < 2
    alone = InPlaneSmooth(spacing_mm=2.0)(image[:, 2:3])
    np.testing.assert_array_equal(np.asarray(alone)[0, 0], np.asarray(smooth)[0, 2])
    np.testing.assert_array_equal(InPlaneSmooth(spacing_mm=0.5)(image), image)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("padding_mode", "dtype"), [("border", np.float64), ("zeros", "float32")])
def test_in_plane_resampling_equals_smoothing_and_then_monai(
    axis: int, padding_mode: str, dtype: object
) -> None:
    image = oblique()
    label = (image > 200).float()
    settings = {"mode": ["bilinear", "nearest"], "padding_mode": padding_mode, "dtype": dtype}
    pixdim = [-1 if other == axis else SPACING_MM for other in range(3)]
    smooth = {"image": InPlaneSmooth(SPACING_MM, axis)(image), "label": label}
    expected = Spacingd(["image", "label"], pixdim, **settings)(smooth)  # type: ignore[arg-type]
    transform = InPlaneResampled(["image", "label"], SPACING_MM, slice_axis=axis, **settings)  # type: ignore[arg-type]
    result = transform({"image": image, "label": label})
    for key in ("image", "label"):
        assert torch.equal(result[key].as_tensor(), expected[key].as_tensor())
        assert torch.equal(result[key].affine, expected[key].affine)
    spacing = [float(size) for size in result["image"].pixdim]
    assert spacing == pytest.approx(
        [float(image.pixdim[axis]) if other == axis else 2.2 for other in range(3)]
    )
    assert torch.equal(image.as_tensor(), oblique().as_tensor())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_inverse_of_in_plane_resampling_is_on_the_original_grid(axis: int) -> None:
    image = oblique()
    transform = InPlaneResampled("image", SPACING_MM, slice_axis=axis)
    data = transform({"image": image})
    data["pred"] = data["image"].clone()
    back = Invertd("pred", transform, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert back.shape == image.shape
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)


def test_in_plane_resampling_refuses_other_axes_and_plain_tensors() -> None:
    with pytest.raises(
        ValueError, match="expected slice_axis to be a whole number from 0 to 2, got 3"
    ):
        InPlaneResampled("image", SPACING_MM, slice_axis=3)
    with pytest.raises(
        ValueError, match=r"expected a MetaTensor \(C, H, W, D\), got Tensor of \(1, 4, 4\)"
    ):
        InPlaneResampled("image", SPACING_MM)({"image": torch.zeros(1, 4, 4)})
