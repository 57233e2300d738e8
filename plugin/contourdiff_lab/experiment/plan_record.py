# SPDX-License-Identifier: Apache-2.0
"""The record of an experiment's plan beside its results: they may grow, and never change their meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os.path import realpath
from pathlib import Path
from typing import Any

from filelock import FileLock

from contourdiff.data.atomic import read_json, write_json
from contourdiff.weights import sha256_of
from contourdiff_lab.experiment.plan import ExperimentPlan
from contourdiff_lab.experiment.plan_inputs import PlanInputs
from contourdiff_lab.experiment.rows import row_of

GROWING = ("folders", "groups", "mr_training", "baselines", "folds")
"""Entries that may gain names; a name that is there keeps its meaning."""


def plan_entries(plan: ExperimentPlan, inputs: PlanInputs) -> dict[str, Any]:
    """All that cells depend on; paths are absolute, as the same relative one is another folder elsewhere."""
    training_dir = realpath(plan.mr_training.get("dataset_dir", "."))
    training = {**plan.mr_training, "dataset_dir": training_dir}
    reference = None if plan.reference_dir is None else realpath(plan.reference_dir)
    return {
        "ct_dir": realpath(plan.ct_dir),
        "mr_dir": realpath(plan.mr_dir),
        "reference_dir": reference,
        "weights": sha256_of(inputs.ckpt_path),
        "label_map": read_json(inputs.label_map),
        "overlays": list(plan.overlays),
        "patient_pattern": plan.patient_pattern,
        "folders": {name: realpath(folder) for name, folder in plan.folders.items()},
        "groups": dict(plan.groups),
        "translation": dict(plan.translation),
        "segmentation": dict(plan.segmentation),
        "unconditional": dict(plan.unconditional),
        "mr_training": {row: training for row in plan.all_rows if row_of(row).mr_training},
        "baselines": inputs.baselines,
        "folds": {str(number): fold for number, fold in enumerate(inputs.folds)},
    }


def record_plan(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as JSON, with the names that an older record of the same plan has beyond it.

    Processes that start in one folder at a time wait for each other, so that each sees the record of the one before.
    Raises ``ValueError`` if the older one is of another plan.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        _merge_plan(path, record)


def _merge_plan(path: Path, record: Mapping[str, Any]) -> None:
    plan: dict[str, Any] = json.loads(
        json.dumps(record, default=str)
    )  # lists for tuples, text for paths
    earlier = _read(path)
    changed = []
    for name in sorted(earlier.keys() - set(GROWING)):
        if earlier[name] != plan.get(name):
            changed.append(name)
    for name in GROWING:
        kept = earlier.get(name, {})
        merged = {**kept, **plan[name]}
        for key, value in kept.items():
            if merged[key] != value:
                changed.append(f"{name} {key}")
        plan[name] = merged
    if changed:
        raise ValueError(
            f"{path.parent} holds a table of another plan (other: {changed}); pass another output_dir"
        )
    write_json(path, plan)


def _read(path: Path) -> dict[str, Any]:
    """The earlier record, if there is one; baselines were once called rivals."""
    if not path.is_file():
        return {}
    record: dict[str, Any] = read_json(path)
    if "rivals" in record:
        record["baselines"] = record.pop("rivals")
    return record
