# SPDX-License-Identifier: Apache-2.0
"""Laws of the digital phantom: what lies where, and that its files are whole and on one grid."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff.phantom import LABELS, SPACING_MM, lumbar_phantom, oblique_affine, write_phantom

SMALL = {"shape": (24, 56, 64), "spacing_mm": (8.0, 4.4, 4.4)}


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    return lumbar_phantom()


def test_same_seed_same_phantom_and_another_seed_another() -> None:
    volume, label = lumbar_phantom(**SMALL, seed=3)
    again, label_again = lumbar_phantom(**SMALL, seed=3)
    other, other_label = lumbar_phantom(**SMALL, seed=4)
    np.testing.assert_array_equal(volume, again)
    np.testing.assert_array_equal(label, label_again)
    assert (volume != other).any()
    np.testing.assert_array_equal(label, other_label)


def test_the_phantom_is_int16_hu_with_uint8_labels(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    volume, label = phantom
    assert (volume.dtype, label.dtype) == (np.int16, np.uint8)
    assert volume.shape == label.shape == (48, 112, 128)
    assert set(np.unique(label)) == {0, *LABELS.values()} == {0, 27, 28, 29, 30, 31}
    assert volume.min() >= -1024
    assert volume.max() < 3072


def test_labels_lie_strictly_in_bone_and_rise_from_l5_to_l1(
    phantom: tuple[np.ndarray, np.ndarray],
) -> None:
    volume, label = phantom
    assert volume[label > 0].min() > 100  # marrow is 180 HU, discs 80, the noise 12
    centers = [np.argwhere(label == value).mean(axis=0) for value in LABELS.values()]
    heights = [center[2] * SPACING_MM[2] for center in centers]
    np.testing.assert_allclose(np.diff(heights), 37.0, atol=3.0)
    fronts = [center[1] for center in centers]
    assert max(fronts[1:4]) > max(
        fronts[0], fronts[4]
    )  # lordosis: the middle lies in front of the ends


def test_bodies_are_as_wide_as_vertebrae(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    _, label = phantom
    for value in LABELS.values():
        right, front, _ = np.nonzero(label == value)
        in_front = front > np.percentile(front, 70)
        width_mm = (np.ptp(right[in_front]) + 1) * SPACING_MM[0]
        assert 36 <= width_mm <= 52


def test_canal_is_a_dark_unlabeled_tube_behind_every_vertebra(
    phantom: tuple[np.ndarray, np.ndarray],
) -> None:
    volume, label = phantom
    middle = slice(23, 25)
    for value in LABELS.values():
        up = round(np.argwhere(label == value)[:, 2].mean())
        line = label[24, :, up]
        front = np.flatnonzero(line == value).max()
        behind = front - round(
            44 / SPACING_MM[1]
        )  # body 34 mm deep, canal 2.5 to 17.5 mm behind it
        assert (line[behind - 1 : behind + 2] == 0).all()
        assert abs(volume[middle, behind - 1 : behind + 2, up].mean() - 5) < 25


def test_noise_has_its_standard_deviation(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    volume, _ = phantom
    corner = volume[:6, -6:, :].astype(
        float
    )  # air in front of the body; clipping at -1024 lifts the mean a little
    assert abs(np.median(corner) + 1000) < 2
    assert abs(np.percentile(corner, 84) - np.median(corner) - 12) < 2


def test_air_parts_body_and_table(phantom: tuple[np.ndarray, np.ndarray]) -> None:
    volume, _ = phantom
    line = volume[24, :, 60] > -600
    starts = np.flatnonzero(np.diff(line.astype(int)) == 1)
    assert line.sum() > 80
    assert len(starts) >= 2  # the table, then the body


@pytest.mark.parametrize(
    "bad", [{"shape": (4, 4)}, {"shape": (0, 4, 4)}, {"spacing_mm": (1.0, 0.0, 1.0)}]
)
def test_a_phantom_on_an_impossible_grid_is_refused(bad: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="expected three positive sizes and spacings"):
        lumbar_phantom(**bad)


def test_a_phantom_of_a_few_voxels_is_painted() -> None:
    for shape in ((1, 1, 1), (3, 2, 5)):
        volume, label = lumbar_phantom(shape=shape)
        assert volume.shape == label.shape == shape


def test_phantom_files_share_one_oblique_grid_and_hold_the_arrays(tmp_path: Path) -> None:
    path = write_phantom(tmp_path / "new", case="one", seed=5, **SMALL)
    assert path == tmp_path / "new" / "one.nii.gz"
    image, label = nib.load(path), nib.load(tmp_path / "new" / "labels" / "one.nii.gz")
    volume, expected_label = lumbar_phantom(**SMALL, seed=5)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume)
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), expected_label)
    assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    np.testing.assert_array_equal(image.affine, label.affine)
    for file in (image, label):
        np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-3)
        assert (int(file.header["qform_code"]), int(file.header["sform_code"])) == (1, 1)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(
        nib.affines.voxel_sizes(image.affine), SMALL["spacing_mm"], rtol=1e-6
    )
    assert nib.affines.obliquity(image.affine).max() > np.deg2rad(6)


def test_oblique_affine_is_a_rotation_times_the_spacing() -> None:
    affine = oblique_affine((4, 5, 6), (4.0, 2.0, 1.0))
    turn = affine[:3, :3] / [4.0, 2.0, 1.0]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) > 0
    np.testing.assert_allclose(affine @ [1.5, 2.0, 2.5, 1.0], [8.0, -30.0, -110.0, 1.0])


def test_a_phantom_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def fail(image: nib.Nifti1Image, path: Path) -> None:
        written.append(Path(path))
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path, **SMALL)
    assert [re.sub("[0-9a-f]{8}", "", path.name) for path in written] == [
        ".phantom.file-.partial.nii.gz"
    ]
    assert not (tmp_path / "phantom.nii.gz").exists()


def test_writing_a_phantom_leaves_nothing_beside_its_files(tmp_path: Path) -> None:
    write_phantom(tmp_path, **SMALL)
    files = sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert files == ["labels/phantom.nii.gz", "phantom.nii.gz"]
