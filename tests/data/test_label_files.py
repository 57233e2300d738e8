# SPDX-License-Identifier: Apache-2.0
"""No label is dropped without a word: which belongs to which case, and masks that become one label."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from contourdiff.data.inputs import find_inputs, input_warnings
from contourdiff.data.label_files import check_classes, class_values, join_masks, match_labels
from helpers.volumes import OBLIQUE, ball_ct, write_nifti

CT = ball_ct((6, 20, 18))
LABEL = (CT > 200).astype(np.uint8) * 27
COMPOSED, DECOMPOSED = "h\u00fcfte", "hu\u0308fte"


def test_labels_are_matched_by_what_is_unambiguous() -> None:
    cases = ["a_0000", "b", COMPOSED, "d", "e"]
    names = ["a.nii.gz", "b.seg.nrrd", f"{DECOMPOSED}.nii.gz", "d.mha", "d.seg.nrrd", "E.nii", "x"]
    assert match_labels(cases, names) == {
        "a_0000": "a.nii.gz",
        "b": "b.seg.nrrd",
        COMPOSED: f"{DECOMPOSED}.nii.gz",
        "d": "d.mha",
    }
    assert match_labels(["a", "a_0000"], ["a.nii.gz"]) == {"a": "a.nii.gz"}
    assert match_labels([COMPOSED, DECOMPOSED], [f"{DECOMPOSED}.nii"]) == {
        DECOMPOSED: f"{DECOMPOSED}.nii"
    }
    assert match_labels(["a", "a_0000"], ["a.seg.nrrd"]) == {}
    for names in (["a.nii", "a.nii.gz"], ["a.seg.nii", "a.seg.nrrd"]):
        with pytest.raises(ValueError, match=r"expected one label for the case a, got .*; remove"):
            match_labels(["a"], names)


def test_every_file_among_the_labels_is_used_or_named(tmp_path: Path) -> None:
    for case in ("a_0000", "b", "c", COMPOSED):
        write_nifti(tmp_path / f"{case}.nii.gz", CT, OBLIQUE)
    labels = tmp_path / "labels"
    for name in ("a", "c_seg", "B", DECOMPOSED):
        write_nifti(labels / f"{name}.nii.gz", LABEL, OBLIQUE)
    sitk.WriteImage(sitk.GetImageFromArray(LABEL), str(labels / "b.seg.nrrd"))
    (labels / "notes.txt").touch()
    (labels / ".DS_Store").touch()
    (labels / "empty").mkdir()
    write_nifti(tmp_path / "Labels" / "c.nii.gz", LABEL, OBLIQUE)
    pairs = find_inputs(tmp_path)
    found = {Path(image).name: label and Path(label).name for image, label in pairs}
    assert found == {
        "a_0000.nii.gz": "a.nii.gz",
        "b.nii.gz": "b.seg.nrrd",
        "c.nii.gz": None,
        f"{COMPOSED}.nii.gz": f"{DECOMPOSED}.nii.gz",
    }
    warnings = input_warnings(tmp_path, pairs)
    assert [line.split(" ")[0] for line in warnings] == [
        "labels/B.nii.gz",
        "labels/c_seg.nii.gz",
        "labels/empty",
        "labels/notes.txt",
        "Labels",
    ]
    assert warnings[1] == (
        "labels/c_seg.nii.gz belongs to no case, and is not used: "
        "expected the name of one, such as c.nii.gz; rename it"
    )


def write_masks(folder: Path, **names: int) -> Path:
    """Masks by name, each a slice of its number."""
    for name, row in names.items():
        mask = np.zeros(CT.shape, np.uint8)
        mask[row] = 1
        write_nifti(folder / f"{name}.nii.gz", mask, OBLIQUE)
    return folder


def test_masks_of_a_folder_become_one_label_with_totalsegmentators_values(tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "a.nii.gz", CT, OBLIQUE)
    masks = write_masks(tmp_path / "labels" / "a" / "segmentations", vertebrae_L5=2, sacrum=1, z=3)
    ((_, label),) = find_inputs(tmp_path)
    assert label == masks.parent
    classes = join_masks(masks.parent, ct, tmp_path / "joined.nii.gz")
    assert classes == {25: "sacrum", 27: "vertebrae_L5", 118: "z"}
    joined = nib.load(tmp_path / "joined.nii.gz")
    assert np.asarray(joined.dataobj)[:, 0, 0].tolist() == [0, 25, 27, 118, 0, 0]
    np.testing.assert_array_equal(joined.affine, nib.load(ct).affine)


def test_masks_that_are_none_are_refused(tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "a.nii.gz", CT, OBLIQUE)
    for name, message in (
        ("shared", "expected masks that share no voxel in .*, got 360 in b and a; leave one"),
        ("values", "expected a mask of 0 and 1 in .*c.nii.gz, got 3 values"),
        ("grid", "expected label c.nii.gz on the image's grid"),
    ):
        folder = write_masks(tmp_path / name, a=1, b=1 if name == "shared" else 2)
        other = np.zeros(CT.shape, np.uint8)
        other[0, :2, 0] = (1, 2)
        if name != "shared":
            write_nifti(folder / "c.nii.gz", other[name == "grid" :], OBLIQUE)
        with pytest.raises(ValueError, match=message):
            join_masks(folder, ct, tmp_path / "joined.nii.gz")
        assert not (tmp_path / "joined.nii.gz").exists()


def test_a_value_has_one_name_in_all_cases(tmp_path: Path) -> None:
    assert class_values(["b", "a"]) == {"a": 1, "b": 2}
    first, second = write_masks(tmp_path / "1", a=1, b=2), write_masks(tmp_path / "2", b=1)
    check_classes([first, first])
    check_classes([write_masks(tmp_path / "3", heart=1), write_masks(tmp_path / "4", brain=1)])
    with pytest.raises(
        ValueError, match=r"expected the same masks for each case, got a in .*1 and b"
    ):
        check_classes([first, second])
