# SPDX-License-Identifier: Apache-2.0
"""The gap between the contours of CT and of MR, written: a table of every slice, means, and a picture to look at."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from contourdiff.data.atomic import atomic_write, write_csv, write_text
from contourdiff.data.checks import check_output_dir
from contourdiff.evaluation.contour_gap import (
    LENGTHS,
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


def run_gap(ct_dir: str | Path, mr_dir: str | Path, output_dir: str | Path, **options: Any) -> Path:
    """Measure with :func:`contourdiff.evaluation.contour_gap.contour_gap`, which takes the options, and write the result.

    Returns:
        Path of ``gap.md``.

    Raises:
        ValueError: if the folder cannot be written to, and as ``contour_gap``.
    """
    check_output_dir(output_dir)
    write_gap(contour_gap(ct_dir, mr_dir, **options), output_dir)
    return Path(output_dir) / "gap.md"


def write_gap(gap: ContourGap, output_dir: str | Path) -> None:
    """Write ``gap.csv`` (a line a slice and region), ``gap.png`` and, last, ``gap.md``, each whole or not at all."""
    folder = Path(output_dir)
    write_csv(folder / "gap.csv", gap.rows())
    gap_picture(gap, folder / "gap.png")
    counts = {name: [one.case for one in gap.slices if one.side == side] for side, name in SIDES.items()}
    lines = ["# The gap between contours of CT and of MR", ""]
    lines += [f"- {name}: {len(cases)} labelled slices, cases: {len(set(cases))}" for name, cases in counts.items()]
    lines += [f"- {name}: {value}" for name, value in gap.settings.items() if value]
    lines += ["", "| region | measure | CT, mean ± SD | MR, mean ± SD | CT/MR |", "|---|---|---|---|---|"]
    for line in gap.summary():
        cells = [f"{line[side]:.2f} ± {line[f'{side}_sd']:.2f}" for side in SIDES]
        name = f"edges {line['measure']}" if line["measure"] in gap.directions else line["measure"]
        lines.append(f"| {REGIONS[line['region']]} | {name} | {cells[0]} | {cells[1]} | {line['ratio']:.2f} |")
    lines += ["", f"The densities of the regions differ by a factor of {gap.density_factor():.2f} on average.", ""]
    write_text(folder / "gap.md", "\n".join([*lines, "![gap](gap.png)"]) + "\n")


def gap_picture(gap: ContourGap, path: str | Path) -> None:
    """Draw densities, fragment lengths, directions and an example slice of each side to a PNG file."""
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[1, 1.15])
    _draw_densities(axes[0, 0], gap)
    _draw_fragments(axes[0, 1], gap)
    _draw_directions(axes[0, 2], gap)
    examples = [max((one for one in gap.slices if one.side == side), key=_bone_area) for side in SIDES]
    for axis, one in zip(axes[1], examples, strict=False):
        _draw_example(axis, one)
    axes[1, 2].set_axis_off()
    for region, name in REGIONS.items():
        axes[1, 2].plot([], [], "s", color=COLORS[region], markeredgecolor="gray", label=name)
    axes[1, 2].plot([], [], "s", color="white", markeredgecolor="gray", label="rim of the image, not counted")
    share = next(line for line in gap.summary() if line["measure"] == "boundary_share")
    title = (
        f"Contour, by region\n\nBoundary of the bone with a\ncontour within {TOLERANCE_MM} mm:\n"
        f"CT {share['ct']:.2f} ± {share['ct_sd']:.2f}, MR {share['mr']:.2f} ± {share['mr_sd']:.2f}\n"
    )
    axes[1, 2].legend(loc="center left", title=title, frameon=False, alignment="left")
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=90, format="png")


def _bone_area(one: MeasuredSlice) -> float:
    return one.found["inside"].area_cm2 + one.found["boundary"].area_cm2


def _draw_densities(axis: Any, gap: ContourGap) -> None:
    lines = [line for line in gap.summary() if line["measure"] == LENGTHS[0]]
    for shift, (side, name) in zip((-0.2, 0.2), SIDES.items(), strict=True):
        places = np.arange(len(lines)) + shift
        spread = {"yerr": [line[f"{side}_sd"] for line in lines], "capsize": 3}
        axis.bar(places, [line[side] for line in lines], 0.38, color=SIDE_COLORS[side], label=name, **spread)
    axis.set_xticks(range(len(REGIONS)), [textwrap.fill(name, 10) for name in REGIONS.values()], fontsize=8)
    axis.set_ylim(bottom=0)
    axis.set_title("Contour length per area, mm/cm²\n(mean and SD over slices)", fontsize=9)
    axis.legend(frameon=False)


def _draw_fragments(axis: Any, gap: ContourGap) -> None:
    for shift, side in zip((-0.2, 0.2), SIDES, strict=True):
        slices = [one for one in gap.slices if one.side == side]
        lengths = [np.concatenate([one.found[region].fragments_mm for one in slices]) for region in REGIONS]
        look = {"widths": 0.34, "whis": (10, 90), "showfliers": False, "patch_artist": True}
        color = {"boxprops": {"facecolor": SIDE_COLORS[side]}, "medianprops": {"color": "white"}}
        axis.boxplot(lengths, positions=np.arange(len(REGIONS)) + shift, manage_ticks=False, **look, **color)
    axis.set_xticks(range(len(REGIONS)), [textwrap.fill(name, 10) for name in REGIONS.values()], fontsize=8)
    axis.set_yscale("log")
    axis.set_title("Length of the fragments that touch it, mm\n(box: quartiles; whiskers: 10 to 90 %)", fontsize=9)


def _draw_directions(axis: Any, gap: ContourGap) -> None:
    shares = {(line["region"], line["measure"]): line for line in gap.summary()}
    for shift, side in zip((-0.2, 0.2), SIDES, strict=True):
        below = np.zeros(len(REGIONS))
        for name, color in zip(gap.directions, BIN_COLORS, strict=True):
            values = np.nan_to_num([shares[region, name][side] for region in REGIONS])
            label = {"label": name} if side == "mr" else {}
            axis.bar(np.arange(len(REGIONS)) + shift, values, 0.38, bottom=below, color=color, **label)
            below += values
    axis.set_xticks(range(len(REGIONS)), [textwrap.fill(name, 10) for name in REGIONS.values()], fontsize=8)
    axis.set_title("Shares of edge directions\n(left CT, right MR)", fontsize=9)
    axis.set_ylim(0, 1.0)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8)


def _draw_example(axis: Any, one: MeasuredSlice) -> None:
    picture = np.repeat(one.image[..., None] / 255 * 0.75, 3, axis=-1)
    picture[one.contour != 0] = 1  # white is what lies in no region
    for region, color in COLORS.items():
        picture[(one.contour != 0) & one.regions[region]] = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    axis.imshow(np.clip(picture, 0, 1).swapaxes(0, 1), origin="lower", interpolation="nearest")
    axis.set_title(f"{SIDES[one.side]}: {one.case}, slice {one.position}", fontsize=9)
    axis.set_axis_off()
