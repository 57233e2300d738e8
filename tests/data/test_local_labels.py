# SPDX-License-Identifier: Apache-2.0
"""Labels: those on the axes of the CT in another order, and of DICOM, are brought onto its grid, voxel by voxel."""

from __future__ import annotations

import sys
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from contourdiff.data.inputs import local_nifti
from contourdiff.data.itk_files import write_itk
from contourdiff.data.local_labels import local_label
from contourdiff.data.translation_cases import TranslationCases
from helpers.dicom import write_series
from helpers.volumes import OBLIQUE, ball_ct, write_nifti

VOLUME = ball_ct((6, 20, 24))
LABEL = np.arange(VOLUME.size, dtype=np.int16).reshape(VOLUME.shape)
ORIENTATIONS = [
    np.stack([order, flips], axis=1)
    for order in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda value: str(value.ravel()))
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_flipped_or_permuted_label_is_turned_to_the_ct(
    suffix: str, orientation: np.ndarray, tmp_path: Path
) -> None:
    ct = write_nifti(tmp_path / "ct.nii.gz", VOLUME, OBLIQUE)
    turned = apply_orientation(LABEL, orientation)
    affine = OBLIQUE @ inv_ornt_aff(orientation, LABEL.shape)
    source = tmp_path / f"label{suffix}"
    if suffix == ".nrrd":
        write_itk(turned, affine, source)
    else:
        write_nifti(source, turned, affine)
    path, names = local_label(source, tmp_path / "out" / "label.nii.gz", ct)
    assert names is None
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), LABEL)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, nib.load(ct).affine, atol=1e-4)
    is_turned = not np.array_equal(orientation, [[0, 1], [1, 1], [2, 1]])
    assert (path != source) == (is_turned or suffix == ".nrrd")


def test_a_flipped_label_of_another_place_is_refused(tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "ct.nii.gz", VOLUME, OBLIQUE)
    flip = np.array([[0, -1], [1, 1], [2, 1]])
    affine = OBLIQUE @ inv_ornt_aff(flip, LABEL.shape)
    affine[0, 3] += 3
    label = write_nifti(tmp_path / "label.nii.gz", apply_orientation(LABEL, flip), affine)
    with pytest.raises(ValueError, match=r"got corners up to .* mm from those of the image"):
        local_label(label, tmp_path / "out.nii.gz", ct)


@pytest.fixture
def study(tmp_path: Path) -> tuple[list[Any], Path]:
    """Slices of a series, in order, with all that a SEG of them takes over; and its CT."""
    pydicom = pytest.importorskip("pydicom", minversion="3")
    pytest.importorskip("highdicom", reason="pip install 'contourdiff[dicom]'")

    def add_patient(data: Any, number: int) -> None:
        data.FrameOfReferenceUID = "1.2.3.9"
        for tag in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
            setattr(data, tag, "")
        for tag in ("StudyID", "AccessionNumber", "Manufacturer", "ReferringPhysicianName"):
            setattr(data, tag, "")

    folder = write_series(tmp_path / "a", VOLUME, add_patient)
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    slices.sort(key=lambda data: int(data.InstanceNumber))
    return slices, local_nifti(folder, tmp_path / "ct.nii.gz")


def write_segmentation(path: Path, slices: list[Any], segments: np.ndarray) -> Path:
    """A DICOM SEG of binary segments ``(slices, rows, columns, segments)``."""
    import highdicom
    from pydicom.sr.codedict import codes

    descriptions = []
    for number in range(segments.shape[-1]):
        kind = (codes.SCT.Organ, codes.SCT.Liver)
        description = highdicom.seg.SegmentDescription(
            number + 1, f"name {number + 1}", *kind, "MANUAL"
        )
        descriptions.append(description)
    uids = (highdicom.UID(), 1, highdicom.UID(), 1)
    texts = ("maker", "model", "1", "1")
    dataset = highdicom.seg.Segmentation(
        slices, segments, "BINARY", descriptions, *uids, *texts, omit_empty_frames=True
    )
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("with_slices", [range(6), [3], [1, 4], [0, 5]], ids=str)
def test_segments_lie_on_the_ct_by_their_numbers(
    with_slices: Any, study: tuple[list[Any], Path], tmp_path: Path
) -> None:
    slices, ct = study
    expected = np.zeros(VOLUME.shape, np.uint8)
    for number in with_slices:
        expected[number][VOLUME[number] > -500] = 1
        expected[number, :4, 3:] = 2
    segments = np.stack([expected == 1, expected == 2], axis=-1).astype(np.uint8)
    seg = write_segmentation(tmp_path / "seg.dcm", slices, segments)
    path, names = local_label(seg, tmp_path / "label.nii.gz", ct)
    assert names == {1: "name 1", 2: "name 2"}
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), expected)
    np.testing.assert_array_equal(image.affine, nib.load(ct).affine)


def test_segments_are_the_label_of_a_folder_by_name(
    study: tuple[list[Any], Path], tmp_path: Path
) -> None:
    seg = write_segmentation(tmp_path / "seg.dcm", study[0], np.ones((*VOLUME.shape, 1), np.uint8))
    folder = tmp_path / "ct"
    (folder / "labels").mkdir(parents=True)
    (tmp_path / "a").rename(folder / "a")
    seg.rename(folder / "labels" / "a.dcm")
    cases = TranslationCases(folder, tmp_path / "mr")
    cases.check()
    assert cases.failures == {}
    (item,) = cases.items
    assert item["classes"] == {1: "name 1"}
    np.testing.assert_array_equal(nib.load(item["label"]).dataobj, np.ones(VOLUME.shape[::-1]))


def test_segments_of_a_larger_ct_are_not_cut_off(
    study: tuple[list[Any], Path], tmp_path: Path
) -> None:
    slices, ct = study
    segments = np.ones((*VOLUME.shape, 1), np.uint8)
    seg = write_segmentation(tmp_path / "seg.dcm", slices, segments)
    smaller = tmp_path / "smaller.nii.gz"
    nib.save(nib.load(ct).slicer[:, :, :5], smaller)
    for other in (smaller, write_nifti(tmp_path / "other.nii.gz", VOLUME, OBLIQUE)):
        with pytest.raises(ValueError, match=r"expected segments on voxels of the CT in seg\.dcm"):
            local_label(seg, tmp_path / "label.nii.gz", other)
    assert not (tmp_path / "label.nii.gz").exists()


def test_overlapping_segments_are_refused(study: tuple[list[Any], Path], tmp_path: Path) -> None:
    segments = np.ones((*VOLUME.shape, 2), np.uint8)
    seg = write_segmentation(tmp_path / "seg.dcm", study[0], segments)
    with pytest.raises(ValueError, match=r"expected a binary DICOM SEG without overlap .* overlap"):
        local_label(seg, tmp_path / "label.nii.gz", study[1])


def test_other_dicom_as_a_label_is_named(
    study: tuple[list[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.data import get_testdata_file

    slices, ct = study
    for source, message in (
        (get_testdata_file("rtstruct.dcm"), r"got RTSTRUCT; .*3D Slicer, or plastimatch"),
        (slices[0].filename, "got CT; convert it to NIfTI"),
    ):
        with pytest.raises(ValueError, match=f"expected a DICOM SEG as label in .*{message}"):
            local_label(str(source), tmp_path / "label.nii.gz", ct)
    seg = write_segmentation(tmp_path / "seg.dcm", slices, np.ones((*VOLUME.shape, 1), np.uint8))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ValueError, match="pip install"):
        local_label(seg, tmp_path / "label.nii.gz", ct)
