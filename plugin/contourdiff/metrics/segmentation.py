# SPDX-License-Identifier: Apache-2.0
"""Scores of segmentations: Dice and surface distances in mm, with a count of missed structures beside every mean."""

from __future__ import annotations

import csv
import json
import math
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

from contourdiff.data.atomic import without_nan, write_csv, write_text
from contourdiff.data.nifti_names import case_of
from contourdiff.data.training_cases import patient_of

ALL = "all"
NAMES = ("case", "class", "patient")
MEASURES = ("dice", "assd_mm", "assd_penalized_mm", "hd95_mm", "hd95_penalized_mm")
HEADER = (
    "class | cases | missed | invented | Dice | pooled Dice | ASSD of found, mm | ASSD, missed penalized, mm | "
    "HD95 of found, mm | HD95, missed penalized, mm"
)
NOTE = (
    "Means with 95 % bootstrap intervals over patients. Dice counts a missed structure as 0. A penalized distance "
    "counts it as the diagonal of the image; a distance of found structures leaves it out."
)

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
Settings = Mapping[str, Any]


def score_case(
    pred: np.ndarray,
    label: np.ndarray,
    classes: Mapping[int, str],
    spacing_mm: Sequence[float],
    case: str,
) -> list[Row]:
    """Score the segmentation of one case, a row for each class.

    ``dice`` is 2 |P and L| / (|P| + |L|), ``assd_mm`` the mean distance of *all* surface pixels of both structures to
    the other surface (MONAI), ``hd95_mm`` the larger of the two directed 95th percentiles. Axes of size 1 are dropped:
    a slice stored as a volume is scored in 2-D. Distances are NaN where ``pred`` or ``label`` lacks the structure.
    Without a prediction it is ``missed``: Dice is 0, penalized distances are the image's diagonal in mm, as in BraTS.
    Without a label it is not ``present``, and Dice is NaN; pixels of an ``invented`` one count in the pooled Dice.

    ``pred`` and the reference ``label`` hold integer classes, 2-D or 3-D; ``classes`` names those to score by number,
    ``spacing_mm`` is the size of a pixel along each axis. ``MEASURES``, flags and voxel counts are keys of the rows.

    Raises ``ValueError`` for unequal shapes, not 2 or 3 axes longer than 1, a wrong spacing, fractions, or bad classes.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape:
        shapes = f"{pred.shape} and {label.shape}; bring the prediction back to the label's grid (Invertd)"
        raise ValueError(f"{case}: expected prediction and label of one shape, got {shapes}")
    if len(spacing_mm) != label.ndim or not all(0 < size < math.inf for size in spacing_mm):
        got = f"{[float(size) for size in spacing_mm]} for {label.shape}; pass those of the label's file"
        raise ValueError(
            f"{case}: expected {label.ndim} positive spacings in mm, one for each axis, got {got}"
        )
    long_axes = [axis for axis, size in enumerate(label.shape) if size != 1]
    if len(long_axes) not in (2, 3) or not label.size:
        raise ValueError(
            f"{case}: expected a slice or a volume, got shape {label.shape}; separate the channels first"
        )
    for name, array in (("prediction", pred), ("label", label)):
        if not np.array_equal(array, np.round(array)):
            raise ValueError(
                f"{case}: expected integer classes in the {name}, got fractions or NaN; apply argmax"
            )
    if not classes:
        raise ValueError(
            "expected classes such as {1: 'femur'}, got none; name what is to be scored"
        )
    if len({*classes.values(), ALL}) != len(classes) + 1:
        raise ValueError(
            f"expected a name for each class, none twice nor {ALL!r}, got {dict(classes)}; rename"
        )
    pred, label, spacing = (
        np.squeeze(pred),
        np.squeeze(label),
        [float(spacing_mm[axis]) for axis in long_axes],
    )
    diagonal_mm = float(np.linalg.norm(np.multiply(label.shape, spacing)))
    return [
        {"case": case, "class": name}
        | _score_structure(pred == number, label == number, spacing, diagonal_mm)
        for number, name in classes.items()
    ]


def summarize_scores(rows: Rows, n_bootstrap: int = 2000, seed: int = 0) -> list[Row]:
    """Means over the cases of [`score_case`][], for each class in order, then for all together (``"all"``).

    Means are over present structures: ``dice`` counts a missed one as 0, ``*_penalized_mm`` as the image's diagonal;
    ``assd_mm`` and ``hd95_mm`` leave it out. ``dice_pooled`` divides sums over all cases, invented pixels included.
    95 % intervals (``*_low``, ``*_high``) are percentiles of means over ``n_bootstrap`` resamples of the patients, each
    with all its cases and classes; NaN with one patient. A row without ``patient`` is a patient of its own.

    Rows hold ``class``, ``cases`` (with a structure present), ``structures``, ``found``, ``missed``, ``invented``,
    ``dice_pooled``, and for each of ``MEASURES`` its mean and interval.

    Raises ``ValueError`` if there are no rows, or two of one case and class.
    """
    keys = [(row["case"], row["class"]) for row in rows]
    if not keys or len(set(keys)) != len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(
            f"expected a row for each case and class, got {len(keys)} rows, twice: {twice}; rename files"
        )
    names = list(dict.fromkeys(row["class"] for row in rows))
    groups = {name: [row for row in rows if row["class"] == name] for name in names} | {
        ALL: list(rows)
    }
    return [_summary(name, members, n_bootstrap, seed) for name, members in groups.items()]


def write_scores(rows: Rows, output_dir: str | Path, settings: Settings | None = None) -> list[Row]:
    """Write ``scores.csv`` (a line for each case and class), ``scores.md`` and, last, ``scores.json``; the summary.

    ``rows`` are of all cases; ``settings``, kept beside the summary, is what the numbers depend on (weights, data).
    """
    summary, folder = summarize_scores(rows), Path(output_dir)
    write_csv(folder / "scores.csv", [without_nan(row) for row in rows])
    write_text(folder / "scores.md", "\n".join(_table(summary, settings or {})) + "\n")
    content = {"settings": dict(settings or {}), "summary": [without_nan(row) for row in summary]}
    write_text(
        folder / "scores.json", json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    )
    return summary


def read_scores(folder: str | Path) -> list[Row]:
    """Rows of all cases from the ``scores.csv`` that [`write_scores`][] wrote to a folder; an empty cell is NaN."""
    with (Path(folder) / "scores.csv").open(newline="", encoding="utf-8") as file:
        return [
            {
                name: text if name in NAMES else literal_eval(text) if text else math.nan
                for name, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


@dataclass(eq=False)
class SegmentationScores:
    """Handler that scores each case of a ``SupervisedEvaluator`` after its postprocessing and writes the scores.

    It reads ``pred`` and ``label``, ``(1, *spatial)`` integer classes on one grid, of the decollated
    ``engine.state.output``; spacing and case id are those of the label's file. For ``classes`` see [`score_case`][];
    the evaluator empties ``rows`` when it starts, and writes them by [`write_scores`][] when it has completed. The
    patient of a case is found by ``patient_pattern``, see [`contourdiff.data.training_cases.patient_of`][].
    """

    classes: Mapping[int, str]
    output_dir: str | Path
    settings: Settings | None = None
    patient_pattern: str = "(.*)"
    rows: list[Row] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.classes = {
            int(number): name for number, name in self.classes.items()
        }  # a JSON config has string keys
        self.output_dir = Path(self.output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(
            Events.COMPLETED, lambda _: write_scores(self.rows, self.output_dir, self.settings)
        )

    def __call__(self, engine: Engine) -> None:
        """Score one iteration's cases; ``ValueError`` for a batch, several channels, or a label without metadata."""
        items: Any = engine.state.output
        if not isinstance(items, list):
            raise ValueError(
                f"expected a list of items, got {type(items).__name__}; set decollate=True"
            )
        for item in items:
            pred, label = item["pred"], item["label"]
            meta = getattr(label, "meta", {})
            if len(pred) != 1 or len(label) != 1 or "filename_or_obj" not in meta:
                got = f"{tuple(pred.shape)}, {tuple(label.shape)} and a label with {sorted(meta)}"
                expected = "expected pred and label (1, *spatial) and a label that knows its file"
                advice = "load it with LoadImaged, put AsDiscreted (argmax) in postprocessing"
                raise ValueError(f"{expected}, got {got}; {advice}")
            # whole columns: MetaTensor.pixdim takes the upper left corner, which is wrong for a sagittal slice in 2-D
            spacing_mm = np.linalg.norm(np.asarray(label.affine)[:-1, : label.ndim - 1], axis=0)
            arrays = [value.detach().cpu().numpy()[0] for value in (pred, label)]
            case = case_of(meta["filename_or_obj"])
            scores = score_case(arrays[0], arrays[1], self.classes, spacing_mm, case)
            self.rows += [
                row | {"patient": patient_of(case, self.patient_pattern)} for row in scores
            ]


def _score_structure(
    pred: np.ndarray, label: np.ndarray, spacing: list[float], diagonal_mm: float
) -> Row:
    """Scores of one structure, given as two bool masks."""
    present, found = bool(label.any()), bool(pred.any())
    missed = present and not found
    y_pred, y = torch.from_numpy(pred)[None, None], torch.from_numpy(label)[None, None]
    assd = hd95 = math.nan
    if present and found:  # MONAI returns infinity and warns if one is empty
        options: dict[str, Any] = {"include_background": True, "spacing": spacing}
        assd = float(compute_average_surface_distance(y_pred, y, symmetric=True, **options))
        hd95 = float(compute_hausdorff_distance(y_pred, y, percentile=95, **options))
    measures = {"dice": float(compute_dice(y_pred, y)), "assd_mm": assd, "hd95_mm": hd95}
    flags = {"missed": missed, "invented": found and not present, "present": present}
    penalized = {
        f"{name}_penalized_mm": diagonal_mm if missed else measures[f"{name}_mm"]
        for name in ("assd", "hd95")
    }
    voxels = {"pred_voxels": int(pred.sum()), "label_voxels": int(label.sum())}
    return measures | flags | penalized | {"intersection": int((pred & label).sum())} | voxels


def _summary(name: str, rows: Rows, n_bootstrap: int, seed: int) -> Row:
    """One row of [`summarize_scores`][]."""
    present, missed = [row for row in rows if row["present"]], sum(row["missed"] for row in rows)
    voxels = sum(row["pred_voxels"] + row["label_voxels"] for row in rows)
    summary: Row = {
        "class": name,
        "cases": len({row["case"] for row in present}),
        "structures": len(present),
    }
    summary |= {
        "found": len(present) - missed,
        "missed": missed,
        "invented": sum(row["invented"] for row in rows),
    }
    summary["dice_pooled"] = (
        2 * sum(row["intersection"] for row in rows) / voxels if voxels else math.nan
    )
    for measure in MEASURES:
        values = [
            (row.get("patient", row["case"]), row[measure])
            for row in present
            if not math.isnan(row[measure])
        ]
        numbers = _mean_with_interval(values, n_bootstrap, seed)
        summary |= zip((measure, f"{measure}_low", f"{measure}_high"), numbers, strict=True)
    return summary


def _mean_with_interval(
    values: Iterable[tuple[str, float]], n_bootstrap: int, seed: int
) -> tuple[float, float, float]:
    """Mean of ``[(patient, value), ...]`` and percentiles 2.5 and 97.5 of such means over resampled patients."""
    by_patient: dict[str, list[float]] = {}
    for patient, value in values:
        by_patient.setdefault(patient, []).append(value)
    sums, counts = (
        np.array([measure(members) for members in by_patient.values()]) for measure in (sum, len)
    )
    mean = float(sums.sum() / counts.sum()) if by_patient else math.nan
    if len(by_patient) < 2:
        return mean, math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(sums), size=(n_bootstrap, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return mean, float(low), float(high)


def _table(summary: Rows, settings: Settings) -> list[str]:
    """Lines of the Markdown table: no mean of distances stands without its count of missed structures."""
    lines = [f"| {HEADER} |", "|---" * 10 + "|"]
    for row in summary:
        dice, *distances = (
            _cell(row, measure, 3 if measure == "dice" else 2) for measure in MEASURES
        )
        missed = f"missed {row['missed']} of {row['structures']}"
        cells = [
            row["class"],
            row["cases"],
            missed,
            row["invented"],
            dice,
            _number(row["dice_pooled"], 3),
            *distances,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", NOTE, "", *(f"- {name}: {value}" for name, value in settings.items())]


def _cell(row: Mapping[str, Any], measure: str, digits: int) -> str:
    mean, low, high = (_number(row[measure + end], digits) for end in ("", "_low", "_high"))
    return mean if low == "n/a" else f"{mean} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"
