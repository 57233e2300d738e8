# SPDX-License-Identifier: Apache-2.0
"""The paper's experiment as a table: translate, train a segmentation network, test it on real MR, row by row."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import monai.bundle

from contourdiff.bundle import config_files, find_bundle, read_config, translate
from contourdiff.data.atomic import write_text
from contourdiff.data.cases import case_of, labelled_cases
from contourdiff.data.label_map import LabelMap
from contourdiff.evaluation.experiment_report import write_report
from contourdiff.evaluation.label_crop import write_label_crop
from contourdiff.weights import sha256_of

logger = logging.getLogger(__name__)

WITHOUT_ADAPTATION = "without_adaptation"
UNCONDITIONAL = "unconditional"
SINGLE_CANDIDATE = "single_candidate"
OURS = "ours"
ROWS = (WITHOUT_ADAPTATION, UNCONDITIONAL, SINGLE_CANDIDATE, OURS)
ARCHITECTURES = ("unet", "swin_unetr")

SETTINGS = ("translation", "segmentation", "unconditional")
GROWING = ("folders", "groups", "mr_training")
"""Entries of a plan that may gain names; a name that is there keeps its meaning."""
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
        output_dir: everything goes there: translations, weights, scores, the table.
        label_map: see :class:`contourdiff.data.label_map.LabelMap`; ``None`` takes the bundle's vertebrae.
        rows: some of ``ROWS``, in the table's order.
        folders: further rows, name -> folder of translations made by any tool (``<case>_mr.nii.gz`` beside
            ``<case>_label.nii.gz``).
        architectures: segmentation networks, named in ``segmentation_train.json``.
        seeds: a segmentation network is trained with each.
        groups: test groups that are scored apart, name -> pattern of case ids.
        ckpt_path: weights of the translator; ``None`` takes the bundle's.
        mr_training: ``dataset_dir``, ``datalist``, ``file_pattern`` ... of ``train.json``: the MR that the row
            ``unconditional`` learns from.
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
    groups: Mapping[str, str] = field(default_factory=lambda: {"all": "*"})
    ckpt_path: str | Path | None = None
    mr_training: Mapping[str, Any] = field(default_factory=dict)
    overlays: Sequence[str] = ("fast",)
    translation: Mapping[str, Any] = field(default_factory=dict)
    segmentation: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] = field(default_factory=dict)
    bundle: str | Path | None = None

    def smoke(self) -> ExperimentPlan:
        """The same plan with everything cut short: it shows that all parts work together, its figures mean nothing."""
        return ExperimentPlan(**vars(self) | {name: {**vars(self)[name], **cut} for name, cut in SMOKE.items()})


def run_experiment(plan: ExperimentPlan) -> Path:
    """Run what is missing of a plan and write ``table.csv``, ``table.md`` and its pictures.

    The CT is first cut to the slices that have a label (``<output_dir>/ct``): every row learns from those alone.
    Every cell (row, architecture, seed) has a folder with weights, scores and predictions for each group. A
    finished cell is kept, an interrupted one resumes from its last checkpoint: the same command starts and resumes.

    Returns:
        ``output_dir / "table.md"``.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: if the plan does not make sense, or the folder holds a table of another plan.
    """
    job = _Job(plan)
    job.labelled_ct()
    cells = [
        (row, architecture, seed) for row in job.rows for architecture in plan.architectures for seed in plan.seeds
    ]
    for number, (row, architecture, seed) in enumerate(cells, start=1):
        logger.info("cell %d of %d: %s, %s, seed %d", number, len(cells), row, architecture, seed)
        job.translated(row)
        job.scored(row, architecture, seed)
    return write_report(Path(plan.output_dir), plan.groups, plan.mr_dir, first=ROWS)


class _Job:
    """A checked plan and the steps of its cells; each step returns at once if its result is there."""

    def __init__(self, plan: ExperimentPlan) -> None:
        self.plan = plan
        self.rows = [*plan.rows, *plan.folders]
        self.root = Path(plan.output_dir)
        self.configs = find_bundle(plan.bundle) / "configs"
        self.label_map = Path(plan.label_map or self.configs.parent / "label_maps" / "vertebrae.json")
        self.ckpt_path = Path(plan.ckpt_path or self.configs.parent / "models" / "model.pt")
        self._check()

    def _check(self) -> None:
        plan = self.plan
        self._classes = LabelMap(self.label_map)
        unknown = [row for row in plan.rows if row not in ROWS]
        if unknown or set(plan.folders) & set(ROWS) or not self.rows or not plan.seeds or not plan.groups:
            raise ValueError(
                f"expected rows out of {ROWS}, folders under other names, a seed and a group, got rows "
                f"{list(plan.rows)}, folders {list(plan.folders)}, seeds {list(plan.seeds)}, groups {list(plan.groups)}"
            )
        if wrong := [name for name in plan.architectures if name not in ARCHITECTURES]:
            raise ValueError(f"expected architectures out of {ARCHITECTURES}, got {wrong}")
        if UNCONDITIONAL in self.rows and not plan.mr_training.get("dataset_dir"):
            raise ValueError(
                f"the row {UNCONDITIONAL!r} learns from MR: pass its folder (dataset_dir), or leave it out"
            )
        self._ct_cases = labelled_cases(plan.ct_dir)
        for folder in plan.folders.values():
            labelled_cases(folder)
        self._slice_end = self._direction_of_slices()
        for pattern in plan.groups.values():
            labelled_cases(plan.mr_dir, pattern=pattern)
        self._check_same_plan()

    def _check_same_plan(self) -> None:
        """Kept cells must belong to this plan; rows, architectures, seeds, folders and groups may be added."""
        plan, path = self.plan, self.root / "plan.json"
        record: dict[str, Any] = {
            "ct_dir": str(Path(plan.ct_dir).resolve()),
            "mr_dir": str(Path(plan.mr_dir).resolve()),
            "weights": sha256_of(self.ckpt_path),
            "label_map": json.loads(self.label_map.read_text(encoding="utf-8")),
            "overlays": list(plan.overlays),
            "folders": {name: str(Path(folder).resolve()) for name, folder in plan.folders.items()},
            **{name: dict(getattr(plan, name)) for name in ("groups", *SETTINGS)},
        }
        record["mr_training"] = {"unconditional": self._mr_training()} if UNCONDITIONAL in self.rows else {}
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        grown = {name: old.get(name, {}) | record[name] for name in GROWING}
        changed = sorted(name for name in old if name not in GROWING and old[name] != record.get(name))
        changed += [
            f"{name} {key}" for name in GROWING for key, value in old.get(name, {}).items() if grown[name][key] != value
        ]
        if changed:
            raise ValueError(f"{self.root} holds a table of another plan (other: {changed}); pass another output_dir")
        write_text(path, json.dumps(record | grown, indent=2) + "\n")

    def _mr_training(self) -> dict[str, Any]:
        """Settings of the row that learns from MR, its folder resolved."""
        training = dict(self.plan.mr_training)
        return training | {"dataset_dir": str(Path(training["dataset_dir"]).resolve())}

    def dataset_dir(self, row: str) -> Path:
        """Folder of images and labels that the networks of a row are trained on."""
        if row == WITHOUT_ADAPTATION:
            return self.root / "ct"
        return Path(self.plan.folders[row]) if row in self.plan.folders else self.root / row / "translations"

    def labelled_ct(self) -> None:
        """Write the labelled slices of every CT, with their labels, to ``ct``."""
        for case in self._ct_cases:
            name = f"{case_of(case['image'])}.nii.gz"
            write_label_crop(case, self._classes.values("ct"), self._slice_end, self.root / "ct", name)

    def _direction_of_slices(self) -> str:
        """Letter of the direction along which slices are stacked, from the settings of the translation."""
        parser = read_config(config_files(self.configs.parent, self.plan.overlays), self.plan.translation)
        return str(parser["axcodes"][parser["slice_axis"]])

    def translated(self, row: str) -> None:
        """Translate the CT for a row that is ours to translate; cases that are there are kept."""
        if row == WITHOUT_ADAPTATION or row in self.plan.folders:
            return
        settings: dict[str, Any] = {**self.plan.translation, "ckpt_path": str(self.ckpt_path)}
        if row == SINGLE_CANDIDATE:
            settings |= {"candidates": 1, "max_rounds": 1}
        if row == UNCONDITIONAL:
            settings |= {"unconditional": True, "ckpt_path": str(self._unconditional_weights())}
        translate(
            self.root / "ct", self.dataset_dir(row), bundle=self.plan.bundle, overlays=self.plan.overlays, **settings
        )

    def scored(self, row: str, architecture: str, seed: int) -> None:
        """Train a network on a row's images and score it on every group."""
        cell = self.root / row / f"{architecture}_seed{seed}"
        settings: dict[str, Any] = {
            "val_fraction": 0.0,
            **self.plan.segmentation,
            "dataset_dir": str(self.dataset_dir(row)),
            "label_map": str(self.label_map),
            "architecture": architecture,
            "seed": seed,
        }
        overlays = {WITHOUT_ADAPTATION: ["segmentation_ct"]}.get(row, ["segmentation_any"] * (row in self.plan.folders))
        weights = self._trained(["segmentation_train", *overlays], settings, cell)
        for group, pattern in self.plan.groups.items():
            if not (cell / group / "scores.json").is_file():
                test = {"test_dir": str(self.plan.mr_dir), "test_pattern": pattern, "output_dir": str(cell / group)}
                self._run(["segmentation_train", "evaluate"], settings | test | {"ckpt_path": str(weights)})

    def _unconditional_weights(self) -> Path:
        settings = {**self.plan.mr_training, **self.plan.unconditional, "initial_weights": str(self.ckpt_path)}
        return self._trained(["train", "unconditional"], settings, self.root / UNCONDITIONAL / "weights")

    def _trained(self, configs: Sequence[str], settings: Mapping[str, Any], folder: Path) -> Path:
        """Weights of a training: those that are there, or it goes on from its last checkpoint, or starts."""
        if not (folder / "trained.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            found = sorted(folder.glob("checkpoint_epoch=*.pt"), key=lambda path: path.stat().st_mtime)
            resume = {"resume_from": str(found[-1])} if found else {}
            self._run(configs, {**settings, "output_dir": str(folder), **resume})
            write_text(folder / "trained.json", json.dumps(settings, indent=2) + "\n")
        return folder / "model.pt"

    def _run(self, configs: Sequence[str], settings: Mapping[str, Any]) -> None:
        monai.bundle.run(config_file=[str(self.configs / f"{name}.json") for name in configs], **settings)
