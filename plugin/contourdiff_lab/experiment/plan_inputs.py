# SPDX-License-Identifier: Apache-2.0
"""What a plan names, read and checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contourdiff.bundle import config_files, find_bundle, read_config
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_name
from contourdiff.data.training_cases import labelled_cases, patient_of
from contourdiff_lab.experiment.folds import patient_folds
from contourdiff_lab.experiment.plan import ExperimentPlan
from contourdiff_lab.experiment.rows import OURS_T1_T2, UPPER_BOUND, baseline_settings


@dataclass(frozen=True)
class PlanInputs:
    """What the cells of a plan need beside it.

    Attributes:
        label_map: file of the label map.
        ckpt_path: weights of the translator.
        ct_cases: CT with labels.
        contrasts: those of the translator.
        contrast: the one that is translated to; ``None`` for a translator of one.
        has_refiner: whether the translator has a second network.
        slice_end: end of the axis along which slices are stacked, such as ``"R"``.
        baselines: settings of each baseline among the rows.
        patients: patients of each test group.
        folds: patients of each fold of ``upper_bound``; none with a ``reference_dir``.
    """

    label_map: Path
    ckpt_path: Path
    ct_cases: list[dict[str, str]]
    contrasts: list[str]
    contrast: str | None
    has_refiner: bool
    slice_end: str
    baselines: dict[str, dict[str, Any]]
    patients: dict[str, set[str]]
    folds: list[list[str]]


def read_inputs(plan: ExperimentPlan) -> PlanInputs:
    """Check a plan, and read what it names.

    Raises ``FileNotFoundError`` for a missing path, ``ValueError`` for a plan that contradicts itself.
    """
    root = find_bundle(plan.bundle)
    label_map = Path(plan.label_map or root / "label_maps" / "vertebrae.json")
    LabelMap(label_map)
    plan.check()
    baselines = baseline_settings(plan.all_rows, plan.baselines, plan.bundle)
    ct_cases = labelled_cases(plan.ct_dir, strict=True)
    for folder in plan.folders.values():
        labelled_cases(folder, strict=True)
    config = read_config(config_files(root, plan.overlays), plan.translation)
    contrasts = list(config["contrasts"])
    if OURS_T1_T2 in plan.rows and len(contrasts) < 2:
        raise ValueError(
            f"the row {OURS_T1_T2!r} requires a network of two contrasts, got {contrasts}"
        )
    return PlanInputs(
        label_map=label_map,
        ckpt_path=Path(plan.ckpt_path or root / "models" / "model.pt"),
        ct_cases=ct_cases,
        contrasts=contrasts,
        contrast=config["contrast"] or next(iter(contrasts), None),
        has_refiner=config["refiner_def"] is not None,
        slice_end=str(config["axcodes"][config["slice_axis"]]),
        baselines=baselines,
        patients={name: _patients(plan, plan.mr_dir, glob) for name, glob in plan.groups.items()},
        folds=_folds(plan),
    )


def _folds(plan: ExperimentPlan) -> list[list[str]]:
    """Patients of each fold of ``upper_bound``; none where it is trained on the reference."""
    if UPPER_BOUND not in plan.rows:
        return []
    tested = _patients(plan, plan.mr_dir, "*")
    if plan.reference_dir is None:
        return patient_folds(tested)
    trained = _patients(plan, plan.reference_dir, "*")
    both = sorted(tested & trained)
    if both:
        raise ValueError(
            f"expected other patients in {plan.reference_dir} than in {plan.mr_dir}, got {both} in both; move them "
            "away, or pass a patient_pattern that tells them apart"
        )
    return []


def _patients(plan: ExperimentPlan, folder: str | Path, pattern: str) -> set[str]:
    cases = labelled_cases(folder, pattern=pattern, strict=True)
    return {patient_of(case_name(case["image"]), plan.patient_pattern) for case in cases}
