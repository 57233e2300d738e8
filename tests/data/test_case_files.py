# SPDX-License-Identifier: Apache-2.0
"""Names of the files of a translation, in a folder and beside a single MR."""

from __future__ import annotations

from pathlib import Path

from contourdiff.data.case_files import CaseFiles


def test_files_are_named_after_the_translation() -> None:
    files = CaseFiles(Path("mr"), "a_t2", ".nrrd")
    assert [path.name for path in files.paths()] == [
        "a_t2_mr.nrrd",
        "a_t2_label.nrrd",
        "a_t2_fidelity.nrrd",
        "a_t2_uncertainty.nrrd",
        "a_t2_label.json",
        "a_t2_mr.png",
        "a_t2_mr.json",
    ]


def test_moved_files_are_named_after_a_single_mr(tmp_path: Path) -> None:
    files = CaseFiles(tmp_path, "a")
    for path in (files.mr, files.label, files.record):
        path.write_text(path.name)
    files.move_to(CaseFiles(tmp_path, "knee", mr_ending=""))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "knee.nii.gz": "a_mr.nii.gz",
        "knee_label.nii.gz": "a_label.nii.gz",
        "knee.json": "a_mr.json",
    }


def test_the_files_of_a_record_have_the_extension_of_its_mr(tmp_path: Path) -> None:
    files = CaseFiles(tmp_path, "a_mr_b", ".mha")
    files.mr.touch()
    assert CaseFiles.of_record(files.record) == files
    assert CaseFiles.of_record(tmp_path / "c_mr.json") == CaseFiles(tmp_path, "c")
