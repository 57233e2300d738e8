# SPDX-License-Identifier: Apache-2.0
"""Cases are what the records and the run say; what is missing is unknown, not zero."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from contourdiff.data.bids import write_derivatives
from contourdiff.report import write_report
from contourdiff.report.cases import ct_files, read_cohort, read_rows, shared_values
from helpers.volumes import HOSTILE_NAME


def test_measures_of_a_case_are_those_of_its_record(reported: Path) -> None:
    hostile, a, broken = read_cohort(reported)
    assert (hostile.name, a.name, broken.name) == (HOSTILE_NAME, "a", "broken")
    record = json.loads((reported / "a_mr.json").read_text())
    drawn = [item for item in record["slices"] if not item["skipped"]]
    assert a.measures["fidelity"] == record["fidelity"]["fidelity_median"]
    assert a.measures["flicker"] == record["flicker"]["flicker"]
    assert a.measures["accepted_share"] == sum(item["accepted"] for item in drawn) / len(drawn)
    assert [item["slice"] for item in a.suspects] == record["fidelity"]["suspects"]
    assert a.measures["mean"] == pytest.approx(sum(item["mean"] for item in drawn) / len(drawn))
    assert (a.measures["slices"], a.measures["translated_slices"]) == (
        len(record["slices"]),
        len(drawn),
    )
    assert set(broken.measures.values()) == {None}
    assert [layer.kind for layer in a.layers(None)] == ["mr", "label", "fidelity", "uncertainty"]
    assert ct_files([hostile, a, broken], reported) == {}
    assert ct_files([hostile, a, broken], reported, reported.parent / "ct").keys() == {
        HOSTILE_NAME,
        "a",
    }
    assert shared_values([a, hostile, broken], "settings")["seed"] == [("0", 2)]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"case": "a", "slices": '])
def test_a_record_that_cannot_be_read_is_a_failed_case(content: str, tmp_path: Path) -> None:
    (tmp_path / "a_mr.json").write_text(content)
    (case,) = read_cohort(tmp_path)
    assert (case.status, case.record) == ("failed", {})
    assert "not readable" in (case.error or "")


def test_a_table_gives_times_and_failures(reported: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "case,status,seconds,error\na,kept,2.5,\nbroken,failed,,no volume\n"
    )
    cases = {case.name: case for case in read_cohort(reported, read_rows(tmp_path / "t.csv"))}
    assert (cases["a"].status, cases["a"].seconds, cases["broken"].error) == (
        "kept",
        2.5,
        "no volume",
    )
    assert (cases[HOSTILE_NAME].status, cases[HOSTILE_NAME].seconds) == ("translated", None)
    assert all(case.seconds is None for case in read_cohort(reported, []))


def test_what_is_no_folder_of_translations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of translations at"):
        read_cohort(tmp_path / "none")
    with pytest.raises(ValueError, match="expected translations with records"):
        read_cohort(tmp_path)
    (tmp_path / "t.csv").write_text("name,size\na,1\n")
    with pytest.raises(ValueError, match="expected a table with the columns case and status"):
        read_rows(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match="expected the folder of the CT at"):
        ct_files([], tmp_path, tmp_path / "ct")


def test_ct_of_a_datalist_are_found_where_it_says(reported: Path, tmp_path: Path) -> None:
    cases = read_cohort(reported)
    entries = [
        {"image": str(reported.parent / "ct" / "a.nii.gz")},
        {"image": "s3://bucket/other.nii.gz"},
    ]
    assert ct_files(cases, reported, tmp_path, entries) == {
        "a": reported.parent / "ct" / "a.nii.gz"
    }
    assert ct_files(cases, reported, "s3://bucket") == {}


@pytest.mark.parametrize("place", ["raw/derivatives/contourdiff", "elsewhere"])
def test_a_derivative_dataset_has_the_ct_of_the_dataset_around_it(
    place: str, reported: Path, tmp_path: Path
) -> None:
    ct = shutil.copytree(reported.parent / "ct", tmp_path / "ct") / "a.nii.gz"
    (tmp_path / "raw" / "sub-1" / "ses-a" / "ct").mkdir(parents=True)
    ct = ct.rename(tmp_path / "raw" / "sub-1" / "ses-a" / "ct" / "sub-1_ses-a_ct.nii.gz")
    record = json.loads((reported / "a_mr.json").read_text()) | {
        "case": "sub-1_ses-a_ct",
        "image": ct.name,
    }
    for kind in ("mr", "label"):
        shutil.copy(reported / f"a_{kind}.nii.gz", tmp_path / f"x_{kind}.nii.gz")
    (tmp_path / "x_mr.json").write_text(json.dumps(record))
    write_derivatives([tmp_path / "x_mr.json"], tmp_path / place)
    (case,) = read_cohort(tmp_path / place)
    assert case.name == "sub-1_ses-a_desc-contourdiff_T1w"
    assert case.record == record
    assert [(layer.kind, layer.path.name) for layer in case.layers(None)] == [
        ("mr", "sub-1_ses-a_desc-contourdiff_T1w.nii.gz"),
        ("label", "sub-1_ses-a_desc-contourdiff_dseg.nii.gz"),
    ]
    found = {} if place == "elsewhere" else {case.name: ct}
    assert ct_files([case], tmp_path / place) == found
    assert ct_files([case], tmp_path / place, tmp_path / "raw") == {case.name: ct}
    page = (write_report(tmp_path / place).parent / "report" / f"{case.name}.html").read_text()
    assert ("The CT sub-1_ses-a_ct.nii.gz is not beside the translations" in page) == (not found)
    assert ('"url": "ct/sub-1_ses-a_desc-contourdiff_T1w.nii.gz"' in page) == bool(found)
    assert '"url": "../sub-1/ses-a/anat/sub-1_ses-a_desc-contourdiff_T1w.nii.gz"' in page
