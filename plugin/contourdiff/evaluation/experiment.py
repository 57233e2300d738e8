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

from contourdiff.bundle import config_files, find_bundle, read_config, training_overlays, translate
from contourdiff.data.atomic import write_text
from contourdiff.data.cases import case_of, labelled_cases
from contourdiff.data.label_map import LabelMap
from contourdiff.evaluation.experiment_report import write_report
from contourdiff.evaluation.label_crop import write_label_crop
from contourdiff.training.handlers import newest_checkpoint
from contourdiff.weights import sha256_of

logger = logging.getLogger(__name__)
ROWS = ("without_adaptation", "unconditional", "single_candidate", "ours", "ours_t1_t2")
WITHOUT_ADAPTATION, UNCONDITIONAL, SINGLE_CANDIDATE, OURS, OURS_T1_T2 = ROWS
ARCHITECTURES = ("unet", "swin_unetr")
SETTINGS = ("translation", "segmentation", "unconditional")
GROWING = ("folders", "groups", "mr_training")  # these may gain names; a name that is there keeps its meaning
SMOKE: dict[str, dict[str, Any]] = {
    "translation": {"num_inference_steps": 2, "candidates": 2, "max_rounds": 1},
    "segmentation": {"max_epochs": 1},
    "unconditional": {"max_epochs": 1, "epoch_length": 2},
}


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything an experiment depends on.

    Args:
        ct_dir: CT with labels: ``<case>.nii.gz`` and ``labels/<case>.nii.gz``.
        mr_dir: real MR with labels to test on; never trained on.
        output_dir: folder for translations, weights, scores and the table.
        label_map: see [`contourdiff.data.label_map.LabelMap`][]; ``None`` takes the bundle's vertebrae.
        rows: some of ``ROWS``, in the table's order.
        folders: further rows, name -> folder of ``<case>_mr.nii.gz`` and ``<case>_label.nii.gz`` by any tool.
        architectures: segmentation networks, named in ``segmentation_train.json``.
        seeds: a segmentation network is trained with each.
        translation_seeds: the CT is translated with each, and every network is trained on every translation.
        groups: test groups that are scored apart, name -> pattern of case ids.
        patient_pattern: finds the patient of a test case, for intervals over patients; see
            [`contourdiff.data.cases.patient_of`][].
        ckpt_path: weights of the translator; ``None`` takes the bundle's.
        mr_training: ``dataset_dir``, ``datalist`` ... of ``train.json``: the MR of the row ``unconditional``.
        overlays: overlays of ``inference.json`` for every translation.
        translation: settings of ``inference.json`` for every translation.
        segmentation: settings of ``segmentation_train.json`` for every network.
        unconditional: settings of ``train.json`` for the row ``unconditional``.
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
    bundle: str | Path | None = None

    def smoke(self) -> ExperimentPlan:
        """The same plan with everything cut short, as a test of the installation; its figures mean nothing."""
        return ExperimentPlan(**vars(self) | {name: {**vars(self)[name], **cut} for name, cut in SMOKE.items()})


def run_experiment(plan: ExperimentPlan) -> Path:
    """Run what is missing of a plan, write ``table.csv``, ``table.md`` and its pictures, and return ``table.md``.

    Every row learns from the labelled slices of the CT alone (``<output_dir>/ct``). Every cell (row, architecture,
    seed of the translation, seed of the training) has a folder with weights, and scores and predictions of each group.
    A finished cell is kept, an interrupted one resumes from its last checkpoint. Rows that translate nothing have the
    first seed of the translation alone.

    Raises ``FileNotFoundError`` for a missing path, ``ValueError`` for a plan that contradicts itself or the folder.
    """
    job = _Job(plan)
    job.labelled_ct()
    first = plan.translation_seeds[0]
    every = itertools.product(job.rows, plan.translation_seeds, plan.architectures, plan.seeds)
    cells = [cell for cell in every if cell[1] == first or job.translates(cell[0])]
    for number, (row, translation_seed, architecture, seed) in enumerate(cells, start=1):
        where = (row, architecture, translation_seed, seed)
        logger.info("cell %d of %d: %s, %s, translation seed %d, seed %d", number, len(cells), *where)
        job.translated(row, translation_seed)
        job.scored(row, translation_seed, architecture, seed)
    return write_report(Path(plan.output_dir), plan.groups, plan.mr_dir, first=ROWS)


class _Job:
    """A checked plan and the steps of its cells; each step returns at once if its result is there."""

    def __init__(self, plan: ExperimentPlan) -> None:
        self.plan, self.root = plan, Path(plan.output_dir)
        self.rows = [*plan.rows, *plan.folders]
        self.configs = find_bundle(plan.bundle) / "configs"
        self.label_map = Path(plan.label_map or self.configs.parent / "label_maps" / "vertebrae.json")
        self.ckpt_path = Path(plan.ckpt_path or self.configs.parent / "models" / "model.pt")
        self._classes = LabelMap(self.label_map)
        misnamed = set(plan.rows) - set(ROWS) or set(plan.folders) & set(ROWS)
        if misnamed or not (self.rows and plan.seeds and plan.translation_seeds and plan.groups):
            raise ValueError(
                f"expected rows out of {ROWS}, folders under other names, a seed and a group, got rows "
                f"{list(plan.rows)}, folders {list(plan.folders)}, seeds {list(plan.seeds)}, groups {list(plan.groups)}"
            )
        if wrong := [name for name in plan.architectures if name not in ARCHITECTURES]:
            raise ValueError(f"expected architectures out of {ARCHITECTURES}, got {wrong}")
        if "seed" in plan.translation or "seed" in plan.segmentation:
            raise ValueError("expected seeds as translation_seeds and seeds, got a setting seed; pass it there")
        if UNCONDITIONAL in self.rows and not plan.mr_training.get("dataset_dir"):
            raise ValueError(f"the row {UNCONDITIONAL!r} learns from MR: pass its dataset_dir, or leave it out")
        self._ct_cases = labelled_cases(plan.ct_dir)
        for folder in plan.folders.values():
            labelled_cases(folder)
        parser = read_config(config_files(self.configs.parent, plan.overlays), plan.translation)
        self._contrasts = list(parser["contrasts"])
        if OURS_T1_T2 in self.rows and len(self._contrasts) < 2:
            raise ValueError(f"the row {OURS_T1_T2!r} requires a network of two contrasts, got {self._contrasts}")
        self._slice_end = str(parser["axcodes"][parser["slice_axis"]])
        for pattern in plan.groups.values():
            labelled_cases(plan.mr_dir, pattern=pattern)
        self._check_same_plan()

    def _check_same_plan(self) -> None:
        """Refuse cells of another plan; rows, architectures, seeds, folders and groups may be added."""
        plan, path = self.plan, self.root / "plan.json"
        record: dict[str, Any] = {"ct_dir": realpath(plan.ct_dir), "mr_dir": realpath(plan.mr_dir)}
        record |= {"weights": sha256_of(self.ckpt_path), "label_map": json.loads(self.label_map.read_text("utf-8"))}
        record |= {"overlays": list(plan.overlays), "mr_training": {}}
        record["patient_pattern"] = plan.patient_pattern
        record["folders"] = {name: realpath(folder) for name, folder in plan.folders.items()}
        record |= {name: dict(getattr(plan, name)) for name in ("groups", *SETTINGS)}
        if UNCONDITIONAL in self.rows:
            folder = realpath(plan.mr_training["dataset_dir"])
            record["mr_training"] = {UNCONDITIONAL: {**plan.mr_training, "dataset_dir": folder}}
        record = json.loads(json.dumps(record, default=str))  # as it will be read: lists for tuples, text for paths
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        grown = {name: old.get(name, {}) | record[name] for name in GROWING}
        changed = sorted(name for name in old if name not in GROWING and old[name] != record.get(name))
        for name in GROWING:
            changed += [f"{name} {key}" for key, value in old.get(name, {}).items() if grown[name][key] != value]
        if changed:
            raise ValueError(f"{self.root} holds a table of another plan (other: {changed}); pass another output_dir")
        write_text(path, json.dumps(record | grown, indent=2) + "\n")

    def translates(self, row: str) -> bool:
        """Whether the images of a row are translations of this package."""
        return row != WITHOUT_ADAPTATION and row not in self.plan.folders

    def dataset_dir(self, row: str, translation_seed: int) -> Path:
        """Folder of images and labels that the networks of a row are trained on."""
        if row == WITHOUT_ADAPTATION:
            return self.root / "ct"
        return (
            Path(self.plan.folders[row])
            if row in self.plan.folders
            else self.root / row / f"translations_seed{translation_seed}"
        )

    def labelled_ct(self) -> None:
        """Write the labelled slices of every CT, with their labels, to ``ct``."""
        for case in self._ct_cases:
            name = f"{case_of(case['image'])}.nii.gz"
            write_label_crop(case, self._classes.values("ct"), self._slice_end, self.root / "ct", name)

    def translated(self, row: str, translation_seed: int) -> None:
        """Translate the CT for a row of this package; cases that are there are kept."""
        if not self.translates(row):
            return
        settings: dict[str, Any] = {**self.plan.translation, "ckpt_path": str(self.ckpt_path), "seed": translation_seed}
        if row == OURS_T1_T2:
            settings |= {"contrast": self._contrasts}
        if row == SINGLE_CANDIDATE:
            settings |= {"candidates": 1, "max_rounds": 1}
        if row == UNCONDITIONAL:
            training = {"contrasts": dict.fromkeys(self._contrasts, "*"), **self.plan.mr_training}
            training |= {**self.plan.unconditional, "initial_weights": str(self.ckpt_path)}
            configs = ["train", *training_overlays(self.plan.bundle, self.plan.overlays), "unconditional"]
            weights = self._trained(configs, training, self.root / UNCONDITIONAL / "weights")
            settings |= {"unconditional": True, "ckpt_path": str(weights)}
        settings |= {"bundle": self.plan.bundle, "overlays": self.plan.overlays}
        translate(self.root / "ct", self.dataset_dir(row, translation_seed), **settings)

    def scored(self, row: str, translation_seed: int, architecture: str, seed: int) -> None:
        """Train a network on a row's images and score it on every group."""
        cell = self.root / row / f"{architecture}_translation{translation_seed}_seed{seed}"
        settings: dict[str, Any] = {"val_fraction": 0.0, **self.plan.segmentation}
        settings |= {"dataset_dir": str(self.dataset_dir(row, translation_seed)), "label_map": str(self.label_map)}
        settings |= {"architecture": architecture, "seed": seed}
        overlays = {WITHOUT_ADAPTATION: ["segmentation_ct"]}.get(row, ["segmentation_any"] * (row in self.plan.folders))
        weights = self._trained(["segmentation_train", *overlays], settings, cell)
        for group, pattern in self.plan.groups.items():
            if not (cell / group / "scores.json").is_file():
                test = {"test_dir": str(self.plan.mr_dir), "test_pattern": pattern, "output_dir": str(cell / group)}
                test["test_patient_pattern"] = self.plan.patient_pattern
                self._run(["segmentation_train", "evaluate"], settings | test | {"ckpt_path": str(weights)})

    def _trained(self, configs: Sequence[str], settings: Mapping[str, Any], folder: Path) -> Path:
        """Weights of a training: those that are there, or it goes on from its last checkpoint, or starts."""
        if not (folder / "trained.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint = newest_checkpoint(folder)
            resume = {} if checkpoint is None else {"resume_from": str(checkpoint)}
            self._run(configs, {**settings, "output_dir": str(folder), **resume})
            write_text(folder / "trained.json", json.dumps(settings, indent=2) + "\n")
        return folder / "model.pt"

    def _run(self, configs: Sequence[str], settings: Mapping[str, Any]) -> None:
        monai.bundle.run(config_file=[str(self.configs / f"{name}.json") for name in configs], **settings)
