# SPDX-License-Identifier: Apache-2.0
"""Stages of a training: their time, each run once, resumed one by one, and recorded together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import nibabel as nib
import pytest
import torch
from torch import nn

from contourdiff.training.handlers import EpochSeeder
from contourdiff_lab.baselines.stages import record_stages, run_stage, stage_minutes
from contourdiff_lab.baselines.training import train_baseline
from helpers import CONFIGS, LABEL_MAP, TINY_BASELINE, write_domains, write_nifti

TWO_EPOCHS = {
    **TINY_BASELINE,
    "max_epochs": 2,
    "epoch_length": 1,
    "batch_size": 2,
    "picture_interval": 9,
}
OTHER_STAGES = {
    "segmentation_batch_size": 2,
    "segmentation_epoch_length": 1,
    "task_epochs": 2,
    "feature_epochs": 2,
}
METHODS: dict[str, dict[str, Any]] = {
    "synseg": TWO_EPOCHS,
    "cycada": {**TWO_EPOCHS, **OTHER_STAGES},
}


class StoppedError(OSError):
    """The training was interrupted."""


def stage(root: Path, share: float = 1.0, iterations: int = 7) -> Callable[[str], list[str]]:
    """Run a stage by name, of a trainer that does nothing; which trainers ran."""
    ran: list[str] = []
    budget = SimpleNamespace(share=lambda trainer: share, seconds=1.25)

    def run(name: str) -> list[str]:
        trainer = SimpleNamespace(
            run=lambda: ran.append(name), state=SimpleNamespace(iteration=iterations)
        )
        run_stage(name, trainer, budget, root, batch_size=4)  # type: ignore[arg-type]
        return ran

    return run


def test_the_minutes_are_divided_in_proportion() -> None:
    parts = {"task": 1, "pixel": 3, "features": 2}
    assert [stage_minutes(name, 60, parts) for name in parts] == [10, 30, 20]
    assert stage_minutes("task", None, parts) is None
    for wrong in ({"task": 0, "pixel": 1}, {"task": 1}):
        with pytest.raises(ValueError, match="change stage_parts"):
            stage_minutes("pixel", 60, wrong)


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    run = stage(tmp_path)
    assert run("task") == run("task") == ["task"]
    assert run("pixel") == ["task", "pixel"]


def test_a_stopped_stage_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="run again to resume"):
        stage(tmp_path, share=0.9)("task")
    assert stage(tmp_path)("task") == ["task"]


def test_the_record_sums_up_the_stages(tmp_path: Path) -> None:
    for name, iterations in (("task", 7), ("pixel", 3)):
        stage(tmp_path, iterations=iterations)(name)
    record_stages(
        ["task", "pixel"],
        [nn.Linear(3, 2), nn.Linear(1, 1)],
        tmp_path,
        {"method": "cycada", "seed": 5},
    )
    record = json.loads((tmp_path / "trained.json").read_text())
    sums = {"seconds": 2.4, "iterations": 10, "images": 40, "parameters": 10}
    assert {name: record[name] for name in sums} == sums
    assert record["stages"]["pixel"]["images"] == 12
    assert (record["method"], record["settings"]["seed"]) == ("cycada", 5)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_is_stopped_in_every_stage_ends_as_one_that_is_not(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct, mr = write_domains(tmp_path)
    seed, epochs = EpochSeeder.__call__, []

    def stop_at_second(self: EpochSeeder, engine: Any) -> None:
        epochs.append(engine.state.epoch)
        if len(epochs) in stops:
            raise StoppedError
        seed(self, engine)

    monkeypatch.setattr(EpochSeeder, "__call__", stop_at_second)
    stages = 3 if method == "cycada" else 1
    for name, stops in (("whole", ()), ("stopped", {3 * number + 2 for number in range(stages)})):
        epochs.clear()
        for _ in range(len(stops)):
            with pytest.raises(StoppedError):
                train_baseline(method, ct, mr, tmp_path / name, **METHODS[method])
        train_baseline(method, ct, mr, tmp_path / name, **METHODS[method])
    assert epochs == [1, 2, 2] * stages
    for file in ("generator.pt", "segmentation.pt"):
        whole, resumed = (
            torch.load(tmp_path / name / file, weights_only=True) for name in ("whole", "stopped")
        )
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    first, second = (
        json.loads((tmp_path / name / "trained.json").read_text()) for name in ("whole", "stopped")
    )
    assert first["iterations"] == second["iterations"] == 2 * stages


@pytest.mark.parametrize("method", METHODS)
def test_real_slices_train_a_network_that_is_scored_on_real_mr(
    method: str, real_data: Path, tmp_path: Path
) -> None:
    for source, target in (
        ("torso_ct", "torso.nii.gz"),
        ("torso_vertebrae", "labels/torso.nii.gz"),
    ):
        image = nib.load(real_data / "ct" / f"{source}.nii.gz").slicer[58:61]
        write_nifti(tmp_path / "ct" / target, image.get_fdata().astype("int16"), image.affine)
    settings = {**METHODS[method], "image_size_px": [64, 64], "datalist": "index.csv"}
    settings |= {
        "file_pattern": "t1/spider_00[1-3]_*",
        "min_object_mm2": 9600.0,
        "max_hole_mm2": 3600.0,
    }
    trained = train_baseline(
        method, tmp_path / "ct", real_data / "mr_lumbar", tmp_path / "out", **settings
    )
    record = json.loads((trained / "trained.json").read_text())
    assert (record["method"], record["settings"]["min_label_fraction"]) == (method, 0.002)
    name = sorted((real_data / "mr_lumbar_labelled" / "images").glob("*.nii.gz"))[
        0
    ].name.removesuffix(".nii.gz")
    monai.bundle.run(
        config_file=[
            str(CONFIGS / f"{config}.json") for config in ("segmentation_train", "evaluate")
        ],
        test_dir=str(real_data / "mr_lumbar_labelled"),
        test_pattern=name,
        ckpt_path=str(trained / "segmentation.pt"),
        output_dir=str(tmp_path / "scores"),
        label_map=LABEL_MAP,
    )
    assert (
        0
        <= json.loads((tmp_path / "scores" / "scores.json").read_text())["summary"][0]["dice"]
        <= 1
    )
