# SPDX-License-Identifier: Apache-2.0
"""Report of the gap between the contours of CT and of MR: a table of every slice, means, and a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.data.checks import check_output_dir
from contourdiff.tables import markdown_table
from contourdiff_lab.contour_gap import (
    DENSITY,
    REGIONS,
    SIDES,
    TOLERANCE_MM,
    ContourGap,
    MeasuredSlice,
    contour_gap,
)

COLORS = {"inside": "#ff5a5f", "boundary": "#ffd23f", "near": "#3fa7ff", "rest": "#8ee58e"}
SIDE_COLORS = {"ct": "#c8553d", "mr": "#2f6690"}
BIN_COLORS = ("#1b4965", "#62b6cb", "#cae9ff", "#f4a261")
TITLES = (
    "Contour length per area, mm/cm²\n(mean and SD over slices)",
    "Length of the fragments that touch it, mm\n(box: quartiles; whiskers: 10 to 90 %)",
    "Shares of edge directions\n(left CT, right MR)",
)
Line = Mapping[str, Any]
Lines = Mapping[tuple[str, str], Line]


def run_gap(ct_dir: str | Path, mr_dir: str | Path, output_dir: str | Path, **options: Any) -> Path:
    """Run [`contourdiff_lab.contour_gap.contour_gap`][] with its options, write the result, return ``gap.md``.

    Raises ``ValueError`` if the folder cannot be written to, and as ``contour_gap``.
    """
    check_output_dir(output_dir)
    write_gap(contour_gap(ct_dir, mr_dir, **options), output_dir)
    return Path(output_dir) / "gap.md"


def write_gap(gap: ContourGap, output_dir: str | Path) -> None:
    """Write ``gap.csv`` (a line a slice and region), ``gap.png`` and, last, ``gap.md``, each whole or not at all."""
    folder = Path(output_dir)
    write_csv(folder / "gap.csv", gap.rows())
    gap_picture(gap, folder / "gap.png")
    lines = ["# The gap between contours of CT and of MR", ""]
    for side, name in SIDES.items():
        cases = [measured.case for measured in _slices(gap, side)]
        lines.append(f"- {name}: {len(cases)} labelled slices, cases: {len(set(cases))}")
    for name, value in gap.settings.items():
        if value:
            lines.append(f"- {name}: {value}")
    header = ["region", "measure", "CT, mean ± SD", "MR, mean ± SD", "CT/MR"]
    cells = [_table_row(line, gap.directions) for line in gap.summary()]
    factor = gap.density_factor()
    lines += [
        "",
        markdown_table(header, cells),
        "",
        f"The densities of the regions differ by a factor of {factor:.2f} on average.",
        "",
        "![gap](gap.png)",
    ]
    write_text(folder / "gap.md", "\n".join(lines) + "\n")


def gap_picture(gap: ContourGap, path: str | Path) -> None:
    """Draw densities, fragment lengths, directions and an example slice of each side to a PNG file."""
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[1, 1.15])
    lines = {(line["region"], line["measure"]): line for line in gap.summary()}
    _draw_measures(axes[0], gap, lines)
    _draw_example(axes[1, 0], max(_slices(gap, "ct"), key=_bone_area))
    _draw_example(axes[1, 1], max(_slices(gap, "mr"), key=_bone_area))
    _draw_legend(axes[1, 2], lines)
    save_figure(figure, path, dpi=90)


def _slices(gap: ContourGap, side: str) -> list[MeasuredSlice]:
    return [measured for measured in gap.slices if measured.side == side]


def _table_row(line: Line, directions: Sequence[str]) -> list[str]:
    measure = line["measure"]
    return [
        REGIONS[line["region"]],
        f"edges {measure}" if measure in directions else measure,
        _spread(line, "ct"),
        _spread(line, "mr"),
        f"{line['ratio']:.2f}",
    ]


def _spread(line: Line, side: str) -> str:
    return f"{line[side]:.2f} ± {line[f'{side}_sd']:.2f}"


def _bone_area(measured: MeasuredSlice) -> float:
    return measured.contours["inside"].area_cm2 + measured.contours["boundary"].area_cm2


def _draw_measures(axes: Any, gap: ContourGap, lines: Lines) -> None:
    """Bars of densities, boxes of fragment lengths and stacked bars of directions, CT left of MR in each region."""
    regions = np.arange(len(REGIONS))
    for side, places in (("ct", regions - 0.2), ("mr", regions + 0.2)):
        _draw_densities(axes[0], lines, side, places)
        _draw_fragments(axes[1], _slices(gap, side), side, places)
        _draw_directions(axes[2], lines, side, places, gap.directions)
    names = [textwrap.fill(name, 10) for name in REGIONS.values()]
    for axis, title in zip(axes, TITLES, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xticks(regions, names, fontsize=8)
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    if axes[1].dataLim.minposy < math.inf:  # there are fragments
        axes[1].set_yscale("log")
    axes[2].set_ylim(0, 1.0)
    axes[2].legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=4,
        frameon=False,
        fontsize=8,
    )


def _draw_densities(axis: Any, lines: Lines, side: str, places: np.ndarray) -> None:
    densities = [lines[region, DENSITY] for region in REGIONS]
    axis.bar(
        places,
        [line[side] for line in densities],
        0.38,
        color=SIDE_COLORS[side],
        label=SIDES[side],
        yerr=[line[f"{side}_sd"] for line in densities],
        capsize=3,
    )


def _draw_fragments(
    axis: Any, slices: Sequence[MeasuredSlice], side: str, places: np.ndarray
) -> None:
    lengths = []
    for region in REGIONS:
        fragments = [measured.contours[region].fragments_mm for measured in slices]
        lengths.append(np.concatenate(fragments))
    axis.boxplot(
        lengths,
        positions=places,
        widths=0.34,
        whis=(10, 90),
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": SIDE_COLORS[side]},
        medianprops={"color": "white"},
    )


def _draw_directions(
    axis: Any, lines: Lines, side: str, places: np.ndarray, directions: Sequence[str]
) -> None:
    below = np.zeros(len(REGIONS))
    for direction, color in zip(directions, BIN_COLORS, strict=True):
        shares = np.nan_to_num([lines[region, direction][side] for region in REGIONS])
        label = direction if side == "mr" else ""
        axis.bar(places, shares, 0.38, bottom=below, color=color, label=label)
        below += shares


def _draw_example(axis: Any, measured: MeasuredSlice) -> None:
    """A dim slice with its contour in the colors of the regions; white is what lies in no region."""
    contour = measured.contour != 0
    dimmed = measured.image[..., None] / 255 * 0.75
    picture = np.repeat(dimmed, 3, axis=-1)
    picture[contour] = 1
    for region, color in COLORS.items():
        picture[contour & measured.regions[region]] = to_rgb(color)
    transposed = np.clip(picture, 0, 1).swapaxes(0, 1)
    axis.imshow(transposed, origin="lower", interpolation="nearest")
    title = f"{SIDES[measured.side]}: {measured.case}, slice {measured.position}"
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _draw_legend(axis: Any, lines: Lines) -> None:
    axis.set_axis_off()
    colors = {name: COLORS[region] for region, name in REGIONS.items()}
    colors["rim of the image, not counted"] = "white"
    for name, color in colors.items():
        axis.plot([], [], "s", color=color, markeredgecolor="gray", label=name)
    share = lines["boundary", "boundary_share"]
    title = (
        f"Contour, by region\n\nBoundary of the bone with a\ncontour within {TOLERANCE_MM} mm:\n"
        f"CT {_spread(share, 'ct')}, MR {_spread(share, 'mr')}\n"
    )
    axis.legend(loc="center left", title=title, frameon=False, alignment="left")
