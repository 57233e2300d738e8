# SPDX-License-Identifier: Apache-2.0
"""Stages of a training: their time, each run once, and recorded together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from contourdiff_lab.baselines.stages import Stage, record_stages, run_stage, stage_minutes


class IdleTrainer:
    """A trainer that does nothing, and counts how often it is run."""

    def __init__(self, iterations: int) -> None:
        self.state = SimpleNamespace(iteration=iterations)
        self.runs = 0

    def run(self) -> None:
        self.runs += 1


def stage(name: str, root: Path, share: float = 1.0, iterations: int = 7) -> Any:
    """A stage of an idle trainer, of which this share is done after a run."""
    budget = SimpleNamespace(share=lambda trainer: share, seconds=1.25)
    return Stage(name, IdleTrainer(iterations), budget, batch_size=4, output_dir=root)  # type: ignore[arg-type]


def test_the_minutes_are_divided_in_proportion() -> None:
    parts = {"task": 1, "pixel": 3, "features": 2}
    assert [stage_minutes(name, 60, parts) for name in parts] == [10, 30, 20]
    assert stage_minutes("task", None, parts) is None
    unlimited = {"task": 0, "pixel": 1}
    assert [stage_minutes(name, 60, unlimited) for name in unlimited] == [None, 60]
    for wrong in ({"task": -1, "pixel": 1}, {"task": 1}, {"pixel": 0}):
        with pytest.raises(ValueError, match="change stage_parts"):
            stage_minutes("pixel", 60, wrong)


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    task = stage("task", tmp_path)
    pixel = stage("pixel", tmp_path)
    for _ in range(2):
        run_stage(task)
    run_stage(pixel)
    assert (task.trainer.runs, pixel.trainer.runs) == (1, 1)


def test_a_stopped_stage_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="run again to resume"):
        run_stage(stage("task", tmp_path, share=0.9))
    resumed = stage("task", tmp_path)
    run_stage(resumed)
    assert resumed.trainer.runs == 1


def test_the_record_sums_up_the_stages(tmp_path: Path) -> None:
    for name, iterations in (("task", 7), ("pixel", 3)):
        run_stage(stage(name, tmp_path, iterations=iterations))
    networks = [nn.Linear(3, 2), nn.Linear(1, 1)]
    record_stages("cycada", ["task", "pixel"], networks, tmp_path, {"seed": 5})
    record = json.loads((tmp_path / "trained.json").read_text())
    sums = {"seconds": 2.4, "iterations": 10, "images": 40, "parameters": 10}
    assert {name: record[name] for name in sums} == sums
    assert record["stages"]["pixel"]["images"] == 12
    assert (record["method"], record["settings"]["seed"]) == ("cycada", 5)
