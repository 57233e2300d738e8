# SPDX-License-Identifier: Apache-2.0
"""The report of an experiment: its cells as CSV and Markdown beside the paper's figures, and pictures."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.data.nifti_names import case_of
from contourdiff.data.training_cases import labelled_cases
from contourdiff.report import write_markdown_page
from contourdiff_lab.experiment.costs import cost_lines
from contourdiff_lab.experiment.quality import draw_translations, quality_lines, translation_folders

PAPER = """\
The paper's UNet (Chen et al., arXiv 2403.10786), trained on translations of its own CT and tested on its own MR,
reached a Dice of 0.683 (lumbar spine), 0.633 (SPIDER, lumbar spine) and 0.731 (hip and thigh); without adaptation
0.287, 0.236 and 0.004; the best of CycleGAN, SynSeg-Net, CyCADA and MaskGAN 0.535. Other patients, other CT: no contest
with ours.
"""
NOTE = """\
Dice and ASSD: mean over the seeds of translation and training ± standard deviation; in brackets the 95 % bootstrap
interval over patients for the first seeds. SD: standard deviations of the Dice, of the means of the translation seeds,
and between training seeds on one translation. A missed structure counts as Dice 0 and as the image's diagonal in ASSD.
Pictures: reference green, prediction red, of the first network and seeds.
"""
HEADER = [
    "| row | network | class | cells | Dice | SD, translation | SD, training | ASSD, mm | missed |",
    "|---|---|---|---|---|---|---|---|---|",
]
MEASURES = ("dice", "assd_penalized_mm", "hd95_penalized_mm")
COLUMNS = (
    *(
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
    ),
    *("dice_pooled", "assd_mm", "hd95_mm"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
)
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

    Every finished cell of the folder is listed, with its scores in
    ``<row>/<architecture>_translation<seed>_seed<seed>/<group>``; rows in ``first`` come first. ``groups`` are patterns
    of case ids of ``mr_dir`` by name. With ``inference``, options of [`contourdiff.bundle.run_inference_config`][], what the rows
    cost and what they do to the anatomy is added, and ``translations.png``. With the package Markdown, ``table.html``
    shows the same. Returns the path of ``table.md``.
    """
    records = _records(folder, groups, first)
    write_csv(folder / "table.csv", records, COLUMNS)
    lines = ["# Segmentation of real MR by networks that never saw one", ""]
    for group, pattern in groups.items():
        members = [record for record in records if record["group"] == group]
        cells: dict[str, str] = {}  # of each row the first architecture and seed
        for record in members:
            name = "{row}/{architecture}_translation{translation_seed}_seed{seed}".format(**record)
            cells.setdefault(record["row"], name)
        picture = f"predictions_{group}.png"
        _draw_predictions(
            folder,
            list(cells.values()),
            group,
            labelled_cases(mr_dir, pattern=pattern),
            folder / picture,
        )
        lines += [f"## {group}", "", *_table(members), "", f"![{group}]({picture})", ""]
    lines += [NOTE, PAPER]
    rows = list(dict.fromkeys(record["row"] for record in records))
    if inference is not None:
        lines += _comparison(
            folder, rows, labelled_cases(mr_dir, pattern=next(iter(groups.values()))), inference
        )
    if pictures := [
        (row, path)
        for row in rows
        for path in sorted((folder / row).glob("translations_seed*/*_mr.png"))
    ]:
        links = [
            f"![{row}: {path.stem}]({path.relative_to(folder).as_posix()})\n"
            for row, path in pictures
        ]
        lines += ["## Translations", "", *links]
    write_text(folder / "table.md", "\n".join(lines) + "\n")
    if importlib.util.find_spec("markdown"):
        write_markdown_page(folder / "table.md")
    return folder / "table.md"


def _comparison(
    folder: Path, rows: Sequence[str], real: Sequence[Record], inference: Mapping[str, Any]
) -> list[str]:
    """Lines on costs and on translations of every row, and their picture."""
    lines = ["## Costs", "", *cost_lines(folder, rows, inference["bundle"])]
    if translations := translation_folders(folder, rows):
        draw_translations(folder / "translations.png", folder / "ct", translations, real, inference)
        lines += [
            "## Anatomy of the translations",
            "",
            *quality_lines(folder, translations, inference),
        ]
        lines += ["![CT, translations and a real MR of another person](translations.png)", ""]
    return lines


def _records(folder: Path, groups: Mapping[str, str], first: Sequence[str]) -> list[dict[str, Any]]:
    """A record for each cell, group and class: rows in the given order, then by name; of each row the UNet first."""
    records = []
    for cell in folder.glob("*/*_translation*_seed*"):
        architecture, translation_seed, seed = re.fullmatch(
            r"(.+)_translation(-?\d+)_seed(-?\d+)", cell.name
        ).groups()  # type: ignore[union-attr]
        common = {"row": cell.parent.name, "architecture": architecture}
        common |= {"translation_seed": int(translation_seed), "seed": int(seed)}
        for group in groups:
            if (cell / group / "scores.json").is_file():
                content = json.loads((cell / group / "scores.json").read_text(encoding="utf-8"))
                classes = (
                    content["summary"] if len(content["summary"]) > 2 else content["summary"][:1]
                )
                records += [
                    common | {"group": group} | summary for summary in classes
                ]  # of a single class no "all"
    order = ("architecture", "translation_seed", "seed", "group")
    records.sort(
        key=lambda r: (r["row"], r["architecture"] != "unet", *(r[name] for name in order))
    )
    return sorted(records, key=lambda r: [*first, r["row"]].index(r["row"]))


def _table(records: Sequence[Record]) -> list[str]:
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        cells.setdefault((record["row"], record["architecture"], record["class"]), []).append(
            record
        )
    lines = []
    for key, members in cells.items():
        missed, structures = (
            sum(record[name] for record in members) for name in ("missed", "structures")
        )
        figures = [
            _figure(members, "dice", 3),
            *_spreads(members),
            _figure(members, "assd_penalized_mm", 1),
            f"{missed} of {structures}",
        ]
        lines.append(f"| {' | '.join([*key, str(len(members)), *figures])} |")
    return [*HEADER, *lines]


def _spreads(members: Sequence[Record]) -> list[str]:
    """Standard deviation of the Dice between translation seeds, and between training seeds within one of them."""
    by_translation: dict[int, list[float]] = {}
    for record in members:
        if record["dice"] is not None:
            by_translation.setdefault(record["translation_seed"], []).append(record["dice"])
    means = [float(np.mean(values)) for values in by_translation.values()]
    within = [
        float(np.var(values, ddof=1)) for values in by_translation.values() if len(values) > 1
    ]
    return [
        f"{np.std(means, ddof=1):.3f}" if len(means) > 1 else "n/a",
        f"{np.mean(within) ** 0.5:.3f}" if within else "n/a",
    ]


def _figure(members: Sequence[Record], measure: str, digits: int) -> str:
    values = [record[measure] for record in members if record[measure] is not None]
    if not values:
        return "n/a"
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    low, high = members[0][f"{measure}_low"], members[0][f"{measure}_high"]
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _draw_predictions(
    folder: Path, cells: Sequence[str], group: str, cases: Sequence[Record], path: Path
) -> None:
    """Test slices side by side, a line for each cell: the reference's outline and the prediction's."""
    positions = np.linspace(0, len(cases) - 1, min(SHOWN_CASES, len(cases))).round().astype(int)
    figure = Figure(figsize=(2.6 * len(positions), 2.8 * len(cells)))
    axes = figure.subplots(len(cells), len(positions), squeeze=False)
    for column, case in enumerate(cases[position] for position in positions):
        label, name = _canonical(case["label"]), case_of(case["image"])
        axis = int(np.argmin(label.shape))  # the thinnest, across which slices lie
        position = int(
            np.argmax((np.moveaxis(label, axis, 0) > 0).sum((1, 2)))
        )  # most of the reference
        image, reference = (
            _canonical(case["image"]).take(position, axis),
            label.take(position, axis) > 0,
        )
        low, high = np.percentile(image, [1, 95])
        for line, (ax, cell) in enumerate(zip(axes[:, column], cells, strict=True)):
            ax.imshow(image.T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1))
            predicted = (
                _canonical(folder / cell / group / f"{name}_pred.nii.gz").take(position, axis) > 0
            )
            for mask, color in ((reference, "lime"), (predicted, "red")):
                if mask.any() and not mask.all():
                    ax.contour(mask.T, levels=[0.5], colors=[color], linewidths=0.7)
            ax.set_axis_off()
            ax.set_title(
                cell.split("/")[0] if column == 0 else name if line == 0 else "",
                fontsize=7,
                loc="left",
            )
    figure.tight_layout(pad=0.4)
    save_figure(figure, path, dpi=90)


def _canonical(path: str | Path) -> np.ndarray:
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj)
