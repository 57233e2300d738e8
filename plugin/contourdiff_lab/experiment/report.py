# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: its cells as CSV and Markdown beside the paper's figures, and pictures."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes

from contourdiff.data.atomic import read_json, save_figure, write_csv, write_text
from contourdiff.data.nifti_names import case_of
from contourdiff.data.training_cases import labelled_cases
from contourdiff.metrics.segmentation import ALL, mean_text, patient_means
from contourdiff.pictures import image_grid
from contourdiff.report import write_markdown_page
from contourdiff.tables import markdown_table
from contourdiff_lab.experiment.anatomy import anatomy_table, draw_translations, translation_folders
from contourdiff_lab.experiment.costs import cost_table
from contourdiff_lab.experiment.folds import read_scores
from contourdiff_lab.experiment.plan import Cell

PAPER = """\
The paper's UNet (Chen et al., arXiv 2403.10786), trained on translations of its own CT and tested on its own MR,
reached a Dice of 0.683 (lumbar spine), 0.633 (SPIDER, lumbar spine) and 0.731 (hip and thigh); without adaptation
0.287, 0.236 and 0.004; the best of CycleGAN, SynSeg-Net, CyCADA and MaskGAN 0.535. Other patients, other CT: no contest
with ours.
"""
NOTE = """\
Dice and ASSD: mean over patients, each of whom is a mean over his cases and over all seeds; in brackets the 95 %
interval of that mean over patients or, with fewer than eight, the value of each patient. SD: standard deviations of the
Dice between seeds, of the means of the translation seeds, and between training seeds on one translation. A missed
structure counts as Dice 0 and as the image's diagonal in ASSD. Pictures: reference green, prediction red, of the first
network and seeds.
"""
HEADER = (
    "row",
    "network",
    "class",
    "cells",
    "patients",
    "Dice",
    "SD, translation",
    "SD, training",
    "ASSD, mm",
    "missed",
)
COLUMNS = (
    "row",
    "architecture",
    "translation_seed",
    "seed",
    "group",
    "class",
    "cases",
    "structures",
    "missed",
    "invented",
    "dice_pooled",
    "assd_mm",
    "hd95_mm",
    "dice",
    "dice_low",
    "dice_high",
    "assd_penalized_mm",
    "assd_penalized_mm_low",
    "assd_penalized_mm_high",
    "hd95_penalized_mm",
    "hd95_penalized_mm_low",
    "hd95_penalized_mm_high",
)
UNKNOWN = "n/a"
SHOWN_CASES = 6
Record = Mapping[str, Any]


def write_report(
    folder: Path,
    groups: Mapping[str, str],
    mr_dir: str | Path,
    first: Sequence[str] = (),
    inference: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``table.csv`` (every cell and class), ``table.md`` (means over seeds) and ``predictions_<group>.png``.

    With the package Markdown, ``table.html`` shows the same as ``table.md``.

    Args:
        folder: the experiment's; each finished cell is listed, with its scores in
            ``<row>/<architecture>_translation<seed>_seed<seed>/<group>``.
        groups: patterns of case ids of ``mr_dir``, by name.
        mr_dir: real MR that the networks were tested on.
        first: rows that come first, in this order.
        inference: options of [`contourdiff.bundle.run_inference_config`][]; with them, the rows' costs and what they do
            to the anatomy are added, and ``translations.png``.

    Returns the path of ``table.md``.
    """
    records = _records(folder, groups, first)
    write_csv(folder / "table.csv", records, COLUMNS)
    rows = list(dict.fromkeys(record["row"] for record in records))
    lines = ["# Segmentation of real MR by networks that never saw one", ""]
    for group, pattern in groups.items():
        members = [record for record in records if record["group"] == group]
        cases = labelled_cases(mr_dir, pattern=pattern)
        picture = f"predictions_{group}.png"
        _draw_predictions(folder, members, group, cases, folder / picture)
        lines += [f"## {group}", "", _table(members), "", f"![{group}]({picture})", ""]
    lines += [NOTE, PAPER]
    if inference is not None:
        first_pattern = next(iter(groups.values()))
        real = labelled_cases(mr_dir, pattern=first_pattern)
        lines += _costs_and_anatomy(folder, rows, real, inference)
    lines += _previews(folder, rows)
    write_text(folder / "table.md", "\n".join(lines) + "\n")
    if importlib.util.find_spec("markdown"):
        write_markdown_page(folder / "table.md")
    return folder / "table.md"


def _costs_and_anatomy(
    folder: Path, rows: Sequence[str], real: Sequence[Record], inference: Mapping[str, Any]
) -> list[str]:
    """Lines on costs and on translations of every row, and their picture."""
    lines = ["## Costs", "", cost_table(folder, rows, inference["bundle"])]
    translations = translation_folders(folder, rows)
    if translations:
        draw_translations(folder / "translations.png", folder / "ct", translations, real, inference)
        lines += [
            "## Anatomy of the translations",
            "",
            anatomy_table(folder, translations, inference),
            "![CT, translations and a real MR of another person](translations.png)",
            "",
        ]
    return lines


def _previews(folder: Path, rows: Sequence[str]) -> list[str]:
    """Links to the pictures of all translations by this package."""
    links = []
    for row in rows:
        for path in sorted((folder / row).glob("translations_seed*/*_mr.png")):
            links.append(f"![{row}: {path.stem}]({path.relative_to(folder).as_posix()})\n")
    return ["## Translations", "", *links] if links else []


def _records(folder: Path, groups: Mapping[str, str], first: Sequence[str]) -> list[dict[str, Any]]:
    """A record for each cell, group and class: rows in the order of ``first``, then by name; the UNet first."""
    records = []
    for path in folder.glob("*/*_translation*_seed*"):
        cell = Cell.of_folder(path)
        for group in groups:
            scores = path / group / "scores.json"
            if not scores.is_file():
                continue
            rows = read_scores(path / group)
            summaries = read_json(scores)["summary"]
            if len(summaries) == 2:
                summaries = summaries[:1]  # the class, and all classes, which are the same
            for summary in summaries:
                of_class = [row for row in rows if summary["class"] in (row["class"], ALL)]
                origin = {"cell": cell, "group": group, "rows": of_class}
                records.append({**cell._asdict(), **origin, **summary})

    def place(record: Record) -> tuple[Any, ...]:
        row = record["row"]
        return (
            first.index(row) if row in first else len(first),
            row,
            record["architecture"] != "unet",
            record["architecture"],
            record["translation_seed"],
            record["seed"],
            record["group"],
        )

    return sorted(records, key=place)


def _table(records: Sequence[Record]) -> str:
    """Means over the patients of each row, network and class."""
    by_class: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = (record["row"], record["architecture"], record["class"])
        by_class.setdefault(key, []).append(record)
    lines = []
    for names, members in by_class.items():
        missed = sum(record["missed"] for record in members)
        structures = sum(record["structures"] for record in members)
        dice = _patients(members, "dice")
        distance = _patients(members, "assd_penalized_mm")
        lines.append(
            [
                *names,
                len(members),
                len(dice),
                mean_text(dice, "dice", 3),
                *_spreads(members),
                mean_text(distance, "assd_penalized_mm", 1),
                f"{missed} of {structures}",
            ]
        )
    return markdown_table(HEADER, lines)


def _spreads(members: Sequence[Record]) -> tuple[str, str]:
    """Standard deviation of the Dice between translation seeds, and between training seeds within one of them."""
    by_translation: dict[int, list[float]] = {}
    for record in members:
        means = patient_means(record["rows"], "dice")
        if means:
            mean = float(np.mean(list(means.values())))
            by_translation.setdefault(record["translation_seed"], []).append(mean)
    means_of_translations = [float(np.mean(values)) for values in by_translation.values()]
    variances = []
    for values in by_translation.values():
        if len(values) > 1:
            variances.append(float(np.var(values, ddof=1)))
    between = UNKNOWN
    if len(means_of_translations) > 1:
        between = f"{np.std(means_of_translations, ddof=1):.3f}"
    within = f"{np.mean(variances) ** 0.5:.3f}" if variances else UNKNOWN
    return between, within


def _patients(members: Sequence[Record], measure: str) -> dict[str, float]:
    """Value of each patient, a mean over all seeds of translation and training."""
    by_patient: dict[str, list[float]] = {}
    for record in members:
        for patient, value in patient_means(record["rows"], measure).items():
            by_patient.setdefault(patient, []).append(value)
    return {patient: float(np.mean(values)) for patient, values in sorted(by_patient.items())}


def _draw_predictions(
    folder: Path,
    records: Sequence[Record],
    group: str,
    cases: Sequence[Record],
    path: Path,
) -> None:
    """Test slices side by side, a line for each row: outlines of the reference and of the first cell's prediction."""
    predictions: dict[str, Path] = {}
    for record in records:
        predictions.setdefault(record["row"], folder / record["cell"].folder / group)
    count = min(SHOWN_CASES, len(cases))
    positions = np.linspace(0, len(cases) - 1, count).round().astype(int)
    slices = [_largest_slice(cases[position]) for position in positions]
    titles = [[row] for row in predictions]
    titles[0] += [shown.name for shown in slices[1:]]
    images = [shown.image for shown in slices]
    figure = image_grid([images] * len(predictions), titles, cell_inches=(2.6, 2.8))
    places = itertools.product(predictions.values(), slices)
    for ax, (predicted, shown) in zip(figure.axes, places, strict=True):
        volume = _canonical(predicted / f"{shown.name}_pred.nii.gz")
        _outline(ax, shown.reference, "lime")
        _outline(ax, volume.take(shown.position, shown.axis) > 0, "red")
    save_figure(figure, path, dpi=90)


class ShownSlice(NamedTuple):
    """Where a slice lies in its volume, its gray levels in [0, 255], and its reference, both ``(H, W)``."""

    name: str
    axis: int
    position: int
    image: np.ndarray
    reference: np.ndarray


def _largest_slice(case: Mapping[str, str]) -> ShownSlice:
    """The slice of a case with most of the reference; slices are stacked along the shortest axis."""
    label = _canonical(case["label"])
    axis = int(np.argmin(label.shape))
    areas = (np.moveaxis(label, axis, 0) > 0).sum((1, 2))
    position = int(np.argmax(areas))
    image = _canonical(case["image"]).take(position, axis)
    low, high = np.percentile(image, [1, 95])
    return ShownSlice(
        name=case_of(case["image"]),
        axis=axis,
        position=position,
        image=(image - low) / max(high - low, 1) * 255,
        reference=label.take(position, axis) > 0,
    )


def _outline(ax: Axes, mask: np.ndarray, color: str) -> None:
    if mask.any() and not mask.all():
        ax.contour(mask.T, levels=[0.5], colors=[color], linewidths=0.7)


def _canonical(path: str | Path) -> np.ndarray:
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj)
