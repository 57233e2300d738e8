# SPDX-License-Identifier: Apache-2.0
"""The plan of an experiment: everything it depends on, its cells, and where their results lie."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from contourdiff_lab.experiment.rows import ROWS, SMOKE, TABLE, UPPER_BOUND, row_of

ARCHITECTURES = ("unet", "swin_unetr")


class Cell(NamedTuple):
    """A segmentation network of the table: its row, seed of the translation, architecture and seed of the training."""

    row: str
    translation_seed: int
    architecture: str
    seed: int

    @classmethod
    def of_folder(cls, folder: Path) -> Cell:
        """The cell of a folder ``<row>/<architecture>_translation<seed>_seed<seed>``; else ``ValueError``."""
        match = re.fullmatch(r"(.+)_translation(-?\d+)_seed(-?\d+)", folder.name)
        if match is None:
            raise ValueError(
                f"expected a folder <architecture>_translation<seed>_seed<seed>, got {folder}; move it away"
            )
        architecture, translation_seed, seed = match.groups()
        return cls(folder.parent.name, int(translation_seed), architecture, int(seed))

    @property
    def folder(self) -> Path:
        """Folder of its results, in that of the experiment."""
        name = f"{self.architecture}_translation{self.translation_seed}_seed{self.seed}"
        return Path(self.row) / name

    @property
    def translator(self) -> str:
        """Name of its translator among those of the row: a baseline that segments has one for each architecture."""
        if row_of(self.row).segments:
            return f"seed{self.translation_seed}_{self.architecture}"
        return f"seed{self.translation_seed}"


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything an experiment depends on.

    Args:
        ct_dir: CT with labels: ``<case>.nii.gz`` and ``labels/<case>.nii.gz``.
        mr_dir: real MR with labels to test on; never trained on.
        output_dir: folder for translations, weights, scores and the table.
        reference_dir: labelled MR of other patients, to train ``upper_bound`` on; ``None`` cross-validates ``mr_dir``.
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
        segmentation: settings of ``segmentation_train.json`` for every network; ``max_epochs`` times
            ``epoch_length`` are the steps of each.
        unconditional: settings of ``train.json`` for the row ``unconditional``.
        baselines: settings of ``cyclegan.json``, such as ``minutes``, and of overlays, for each that has them.
        bundle: folder of the bundle, if not beside this package.
    """

    ct_dir: str | Path
    mr_dir: str | Path
    output_dir: str | Path
    reference_dir: str | Path | None = None
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

    @property
    def all_rows(self) -> list[str]:
        """Names of the rows, those of other tools' folders last."""
        return [*self.rows, *self.folders]

    def smoke(self) -> ExperimentPlan:
        """The same plan with everything cut short, as a test of the installation; its figures mean nothing."""
        return replace(
            self,
            translation={**self.translation, **SMOKE["translation"]},
            segmentation={**self.segmentation, **SMOKE["segmentation"]},
            unconditional={**self.unconditional, **SMOKE["unconditional"]},
            baselines={**self.baselines, **SMOKE["baselines"]},
        )

    def cells(self) -> list[Cell]:
        """All cells: rows that translate nothing have the first seed of the translation alone.

        Baselines that segment have the first seed of the training alone.
        """
        cells = []
        for names in itertools.product(
            self.all_rows, self.translation_seeds, self.architectures, self.seeds
        ):
            cell = Cell(*names)
            row = row_of(cell.row)
            if not row.translates and cell.translation_seed != self.translation_seeds[0]:
                continue
            if row.segments and cell.seed != self.seeds[0]:
                continue
            cells.append(cell)
        return cells

    @property
    def labelled_ct(self) -> Path:
        """Folder of the labelled slices of every CT, with their labels."""
        return Path(self.output_dir) / "ct"

    def training_images(self, cell: Cell) -> Path:
        """Folder of images and labels that the network of a cell is trained on."""
        row = row_of(cell.row)
        if row.translates:
            owner = row.images_of or cell.row
            return Path(self.output_dir) / owner / f"translations_{cell.translator}"
        if cell.row == UPPER_BOUND:
            return Path(self.reference_dir or self.mr_dir)
        return Path(self.folders.get(cell.row, self.labelled_ct))

    def baseline_dir(self, cell: Cell) -> Path:
        """Folder of the weights of a cell's baseline."""
        return Path(self.output_dir) / cell.row / f"weights_{cell.translator}"

    def check(self) -> None:
        """Refuse unknown names and settings that do not fit the rows with ``ValueError``; nothing is read."""
        misnamed = set(self.rows) - set(TABLE) or set(self.folders) & set(TABLE)
        lists = (self.all_rows, self.seeds, self.translation_seeds, self.groups)
        if misnamed or not all(lists):
            raise ValueError(
                f"expected rows out of {tuple(TABLE)}, folders under other names, a seed and a group, got rows "
                f"{list(self.rows)}, folders {list(self.folders)}, seeds {list(self.seeds)}, groups {list(self.groups)}"
            )
        unknown = [name for name in self.architectures if name not in ARCHITECTURES]
        if unknown:
            raise ValueError(f"expected architectures out of {ARCHITECTURES}, got {unknown}")
        for settings in (self.translation, self.segmentation, self.baselines):
            if "seed" in settings:
                raise ValueError(
                    "expected seeds as translation_seeds and seeds, got a setting seed; pass it there"
                )
        if self.segmentation.get("val_fraction"):
            raise ValueError(
                "expected the last weights of every row, got a val_fraction, which chooses among weights; leave it out"
            )
        for name in self.all_rows:
            if row_of(name).mr_training and not self.mr_training.get("dataset_dir"):
                raise ValueError(
                    f"the row {name!r} learns from MR: pass its dataset_dir, or leave it out"
                )
