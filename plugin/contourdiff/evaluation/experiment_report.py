# SPDX-License-Identifier: Apache-2.0
"""The page of an experiment: its cells as CSV and Markdown beside the paper's figures, and pictures to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import atomic_write, write_csv, write_text
from contourdiff.data.cases import case_of, labelled_cases

PAPER = """\
The paper's UNet (Chen et al., arXiv 2403.10786), trained on translations of its own CT and tested on its own MR,
reached a Dice of 0.683 (lumbar spine), 0.633 (SPIDER, lumbar spine) and 0.731 (hip and thigh); without adaptation
0.287, 0.236 and 0.004; the best of CycleGAN, SynSeg-Net, CyCADA and MaskGAN 0.535. Other patients, other CT: no contest
with ours.
"""
NOTE = """\
Dice and ASSD: mean over seeds ± their standard deviation; in brackets the 95 % bootstrap interval over cases of the
first seed. A missed structure counts as Dice 0 and as the image's diagonal in ASSD. Pictures: reference green,
prediction red, of the first network and seed.
"""
MEASURES = ("dice", "assd_penalized_mm", "hd95_penalized_mm")
COLUMNS = (
    "row",
    "architecture",
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
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
)
SHOWN_CASES = 6


def write_report(folder: Path, groups: Mapping[str, str], mr_dir: str | Path, first: Sequence[str] = ()) -> Path:
    """Write ``table.csv`` (every cell and class), ``table.md`` (means over seeds) and ``predictions_<group>.png``.

    Every finished cell in the folder is told, whichever run made it.

    Args:
        folder: output folder of the table; ``<row>/<architecture>_seed<seed>/<group>`` holds the scores.
        groups: test groups, name -> pattern of case ids.
        mr_dir: the real MR.
        first: rows that come first, in this order.

    Returns:
        Path of ``table.md``.
    """
    records = sorted(_records(folder, groups), key=lambda record: _rank(record, first))
    write_csv(folder / "table.csv", records, COLUMNS)
    lines = ["# Segmentation of real MR by networks that never saw one", ""]
    for group, pattern in groups.items():
        members = [record for record in records if record["group"] == group]
        cells = list(dict.fromkeys(f"{r['row']}/{r['architecture']}_seed{r['seed']}" for r in _drawn(members)))
        picture = f"predictions_{group}.png"
        _draw_predictions(folder, cells, group, labelled_cases(mr_dir, pattern=pattern), folder / picture)
        lines += [f"## {group}", "", *_table(members), "", f"![{group}]({picture})", ""]
    rows = list(dict.fromkeys(record["row"] for record in records))
    path = folder / "table.md"
    write_text(path, "\n".join([*lines, NOTE, PAPER, *_translations(folder, rows)]) + "\n")
    return path


def _records(folder: Path, groups: Mapping[str, str]) -> list[dict[str, Any]]:
    records = []
    for cell in folder.glob("*/*_seed*"):
        architecture, _, seed = cell.name.rpartition("_seed")
        common = {"row": cell.parent.name, "architecture": architecture, "seed": int(seed)}
        for group in groups:
            if (cell / group / "scores.json").is_file():
                records += [common | {"group": group} | summary for summary in _summaries(cell / group)]
    return records


def _rank(record: Mapping[str, Any], first: Sequence[str]) -> tuple[Any, ...]:
    """Rows as given, then others by name; of each row the UNet first."""
    row = record["row"]
    position = list(first).index(row) if row in first else len(first)
    return position, row, record["architecture"] != "unet", record["architecture"], record["seed"], record["group"]


def _drawn(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each row the first architecture and seed, whose predictions are drawn."""
    first: dict[str, Mapping[str, Any]] = {}
    for record in records:
        first.setdefault(record["row"], record)
    return list(first.values())


def _translations(folder: Path, rows: Sequence[str]) -> list[str]:
    pictures = [(row, path) for row in rows for path in sorted((folder / row / "translations").glob("*_mr.png"))]
    if not pictures:
        return []
    links = [f"![{row}: {path.stem}]({path.relative_to(folder).as_posix()})\n" for row, path in pictures]
    return ["## Translations", "", *links]


def _summaries(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    classes: list[dict[str, Any]] = content["summary"]
    return classes if len(classes) > 2 else classes[:1]  # with a single class "all" says the same again


def _table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| row | network | class | seeds | Dice | ASSD, mm | missed |", "|---|---|---|---|---|---|---|"]
    keys = dict.fromkeys((record["row"], record["architecture"], record["class"]) for record in records)
    for key in keys:
        members = [r for r in records if (r["row"], r["architecture"], r["class"]) == key]
        missed, structures = (sum(record[name] for record in members) for name in ("missed", "structures"))
        figures = [_figure(members, "dice", 3), _figure(members, "assd_penalized_mm", 1), f"{missed} of {structures}"]
        lines.append(f"| {' | '.join([*key, str(len(members)), *figures])} |")
    return lines


def _figure(members: Sequence[Mapping[str, Any]], measure: str, digits: int) -> str:
    values = [record[measure] for record in members if record[measure] is not None]
    if not values:
        return "n/a"
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    low, high = members[0][f"{measure}_low"], members[0][f"{measure}_high"]
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _draw_predictions(
    folder: Path, cells: Sequence[str], group: str, cases: Sequence[Mapping[str, str]], path: Path
) -> None:
    """Test slices side by side, a line for each cell: the reference's outline and the prediction's."""
    positions = np.linspace(0, len(cases) - 1, min(SHOWN_CASES, len(cases))).round().astype(int)
    chosen = [cases[position] for position in positions]
    figure = Figure(figsize=(2.6 * len(chosen), 2.8 * len(cells)))
    axes = figure.subplots(len(cells), len(chosen), squeeze=False)
    for column, case in enumerate(chosen):
        image, label = _canonical(case["image"]), _canonical(case["label"])
        axis, position = _fullest_slice(label)
        reference = label.take(position, axis) > 0
        low, high = np.percentile(image.take(position, axis), [1, 95])
        for line, cell in enumerate(cells):
            ax = axes[line, column]
            ax.imshow(image.take(position, axis).T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1))
            name = case_of(case["image"])
            predicted = _canonical(folder / cell / group / f"{name}_pred.nii.gz").take(position, axis) > 0
            for mask, color in ((reference, "lime"), (predicted, "red")):
                if mask.any() and not mask.all():
                    ax.contour(mask.T, levels=[0.5], colors=[color], linewidths=0.7)
            ax.set_axis_off()
            title = cell.split("/")[0] if column == 0 else name if line == 0 else ""
            ax.set_title(title, fontsize=7, loc="left")
    figure.tight_layout(pad=0.4)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=90)


def _canonical(path: str | Path) -> np.ndarray:
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def _fullest_slice(label: np.ndarray) -> tuple[int, int]:
    """The thinnest axis, across which slices lie, and the slice with most of the reference."""
    axis = int(np.argmin(label.shape))
    area = (label > 0).sum(axis=tuple(other for other in range(3) if other != axis))
    return axis, int(np.argmax(area))
