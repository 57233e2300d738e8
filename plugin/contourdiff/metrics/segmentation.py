# SPDX-License-Identifier: Apache-2.0
"""Scores of segmentations: Dice and surface distances in mm, with a count of missed structures beside every mean."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
from contourdiff.metrics.intervals import MIN_PATIENTS, patient_interval
from contourdiff.tables import markdown_table

ALL = "all"
MEASURES = ("dice", "assd_mm", "assd_penalized_mm", "hd95_mm", "hd95_penalized_mm")
HEADER = (
    "class",
    "cases",
    "missed",
    "invented",
    "Dice",
    "pooled Dice",
    "ASSD of found, mm",
    "ASSD, missed penalized, mm",
    "HD95 of found, mm",
    "HD95, missed penalized, mm",
)
NOTE = (
    "Means over patients, each the mean of his structures; in brackets the 95 % interval over patients, or with fewer "
    f"than {MIN_PATIENTS} the value of each patient. Dice counts a missed structure as 0. A penalized distance "
    "counts it as the diagonal of the image; a distance of found structures leaves it out."
)

ScoreRow = dict[str, Any]
ScoreRows = Sequence[ScoreRow]
Settings = Mapping[str, Any]


def score_case(
    pred: np.ndarray,
    label: np.ndarray,
    classes: Mapping[int, str],
    spacing_mm: Sequence[float],
    case: str,
) -> list[ScoreRow]:
    """Score the segmentation of one case, a row for each class.

    ``dice`` is 2 |P and L| / (|P| + |L|), ``assd_mm`` the mean distance of *all* surface pixels of both structures to
    the other surface (MONAI), ``hd95_mm`` the larger of the two directed 95th percentiles. Axes of size 1 are dropped:
    a slice stored as a volume is scored in 2-D. Distances are NaN where ``pred`` or ``label`` lacks the structure.
    Without a prediction it is ``missed``: Dice is 0, penalized distances are the image's diagonal in mm, as in BraTS.
    Without a label it is not ``present``, and Dice is NaN; pixels of an ``invented`` one count in the pooled Dice.

    ``pred`` and the reference ``label`` hold integer classes, 2-D or 3-D; ``classes`` names those to score by number,
    ``spacing_mm`` is the size of a pixel along each axis. Raises ``ValueError`` where they do not fit.
    """
    pred = np.asarray(pred)
    label = np.asarray(label)
    _check_pair(pred, label, spacing_mm, case)
    if not classes:
        raise ValueError(
            "expected classes such as {1: 'femur'}, got none; name what is to be scored"
        )
    names = {*classes.values(), ALL}
    if len(names) != len(classes) + 1:
        raise ValueError(
            f"expected a name for each class, none twice nor {ALL!r}, got {dict(classes)}; rename"
        )
    is_long = np.array(label.shape) != 1
    spacing = np.asarray(spacing_mm, dtype=np.float64)[is_long].tolist()
    pred = np.squeeze(pred)
    label = np.squeeze(label)
    sides_mm = np.multiply(label.shape, spacing)
    diagonal_mm = float(np.linalg.norm(sides_mm))
    rows = []
    for number, name in classes.items():
        scores = _score_structure(pred == number, label == number, spacing, diagonal_mm)
        rows.append({"case": case, "class": name, **scores})
    return rows


def _check_pair(
    pred: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float], case: str
) -> None:
    if pred.shape != label.shape:
        raise ValueError(
            f"{case}: expected prediction and label of one shape, got {pred.shape} and {label.shape}; "
            "bring the prediction back to the label's grid (Invertd)"
        )
    are_positive = all(0 < size < math.inf for size in spacing_mm)
    if len(spacing_mm) != label.ndim or not are_positive:
        sizes = [float(size) for size in spacing_mm]
        raise ValueError(
            f"{case}: expected {label.ndim} positive spacings in mm, one for each axis, got {sizes} "
            f"for {label.shape}; pass those of the label's file"
        )
    long_axes = label.ndim - label.shape.count(1)
    if long_axes not in (2, 3) or not label.size:
        raise ValueError(
            f"{case}: expected a slice or a volume, got shape {label.shape}; separate the channels first"
        )
    for name, array in (("prediction", pred), ("label", label)):
        if not np.array_equal(array, np.round(array)):
            raise ValueError(
                f"{case}: expected integer classes in the {name}, got fractions or NaN; apply argmax"
            )


def summarize_scores(rows: ScoreRows, seed: int = 0) -> list[ScoreRow]:
    """Means over the patients of [`score_case`][], for each class in order, then for all together (``"all"``).

    A patient's value is the mean over his present structures, of all his cases: ``dice`` counts a missed one as 0,
    ``*_penalized_mm`` as the image's diagonal; ``assd_mm`` and ``hd95_mm`` leave it out. ``*_patients`` has the value
    of each patient, ``*_low`` and ``*_high`` the 95 % interval of [`contourdiff.metrics.intervals.patient_interval`][],
    whose draws ``seed`` determines, NaN with fewer than eight patients. ``dice_pooled`` divides sums over all cases,
    invented pixels included. A row without ``patient`` is a patient of its own. Raises ``ValueError`` if there are no
    rows, or two of one case and class.
    """
    counts = Counter((row["case"], row["class"]) for row in rows)
    twice = sorted(key for key, count in counts.items() if count > 1)
    if not rows or twice:
        raise ValueError(
            f"expected a row for each case and class, got {len(rows)} rows, twice: {twice}; rename files"
        )
    by_class: dict[str, list[ScoreRow]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    by_class[ALL] = list(rows)
    summaries = []
    for name, members in by_class.items():
        summaries.append(_summary(name, members, seed))
    return summaries


def patient_means(rows: ScoreRows, measure: str) -> dict[str, float]:
    """Mean of a measure over the present structures of each patient, who is left out if none has a value."""
    by_patient: dict[str, list[float]] = {}
    for row in rows:
        value = row[measure]
        if row["present"] and not math.isnan(value):
            patient = str(row.get("patient", row["case"]))
            by_patient.setdefault(patient, []).append(value)
    means = {}
    for patient in sorted(by_patient):
        means[patient] = float(np.mean(by_patient[patient]))
    return means


def highest_value(measure: str) -> float:
    """Largest value that a measure can have: 1 for Dice, none for a distance."""
    return 1.0 if measure == "dice" else math.inf


def mean_text(values: Mapping[str, float], measure: str, digits: int) -> str:
    """Mean over patients, with its interval or, of few patients, their values: ``0.5 [0.4, 0.6]``, ``0.5 (0.4, 0.6)``.

    ``values`` are those of [`patient_means`][].
    """
    numbers = list(values.values())
    if not numbers:
        return "n/a"
    text = _number(float(np.mean(numbers)), digits)
    if len(numbers) == 1:
        return text
    low, high = patient_interval(numbers, highest=highest_value(measure))
    if not math.isnan(low):
        return f"{text} [{_number(low, digits)}, {_number(high, digits)}]"
    shown = ", ".join(_number(number, digits) for number in numbers)
    return f"{text} ({shown})"


def write_scores(
    rows: ScoreRows, output_dir: str | Path, settings: Settings | None = None
) -> list[ScoreRow]:
    """Write ``scores.csv`` (``rows``), ``scores.md`` and, last, ``scores.json``; returns the [`summarize_scores`][].

    ``settings``, kept beside the summary, is what the numbers depend on, such as weights and data.
    """
    folder = Path(output_dir)
    summary = summarize_scores(rows)
    settings = dict(settings or {})
    write_csv(folder / "scores.csv", without_nan(rows))
    write_text(folder / "scores.md", _markdown(summary, settings))
    content = {"settings": settings, "summary": without_nan(summary)}
    text = json.dumps(content, indent=2, allow_nan=False, default=str)
    write_text(folder / "scores.json", text + "\n")
    return summary


@dataclass(eq=False)
class SegmentationScores:
    """Handler that scores each case of a ``SupervisedEvaluator`` after its postprocessing and writes the scores.

    It reads ``pred`` and ``label``, ``(1, *spatial)`` integer classes on one grid, of the decollated
    ``engine.state.output``; spacing and case id are those of the label's file. For ``classes`` see [`score_case`][],
    for ``patient_pattern`` [`contourdiff.data.training_cases.patient_of`][].
    """

    classes: Mapping[int, str]
    output_dir: str | Path
    settings: Settings | None = None
    patient_pattern: str = "(.*)"
    rows: list[ScoreRow] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        # a JSON config has string keys
        self.classes = {int(number): name for number, name in self.classes.items()}
        self.output_dir = Path(self.output_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self) -> None:
        write_scores(self.rows, self.output_dir, self.settings)

    def __call__(self, engine: Engine) -> None:
        """Score one iteration's cases; ``ValueError`` for a batch, several channels, or a label without metadata."""
        items: Any = engine.state.output
        if not isinstance(items, list):
            raise ValueError(
                f"expected a list of items, got {type(items).__name__}; set decollate=True"
            )
        for item in items:
            self.rows.extend(self._score(item["pred"], item["label"]))

    def _score(self, pred: Any, label: Any) -> list[ScoreRow]:
        meta = getattr(label, "meta", {})
        has_one_channel = len(pred) == 1 and len(label) == 1
        if not has_one_channel or "filename_or_obj" not in meta:
            raise ValueError(
                "expected pred and label (1, *spatial) and a label that knows its file, got "
                f"{tuple(pred.shape)}, {tuple(label.shape)} and a label with {sorted(meta)}; "
                "load it with LoadImaged, put AsDiscreted (argmax) in postprocessing"
            )
        # whole columns: MetaTensor.pixdim takes the upper left corner, which is wrong for a sagittal slice in 2-D
        affine = np.asarray(label.affine)
        columns = affine[:-1, : label.ndim - 1]
        spacing_mm = np.linalg.norm(columns, axis=0)
        case = case_of(meta["filename_or_obj"])
        predicted = pred[0].detach().cpu().numpy()
        reference = label[0].detach().cpu().numpy()
        rows = score_case(predicted, reference, self.classes, spacing_mm, case)
        patient = patient_of(case, self.patient_pattern)
        return [{**row, "patient": patient} for row in rows]


def _score_structure(
    pred: np.ndarray, label: np.ndarray, spacing: list[float], diagonal_mm: float
) -> ScoreRow:
    """Scores of one structure, given as two bool masks."""
    is_present = bool(label.any())
    is_predicted = bool(pred.any())
    is_missed = is_present and not is_predicted
    y_pred = torch.from_numpy(pred)[None, None]
    y = torch.from_numpy(label)[None, None]
    assd = hd95 = math.nan
    if is_present and is_predicted:  # MONAI returns infinity and warns if one is empty
        options: dict[str, Any] = {"include_background": True, "spacing": spacing}
        distance = compute_average_surface_distance(y_pred, y, symmetric=True, **options)
        assd = float(distance)
        distance = compute_hausdorff_distance(y_pred, y, percentile=95, **options)
        hd95 = float(distance)
    return {
        "dice": float(compute_dice(y_pred, y)),
        "assd_mm": assd,
        "hd95_mm": hd95,
        "missed": is_missed,
        "invented": is_predicted and not is_present,
        "present": is_present,
        "assd_penalized_mm": diagonal_mm if is_missed else assd,
        "hd95_penalized_mm": diagonal_mm if is_missed else hd95,
        "intersection": int((pred & label).sum()),
        "pred_voxels": int(pred.sum()),
        "label_voxels": int(label.sum()),
    }


def _summary(name: str, rows: ScoreRows, seed: int) -> ScoreRow:
    """One row of [`summarize_scores`][]."""
    present = [row for row in rows if row["present"]]
    missed = _total(rows, "missed")
    voxels = _total(rows, "pred_voxels") + _total(rows, "label_voxels")
    cases = {row["case"] for row in present}
    overlap = 2 * _total(rows, "intersection")
    summary: ScoreRow = {
        "class": name,
        "cases": len(cases),
        "structures": len(present),
        "found": len(present) - missed,
        "missed": missed,
        "invented": _total(rows, "invented"),
        "dice_pooled": overlap / voxels if voxels else math.nan,
    }
    for measure in MEASURES:
        means = patient_means(rows, measure)
        values = list(means.values())
        low, high = patient_interval(values, highest=highest_value(measure), seed=seed)
        summary[measure] = float(np.mean(values)) if values else math.nan
        summary[f"{measure}_low"] = low
        summary[f"{measure}_high"] = high
        summary[f"{measure}_patients"] = means
    return summary


def _total(rows: ScoreRows, name: str) -> int:
    return sum(row[name] for row in rows)


def _markdown(summary: ScoreRows, settings: Settings) -> str:
    """The table: no mean of distances stands without its count of missed structures."""
    rows = []
    for row in summary:
        missed = f"missed {row['missed']} of {row['structures']}"
        cells = [row["class"], row["cases"], missed, row["invented"]]
        cells.append(mean_text(row["dice_patients"], "dice", 3))
        cells.append(_number(row["dice_pooled"], 3))
        for measure in MEASURES[1:]:
            cells.append(mean_text(row[f"{measure}_patients"], measure, 2))
        rows.append(cells)
    lines = [markdown_table(HEADER, rows), "", NOTE, ""]
    for name, value in settings.items():
        lines.append(f"- {name}: {value}")
    return "\n".join(lines) + "\n"


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "n/a"
    return f"{value:.{digits}f}"
