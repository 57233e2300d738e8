# SPDX-License-Identifier: Apache-2.0
"""The list of translations: an item for each case and contrast, checked when it is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff.data.case_files import CaseFiles
from contourdiff.data.translation_cases import TranslationCases, contrast_labels
from contourdiff.data.volumes import digest_of
from helpers.volumes import write_nifti

AIR = np.full((4, 5, 6), -1000, np.int16)
RECORD = '{"case": "a", "contourdiff": "0.2.0", "label": null}'


def names_of(cases: TranslationCases) -> list[str]:
    return [item["name"] for item in cases.items]


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, AIR, np.eye(4))
    with pytest.raises(ValueError, match="expected one file a case, got twice: \\['a'\\]"):
        TranslationCases(tmp_path, tmp_path / "mr").check()


def test_cases_are_read_when_they_are_checked(tmp_path: Path) -> None:
    ct, mr = tmp_path / "ct", tmp_path / "mr"
    cases = TranslationCases(ct, mr)
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder of CT volumes at .*ct, found none"
    ):
        cases.check()
    ct.mkdir()
    with pytest.raises(ValueError, match="expected volumes"):
        cases.check()
    write_nifti(ct / "a.nii.gz", AIR, np.eye(4))
    (ct / "B.NII.GZ").write_bytes(b"no image")
    for _ in range(2):
        cases.check()
        assert [item["image"] for item in cases.items] == [str(ct / "a.nii.gz")]
        assert cases.failures.keys() == {"B"}
    mr.mkdir()
    (mr / "a_mr.json").write_text(RECORD)
    cases.check()
    assert (cases.items, cases.kept) == ([], ["a"])


def test_each_contrast_of_a_case_is_an_item_and_the_contrasts_of_a_case_are_neighbors(
    tmp_path: Path,
) -> None:
    ct, mr = tmp_path / "ct", tmp_path / "mr"
    for case in ("a", "b"):
        write_nifti(ct / f"{case}.nii.gz", AIR, np.eye(4))
    (ct / "c.nii.gz").write_bytes(b"no image")
    cases = TranslationCases(ct, mr, contrast="t2, t1", contrasts=["t1", "t2"])
    cases.check()
    assert names_of(cases) == ["a_t2", "a_t1", "b_t2", "b_t1"]
    assert [item["contrast"] for item in cases.items] == [1, 0, 1, 0]
    assert [item["case"] for item in cases.items] == ["a", "a", "b", "b"]
    assert cases.failures.keys() == {"c_t2", "c_t1"}
    mr.mkdir()
    (mr / "a_t1_mr.json").write_text(RECORD)
    cases.check()
    assert names_of(cases) == ["a_t2", "b_t2", "b_t1"]
    assert cases.kept == ["a_t1"]


def test_a_single_contrast_leaves_the_names_to_case_and_suffix(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", AIR, np.eye(4))
    cases = TranslationCases(
        tmp_path / "ct", tmp_path, case_suffix="_seed1", contrast="t2", contrasts=["t1", "t2"]
    )
    cases.check()
    assert names_of(cases) == ["a_seed1"]
    assert cases.items[0]["contrast"] == 1


def test_contrasts_have_the_positions_that_the_network_knows_them_by() -> None:
    assert contrast_labels("t2", ["t1", "t2"]) == {"t2": 1}
    assert contrast_labels(None, ["t1", "t2"]) == {"t1": 0}
    assert contrast_labels("t1", []) == {"t1": None}
    assert contrast_labels(None, []) == {"": None}
    with pytest.raises(ValueError, match=r"contrast must be out of \['t1', 't2'\], got \['t3'\]"):
        contrast_labels(["t1", "t3"], ["t1", "t2"])
    with pytest.raises(ValueError, match=r"contrast must be out of \[\], got"):
        contrast_labels("t1,t2", [])


def test_a_kept_case_gets_the_label_that_it_lacked(tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "ct" / "a.nii.gz", AIR, np.eye(4))
    files = CaseFiles(tmp_path / "mr", "a")
    write_nifti(files.mr, AIR, np.eye(4))
    record = {**json.loads(RECORD), "image_sha256": digest_of(ct)}
    files.record.write_text(json.dumps(record))
    cases = TranslationCases(ct.parent, tmp_path / "mr")
    cases.check()
    assert (cases.kept, files.label.exists()) == (["a"], False)
    label = np.arange(AIR.size, dtype=np.int16).reshape(AIR.shape)
    write_nifti(ct.parent / "labels" / "a.nii.gz", label, np.eye(4))
    for _ in range(2):
        cases.check()
        assert (cases.kept, cases.items, cases.failures) == (["a"], [], {})
        np.testing.assert_array_equal(np.asarray(nib.load(files.label).dataobj), label)
        assert json.loads(files.record.read_text()) == {
            **record,
            "label": "a.nii.gz",
            "classes": None,
        }


def test_a_label_is_not_added_to_the_translation_of_another_ct(tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "ct" / "a.nii.gz", AIR, np.eye(4))
    write_nifti(ct.parent / "labels" / "a.nii.gz", AIR, np.eye(4))
    files = CaseFiles(tmp_path / "mr", "a")
    files.folder.mkdir()
    files.record.write_text(json.dumps({**json.loads(RECORD), "image_sha256": "of another"}))
    cases = TranslationCases(ct.parent, files.folder)
    cases.check()
    assert "expected the CT that a_mr.nii.gz was translated from" in cases.failures["a"]
    assert not files.label.exists()


def test_a_foreign_record_or_a_name_too_long_fails_its_case_alone(tmp_path: Path) -> None:
    ct, mr = tmp_path / "ct", tmp_path / "mr"
    mr.mkdir()
    for case in ("a", "b", "c", "x" * 240):
        write_nifti(ct / f"{case}.nii.gz", AIR, np.eye(4))
    (mr / "a_mr.json").write_text('{"Modality": "MR"}')
    (mr / "b_mr.nii.gz").mkdir()
    cases = TranslationCases(ct, mr)
    cases.check()
    assert names_of(cases) == ["c"]
    assert cases.failures.keys() == {"a", "b", "x" * 240}
    assert "expected a record of contourdiff at" in cases.failures["a"]
    assert "expected no file at" in cases.failures["b"]
    assert "expected names of 255 bytes or less, got 256" in cases.failures["x" * 240]
    assert (mr / "a_mr.json").read_text() == '{"Modality": "MR"}'


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_output_never_replaces_an_input(link: object, tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "a.nii.gz", AIR, np.eye(4))
    write_nifti(tmp_path / "a_mr.nii.gz", AIR, np.eye(4))
    with pytest.raises(ValueError, match=r"expected outputs other than .*a_mr\.nii\.gz; pass"):
        TranslationCases(tmp_path, tmp_path, ["a.nii.gz", "a_mr.nii.gz"], overwrite=True).check()
    (tmp_path / "mr").mkdir()
    link(ct, tmp_path / "mr" / "a_label.nii.gz")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"expected outputs other than .*a_label\.nii\.gz; pass"):
        TranslationCases(tmp_path, tmp_path / "mr", ["a.nii.gz"], overwrite=True).check()
