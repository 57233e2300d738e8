# SPDX-License-Identifier: Apache-2.0
"""Cases are what the records and the run say; what is missing is unknown, not zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contourdiff.report.cohort import ct_files, read_cohort, read_rows, shared_values
from contourdiff.report.pages import read_run
from helpers import HOSTILE_NAME


def test_measures_are_those_of_the_record(reported: Path) -> None:
    hostile, a, broken = read_cohort(reported, read_run(reported)["cases"])
    assert (hostile.name, a.name, broken.name) == (HOSTILE_NAME, "a", "broken")
    record = json.loads((reported / "a_mr.json").read_text())
    drawn = [item for item in record["slices"] if not item["skipped"]]
    assert a.measures["fidelity"] == record["fidelity"]["fidelity_median"]
    assert a.measures["flicker"] == record["flicker"]["flicker"]
    assert a.measures["accepted"] == sum(item["accepted"] for item in drawn) / len(drawn)
    assert [item["slice"] for item in a.suspects] == record["fidelity"]["suspects"]
    assert set(broken.measures.values()) == {None}
    assert [layer.kind for layer in a.layers(None)] == ["mr", "label", "fidelity", "uncertainty"]
    assert ct_files([hostile, a, broken], reported.parent / "ct").keys() == {HOSTILE_NAME, "a"}
    assert shared_values([a, hostile, broken], "settings")["seed"] == [("0", 2)]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"case": "a", "slices": '])
def test_a_record_that_cannot_be_read_is_a_failed_case(content: str, tmp_path: Path) -> None:
    (tmp_path / "a_mr.json").write_text(content)
    (case,) = read_cohort(tmp_path)
    assert (case.status, case.record) == ("failed", {})
    assert "not readable" in (case.error or "")


def test_a_table_gives_times_and_failures(reported: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("case,status,seconds,error\na,kept,2.5,\nbroken,failed,,no volume\n")
    cases = {case.name: case for case in read_cohort(reported, read_rows(tmp_path / "t.csv"))}
    assert (cases["a"].status, cases["a"].seconds, cases["broken"].error) == ("kept", 2.5, "no volume")
    assert (cases[HOSTILE_NAME].status, cases[HOSTILE_NAME].seconds) == ("translated", None)


def test_what_is_no_folder_of_translations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of translations at"):
        read_cohort(tmp_path / "none")
    with pytest.raises(ValueError, match="expected translations with records"):
        read_cohort(tmp_path)
    (tmp_path / "t.csv").write_text("name,size\na,1\n")
    with pytest.raises(ValueError, match="expected a table with the columns case and status"):
        read_rows(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match="expected the folder of the CT at"):
        ct_files([], tmp_path / "ct")
