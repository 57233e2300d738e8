# SPDX-License-Identifier: Apache-2.0
"""The steps of an experiment's cells: translate, train, test. Each keeps a result that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from contourdiff.bundle import read_config, run_inference_config
from contourdiff.data.atomic import copy_file, read_json, write_json
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_of
from contourdiff_lab.baselines.training import (
    BASELINES,
    train_baseline,
    translate_with_baseline,
)
from contourdiff_lab.config_files import lab_config_files, read_lab_config, training_overlays
from contourdiff_lab.experiment.folds import merge_folds
from contourdiff_lab.experiment.label_crop import write_label_crop
from contourdiff_lab.experiment.plan import Cell, ExperimentPlan
from contourdiff_lab.experiment.plan_inputs import PlanInputs
from contourdiff_lab.experiment.rows import (
    OURS_T1_T2,
    SEGMENTATION_CONFIGS,
    UNCONDITIONAL,
    UPPER_BOUND,
    row_of,
)
from contourdiff_lab.experiment.training import run_config, train_once

SUMMED = ("seconds", "steps", "parameters")
"""What the trainings of two networks of a translator cost together."""
NO_FILE = "/"
"""Pattern that matches no file."""


def write_labelled_ct(plan: ExperimentPlan, inputs: PlanInputs) -> None:
    """Write the labelled slices of every CT, with their labels, to ``ct``."""
    values = LabelMap(inputs.label_map).values("ct")
    for case in inputs.ct_cases:
        name = f"{case_of(case['image'])}.nii.gz"
        write_label_crop(case, values, inputs.slice_end, plan.labelled_ct, name)


def write_translations(plan: ExperimentPlan, inputs: PlanInputs, cell: Cell) -> None:
    """Translate the CT for a row of this package; cases that are there are kept."""
    row = row_of(cell.row)
    output_dir = plan.training_images(cell)
    if row.baseline:
        baseline_dir = _train_baseline(plan, inputs, cell)
        translate_with_baseline(baseline_dir, plan.labelled_ct, output_dir, bundle=plan.bundle)
    elif row.translates:
        settings = {
            **plan.translation,
            "ckpt_path": str(inputs.ckpt_path),
            "seed": cell.translation_seed,
            **row.translation,
        }
        if cell.row == OURS_T1_T2:
            settings["contrast"] = inputs.contrasts
        if cell.row == UNCONDITIONAL:
            settings.update(_unconditional_weights(plan, inputs))
        run_inference_config(
            plan.labelled_ct, output_dir, bundle=plan.bundle, overlays=plan.overlays, **settings
        )


def _train_baseline(plan: ExperimentPlan, inputs: PlanInputs, cell: Cell) -> Path:
    """Train a baseline, or go on, and return its folder."""
    settings = {
        **plan.mr_training,
        **inputs.baselines[cell.row],
        "label_map": str(inputs.label_map),
        "seed": cell.translation_seed,
    }
    if row_of(cell.row).segments:
        settings = {**_own_segmentation(plan, cell), **settings}
    mr_dir = settings.pop("dataset_dir")
    output_dir = plan.baseline_dir(cell)
    train_baseline(cell.row, plan.labelled_ct, mr_dir, output_dir, bundle=plan.bundle, **settings)
    return output_dir


def _own_segmentation(plan: ExperimentPlan, cell: Cell) -> dict[str, Any]:
    """Settings of a baseline's own segmentation network that make it equal to those of the other rows."""
    configs = lab_config_files(SEGMENTATION_CONFIGS, plan.bundle)
    config = read_config(configs, plan.segmentation)
    accepted = read_lab_config(BASELINES[cell.row].configs, {}, plan.bundle).get()
    settings = {
        "remap_probability": config["remap_probability"],
        "intensity_probability": config["intensity_probability"],
        "segmentation_batch_size": config["batch_size"],
        "segmentation_epoch_length": config["epoch_length"],
        "task_epochs": config["max_epochs"],
        "feature_epochs": config["max_epochs"],
        "stage_parts": {"task": 0, "pixel": 1, "features": 0},
    }
    known = {name: value for name, value in settings.items() if name in accepted}
    return {"architecture": cell.architecture, **known}


def _unconditional_weights(plan: ExperimentPlan, inputs: PlanInputs) -> dict[str, Any]:
    """Train the translator without contours, from scratch, and return the paths of its weights as settings.

    Both networks of a cascade see empty contour maps, see ``unconditional.json``. The second is that of
    ``train_refiner.json``, whatever the overlays of the translation have. Their costs are summed up in
    ``weights/trained.json``.
    """
    root = Path(plan.output_dir) / UNCONDITIONAL
    overlays = training_overlays(plan.bundle, plan.overlays)
    settings = {"seed": 0, **plan.mr_training, **plan.unconditional}
    contrasts = {name: "*" if name == inputs.contrast else NO_FILE for name in inputs.contrasts}
    folders = {"ckpt_path": root / "networks" / "first"}
    train_once(
        ["train", *overlays, "unconditional"],
        {"contrasts": contrasts, **settings},
        folders["ckpt_path"],
        plan.bundle,
    )
    networks = {}
    if inputs.has_refiner:
        folders["refiner_path"] = root / "networks" / "second"
        settings.pop("contrasts", None)
        configs = ("train", "train_refiner", "unconditional")
        train_once(configs, settings, folders["refiner_path"], plan.bundle)
        networks["refiner_def"] = read_lab_config(configs, settings, plan.bundle)["network_def"]
    records = [read_json(folder / "trained.json") for folder in folders.values()]
    sums = {name: sum(record[name] for record in records) for name in SUMMED}
    write_json(root / "weights" / "trained.json", sums)
    weights = {name: str(folder / "model.pt") for name, folder in folders.items()}
    return {**networks, **weights}


def score_cell(plan: ExperimentPlan, inputs: PlanInputs, cell: Cell) -> None:
    """Train a network on a row's images, or take the baseline's, and score it on every group."""
    row = row_of(cell.row)
    folder = Path(plan.output_dir) / cell.folder
    settings = {
        **plan.segmentation,
        **row.segmentation,
        "dataset_dir": str(plan.training_images(cell)),
        "label_map": str(inputs.label_map),
        "architecture": cell.architecture,
        "seed": cell.seed,
    }
    if inputs.folds and cell.row == UPPER_BOUND:
        _cross_validate(plan, inputs, cell, settings)
        return
    if row.segments:
        copy_file(plan.baseline_dir(cell) / "segmentation.pt", folder / "model.pt")
    else:
        train_once([*SEGMENTATION_CONFIGS, *row.overlays], settings, folder, plan.bundle)
    for group in plan.groups:
        _test(plan, settings, folder, group)


def _cross_validate(
    plan: ExperimentPlan, inputs: PlanInputs, cell: Cell, settings: Mapping[str, Any]
) -> None:
    """Train on all patients but those of a fold and test on these, fold by fold; then join the tests."""
    configs = [*SEGMENTATION_CONFIGS, *row_of(UPPER_BOUND).overlays]
    root = Path(plan.output_dir) / UPPER_BOUND
    everyone = [*chain.from_iterable(inputs.folds)]
    folders = []
    for number, fold in enumerate(inputs.folds):
        folder = root / f"{cell.architecture}_fold{number}_seed{cell.seed}"
        training = {
            **settings,
            "patient_pattern": plan.patient_pattern,
            "patients": [patient for patient in everyone if patient not in fold],
        }
        train_once(configs, training, folder, plan.bundle)
        for group in plan.groups:
            if inputs.patients[group].intersection(fold):
                _test(plan, settings, folder, group, fold)
        folders.append(folder)
    output_dir = Path(plan.output_dir) / cell.folder
    for group in plan.groups:
        tests = [folder / group for folder in folders]
        tests = [test for test in tests if _is_scored(test)]
        if not _is_scored(output_dir / group):
            merge_folds(tests, output_dir / group)
    _record_folds(folders, inputs.folds, output_dir)


def _record_folds(folders: Sequence[Path], folds: list[list[str]], output_dir: Path) -> None:
    """Write ``trained.json`` of all folds together: the first one's, with the seconds of all."""
    records = [read_json(folder / "trained.json") for folder in folders]
    seconds = sum(record["seconds"] for record in records)
    record = {**records[0], "seconds": seconds, "patients": folds}
    write_json(output_dir / "trained.json", record)


def _test(
    plan: ExperimentPlan,
    settings: Mapping[str, Any],
    folder: Path,
    group: str,
    patients: Sequence[str] | None = None,
) -> None:
    """Score the network of a folder on a group, or on those patients of it."""
    output_dir = folder / group
    if _is_scored(output_dir):
        return
    test = {
        "test_dir": str(plan.mr_dir),
        "test_pattern": plan.groups[group],
        "output_dir": str(output_dir),
        "test_patient_pattern": plan.patient_pattern,
        "ckpt_path": str(folder / "model.pt"),
        "test_patients": patients,
    }
    run_config([*SEGMENTATION_CONFIGS, "evaluate"], {**settings, **test}, plan.bundle)


def _is_scored(folder: Path) -> bool:
    return (folder / "scores.json").is_file()
