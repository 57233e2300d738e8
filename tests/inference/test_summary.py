# SPDX-License-Identifier: Apache-2.0
"""The table of a run says what the records say, and why a case has none; a run leaves its times and failures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from contourdiff.inference.summary import read_run, write_run
from contourdiff.report import write_report
from contourdiff.report.cases import read_cohort
from helpers.runs import run_tiny_inference
from helpers.volumes import make_dataset

COLUMNS = ("case", "status", "shape", "spacing_mm", "slices", "warnings")


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_table_has_a_line_for_each_case(tiny_weights: Path, tmp_path: Path) -> None:
    dataset_dir, table = make_dataset(tmp_path / "ct", ("a", "b")), tmp_path / "cohort.csv"
    (dataset_dir / "c.nii.gz").write_bytes(b"no volume")
    for status in ("translated", "kept"):
        with pytest.raises(ValueError, match="1 of 3 cases failed"):
            run_tiny_inference(dataset_dir, tmp_path / "mr", tiny_weights, stats=str(table))
        rows = rows_of(table)
        assert [(row["case"], row["status"]) for row in rows] == [
            ("a", status),
            ("b", status),
            ("c", "failed"),
        ]
    assert "expected a readable NIfTI file" in rows[2]["error"]
    assert not any(rows[2][name] for name in rows[2] if name not in ("case", "status", "error"))
    record = json.loads((tmp_path / "mr" / "a_mr.json").read_text())
    drawn = [item for item in record["slices"] if not item["skipped"]]
    assert [rows[0][name] for name in COLUMNS] == [
        "a",
        "kept",
        "10x30x26",
        "3.00666x2.50998x4.00125",
        "10",
        "",
    ]
    assert float(rows[0]["accepted_share"]) == sum(item["accepted"] for item in drawn) / len(drawn)
    assert float(rows[0]["flicker"]) == record["flicker"]["flicker"]
    assert float(rows[0]["fidelity"]) == record["fidelity"]["fidelity_median"]


@pytest.mark.slow
def test_a_csv_and_a_parquet_table_hold_the_same(tiny_weights: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    dataset_dir = make_dataset(tmp_path / "ct", ("a",))
    run_tiny_inference(
        dataset_dir,
        tmp_path / "mr",
        tiny_weights,
        stats=str(tmp_path / "one.csv"),
        num_inference_steps=1,
    )
    run_tiny_inference(
        dataset_dir, tmp_path / "mr", tiny_weights, stats=str(tmp_path / "two.parquet")
    )
    (row,) = rows_of(tmp_path / "one.csv")
    (other,) = parquet.read_table(tmp_path / "two.parquet").to_pylist()
    texts = {name: "" if value is None else str(value) for name, value in other.items()}
    assert texts == {**row, "status": "kept", "seconds": ""}


def test_a_table_of_another_format_is_refused_before_any_work(
    tiny_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected a file \*.csv or \*.parquet for the table of cases, got .*cohort.xls",
    ):
        run_tiny_inference(
            make_dataset(tmp_path / "ct", ("a",)),
            tmp_path / "mr",
            tiny_weights,
            stats=str(tmp_path / "cohort.xls"),
        )
    assert not (tmp_path / "mr").exists()


@pytest.mark.slow
def test_a_run_leaves_its_times_and_failures(tiny_weights: Path, tmp_path: Path) -> None:
    """Each run those of its cases."""
    ct, mr = make_dataset(tmp_path / "ct", ("a", "b")), tmp_path / "mr"
    (ct / "broken.nii.gz").write_bytes(b"no volume")
    with pytest.raises(ValueError, match="1 of 3 cases failed"):
        run_tiny_inference(ct, mr, tiny_weights, num_inference_steps=1)
    before = {case.name: case for case in read_cohort(mr)}
    assert {name: case.status for name, case in before.items()} == {
        "a": "translated",
        "b": "translated",
        "broken": "failed",
    }
    assert before["a"].seconds > 0  # type: ignore[operator]
    assert "expected a readable NIfTI file" in (before["broken"].error or "")
    page = write_report(mr).read_text()
    assert f"<dt>time</dt><dd>{before['a'].seconds:.1f} s</dd>" in page
    assert "expected a readable NIfTI file" in page
    run_tiny_inference(
        make_dataset(tmp_path / "more", ("b", "c")), mr, tiny_weights, num_inference_steps=1
    )
    after = {case.name: case for case in read_cohort(mr)}
    assert {name: case.status for name, case in after.items()} == {
        "a": "translated",
        "b": "kept",
        "broken": "failed",
        "c": "translated",
    }
    assert [after[name].seconds for name in ("a", "b")] == [
        before[name].seconds for name in ("a", "b")
    ]


def test_a_run_file_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    row = {"case": "a", "status": "failed", "seconds": None, "error": "no volume"}
    rows = [{**row, "warnings": None}]
    for content in (
        "",
        "[]",
        "{}",
        '{"finished": "x", "cases": [{"case": "a"}]}',
        '{"finished": "x", "cases": [1]}',
    ):
        (tmp_path / "run.json").write_text(content)
        assert read_run(tmp_path) == {}
        write_run(tmp_path, rows)
        assert read_run(tmp_path)["cases"] == rows
