# SPDX-License-Identifier: Apache-2.0
"""Cross-validation over patients: folds, and the scores and predictions of all folds as those of one test."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from contourdiff.data.atomic import copy_file
from contourdiff.metrics.segmentation import ScoreRow, write_scores

FOLDS = 5
TEXTS = ("case", "class", "patient")
"""Columns of ``scores.csv`` that hold no number."""


def patient_folds(patients: Iterable[str], count: int = FOLDS) -> list[list[str]]:
    """Patients, sorted, dealt to ``count`` folds, or to one fold each if there are fewer.

    Raises ``ValueError`` for a single patient, who cannot be tested by a network that was trained on others.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        raise ValueError(
            f"cross-validation requires the labelled MR of two patients or more, got {names}; pass a patient_pattern "
            "that finds them in the names of the cases, or leave the row out"
        )
    return [names[start::count] for start in range(min(count, len(names)))]


def merge_folds(folds: Sequence[Path], output_dir: Path) -> None:
    """Write predictions and, last, scores of several tests of one kind to one folder, as if it had been one test.

    ``folds`` are folders with ``scores.csv``, ``scores.json`` and ``<case>_pred.nii.gz``. Raises ``ValueError`` if two
    hold the same case.
    """
    scores = []
    for fold in folds:
        scores += read_scores(fold)
        for path in sorted(fold.glob("*_pred.nii.gz")):
            copy_file(path, output_dir / path.name)
    write_scores(scores, output_dir, {"folds": len(folds)})


def read_scores(folder: str | Path) -> list[ScoreRow]:
    """Rows of all cases from the ``scores.csv`` in a folder; an empty cell is NaN.

    It is that of [`contourdiff.metrics.segmentation.write_scores`][].
    """
    rows = []
    path = Path(folder) / "scores.csv"
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            row: ScoreRow = {}
            for name, text in cells.items():
                is_text = name in TEXTS
                row[name] = text if is_text else json.loads(text.lower() or "NaN")
            rows.append(row)
    return rows
