# SPDX-License-Identifier: Apache-2.0
"""The outline of a label in the contour: on the grid of the networks, one pixel wide, between classes, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from scipy.ndimage import label as components_of

from contourdiff.contours import (
    CORTEX_MM,
    MARROW_MM,
    SOFT_TISSUE_MM,
    SURFACE_MM,
    bone_contour,
    outline_of,
    surface_distance,
)
from contourdiff.transforms.add_outline import CT_CONTOUR, AddOutlined, label_on_grid
from helpers.volumes import ball_ct, oblique_affine, write_nifti

AFFINE = oblique_affine((3.0, 2.5, 4.0))


def test_no_way_leads_from_one_class_to_another_but_through_the_outline() -> None:
    label = np.random.default_rng(0).integers(0, 4, (6, 7)).repeat(5, axis=0).repeat(5, axis=1)
    outline = outline_of(label)
    regions, count = components_of(outline == 0)
    for region in range(1, count + 1):
        assert len(np.unique(label[regions == region])) == 1
    for axis in (0, 1):
        np.testing.assert_array_equal(np.flip(outline, axis), outline_of(np.flip(label, axis)))


def test_the_outline_is_one_pixel_wide_and_none_at_the_border() -> None:
    label = np.zeros((20, 24), np.int16)
    label[5:, 4:14] = 27
    label[5:, 14:20] = 28
    outline = outline_of(label)
    np.testing.assert_array_equal(np.flatnonzero(outline[12]), [4, 14, 19])
    np.testing.assert_array_equal(np.flatnonzero(outline[:, 8]), [5])
    assert not outline_of(np.full((5, 5), 3)).any()


def test_the_outline_is_added_on_the_grid_of_the_networks(
    inference_parser: Callable[..., ConfigParser], tmp_path: Path
) -> None:
    ct = ball_ct((10, 40, 36))
    label = np.zeros(ct.shape, np.uint8)
    label[3:7, 10:20, 12:22] = 27
    image = write_nifti(tmp_path / "a.nii.gz", ct, AFFINE)
    path = write_nifti(tmp_path / "labels" / "a.nii.gz", label, AFFINE)
    preprocessing = inference_parser(min_object_mm2=100.0, filter_classes=3).get_parsed_content(
        "preprocessing"
    )
    plain = preprocessing({"image": str(image), "label": str(path)})
    item = preprocessing({"image": str(image), "label": str(path), "outline": True})
    assert CT_CONTOUR not in plain
    np.testing.assert_array_equal(item[CT_CONTOUR], plain["image"])
    contour, both = (np.asarray(volume["image"][0]) for volume in (plain, item))
    assert set(np.unique(both)) == {0, 1}
    assert (both >= contour).all()
    added = np.argwhere(both > contour)
    assert set(added[:, 0]) == {3, 4, 5, 6}
    in_mm = apply_affine(np.asarray(item["image"].affine), added)
    _, rows, columns = apply_affine(np.linalg.inv(AFFINE), in_mm).T
    from_sides_mm = [(rows - 9.5) * 2.5, (19.5 - rows) * 2.5]
    from_sides_mm += [(columns - 11.5) * 4, (21.5 - columns) * 4]
    inside_mm = np.min(from_sides_mm, axis=0)
    assert inside_mm.min() > -0.01
    assert inside_mm.max() < 1.3  # a pixel of 1.1 mm; corners are rounded
    assert isinstance(item["image"], MetaTensor)
    for operation, expected in zip(
        item["image"].applied_operations, plain["image"].applied_operations, strict=True
    ):
        assert operation["class"] == expected["class"]


def test_an_outline_without_a_grid_is_an_error(tmp_path: Path) -> None:
    label = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.uint8), np.eye(4))
    with pytest.raises(ValueError, match=r"expected a MetaTensor \(1, H, W, D\), got Tensor of"):
        label_on_grid(torch.zeros(1, 2, 3, 4), label)


def disk(
    size: int, radius_mm: float, center_mm: tuple[float, float], pixel_mm: float
) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] * pixel_mm
    return np.hypot(rows - center_mm[0], columns - center_mm[1]) - radius_mm


@pytest.mark.parametrize("pixel_mm", [0.5, 1.1])
def test_the_distance_from_a_surface_is_right_to_a_part_of_a_pixel(pixel_mm: float) -> None:
    truth = disk(101, 15.0, (26.3, 25.9), pixel_mm)
    distance = surface_distance(truth <= 0, (pixel_mm, pixel_mm))
    near_surface = np.abs(truth) < 4 * pixel_mm
    assert np.abs(distance - truth)[near_surface].max() < 0.6 * pixel_mm
    assert np.abs((distance - truth)[near_surface].mean()) < 0.1 * pixel_mm
    assert np.isinf(surface_distance(np.zeros((9, 9), bool), (1.0, 1.0))).all()


def test_a_bone_has_its_contour_at_the_marrow_and_not_on_both_sides_of_the_cortex() -> None:
    truth = disk(120, 20.0, (40.0, 42.0), 0.7)
    ct = np.random.default_rng(0).random(truth.shape) < 0.3
    contour = bone_contour(ct, [truth <= 0], (0.7, 0.7))
    far = (truth < -CORTEX_MM - 1) | (truth > SURFACE_MM + 1)
    np.testing.assert_array_equal(contour[far], ct[far])
    around = truth[(contour > 0) & (truth > 1 - CORTEX_MM) & (truth < SURFACE_MM - 1)]
    assert len(around) > 100  # the marrow has a closed contour
    assert abs(around.mean() + MARROW_MM) < 0.15
    assert np.abs(around + MARROW_MM).max() < 0.8  # a pixel, and the corners of the disk
    both = bone_contour(ct, [truth <= 0], (0.7, 0.7), soft_tissue=True)
    added = truth[both > contour]
    assert len(added) > len(around)
    assert abs(added.mean() - SOFT_TISSUE_MM) < 0.3


def test_bones_that_nearly_touch_keep_a_contour_each() -> None:
    left, right = disk(120, 14.0, (40.0, 24.5), 0.7), disk(120, 14.0, (40.0, 54.5), 0.7)
    bones = [left <= 0, right <= 0]
    empty = np.zeros(left.shape)
    together = bone_contour(empty, bones, (0.7, 0.7))
    for bone in bones:
        alone = bone_contour(empty, [bone], (0.7, 0.7))
        assert (together >= alone).all()
    both = bone_contour(empty, bones, (0.7, 0.7), soft_tissue=True)
    assert not both[(both > together) & ((left < -0.5) | (right < -0.5))].any()


def test_bones_of_an_item_have_a_contour_of_their_own_and_other_labels_an_outline(
    tmp_path: Path,
) -> None:
    label = np.zeros((4, 40, 60), np.uint8)
    label[1:3, 10:30, 5:25] = 7
    label[1:3, 10:30, 35:55] = 8
    path = write_nifti(tmp_path / "a.nii.gz", label, np.eye(4))
    ct = np.zeros((1, *label.shape), np.float32)
    ct[0, :, 9, :] = 1
    contour = MetaTensor(torch.as_tensor(ct), affine=torch.eye(4))
    item = {"image": contour, "label": str(path), "bone_values": [7]}
    bone_alone = AddOutlined("image")(item)
    assert CT_CONTOUR not in bone_alone
    marrow = np.asarray(bone_alone["image"][0])
    np.testing.assert_array_equal(marrow[[0, 3]], ct[0, [0, 3]])  # slices without bone
    assert not marrow[1, 9, 6:24].any()
    assert marrow[1, 10, 6:24].all()
    np.testing.assert_array_equal(marrow[..., 35:], ct[0, ..., 35:])
    outlined = AddOutlined("image")({**item, "outline": True})
    np.testing.assert_array_equal(outlined[CT_CONTOUR], bone_alone["image"])
    shown = np.asarray(outlined["image"][0])
    assert shown[1, 29, 35:55].all()  # the other label
    assert shown[1, 31, 6:24].all()  # the soft tissue beside the bone
    assert (shown >= marrow).all()
    assert ct[0, 1, 9, 6:24].all()  # the item's own contour is as it was
