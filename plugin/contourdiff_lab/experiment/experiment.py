# SPDX-License-Identifier: Apache-2.0
"""The paper's experiment as a table: translate, train a segmentation network, test it on real MR, row by row."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from typing import Any

import monai.bundle

from contourdiff.bundle import (
    config_files,
    find_bundle,
    read_config,
    run_inference_config,
    training_overlays,
)
from contourdiff.data.atomic import copy_file, write_text
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_name, case_of
from contourdiff.data.training_cases import labelled_cases, patient_of
from contourdiff.training.handlers import newest_checkpoint
from contourdiff.weights import count_parameters, sha256_of
from contourdiff_lab.baselines.training import train_baseline, translate_with_baseline
from contourdiff_lab.experiment.costs import stopwatch
from contourdiff_lab.experiment.folds import merge_folds, patient_folds
from contourdiff_lab.experiment.label_crop import write_label_crop
from contourdiff_lab.experiment.plan_record import record_plan
from contourdiff_lab.experiment.report import write_report
from contourdiff_lab.experiment.rows import (
    OURS_T1_T2,
    ROWS,
    SMOKE,
    TABLE,
    UNCONDITIONAL,
    UPPER_BOUND,
    baseline_settings,
    row_of,
)

logger = logging.getLogger(__name__)
ARCHITECTURES = ("unet", "swin_unetr")
SETTINGS = ("translation", "segmentation", "unconditional")


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything an experiment depends on.

    Args:
        ct_dir: CT with labels: ``<case>.nii.gz`` and ``labels/<case>.nii.gz``.
        mr_dir: real MR with labels to test on; never trained on.
        output_dir: folder for translations, weights, scores and the table.
        label_map: see [`contourdiff.data.label_map.LabelMap`][]; ``None`` takes the bundle's vertebrae.
        rows: some of [`contourdiff_lab.experiment.rows.TABLE`][]; the default is ``ROWS``.
        folders: further rows, name -> folder of ``<case>_mr.nii.gz`` and ``<case>_label.nii.gz`` by any tool.
        architectures: segmentation networks, named in ``segmentation_train.json``.
        seeds: a segmentation network is trained with each.
        translation_seeds: the CT is translated with each, and every network is trained on every translation.
        groups: test groups that are scored apart, name -> pattern of case ids.
        patient_pattern: finds the patient of a test case, for intervals over patients; see
            [`contourdiff.data.training_cases.patient_of`][].
        ckpt_path: weights of the translator; ``None`` takes the bundle's.
        mr_training: ``dataset_dir``, ``datalist`` ... of ``train.json``: the MR of ``unconditional`` and of baselines.
        overlays: overlays of ``inference.json`` for every translation.
        translation: settings of ``inference.json`` for every translation.
        segmentation: settings of ``segmentation_train.json`` for every network.
        unconditional: settings of ``train.json`` for the row ``unconditional``.
        baselines: settings of ``cyclegan.json``, such as ``minutes``, and of overlays, for each that has them.
        bundle: folder of the bundle, if not beside this package.
    """

    ct_dir: str | Path
    mr_dir: str | Path
    output_dir: str | Path
    label_map: str | Path | None = None
    rows: Sequence[str] = ROWS
    folders: Mapping[str, str] = field(default_factory=dict)
    architectures: Sequence[str] = ARCHITECTURES
    seeds: Sequence[int] = (0,)
    translation_seeds: Sequence[int] = (0,)
    groups: Mapping[str, str] = field(default_factory=lambda: {"all": "*"})
    patient_pattern: str = "(.*)"
    ckpt_path: str | Path | None = None
    mr_training: Mapping[str, Any] = field(default_factory=dict)
    overlays: Sequence[str] = ("fast",)
    translation: Mapping[str, Any] = field(default_factory=dict)
    segmentation: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Any] = field(default_factory=dict)
    bundle: str | Path | None = None

    def smoke(self) -> ExperimentPlan:
        """The same plan with everything cut short, as a test of the installation; its figures mean nothing."""
        return ExperimentPlan(
            **vars(self) | {name: {**vars(self)[name], **cut} for name, cut in SMOKE.items()}
        )


def run_experiment(plan: ExperimentPlan) -> Path:
    """Run what is missing of a plan, write ``table.csv``, ``table.md`` and its pictures, and return ``table.md``.

    Segmentation is learned from the labelled slices of the CT (``<output_dir>/ct``), in ``upper_bound`` from the other
    patients' MR. Every cell (row, architecture, seed of the translation, seed of the training) has a folder with
    weights, and scores and predictions of each group. A finished cell is kept, an interrupted one resumes from its last
    checkpoint. Rows that translate nothing have the first seed of the translation alone, baselines that segment the
    first seed of the training.

    Raises ``FileNotFoundError`` for a missing path, ``ValueError`` for a plan that contradicts itself or the folder.
    """
    job = _Job(plan)
    job.labelled_ct()
    cells = job.cells()
    for number, cell in enumerate(cells, start=1):
        logger.info(
            "cell %d of %d: %s, translation seed %d, %s, seed %d", number, len(cells), *cell
        )
        job.translated(*cell[:3])
        job.scored(*cell)
    inference = {"bundle": plan.bundle, "overlays": plan.overlays, "settings": plan.translation}
    return write_report(
        Path(plan.output_dir), plan.groups, plan.mr_dir, first=tuple(TABLE), inference=inference
    )


class _Job:
    """A checked plan and the steps of its cells; each step returns at once if its result is there."""

    def __init__(self, plan: ExperimentPlan) -> None:
        self.plan, self.root = plan, Path(plan.output_dir)
        self.rows = [*plan.rows, *plan.folders]
        self.configs = find_bundle(plan.bundle) / "configs"
        self.label_map = Path(
            plan.label_map or self.configs.parent / "label_maps" / "vertebrae.json"
        )
        self.ckpt_path = Path(plan.ckpt_path or self.configs.parent / "models" / "model.pt")
        self._classes = LabelMap(self.label_map)
        self._check_names()
        self._baselines = baseline_settings(self.rows, plan.baselines, plan.bundle)
        self._ct_cases = labelled_cases(plan.ct_dir)
        for folder in plan.folders.values():
            labelled_cases(folder)
        parser = read_config(config_files(self.configs.parent, plan.overlays), plan.translation)
        self._contrasts = list(parser["contrasts"])
        if OURS_T1_T2 in self.rows and len(self._contrasts) < 2:
            raise ValueError(
                f"the row {OURS_T1_T2!r} requires a network of two contrasts, got {self._contrasts}"
            )
        self._slice_end = str(parser["axcodes"][parser["slice_axis"]])
        self._patients = {
            group: self._patients_of(pattern) for group, pattern in plan.groups.items()
        }
        self._folds = patient_folds(self._patients_of("*")) if UPPER_BOUND in self.rows else []
        self._check_same_plan()

    def _check_names(self) -> None:
        """Refuse unknown names and settings that do not fit the rows, before anything is read."""
        plan = self.plan
        misnamed = set(plan.rows) - set(TABLE) or set(plan.folders) & set(TABLE)
        if misnamed or not (self.rows and plan.seeds and plan.translation_seeds and plan.groups):
            raise ValueError(
                f"expected rows out of {tuple(TABLE)}, folders under other names, a seed and a group, got rows "
                f"{list(plan.rows)}, folders {list(plan.folders)}, seeds {list(plan.seeds)}, groups {list(plan.groups)}"
            )
        if wrong := [name for name in plan.architectures if name not in ARCHITECTURES]:
            raise ValueError(f"expected architectures out of {ARCHITECTURES}, got {wrong}")
        if any(
            "seed" in settings for settings in (plan.translation, plan.segmentation, plan.baselines)
        ):
            raise ValueError(
                "expected seeds as translation_seeds and seeds, got a setting seed; pass it there"
            )
        learners = [row for row in self.rows if row_of(row).mr_training]
        if learners and not plan.mr_training.get("dataset_dir"):
            raise ValueError(
                f"the row {learners[0]!r} learns from MR: pass its dataset_dir, or leave it out"
            )

    def _patients_of(self, pattern: str) -> set[str]:
        cases = labelled_cases(self.plan.mr_dir, pattern=pattern)
        return {patient_of(case_name(case["image"]), self.plan.patient_pattern) for case in cases}

    def _check_same_plan(self) -> None:
        """Refuse cells of another plan; rows, architectures, seeds, folders and groups may be added."""
        plan = self.plan
        record: dict[str, Any] = {"ct_dir": realpath(plan.ct_dir), "mr_dir": realpath(plan.mr_dir)}
        record |= {
            "weights": sha256_of(self.ckpt_path),
            "label_map": json.loads(self.label_map.read_text("utf-8")),
        }
        record |= {"overlays": list(plan.overlays), "patient_pattern": plan.patient_pattern}
        record["folders"] = {name: realpath(folder) for name, folder in plan.folders.items()}
        record |= {name: dict(getattr(plan, name)) for name in ("groups", *SETTINGS)}
        training = {
            **plan.mr_training,
            "dataset_dir": realpath(plan.mr_training.get("dataset_dir", ".")),
        }
        record["mr_training"] = {row: training for row in self.rows if row_of(row).mr_training}
        record["baselines"] = self._baselines
        record["folds"] = {str(number): fold for number, fold in enumerate(self._folds)}
        record_plan(self.root / "plan.json", record)

    def cells(self) -> list[tuple[str, int, str, int]]:
        """Row, seed of the translation, architecture and seed of the training of every cell."""
        plan = self.plan
        first, first_training = plan.translation_seeds[0], plan.seeds[0]
        every = itertools.product(self.rows, plan.translation_seeds, plan.architectures, plan.seeds)
        return [
            (row, translation_seed, architecture, seed)
            for row, translation_seed, architecture, seed in every
            if (row_of(row).translates or translation_seed == first)
            and (not row_of(row).segments or seed == first_training)
        ]

    def dataset_dir(self, row: str, translation_seed: int, architecture: str) -> Path:
        """Folder of images and labels that the networks of a row are trained on."""
        if row_of(row).translates:
            return (
                self.root
                / row
                / f"translations_{self._translator(row, translation_seed, architecture)}"
            )
        return Path({**self.plan.folders, UPPER_BOUND: self.plan.mr_dir}.get(row, self.root / "ct"))

    def _translator(self, row: str, translation_seed: int, architecture: str) -> str:
        """Name of one of a row's translators: a baseline that segments has one for each architecture."""
        return f"seed{translation_seed}" + f"_{architecture}" * row_of(row).segments

    def labelled_ct(self) -> None:
        """Write the labelled slices of every CT, with their labels, to ``ct``."""
        for case in self._ct_cases:
            name = f"{case_of(case['image'])}.nii.gz"
            write_label_crop(
                case, self._classes.values("ct"), self._slice_end, self.root / "ct", name
            )

    def translated(self, row: str, translation_seed: int, architecture: str) -> None:
        """Translate the CT for a row of this package; cases that are there are kept."""
        ct, output = self.root / "ct", self.dataset_dir(row, translation_seed, architecture)
        if row_of(row).baseline:
            baseline = self._trained_baseline(row, translation_seed, architecture)
            translate_with_baseline(baseline, ct, output, bundle=self.plan.bundle)
        elif row_of(row).translates:
            settings = {
                **self.plan.translation,
                "ckpt_path": str(self.ckpt_path),
                "seed": translation_seed,
            }
            settings |= row_of(row).translation
            if row == OURS_T1_T2:
                settings |= {"contrast": self._contrasts}
            if row == UNCONDITIONAL:
                settings |= {"unconditional": True, "ckpt_path": str(self._unconditional_weights())}
            run_inference_config(
                ct, output, bundle=self.plan.bundle, overlays=self.plan.overlays, **settings
            )

    def _unconditional_weights(self) -> Path:
        training = {"contrasts": dict.fromkeys(self._contrasts, "*"), **self.plan.mr_training}
        training |= {**self.plan.unconditional, "initial_weights": str(self.ckpt_path)}
        configs = [
            "train",
            *training_overlays(self.plan.bundle, self.plan.overlays),
            "unconditional",
        ]
        return self._trained(configs, training, self.root / UNCONDITIONAL / "weights")

    def _baseline_dir(self, row: str, translation_seed: int, architecture: str) -> Path:
        return self.root / row / f"weights_{self._translator(row, translation_seed, architecture)}"

    def _trained_baseline(self, row: str, translation_seed: int, architecture: str) -> Path:
        """Train a baseline, or go on, and return its folder."""
        folder = self._baseline_dir(row, translation_seed, architecture)
        settings = {
            **self.plan.mr_training,
            **self._baselines[row],
            "label_map": str(self.label_map),
        }
        settings |= {"seed": translation_seed} | (
            {"architecture": architecture} if row_of(row).segments else {}
        )
        mr_dir = settings.pop("dataset_dir")
        train_baseline(row, self.root / "ct", mr_dir, folder, bundle=self.plan.bundle, **settings)
        return folder

    def scored(self, row: str, translation_seed: int, architecture: str, seed: int) -> None:
        """Train a network on a row's images, or take the baseline's own, and score it on every group."""
        cell = self.root / row / f"{architecture}_translation{translation_seed}_seed{seed}"
        settings: dict[str, Any] = {
            "val_fraction": 0.0,
            **self.plan.segmentation,
            **row_of(row).segmentation,
        }
        settings |= {"dataset_dir": str(self.dataset_dir(row, translation_seed, architecture))}
        settings |= {"label_map": str(self.label_map), "architecture": architecture, "seed": seed}
        if row == UPPER_BOUND:
            self._cross_validate(settings, cell)
        elif row_of(row).segments:
            copy_file(
                self._baseline_dir(row, translation_seed, architecture) / "segmentation.pt",
                cell / "model.pt",
            )
            self._test(settings, cell)
        else:
            self._trained(["segmentation_train", *row_of(row).overlays], settings, cell)
            self._test(settings, cell)

    def _cross_validate(self, settings: Mapping[str, Any], cell: Path) -> None:
        """Train on all patients but those of a fold and test on these, fold by fold; then join the tests."""
        everyone = [patient for fold in self._folds for patient in fold]
        names = [
            "{architecture}_fold{number}_seed{seed}".format(number=n, **settings)
            for n in range(len(self._folds))
        ]
        folders = [cell.parent / name for name in names]
        for fold, folder in zip(self._folds, folders, strict=True):
            others = [patient for patient in everyone if patient not in fold]
            training = {
                **settings,
                "patient_pattern": self.plan.patient_pattern,
                "patients": others,
            }
            self._trained(["segmentation_train", *row_of(UPPER_BOUND).overlays], training, folder)
            self._test(settings, folder, fold)
        for group in self.plan.groups:
            if not (cell / group / "scores.json").is_file():
                merge_folds(
                    [f / group for f in folders if (f / group / "scores.json").is_file()],
                    cell / group,
                )
        facts = [
            json.loads((folder / "trained.json").read_text(encoding="utf-8")) for folder in folders
        ]
        facts[0]["seconds"] = sum(fact["seconds"] for fact in facts)
        write_text(
            cell / "trained.json",
            json.dumps({**facts[0], "patients": self._folds}, indent=2) + "\n",
        )

    def _test(
        self, settings: Mapping[str, Any], cell: Path, patients: Sequence[str] | None = None
    ) -> None:
        """Score the network of a cell on every group, or on those patients of it."""
        for group, pattern in self.plan.groups.items():
            absent = patients is not None and not self._patients[group].intersection(patients)
            if absent or (cell / group / "scores.json").is_file():
                continue
            test = {
                "test_dir": str(self.plan.mr_dir),
                "test_pattern": pattern,
                "output_dir": str(cell / group),
            }
            test |= {
                "test_patient_pattern": self.plan.patient_pattern,
                "ckpt_path": str(cell / "model.pt"),
            }
            self._run(
                ["segmentation_train", "evaluate"], {**settings, **test, "test_patients": patients}
            )

    def _trained(self, configs: Sequence[str], settings: Mapping[str, Any], folder: Path) -> Path:
        """Weights of a training: those that are there, or it goes on from its last checkpoint, or starts."""
        if not (folder / "trained.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint = newest_checkpoint(folder)
            resume = {} if checkpoint is None else {"resume_from": str(checkpoint)}
            files = [str(self.configs / f"{name}.json") for name in configs]
            epochs = read_config(files, settings)["max_epochs"]
            with stopwatch(folder / "seconds.txt") as seconds:
                self._run(configs, {**settings, "output_dir": str(folder), **resume})
            facts = {
                "seconds": seconds(),
                "epochs": epochs,
                "parameters": count_parameters(folder / "model.pt"),
            }
            write_text(folder / "trained.json", json.dumps({**settings, **facts}, indent=2) + "\n")
        return folder / "model.pt"

    def _run(self, configs: Sequence[str], settings: Mapping[str, Any]) -> None:
        monai.bundle.run(
            config_file=[str(self.configs / f"{name}.json") for name in configs], **settings
        )
