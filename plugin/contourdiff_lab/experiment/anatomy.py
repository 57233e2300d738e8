# SPDX-License-Identifier: Apache-2.0
"""What each row of the experiment does to the anatomy: label boundaries, contour fidelity, and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contourdiff.bundle import config_files, read_config
from contourdiff.data.atomic import read_json, save_figure
from contourdiff.data.nifti_names import case_name, case_of
from contourdiff.data.training_cases import labelled_cases, source_case
from contourdiff.pictures import image_grid
from contourdiff.tables import markdown_table
from contourdiff.transforms.gray_levels import MR_PERCENTILES
from contourdiff_lab.experiment.rows import row_of
from contourdiff_lab.folder_quality import (
    QualityGrid,
    folder_quality,
    nan_mean,
    write_quality,
)

COMPARED = ("boundary", "boundary_swapped")
OF_CONTOURS = ("fidelity", "invented", "lost")
"""Measures of the contour that was extracted from the CT, which some rows are given as input."""
HEADER = (
    "row",
    "translations",
    "label boundary",
    "by chance",
    "contour fidelity",
    "invented",
    "lost",
    "follows its own condition",
    "flicker",
)
NOTE = """\
Label boundary: share of the labels' boundaries within a pixel of a contour of the translation; by chance: the same with
the labels of another slice. These two compare all rows. Contour fidelity: F1 of the contours of translation and CT,
median over slices; invented: share of the translation's contours that the CT lacks, lost: the reverse. A row whose
translator is given the contour of the CT is not compared in these three: its F1 says how well it follows its own
condition. All rows are measured on one grid, with one contour, that of `ours`, so resolution counts. Means over cases
and seeds.
"""
NOT_COMPARED = "-"
SHOWN_CASES = 6
Record = Mapping[str, Any]


def translation_folders(folder: Path, rows: Sequence[str]) -> dict[str, list[Path]]:
    """Folders of translations of every row that has some, in an experiment's folder; those of other tools, too."""
    plan = read_json(folder / "plan.json")
    by_row = {}
    for row in rows:
        folders = sorted((folder / row).glob("translations_*"))
        if not folders and row in plan["folders"]:
            folders = [Path(plan["folders"][row])]
        if folders:
            by_row[row] = folders
    return by_row


def anatomy_table(
    folder: Path, translations: Mapping[str, Sequence[Path]], inference: Mapping[str, Any]
) -> str:
    """Markdown table on the translations of every row, and a note on it.

    Each folder is measured once, and again if its cases are others: ``<row>/quality/<folder>/quality.json``.
    ``inference`` are options of [`contourdiff_lab.folder_quality.folder_quality`][].
    """
    lines = []
    for row, paths in translations.items():
        cases: list[Record] = []
        for path in paths:
            output_dir = folder / row / "quality" / path.name
            cases += _measured_cases(path, folder / "ct", output_dir, inference)
        compared = [_mean_text(cases, measure) for measure in COMPARED]
        of_contours = [_mean_text(cases, measure) for measure in OF_CONTOURS]
        condition = NOT_COMPARED
        if row_of(row).sees_contour:
            condition = of_contours[0]
            of_contours = [NOT_COMPARED] * len(OF_CONTOURS)
        flicker = _mean_text(cases, "flicker")
        lines.append([row, len(cases), *compared, *of_contours, condition, flicker])
    return f"{markdown_table(HEADER, lines)}\n\n{NOTE}"


def _mean_text(cases: Sequence[Record], measure: str) -> str:
    values = [case[measure] for case in cases]
    mean = nan_mean([math.nan if value is None else value for value in values])
    if math.isnan(mean):
        return "n/a"
    return f"{mean:.0f}" if mean > 1 else f"{mean:.3f}"  # gray levels squared, or shares


def _measured_cases(
    translations: Path, ct_dir: Path, output_dir: Path, inference: Record
) -> list[Record]:
    path = output_dir / "quality.json"
    names = {case_name(case["image"]) for case in labelled_cases(translations)}
    cases = _read_cases(path)
    if {case["case"] for case in cases} != names:
        write_quality(folder_quality(translations, ct_dir=ct_dir, **inference), output_dir)
        cases = _read_cases(path)
    return cases


def _read_cases(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    cases: list[Record] = read_json(path)["cases"]
    return cases


def draw_translations(
    path: Path,
    ct_dir: Path,
    translations: Mapping[str, Sequence[Path]],
    real: Sequence[Mapping[str, str]],
    inference: Mapping[str, Any],
) -> None:
    """Write a line of each CT as PNG: its slice with the largest label, every row's translation of it, a real MR slice.

    ``real`` are labelled MR cases, of which one stands in each line. Of a row the first folder is shown, and of several
    contrasts the first. ``inference`` are arguments of [`QualityGrid.of_bundle`][]; a translation on another grid than
    its CT's is left blank.
    """
    grid = QualityGrid.of_bundle(**inference)
    files = config_files(inference["bundle"], inference["overlays"])
    window_hu = read_config(files, inference["settings"]).get_parsed_content("window_hu")
    images = {row: _image_of_each_ct(folders[0]) for row, folders in translations.items()}
    lines = []
    for number, case in enumerate(labelled_cases(ct_dir)[:SHOWN_CASES]):
        ct, label = grid.load(case)
        position = _largest(label)
        line = [_gray_levels(ct[position], *window_hu)]
        for row in translations:
            volume = _load_like(grid, images[row].get(case_of(case["image"])), ct)
            line.append(volume[position])
        mr, mr_label = grid.load(real[number % len(real)], MR_PERCENTILES)
        line.append(mr[_largest(mr_label)])
        lines.append(line)
    figure = image_grid(lines, [["CT", *translations, "real MR"]], cell_inches=(2.4, 2.8))
    for axis in figure.axes:
        axis.invert_xaxis()
    save_figure(figure, path, dpi=90, bbox_inches="tight")


def _image_of_each_ct(folder: Path) -> dict[str, str]:
    """The first translation of each CT, by its case."""
    images: dict[str, str] = {}
    for case in labelled_cases(folder):
        images.setdefault(source_case(case["image"]), case["image"])
    return images


def _gray_levels(ct: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip(ct, low, high) - low) * 255 / (high - low)


def _largest(label: np.ndarray) -> int:
    """Position of the slice with the largest label, in ``(slices, H, W)``."""
    return int(np.argmax((label > 0).sum((1, 2))))


def _load_like(grid: QualityGrid, image: str | None, ct: np.ndarray) -> np.ndarray:
    """Gray levels of a translation, or black if there is none on the grid of its CT."""
    if image is not None:
        (volume,) = grid.load({"image": image})
        if volume.shape == ct.shape:
            return volume
    return np.zeros_like(ct)
