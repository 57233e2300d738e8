# SPDX-License-Identifier: Apache-2.0
"""Shapes of a labelled CT: on the model's grid, resampled once, the first one unwarped, outlines by a fixed share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from contourdiff.data.label_map import LabelMap
from contourdiff.pairs.shapes import ModelGrid, Shapes
from contourdiff.transforms.warp import WarpStrength
from helpers.paths import LABEL_MAP
from helpers.volumes import ball_ct, oblique_affine, read_voxels, write_nifti

AFFINE = oblique_affine((3.0, 2.5, 2.0))
CT = ball_ct((12, 40, 44))
LABEL = np.where(CT > 200, 30, 0).astype(np.int16)
SAGITTAL = ModelGrid("RAS", 0, 1.1, (-200.0, 300.0))
Written = dict[int, tuple[Path, Path]]


def write_shapes(folder: Path, shapes: Shapes, numbers: tuple[int, ...] = (0, 1)) -> Written:
    """Files of the shapes of a CT with axes to the left, back and up."""
    flipped = [np.flip(volume, (0, 1)) for volume in (CT, LABEL)]
    affine = AFFINE @ np.diag([-1, -1, 1, 1])
    affine[:3, 3] = (AFFINE @ [CT.shape[0] - 1, CT.shape[1] - 1, 0, 1])[:3]
    image = write_nifti(folder / "a.nii.gz", flipped[0], affine)
    label = write_nifti(folder / "labels" / "a.nii.gz", flipped[1], affine)
    paths = {n: (folder / f"a_s{n}.nii.gz", folder / f"a_s{n}_l.nii.gz") for n in numbers}
    shapes.write(image, label, paths)
    return paths


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_shapes(tmp_path_factory.mktemp("shapes"), Shapes(SAGITTAL, WarpStrength()))


def test_shapes_are_on_the_grid_of_the_model(written: Written) -> None:
    for image_path, label_path in written.values():
        image, label = nib.load(image_path), nib.load(label_path)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.shape == label.shape
        np.testing.assert_allclose(image.header.get_zooms(), (3, 1.1, 1.1), atol=1e-5)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert set(np.unique(read_voxels(label_path))) == {0, 30}


def test_slices_beyond_the_margin_are_left_out(written: Written, tmp_path: Path) -> None:
    """The others are where they were."""
    whole = nib.load(written[1][1])
    for margin_mm, margin in ((0.0, 0), (3.5, 1), (1000.0, 100)):
        folder = tmp_path / str(margin)
        near = write_shapes(folder, Shapes(SAGITTAL, WarpStrength(), margin_mm=margin_mm), (1,))
        image, label = nib.load(near[1][0]), nib.load(near[1][1])
        labelled = np.flatnonzero(read_voxels(written[1][1]).any((1, 2)))
        kept = slice(max(labelled[0] - margin, 0), labelled[-1] + margin + 1)
        expected = whole.slicer[kept]
        assert image.shape == label.shape == expected.shape
        for volume in (image, label):
            np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
        np.testing.assert_array_equal(label.dataobj, expected.dataobj)


def test_the_first_shape_has_the_contour_of_the_ct_itself(
    written: Written, inference_parser: Callable[..., ConfigParser]
) -> None:
    """It is resampled once, as a translation does; rounding to whole HU may move a pixel."""
    image_path, label_path = written[0]
    parser = inference_parser(min_object_mm2=100.0, filter_classes=3)
    preprocessing = parser.get_parsed_content("preprocessing")
    contours = []
    for path in (image_path, image_path.with_name("a.nii.gz")):
        contours.append(np.asarray(preprocessing({"image": str(path)})["image"][0]) > 0)
    shape, ct = contours
    assert shape.shape == ct.shape
    assert np.count_nonzero(shape ^ ct) < 0.02 * np.count_nonzero(ct)
    volume_mm3 = np.count_nonzero(read_voxels(label_path)) * 3 * 1.1 * 1.1
    assert volume_mm3 == pytest.approx(np.count_nonzero(LABEL) * 15, rel=0.05)


def test_another_shape_is_warped_with_its_label(written: Written) -> None:
    (image, label), (other_image, other_label) = (map(read_voxels, written[n]) for n in (0, 1))
    common = np.count_nonzero((label > 0) & (other_label > 0))
    assert common < 0.95 * np.count_nonzero(label)
    bone, other_bone = image > 200, other_image > 200
    for mask, values in ((bone, label), (other_bone, other_label)):
        assert np.count_nonzero(mask & (values > 0)) > 0.9 * np.count_nonzero(mask)


def test_a_shape_depends_on_seed_case_and_number_alone(written: Written, tmp_path: Path) -> None:
    alone = write_shapes(tmp_path / "alone", Shapes(SAGITTAL, WarpStrength()), (1,))
    np.testing.assert_array_equal(read_voxels(alone[1][0]), read_voxels(written[1][0]))
    seeded = write_shapes(tmp_path / "seed", Shapes(SAGITTAL, WarpStrength(), seed=1))
    assert not np.array_equal(read_voxels(seeded[1][1]), read_voxels(written[1][1]))
    np.testing.assert_array_equal(read_voxels(seeded[0][0]), read_voxels(written[0][0]))


def test_slices_of_another_axis_keep_their_distance(tmp_path: Path) -> None:
    axial = Shapes(ModelGrid("RAS", 2, 1.0, (-160.0, 240.0)), WarpStrength())
    ((image_path, _),) = write_shapes(tmp_path, axial, (1,)).values()
    image = nib.load(image_path)
    np.testing.assert_allclose(image.header.get_zooms(), (1, 1, 2), atol=1e-5)
    voxels = read_voxels(image_path)
    assert voxels.min() == -1024  # what is black in the window is plainly CT
    assert np.unique(voxels)[1] > -160
    assert voxels.max() == 240


def test_labels_become_the_classes_of_a_label_map(tmp_path: Path) -> None:
    shapes = Shapes(SAGITTAL, WarpStrength(), label_map=LabelMap(LABEL_MAP))
    ((_, label_path),) = write_shapes(tmp_path, shapes, (0,)).values()
    assert set(np.unique(read_voxels(label_path))) == {0, 1}


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_exactly_a_share_of_the_shapes_is_outlined(probability: float) -> None:
    firsts = set()
    for case in "abcdefghijklmnop":
        shapes = Shapes(SAGITTAL, WarpStrength(), outline_probability=probability)
        outlined = [shapes.is_outlined(case, number) for number in range(16)]
        assert sum(outlined[:8]) == 8 * probability
        assert sum(outlined) == 16 * probability
        firsts.add(outlined[0])
    assert firsts == ({True, False} if 0 < probability < 1 else {probability == 1})
