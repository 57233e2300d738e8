# SPDX-License-Identifier: Apache-2.0
"""Solvers compared on held-out slices."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from contourdiff_lab.commands import main
from contourdiff_lab.solver_comparison import compare_solvers
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS
from helpers.volumes import make_mr


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    dataset_dir = make_mr(tmp_path_factory.mktemp("steps") / "mr")
    return {
        "dataset_dir": str(dataset_dir),
        "datalist": "index.csv",
        "network_def": TINY_NETWORK,
        "image_size_px": [48, 48],
        "min_object_mm2": 100.0,
        "filter_classes": 3,
    }


@pytest.mark.slow
def test_solvers_have_a_line_each_and_a_picture(
    settings: dict[str, object], tiny_weights: Path, tmp_path: Path
) -> None:
    solvers = ["ddim:4", "ddim:2", "dpm_solver:3"]
    table = compare_solvers(
        [str(CONFIGS / "train.json"), str(CONFIGS / "train_single.json")],
        str(tiny_weights),
        tmp_path,
        solvers=solvers,
        reference="ddim:4",
        seeds=(0, 1),
        **settings,
    )
    rows = list(csv.DictReader((tmp_path / "steps.csv").open()))
    slices = {(row["case"], row["slice"]) for row in rows}
    assert len(rows) == len(solvers) * 2 * len(slices)
    assert len(slices) == 5  # four slices of a volume and a single one
    same = [row for row in rows if row["solver"] == "ddim:4"]
    assert [row["reference_ssim"] == "" for row in same] == [row["seed"] == "1" for row in same]
    assert all(
        float(row["reference_ssim"]) == pytest.approx(1) for row in same if row["reference_ssim"]
    )
    compared = [row for row in rows if row["solver"] != "ddim:4" and row["reference_ssim"]]
    assert max(float(row["reference_ssim"]) for row in compared) < 0.9999
    assert "| dpm_solver | 3 |" in table
    assert table in (tmp_path / "steps.md").read_text()
    assert (tmp_path / "steps.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["euler:10", "ddim", "ddim:0", "ddim:x", "ddim:4+0", "ddim:4+2+1"])
def test_an_unknown_solver_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit,
        match=r"error: expected a solver of .*ddim.*such as dpm_solver:20 or ddim:4\+2; got",
    ):
        main(["steps", "nowhere.pt", str(tmp_path / "out"), "--solvers", name])
    assert not (tmp_path / "out").exists()
