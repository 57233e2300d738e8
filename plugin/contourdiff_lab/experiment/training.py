# SPDX-License-Identifier: Apache-2.0
"""Run a config of the bundle or the lab, and train with one: once, and on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle

from contourdiff.bundle import read_config
from contourdiff.data.atomic import write_json
from contourdiff.training.handlers import newest_checkpoint
from contourdiff_lab.config_files import lab_config_files
from contourdiff_lab.experiment.costs import count_parameters, stopwatch


def train_once(
    configs: Sequence[str],
    settings: Mapping[str, Any],
    folder: Path,
    bundle: str | Path | None = None,
) -> Path:
    """Weights ``<folder>/model.pt`` of a training: those that are there, or it goes on, or starts.

    ``trained.json``, written last, holds the settings, and seconds, optimizer steps and parameters.
    """
    weights = folder / "model.pt"
    if (folder / "trained.json").is_file():
        return weights
    folder.mkdir(parents=True, exist_ok=True)
    config = read_config(lab_config_files(configs, bundle), settings)
    steps = config["max_epochs"] * config["epoch_length"]
    run_settings = {**settings, "output_dir": str(folder)}
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        run_settings["resume_from"] = str(checkpoint)
    with stopwatch(folder / "seconds.txt") as seconds:
        run_config(configs, run_settings, bundle)
    record = {
        **settings,
        "seconds": seconds(),
        "steps": steps,
        "parameters": count_parameters(weights),
    }
    write_json(folder / "trained.json", record)
    return weights


def run_config(
    configs: Sequence[str], settings: Mapping[str, Any], bundle: str | Path | None = None
) -> None:
    """Run a config and its overlays, by name, as ``python -m monai.bundle run`` does."""
    monai.bundle.run(config_file=lab_config_files(configs, bundle), **settings)
