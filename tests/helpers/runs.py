# SPDX-License-Identifier: Apache-2.0
"""Runs of the bundle with the tiny network, and what runs leave."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contourdiff.bundle import run_inference_config
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS

QUICK_SETTINGS: dict[str, Any] = {
    "filter_classes": 3,
    "preview#columns": 2,
    "acceleration": None,
}
"""Settings for tests of none of them: multi-Otsu of four classes, a picture of seven slices, and the compilation of a
network for every run and shape take longer than the rest."""


def run_tiny_inference(
    dataset_dir: Path, output_dir: Path, weights: Path, **settings: object
) -> Path:
    tiny = {
        "overlays": ("single",),
        "network_def": TINY_NETWORK,
        "ckpt_path": str(weights),
        "num_inference_steps": 2,
        "candidates": 2,
        "max_rounds": 2,
        "min_object_mm2": 100.0,
        "batch_size": 4,
        "logging_file": False,
        **QUICK_SETTINGS,
    }
    return run_inference_config(dataset_dir, output_dir, **{**tiny, **settings})  # type: ignore[arg-type]


BUNDLE_COMMANDS = """
import json, os, runpy, sys
import monai.bundle

statuses = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()  # it has seen nothing of the other commands, and need not import torch again
    if child == 0:
        os.dup2(os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv[1:] = arguments
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        sys.exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""
"""Program that runs ``python -m monai.bundle`` with each list of arguments; what it prints of errors is in a log."""


def tiny_training_settings(
    dataset_dir: Path, output_dir: Path, **changes: object
) -> dict[str, object]:
    return {
        "config_file": [str(CONFIGS / f"{name}.json") for name in ("train", "train_single", "cpu")],
        "logging_file": False,
        "dataset_dir": str(dataset_dir),
        "datalist": "index.csv",
        "output_dir": str(output_dir),
        "network_def": TINY_NETWORK,
        "image_size_px": [32, 32],
        "min_object_mm2": 100.0,
        "filter_classes": 3,
        "batch_size": 3,
        "epoch_length": 4,
        "max_epochs": 4,
        "warmup_steps": 2,
        "val_interval": 2,
        "picture_interval": 4,
        **changes,
    }


def write_events(folder: Path) -> None:
    """200 training steps and 4 validations, in two event files as MONAI's handlers write them."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for tag, steps, suffix in (("train_loss", 200, ".train"), ("val_loss", 4, ".val")):
        with tensorboard.SummaryWriter(str(folder), filename_suffix=suffix) as writer:
            for step in range(1, steps + 1):
                writer.add_scalar(tag, 1 / step, step, walltime=1000.0 + step * 200 / steps)


def large_cohort(reported: Path, folder: Path, count: int) -> Path:
    """A folder with ``count`` records that differ in their numbers, made from one of a folder of translations."""
    record = json.loads((reported / "a_mr.json").read_text())
    rng = np.random.default_rng(0)
    copies = [copy.deepcopy(item) for item in record["slices"][1:2] * 30]
    folder.mkdir(parents=True)
    for number in range(count):
        record["fidelity"]["fidelity_median"] = float(rng.uniform(0.4, 0.9))
        record["flicker"]["flicker"] = float(rng.gamma(4, 300))
        record["slices"] = copies[: int(rng.integers(10, 30))]
        (folder / f"case{number:04}_mr.json").write_text(
            json.dumps({**record, "case": f"case{number:04}"})
        )
    return folder
