# SPDX-License-Identifier: Apache-2.0
"""Trainings of several stages: each is finished once, and the last step records them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.engines import Trainer
from torch import nn

from contourdiff.data.atomic import write_text
from contourdiff_lab.baselines.handlers import RECORD, TrainingBudget, counts


def stage_minutes(stage: str, minutes: float | None, parts: Mapping[str, float]) -> float | None:
    """Wall clock of a stage, in proportion to its part of ``parts``; ``None`` without a limit of ``minutes``.

    Raises ``ValueError`` unless the stage has a part, and all parts are positive.
    """
    if stage not in parts or min(parts.values()) <= 0:
        raise ValueError(
            f"expected a positive part of each stage, got {dict(parts)}; change stage_parts"
        )
    return None if minutes is None else minutes * parts[stage] / sum(parts.values())


def run_stage(
    stage: str, trainer: Trainer, budget: TrainingBudget, output_dir: str | Path, batch_size: int
) -> None:
    """Run a stage, unless it is finished, and then write ``<output_dir>/<stage>/trained.json``.

    The record has seconds of wall clock, iterations, and images of each side. Raises ``RuntimeError`` if the training
    was stopped: the next stage requires its weights.
    """
    path = Path(output_dir) / stage / RECORD
    if path.is_file():
        return
    trainer.run()
    if budget.share(trainer) < 1:
        raise RuntimeError(
            f"expected the stage {stage} to reach its end, but it was stopped; run again to resume it"
        )
    write_text(path, json.dumps(counts(trainer, budget, batch_size), indent=2) + "\n")


def record_stages(
    stages: Iterable[str],
    networks: Sequence[nn.Module],
    output_dir: str | Path,
    settings: Mapping[str, Any],
) -> None:
    """Write ``<output_dir>/trained.json`` from the records of all stages: sums, and the stages by name.

    Trained parameters are those of ``networks``; ``settings`` are recorded unchanged.
    """
    root = Path(output_dir)
    records = {
        stage: json.loads((root / stage / RECORD).read_text(encoding="utf-8")) for stage in stages
    }
    sums = {
        name: sum(record[name] for record in records.values())
        for name in ("seconds", "iterations", "images")
    }
    parameters = sum(
        parameter.numel() for network in networks for parameter in network.parameters()
    )
    record = {
        "method": settings["method"],
        **sums,
        "parameters": parameters,
        "stages": records,
        "settings": settings,
    }
    write_text(root / RECORD, json.dumps(record, indent=2) + "\n")
