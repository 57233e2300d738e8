# SPDX-License-Identifier: Apache-2.0
"""Costs of a row: what was recorded, in minutes, millions and evaluations a slice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from contourdiff.bundle import find_bundle
from contourdiff.weights import sha256_of
from contourdiff_lab.experiment.costs import cost_table, stopwatch


def write(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _stop_after(seconds: float) -> None:
    time.sleep(seconds)
    raise KeyboardInterrupt


def test_time_is_counted_over_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "seconds.txt"
    with pytest.raises(KeyboardInterrupt), stopwatch(path):
        _stop_after(0.25)
    with stopwatch(path) as seconds:
        time.sleep(0.25)
    assert 0.4 < seconds() < 5
    assert float(path.read_text()) == pytest.approx(0.5, abs=0.15)


def test_a_line_of_each_row_has_what_was_recorded(tmp_path: Path) -> None:
    write(tmp_path / "plan.json", weights=sha256_of(find_bundle() / "models" / "model.pt"))
    slices = [{"skipped": True}, {"skipped": False, "rounds": 1}, {"skipped": False, "rounds": 2}]
    diffusion = {"num_inference_steps": 15, "num_refinement_steps": 4, "candidates": 3}
    record = {"settings": diffusion, "weights": {"refiner": {}}, "slices": slices}
    write(tmp_path / "ours" / "translations_seed0" / "a_mr.json", **record)
    trained = {"seconds": 1800, "iterations": 900, "images": 1800, "parameters": 2.5e6}
    cyclegan = tmp_path / "cyclegan"
    write(cyclegan / "weights_seed0" / "trained.json", **trained, settings={"minutes": 30})
    write(cyclegan / "translations_seed0" / "a_mr.json", settings={}, weights={}, slices=slices)
    for row in ("ours", "cyclegan", "without_adaptation"):
        cell = tmp_path / row / "unet_translation0_seed0"
        write(cell / "trained.json", seconds=90, steps=1500, parameters=1_000_000)
    old = tmp_path / "ours" / "swin_unetr_translation0_seed0"
    write(old / "trained.json", seed=0)  # of a version without figures
    torch.save({"weight": torch.zeros(20_000)}, old / "model.pt")
    lines = cost_table(tmp_path, ["without_adaptation", "cyclegan", "ours"]).splitlines()[2:5]
    assert (
        lines[0] == "| without_adaptation | CT with labels | - | - | - | - | 1.5 | 1,500 | 1.00 |"
    )
    budget = "30 min, 900 iterations, 1,800 images"
    assert lines[1] == f"| cyclegan | CT and MR | 30.0 | {budget} | 2.50 | 1 | 1.5 | 1,500 | 1.00 |"
    end = "| 86 | 1.5 / n/a | 1,500 / n/a | 1.00 / 0.02 |"  # 1.5 rounds x 3 candidates x 19 steps
    assert lines[2].startswith("| ours | MR | 499.0 | 242,400 images | 5.")
    assert lines[2].endswith(end)
