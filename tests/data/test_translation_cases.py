# SPDX-License-Identifier: Apache-2.0
"""The list of translations: an item for each case and contrast, checked when it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contourdiff.data.translation_cases import TranslationCases, contrast_labels
from helpers import write_nifti

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
