# SPDX-License-Identifier: Apache-2.0
"""A run with a report keeps what no record holds: times, failures, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from contourdiff.report import RunReport
from contourdiff.report.pages import read_run
from helpers import HOSTILE_NAME


def test_a_run_leaves_its_times_and_failures(reported: Path) -> None:
    run = read_run(reported)
    rows = {row["case"]: row for row in run["cases"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        HOSTILE_NAME: "translated",
        "a": "translated",
        "broken": "failed",
    }
    assert rows["a"]["seconds"] > 0
    assert "expected a readable NIfTI file" in rows["broken"]["error"]
    assert (reported / "index.html").is_file()


def test_a_kept_case_keeps_its_time(reported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reported, tmp_path / "mr")
    before = {row["case"]: row["seconds"] for row in read_run(folder)["cases"]}
    rows = [{"case": "a", "status": "kept", "seconds": None, "error": None}]
    assert RunReport(folder, ct_dir="no/folder")(rows) == folder / "index.html"
    (row,) = json.loads((folder / "report" / "run.json").read_text())["cases"]
    assert (row["status"], row["seconds"]) == ("kept", before["a"])
