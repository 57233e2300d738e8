# SPDX-License-Identifier: Apache-2.0
"""Report of the gap between the contours of CT and of MR: a table of every slice, means, and a picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from contourdiff.data.atomic import save_figure, write_csv, write_text
from contourdiff.data.checks import check_output_dir
from contourdiff_lab.contour_gap import (
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
    lines += [f"- {name}: {value}" for name, value in gap.settings.items() if value]
    lines += [
        "",
        "| region | measure | CT, mean ± SD | MR, mean ± SD | CT/MR |",
        "|---|---|---|---|---|",
    ]
    for line in gap.summary():
        name = f"edges {line['measure']}" if line["measure"] in gap.directions else line["measure"]
        cells = [
            REGIONS[line["region"]],
            name,
            *(_spread(line, side) for side in SIDES),
            f"{line['ratio']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"The densities of the regions differ by a factor of {gap.density_factor():.2f} on average.",
        "",
    ]
    write_text(folder / "gap.md", "\n".join([*lines, "![gap](gap.png)"]) + "\n")


def gap_picture(gap: ContourGap, path: str | Path) -> None:
    """Draw densities, fragment lengths, directions and an example slice of each side to a PNG file."""
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[1, 1.15])
    _draw_measures(axes[0], gap)
    for axis, side in zip(axes[1], SIDES, strict=False):
        _draw_example(axis, max(_slices(gap, side), key=_bone_area))
    axes[1, 2].set_axis_off()
    labels = {name: COLORS[region] for region, name in REGIONS.items()} | {
        "rim of the image, not counted": "white"
    }
    for name, color in labels.items():
        axes[1, 2].plot([], [], "s", color=color, markeredgecolor="gray", label=name)
    share = next(line for line in gap.summary() if line["measure"] == "boundary_share")
    title = (
        f"Contour, by region\n\nBoundary of the bone with a\ncontour within {TOLERANCE_MM} mm:\n"
        f"CT {_spread(share, 'ct')}, MR {_spread(share, 'mr')}\n"
    )
    axes[1, 2].legend(loc="center left", title=title, frameon=False, alignment="left")
    save_figure(figure, path, dpi=90)


def _slices(gap: ContourGap, side: str) -> list[MeasuredSlice]:
    return [measured for measured in gap.slices if measured.side == side]


def _spread(line: dict[str, Any], side: str) -> str:
    return f"{line[side]:.2f} ± {line[f'{side}_sd']:.2f}"


def _bone_area(measured: MeasuredSlice) -> float:
    return measured.found["inside"].area_cm2 + measured.found["boundary"].area_cm2


def _draw_measures(axes: Any, gap: ContourGap) -> None:
    """Bars of densities, boxes of fragment lengths and stacked bars of directions, CT left of MR in each region."""
    means = {(line["region"], line["measure"]): line for line in gap.summary()}
    for side, color in SIDE_COLORS.items():
        places, slices = (
            np.arange(len(REGIONS)) + (-0.2 if side == "ct" else 0.2),
            _slices(gap, side),
        )
        lines = [means[region, "density_mm_per_cm2"] for region in REGIONS]
        spread = {"yerr": [line[f"{side}_sd"] for line in lines], "capsize": 3}
        axes[0].bar(
            places, [line[side] for line in lines], 0.38, color=color, label=SIDES[side], **spread
        )
        lengths = [
            np.concatenate([each.found[region].fragments_mm for each in slices])
            for region in REGIONS
        ]
        look = {
            "patch_artist": True,
            "boxprops": {"facecolor": color},
            "medianprops": {"color": "white"},
        }
        box = {
            "positions": places,
            "widths": 0.34,
            "whis": (10, 90),
            "showfliers": False,
            "manage_ticks": False,
        }
        axes[1].boxplot(lengths, **box, **look)
        below = np.zeros(len(REGIONS))
        for name, bin_color in zip(gap.directions, BIN_COLORS, strict=True):
            shares = np.nan_to_num([means[region, name][side] for region in REGIONS])
            label = name if side == "mr" else ""
            axes[2].bar(places, shares, 0.38, bottom=below, color=bin_color, label=label)
            below += shares
    for axis, title in zip(axes, TITLES, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xticks(
            range(len(REGIONS)), [textwrap.fill(name, 10) for name in REGIONS.values()], fontsize=8
        )
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    if axes[1].dataLim.minposy < math.inf:  # there are fragments
        axes[1].set_yscale("log")
    axes[2].set_ylim(0, 1.0)
    axes[2].legend(
        frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8
    )


def _draw_example(axis: Any, measured: MeasuredSlice) -> None:
    picture = np.repeat(measured.image[..., None] / 255 * 0.75, 3, axis=-1)
    picture[measured.contour != 0] = 1  # white is what lies in no region
    for region, color in COLORS.items():
        picture[(measured.contour != 0) & measured.regions[region]] = to_rgb(color)
    axis.imshow(np.clip(picture, 0, 1).swapaxes(0, 1), origin="lower", interpolation="nearest")
    axis.set_title(
        f"{SIDES[measured.side]}: {measured.case}, slice {measured.position}", fontsize=9
    )
    axis.set_axis_off()
