# SPDX-License-Identifier: Apache-2.0
"""Lists of cases say the same as CSV and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contourdiff.data.datalists import read_split
from contourdiff.data.inputs import find_inputs

ENTRIES = [
    {"image": "ct/anna.nii.gz", "label": "seg/anna.nii.gz"},
    {"image": "s3://bucket/bert.nii.gz"},
]


def test_csv_and_json_list_the_same_cases(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"testing": ENTRIES}))
    (tmp_path / "list.csv").write_text(
        "\ufeffimage,label,age\nct/anna.nii.gz,seg/anna.nii.gz,41\ns3://bucket/bert.nii.gz,,\n",
        encoding="utf-8",
    )
    expected = [
        (tmp_path / "ct/anna.nii.gz", tmp_path / "seg/anna.nii.gz"),
        ("s3://bucket/bert.nii.gz", None),
    ]
    for datalist in ("list.csv", "list.json", ENTRIES):
        assert find_inputs(tmp_path, datalist) == expected


def test_a_list_without_its_column_or_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file\nanna.nii.gz\n")
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"expected a column 'image' in .*list.csv, got \['file'\]"
    ):
        find_inputs(tmp_path, "list.csv")
    for content in (b"image\n\xff.nii.gz\n", b'image\n"a.nii.gz'):
        (tmp_path / "list.csv").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"expected CSV in the datalist .*list.csv, got: .*; save it as CSV"
        ):
            find_inputs(tmp_path, "list.csv")
    with pytest.raises(ValueError, match=r"expected the list 'testing' in .*list.json, got \[\]"):
        find_inputs(tmp_path, "list.json")


def test_a_training_list_as_csv_is_read_as_one_of_cases(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("\ufefffile,split\na.nii.gz,train\nb.nii.gz,val\n", encoding="utf-8")
    assert read_split(path, "train") == ["a.nii.gz"]
    assert read_split(path, "val") == ["b.nii.gz"]
    path.write_text("file,part\na.nii.gz,train\n")
    with pytest.raises(
        ValueError, match=r"expected a column 'split' in .*, got \['file', 'part'\]"
    ):
        read_split(path, "train")
