# SPDX-License-Identifier: Apache-2.0
"""Translations as DICOM: the grid and the values of the MR, new UIDs, and nothing of the CT that was not asked for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from contourdiff.data.dicom import read_ct_series
from contourdiff.data.dicom_series import DicomSeries, check_axes, check_replaceable
from contourdiff.data.itk_files import TO_LPS, voxels_and_affine
from contourdiff.data.volumes import open_volume, scaled_voxels, write_volume
from contourdiff.limits import SettingError
from contourdiff.translation import translate_path
from helpers.dicom import write_series
from helpers.networks import TINY_NETWORK
from helpers.paths import program
from helpers.runs import QUICK_SETTINGS
from helpers.volumes import ball_ct, oblique_affine, read_voxels

pytest.importorskip("highdicom", reason="DICOM is written with highdicom")

DCM2NIIX = program("dcm2niix")
DCIODVFY = program("dciodvfy")
OBLIQUE_AXES = (0.96, 0.28, 0.0, -0.2688, 0.9216, 0.28)
TWO_NAMES = "Müller^Anna"
STUDY = {
    "PatientName": TWO_NAMES,
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "AccessionNumber": "A17",
    "StudyDate": "20200304",
    "StudyDescription": "spine",
    "ReferringPhysicianName": "Doe^J",
}
FRAME = "1.2.3.4.5"


def identified(dataset: Any, number: int) -> None:
    """Give a slice a patient, a study and a frame of reference."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.FrameOfReferenceUID = FRAME
    for name, value in STUDY.items():
        setattr(dataset, name, value)


def write(folder: Path, mr: np.ndarray, affine: np.ndarray, **options: Any) -> list[Any]:
    """Write a series on a grid; its images, in the order of their files."""
    ct = folder / "ct.nii.gz"
    write_volume(mr.astype(np.int16), affine, ct)
    series = DicomSeries()
    attributes = series.attributes("anna", ct, ct)
    series.write(folder / "anna_dicom", mr, open_volume(ct).affine, attributes, **options)
    return [pydicom.dcmread(file) for file in sorted((folder / "anna_dicom" / "mr").iterdir())]


def read_by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(H, W, D)`` and RAS+ affine of a series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    voxels, affine = voxels_and_affine(image, str(folder))
    return voxels.copy(), affine


def flips(axis: int) -> np.ndarray:
    turned = np.diag([1.0, 1.0, 1.0, 1.0])
    turned[axis, axis] = -1
    return turned


@pytest.mark.parametrize(
    "affine",
    [oblique_affine((0.7, 0.9, 3.1)), flips(0) @ oblique_affine((1.3, 0.8, 2.5))],
    ids=["right-handed", "left-handed"],
)
def test_a_series_has_grid_and_values_of_the_mr(affine: np.ndarray, tmp_path: Path) -> None:
    """Each voxel at its place, whichever way the slices are counted."""
    mr = np.random.default_rng(0).uniform(0, 255, (9, 7, 5)).astype(np.float32)
    slices = write(tmp_path, mr, affine)
    voxels, read_affine = read_by_simpleitk(tmp_path / "anna_dicom" / "mr")
    index_of = np.linalg.inv(read_affine) @ affine
    for index in np.ndindex(mr.shape):
        place = index_of @ [*index, 1]
        nearest = np.rint(place[:3]).astype(int)
        assert np.abs(place[:3] - nearest).max() < 1e-4  # of a voxel
        assert abs(voxels[tuple(nearest)] - mr[index]) <= 1 / 32 + 1e-5
    normal = np.cross(*np.reshape(slices[0].ImageOrientationPatient, (2, 3)).astype(float))
    heights = [normal @ np.array(image.ImagePositionPatient, float) for image in slices]
    assert heights == sorted(heights)
    assert [image.InstanceNumber for image in slices] == [1, 2, 3, 4, 5]
    assert float(slices[0].SpacingBetweenSlices) == pytest.approx(np.linalg.norm(affine[:3, 2]))


def test_a_series_says_that_it_is_synthetic(tmp_path: Path) -> None:
    mr = np.full((4, 5, 3), 255, np.float32)
    slices = write(tmp_path, mr, np.diag([1.0, 2.0, 3.0, 1.0]), contrast="t2")
    for image in slices:
        assert image.SOPClassUID == pydicom.uid.MRImageStorage
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert (image.Modality, image.ImageType[:2]) == ("MR", ["DERIVED", "SECONDARY"])
        assert image.SeriesDescription == "Synthetic MR T2 (contourdiff)"
        assert "was not acquired" in image.DerivationDescription
        assert (image.pixel_array * image.RescaleSlope == 255).all()
        assert (image.WindowCenter, image.WindowWidth) == (127.5, 255)
    assert len({image.SOPInstanceUID for image in slices}) == 3
    assert len({image.SeriesInstanceUID for image in slices}) == 1


def test_both_contrasts_of_a_ct_are_two_series_of_one_study_and_one_frame(tmp_path: Path) -> None:
    mr = np.ones((4, 5, 3), np.float32)
    first = write(tmp_path, mr, np.eye(4), contrast="t1")[0]
    second = write(tmp_path, mr, np.eye(4), contrast="t2")[0]
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_a_name_that_dicom_would_split_is_one_name(tmp_path: Path) -> None:
    ct = tmp_path / "ct.nii"
    write_volume(np.zeros((3, 3, 3), np.int16), np.eye(4), ct)
    attributes = DicomSeries().attributes("a\\b^c=d" + "é" * 70, ct, ct)
    assert attributes["PatientID"] == "a_b_c_d" + "é" * 57


def test_a_label_is_a_seg_on_the_voxels_of_the_mr(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    affine = flips(2) @ oblique_affine((1.0, 1.5, 2.0))
    label = np.zeros((6, 7, 5), np.uint8)
    label[1:3, 2:5, 1:4] = 27
    label[4, 4, 4] = 200
    write_volume(label, affine, tmp_path / "label.nii.gz")
    mr = np.zeros(label.shape, np.float32)
    options = {"label": tmp_path / "label.nii.gz", "classes": {27: "vertebrae_L5"}}
    slices = write(tmp_path, mr, affine, **options)
    seg = highdicom.seg.segread(tmp_path / "anna_dicom" / "label.dcm")
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
    names = [seg.get_segment_description(number) for number in (1, 2)]
    assert [name.segment_label for name in names] == ["vertebrae_L5", "200"]
    assert [name.SegmentDescription for name in names] == [
        "value 27 of the label",
        "value 200 of the label",
    ]
    volume = seg.get_volume(combine_segments=True)
    index_of = np.linalg.inv(TO_LPS @ volume.affine) @ affine
    found = np.zeros_like(label)
    for index in zip(*np.nonzero(label), strict=True):
        place = np.rint(index_of @ [*index, 1])[:3].astype(int)
        found[index] = volume.array[tuple(place)]
    np.testing.assert_array_equal(found, np.select([label == 27, label == 200], [1, 2]))
    assert np.count_nonzero(volume.array) == np.count_nonzero(label)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy of dicom3tools is not installed")
def test_a_verifier_of_dicom_finds_no_error(tmp_path: Path) -> None:
    label = np.zeros((6, 7, 5), np.uint8)
    label[1:3, 2:5, 1:4] = 27
    affine = oblique_affine((1.0, 1.5, 2.0))
    write_volume(label, affine, tmp_path / "label.nii.gz")
    write(tmp_path, label * 9.0, affine, label=tmp_path / "label.nii.gz", contrast="t1")
    for file in (tmp_path / "anna_dicom").rglob("*.dcm"):
        checked = subprocess.run([DCIODVFY, file], capture_output=True, text=True)
        assert "Error" not in checked.stdout + checked.stderr


def test_a_label_without_a_segment_is_no_seg(tmp_path: Path) -> None:
    write_volume(np.zeros((4, 5, 3), np.uint8), np.eye(4), tmp_path / "label.nii.gz")
    write(tmp_path, np.ones((4, 5, 3)), np.eye(4), label=tmp_path / "label.nii.gz")
    assert [path.name for path in (tmp_path / "anna_dicom").iterdir()] == ["mr"]


def test_a_sheared_volume_is_refused(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.2
    write_volume(np.zeros((3, 3, 3), np.int16), sheared, tmp_path / "a.nii")
    with pytest.raises(
        ValueError, match=r"expected perpendicular axes .* sheared volume in a\.nii"
    ):
        check_axes(tmp_path / "a.nii")


def test_patient_and_study_of_a_ct_without_are_refused(tmp_path: Path) -> None:
    ct = tmp_path / "a.nii"
    write_volume(np.zeros((3, 3, 3), np.int16), np.eye(4), ct)
    with pytest.raises(ValueError, match=r"expected a CT in DICOM .*, got a\.nii"):
        DicomSeries("ct").attributes("a", ct, ct)
    with pytest.raises(SettingError, match="expected dicom_identity to be one of"):
        DicomSeries("patient")


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a_dicom").mkdir()
    check_replaceable(tmp_path / "a_dicom")
    (tmp_path / "a_dicom" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected no other files .* got notes\.txt"):
        check_replaceable(tmp_path / "a_dicom")


def test_a_series_that_cannot_be_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mr = np.ones((4, 5, 3), np.float32)
    label = tmp_path / "missing.nii.gz"
    with pytest.raises(FileNotFoundError):
        write(tmp_path, mr, np.eye(4), label=label)
    assert [path.name for path in tmp_path.iterdir()] == ["ct.nii.gz"]


@pytest.fixture(scope="module")
def ct_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An oblique CT of a patient, with a label."""
    folder = tmp_path_factory.mktemp("in")
    return write_series(folder / "anna", ball_ct((12, 40, 48)), identified, OBLIQUE_AXES)


@pytest.fixture(scope="module")
def settings(tiny_weights: Path) -> dict[str, Any]:
    return {
        "overlays": ("single",),
        "network_def": TINY_NETWORK,
        "weights": tiny_weights,
        "num_inference_steps": 2,
        "candidates": 1,
        "max_rounds": 1,
        "min_object_mm2": 100.0,
        "progress": False,
        "fast": False,
        "format": "dicom",
        **QUICK_SETTINGS,
    }


@pytest.mark.slow
def test_a_ct_in_dicom_becomes_an_mr_in_dicom_on_the_same_grid(
    ct_folder: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    (result,) = translate_path(ct_folder, tmp_path / "mr", **settings)
    assert result.dicom == tmp_path / "mr" / "anna_dicom"
    files = sorted((result.dicom / "mr").iterdir())
    by_position = {}
    for file in ct_folder.iterdir():
        header = pydicom.dcmread(file, stop_before_pixels=True)
        by_position[header.ImagePositionPatient[2]] = header
    expected = [by_position[height] for height in sorted(by_position)]
    for file, ct in zip(files, expected, strict=True):
        image = pydicom.dcmread(file)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            np.testing.assert_allclose(image[name].value, ct[name].value, atol=1e-3)
        assert (image.Rows, image.Columns) == (ct.Rows, ct.Columns)
        assert image.FrameOfReferenceUID == FRAME
    voxels, affine = read_by_simpleitk(result.dicom / "mr")
    ct_image = read_ct_series(ct_folder)
    ct_affine = voxels_and_affine(ct_image, "ct")[1]
    ends = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)])
    corners = ends * [*voxels.shape, 1]
    np.testing.assert_allclose(corners @ affine.T, corners @ ct_affine.T, atol=1e-3)
    np.testing.assert_allclose(voxels, read_voxels(result.mr), atol=1 / 32 + 1e-5)
    record = json.loads(result.record.read_text())
    image = pydicom.dcmread(files[0])
    assert record["dicom"] == {"study": image.StudyInstanceUID, "series": image.SeriesInstanceUID}
    text = b"".join(file.read_bytes() for file in files)
    texts = [value for name, value in STUDY.items() if name not in ("PatientName", "PatientSex")]
    for value in ("Müller", "Anna", *texts):
        assert value.encode() not in text
        assert value.encode("latin-1") not in text
    assert image.StudyInstanceUID != "1.2.3"
    assert not image.PatientSex
    assert (image.PatientID, str(image.PatientName)) == ("anna", "anna^")


@pytest.mark.slow
def test_patient_and_study_of_the_ct_are_kept_where_they_are_asked_for(
    ct_folder: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    label = np.zeros((48, 40, 12), np.uint8)
    label[10:20, 10:20, 4:8] = 3
    (converted,) = translate_path(ct_folder, tmp_path / "mr", dicom_identity="ct", **settings)
    write_volume(label, open_volume(converted.ct).affine, tmp_path / "label.nii.gz")
    options = {**settings, "label": tmp_path / "label.nii.gz", "overwrite": True}
    (result,) = translate_path(ct_folder, tmp_path / "mr", dicom_identity="ct", **options)
    image = pydicom.dcmread(result.dicom / "mr" / "0001.dcm")
    seg = pydicom.dcmread(result.dicom / "label.dcm")
    for dataset in (image, seg):
        assert dataset.StudyInstanceUID == "1.2.3"
        assert dataset.PatientID == "anna"
        assert str(dataset.PatientName) == TWO_NAMES
        assert dataset.AccessionNumber == "A17"
    for name, value in STUDY.items():
        assert str(image[name].value) == value
    assert "PatientIdentityRemoved" not in image


@pytest.mark.slow
@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")
def test_dcm2niix_reads_the_mr(ct_folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    (result,) = translate_path(ct_folder, tmp_path / "mr", **settings)
    command = [DCM2NIIX, "-b", "n", "-f", "back", "-o", tmp_path, result.dicom / "mr"]
    subprocess.run(command, check=True, capture_output=True)
    back = tmp_path / "back.nii"
    mr = open_volume(result.mr)
    index_of = np.linalg.inv(open_volume(back).affine) @ mr.affine
    turned = np.rint(index_of[:3, :3])
    np.testing.assert_allclose(index_of[:3, :3], turned, atol=1e-3)
    assert np.abs(np.diag(turned)).tolist() == [1, 1, 1]
    flipped = [axis for axis in range(3) if turned[axis, axis] < 0]
    voxels = np.flip(scaled_voxels(back), flipped)
    np.testing.assert_allclose(voxels, scaled_voxels(result.mr), atol=1 / 32 + 1e-4)


def test_dicom_is_not_written_to_a_file(
    ct_folder: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=r"expected a folder to write DICOM to, got .*mr\.nii"):
        translate_path(ct_folder, tmp_path / "mr.nii", **settings)


@pytest.mark.slow
def test_a_sheared_case_fails_before_the_work_and_the_others_go_on(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 2] = 0.4
    for name, affine in (("a", sheared), ("b", np.diag([2.0, 2.0, 2.0, 1.0]))):
        write_volume(ball_ct((8, 40, 40)), affine, tmp_path / "ct" / f"{name}.nii.gz")
    with pytest.raises(ValueError, match="1 of 2 cases failed") as failure:
        translate_path(tmp_path / "ct", tmp_path / "mr", **settings)
    first, second = failure.value.results
    assert "expected perpendicular axes to write DICOM" in first.error
    assert first.dicom is None
    assert len(list((second.dicom / "mr").iterdir())) == 40
