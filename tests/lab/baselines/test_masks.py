# SPDX-License-Identifier: Apache-2.0
"""Laws of the coarse masks and of MaskGAN's two terms, and masks of real slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from skimage.measure import label as connected_components

from contourdiff.transforms import BackgroundFilterd, InPlaneResampled
from contourdiff_lab.baselines.cycle import CycleBatch
from contourdiff_lab.baselines.masks import (
    CoarseMask,
    CoarseMaskd,
    MaskTerm,
    ShapeConsistencyTerm,
    coarse_mask,
)

ATTENTION = ("ct_to_mr_fake", "mr_to_ct_fake", "mr_to_ct_cycled", "ct_to_mr_cycled")


def body(gray: float = 120.0) -> np.ndarray:
    image = np.zeros((40, 48))
    image[8:32, 10:38] = gray
    return image


def test_the_mask_is_the_body_without_table_and_noise_and_with_its_small_holes() -> None:
    image = body()
    image[15:19, 20:24] = image[25, 30] = 0  # 16 px and 1 px
    image[36:39, 5:43] = 200  # a table
    image[32:36, 20] = 200  # a cable from the body to the table
    image[::7, 0:6] = 90  # noise of single pixels
    expected = body() > 0
    expected[[8, 8, 31, 31], [10, 37, 10, 37]] = (
        False  # the cross of the opening rounds the corners
    )
    expected[32, 20] = True  # and leaves one pixel of the cable
    np.testing.assert_array_equal(coarse_mask(image) > 0, expected)


def test_a_hole_is_filled_up_to_the_size_that_is_set() -> None:
    image = body()
    image[14:19, 20:25] = 0  # 25 px
    assert coarse_mask(image, max_hole_px=24)[16, 22] == 0
    assert coarse_mask(image, max_hole_px=25)[16, 22] == 1


def test_a_pixel_is_body_above_the_threshold() -> None:
    assert coarse_mask(body(10.0), threshold=10.0).sum() == 0
    assert coarse_mask(body(10.1), threshold=10.0)[20, 20] == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_the_mask_of_a_flipped_slice_is_the_flipped_mask(axis: int) -> None:
    image = body()
    image[10:20, 12:15] = 0
    np.testing.assert_array_equal(
        coarse_mask(np.flip(image, axis)), np.flip(coarse_mask(image), axis)
    )


def test_a_slice_that_is_dark_or_tiny_has_an_empty_mask() -> None:
    assert coarse_mask(np.zeros((9, 9))).sum() == coarse_mask(np.zeros((1, 1))).sum() == 0


def test_a_volume_is_masked_slice_by_slice() -> None:
    volume = torch.stack([torch.tensor(body(gray)) for gray in (0.0, 50.0, 200.0)], dim=-1)[None]
    masks = CoarseMask(slice_axis=2, threshold=60.0)(volume)
    assert masks.dtype == torch.float32
    assert masks.sum(dim=(0, 1, 2)).tolist() == [0, 0, 24 * 28 - 4]
    both = CoarseMaskd(["ct", "mr"], ["ct_mask", "mr_mask"])(
        {"ct": volume[..., 0], "mr": volume[..., 2]}
    )
    assert both["mr"].equal(volume[..., 2])
    assert both["mr_mask"].equal(masks[..., 2])


def batch(masks: tuple[float, float], attention: tuple[float, ...]) -> CycleBatch:
    """A batch of 2 constant slices: the masks of CT and MR, and attention in the order of ``ATTENTION``."""
    image = torch.zeros(2, 1, 4, 4)
    extras = {
        f"{name}_attention": torch.full_like(image, value)
        for name, value in zip(ATTENTION, attention, strict=True)
    }
    extras |= {"ct_mask": image + masks[0], "mr_mask": image + masks[1]}
    return CycleBatch(image, image, image, image, image, image, extras=extras)


def test_the_mask_term_is_the_distance_of_attention_and_background() -> None:
    # CT is body everywhere: 0.25 of attention on the input is 0.25 too much. MR is background: 0.6 is 0.4 too little
    assert MaskTerm(2.0)(batch((1, 0), (0.25, 0.6, 0, 0))).item() == pytest.approx(2 * (0.25 + 0.4))
    assert MaskTerm()(batch((1, 0), (0, 1, 0.5, 0.5))) == 0


def test_the_mask_term_weighs_pixels_alike() -> None:
    images = batch((1, 1), (0, 0, 0, 0))
    images.extras["ct_mask"][0, 0, 0, :3] = 0  # 3 of 32 pixels
    assert MaskTerm()(images).item() == pytest.approx(3 / 32)


def test_the_shape_term_is_the_distance_of_the_attention_within_each_cycle() -> None:
    assert ShapeConsistencyTerm()(batch((1, 1), (0.1, 0.9, 0.4, 0.2))).item() == pytest.approx(
        0.5 * (0.3 + 0.7)
    )
    assert ShapeConsistencyTerm()(batch((1, 1), (0.3, 0.8, 0.3, 0.8))) == 0


def test_the_terms_move_both_generators_toward_agreement() -> None:
    images = batch((1, 0), (0.5, 0.5, 0.25, 0.75))
    leaves = [images.extras[f"{name}_attention"].requires_grad_() for name in ATTENTION]
    (MaskTerm(1.0)(images) + ShapeConsistencyTerm(1.0)(images)).backward()
    # fake: of the mask and of the shape term, each 1/32 a pixel; cycled: of the shape term alone
    assert [
        round(32 * leaf.grad.flatten()[0].item()) for leaf in leaves if leaf.grad is not None
    ] == [2, -2, -1, 1]


@pytest.mark.parametrize("term", [MaskTerm(), ShapeConsistencyTerm()])
def test_a_batch_without_attention_is_refused(term: MaskTerm | ShapeConsistencyTerm) -> None:
    image = torch.zeros(1, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"expected 'ct_to_mr_fake_attention' in the batch, got \['ct_mask'\]"
    ):
        term(CycleBatch(image, image, image, image, image, image, extras={"ct_mask": image}))


def prepared(path: Path, label: Path, *, is_ct: bool) -> dict[str, torch.Tensor]:
    """A real image in gray levels, filtered and resampled as in a training, and where its vertebrae are."""
    keys = ["image", "label"]
    sizes = (9600.0, 3600.0) if is_ct else (2400.0, 48000.0)
    load = Compose(
        [
            LoadImaged(keys, image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            InPlaneResampled(keys, spacing_mm=2.2, slice_axis=0, mode=["bilinear", "nearest"]),
            ScaleIntensityRanged("image", -200, 300, 0, 255, clip=True)
            if is_ct
            else ScaleIntensityRangePercentilesd("image", 1, 95, 0, 255, clip=True),
            BackgroundFilterd("image", classes=4, min_object_mm2=sizes[0], max_hole_mm2=sizes[1]),
        ]
    )
    return load({"image": path, "label": label})


def assert_body(image: torch.Tensor, vertebrae: torch.Tensor, threshold: float) -> None:
    """The mask is in one piece, covers tissue and vertebrae, and leaves out what is black."""
    mask = CoarseMask(threshold=threshold)(image)[0]
    for piece, gray, bone in zip(mask, image[0], vertebrae[0] > 0, strict=True):
        assert connected_components(piece.numpy()).max() == 1
        assert piece[bone].mean() > 0.98 or not bone.any()
        assert piece[gray > 50].mean() > 0.97
        assert 0.1 < piece.mean() < 0.97


@pytest.mark.slow
def test_masks_of_real_ct_cover_body_and_vertebrae(real_data: Path) -> None:
    case = prepared(
        real_data / "ct/torso_ct.nii.gz", real_data / "ct/torso_vertebrae.nii.gz", is_ct=True
    )
    assert_body(case["image"][:, 5:-5:5], case["label"][:, 5:-5:5], threshold=10.0)


def test_masks_of_real_mr_cover_body_and_vertebrae(real_data: Path) -> None:
    files = sorted((real_data / "mr_lumbar_labelled/images").glob("*.nii.gz"))
    for path in files[::2]:
        case = prepared(path, path.parents[1] / "labels" / path.name, is_ct=False)
        assert_body(case["image"], case["label"], threshold=5.0)
