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

from contourdiff.contours import outline_of
from contourdiff.transforms.add_outline import CT_CONTOUR, add_outline
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
        add_outline(torch.zeros(1, 2, 3, 4), label)
