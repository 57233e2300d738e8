# SPDX-License-Identifier: Apache-2.0
"""What each row of the experiment does to the anatomy: label boundaries, contour fidelity, and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from contourdiff.bundle import config_files, read_config
from contourdiff.data.atomic import save_figure
from contourdiff.data.nifti_names import case_name, case_of
from contourdiff.data.training_cases import labelled_cases
from contourdiff.pictures import show_slice
from contourdiff.transforms.gray_levels import MR_PERCENTILES
from contourdiff_lab.folder_quality import QualityGrid, ct_case, folder_quality, write_quality

MEASURES = ("boundary", "boundary_swapped", "fidelity", "invented", "lost", "flicker")
QUALITY_HEADER = [
    "| row | translations | label boundary | by chance | contour fidelity | invented | lost | flicker |",
    "|---|---|---|---|---|---|---|---|",
]
QUALITY_NOTE = """\
Label boundary: share of the labels' boundaries within a pixel of a contour of the translation; by chance: the same with
the labels of another slice. Contour fidelity: F1 of the contours of translation and CT, median over slices; invented:
share of the translation's contours that the CT lacks, lost: the reverse. All rows are measured on one grid, with one
contour, that of `ours`, so resolution counts. Means over cases and seeds.
"""
SHOWN_CASES = 6
Record = Mapping[str, Any]


def translation_folders(folder: Path, rows: Sequence[str]) -> dict[str, list[Path]]:
    """Folders of translations of every row that has some, in an experiment's folder; those of other tools, too."""
    given: dict[str, str] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))[
        "folders"
    ]
    found = {
        row: sorted((folder / row).glob("translations_*")) or [Path(given.get(row, ""))]
        for row in rows
    }
    return {row: paths for row, paths in found.items() if paths != [Path()]}


def quality_lines(
    folder: Path, translations: Mapping[str, Sequence[Path]], inference: Mapping[str, Any]
) -> list[str]:
    """Lines of a Markdown table on the translations of every row; ``inference`` are options of [`folder_quality`][].

    Each folder is measured once, and again if its cases are others: ``<row>/quality/<folder>/quality.json``.
    """
    lines = []
    for row, paths in translations.items():
        places = [(path, folder / "ct", folder / row / "quality" / path.name) for path in paths]
        cases = [case for place in places for case in _measured(*place, inference)]
        means = [
            _nanmean([math.nan if case[name] is None else case[name] for case in cases])
            for name in MEASURES
        ]
        figures = [
            f"{mean:.{0 if mean > 1 else 3}f}" for mean in means
        ]  # shares, and gray levels squared
        cells = [
            row,
            str(len(cases)),
            *("n/a" if figure == "nan" else figure for figure in figures),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*QUALITY_HEADER, *lines, "", QUALITY_NOTE]


def _measured(
    translations: Path, ct_dir: Path, output_dir: Path, inference: Record
) -> list[Record]:
    path = output_dir / "quality.json"
    names = {case_name(case["image"]) for case in labelled_cases(translations)}
    if (
        not path.is_file()
        or {case["case"] for case in json.loads(path.read_text("utf-8"))["cases"]} != names
    ):
        write_quality(folder_quality(translations, ct_dir=ct_dir, **inference), output_dir)
    cases: list[Record] = json.loads(path.read_text(encoding="utf-8"))["cases"]
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
    config = read_config(
        config_files(inference["bundle"], inference["overlays"]), inference["settings"]
    )
    low, high = config.get_parsed_content("window_hu")
    made: dict[str, dict[str, str]] = {}
    for row, folders in translations.items():
        images = [case["image"] for case in labelled_cases(folders[0])]
        made[row] = {ct_case(image): image for image in reversed(images)}
    cases = labelled_cases(ct_dir)[:SHOWN_CASES]
    figure = Figure(figsize=(2.4 * (len(made) + 2), 2.8 * len(cases)))
    axes = figure.subplots(len(cases), len(made) + 2, squeeze=False)
    for number, (line, case) in enumerate(zip(axes, cases, strict=True)):
        ct, position = _largest(grid.load(case))
        shown = {"CT": (np.clip(ct, low, high) - low) * 255 / (high - low)}
        shown |= {
            row: _like(grid, images.get(case_of(case["image"])), ct) for row, images in made.items()
        }
        slices = {name: volume[position] for name, volume in shown.items()}
        mr, position = _largest(grid.load(real[number % len(real)], MR_PERCENTILES))
        for ax, (name, image) in zip(
            line, {**slices, "real MR": mr[position]}.items(), strict=True
        ):
            show_slice(ax, image, name if number == 0 else "")
            ax.invert_xaxis()
    figure.tight_layout(pad=0.4)
    save_figure(figure, path, dpi=90, bbox_inches="tight")


def _largest(volumes: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Image, and the position of the slice with the largest label."""
    image, label = volumes
    return image, int(np.argmax((label > 0).sum((1, 2))))


def _like(grid: QualityGrid, image: str | None, ct: np.ndarray) -> np.ndarray:
    """Gray levels of a translation, or black if there is none on the grid of its CT."""
    volume = None if image is None else grid.load({"image": image})[0]
    return np.zeros_like(ct) if volume is None or volume.shape != ct.shape else volume


def _nanmean(values: Sequence[float]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
