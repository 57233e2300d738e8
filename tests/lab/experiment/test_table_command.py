# SPDX-License-Identifier: Apache-2.0
"""The command ``table`` passes a plan, and its help names every row."""

from __future__ import annotations

from pathlib import Path

import pytest

from contourdiff_lab.commands import DEFAULT_ROWS, FURTHER_ROWS, main
from contourdiff_lab.experiment.plan import ExperimentPlan
from contourdiff_lab.experiment.rows import ROWS, TABLE


def test_the_help_of_the_table_names_every_row() -> None:
    assert DEFAULT_ROWS.split() == list(ROWS)
    assert set(TABLE) == {*DEFAULT_ROWS.split(), *FURTHER_ROWS.split()}


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[ExperimentPlan]:
    """Plans that the command was to run."""
    passed: list[ExperimentPlan] = []

    def run(plan: ExperimentPlan) -> Path:
        passed.append(plan)
        return Path("table.md")

    monkeypatch.setattr("contourdiff_lab.experiment.run.run_experiment", run)
    return passed


def test_the_command_line_passes_the_plan(
    plans: list[ExperimentPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    options = """
        --groups t1=*_t1_* t2=*_t2_*
        --segmentation max_epochs=40
        --seeds 0 1
        --baselines minutes=30
        --mr_training dataset_dir=mr file_pattern=*/t1
        --folders cycle=cycle_gan
    """
    main(["table", "ct", "mr", "out", *options.split()])
    assert plans == [
        ExperimentPlan(
            ct_dir="ct",
            mr_dir="mr",
            output_dir="out",
            groups={"t1": "*_t1_*", "t2": "*_t2_*"},
            seeds=[0, 1],
            folders={"cycle": "cycle_gan"},
            segmentation={"max_epochs": 40},
            baselines={"minutes": 30},
            mr_training={"dataset_dir": "mr", "file_pattern": "*/t1"},
        )
    ]
    assert capsys.readouterr().out == "table.md\n"


def test_the_command_line_cuts_a_plan_short(plans: list[ExperimentPlan]) -> None:
    main(["table", "ct", "mr", "out", "--smoke", "--rows", "ours"])
    assert plans == [ExperimentPlan("ct", "mr", "out", rows=["ours"]).smoke()]


def test_a_group_without_a_pattern_is_refused() -> None:
    with pytest.raises(SystemExit, match="name=value"):
        main(["table", "ct", "mr", "out", "--groups", "t1"])
