# SPDX-License-Identifier: Apache-2.0
"""Plots of a report as SVG inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contourdiff.data.nifti_names import is_nifti
from contourdiff.report.cases import Case
from contourdiff.transforms.gray_levels import MR_PERCENTILES

BLUE, RED, GRAY = "#1f5f99", "#c23b22", "#8a8a8a"
BINS = 64
FRAME = (0.1, 0.95)
"""Left and right end of a distribution's axis, as shares of the plot's width: the page draws its mark between them."""


class Distribution(NamedTuple):
    """A histogram over the cohort, and the values at the ends of its axis."""

    svg: Markup
    low: float
    high: float


def distribution(name: str, values: Sequence[float], label: str) -> Distribution:
    """Histogram of one number of all cases; at least one value."""
    low, high = float(min(values)), float(max(values))
    margin = max(0.05 * (high - low), 0.001 * max(abs(low), abs(high))) or 0.5
    low, high = low - margin, high + margin
    figure, axes = _figure(4.2, 1.7)
    figure.subplots_adjust(left=FRAME[0], right=FRAME[1], bottom=0.3, top=0.95)
    axes.hist(
        values, bins=min(40, max(8, int(len(values) ** 0.5) * 2)), range=(low, high), color=BLUE
    )
    axes.set_xlim(low, high)
    axes.set_xlabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return Distribution(_svg(figure, name), low, high)


def neighbor_distances(case: Case) -> Markup:
    """Distance of each slice to its neighbor, its threshold, and the rounds that were drawn."""
    figure, axes = _figure(7, 2.6)
    for accepted, color, marker, text in (
        (True, BLUE, "o", "accepted"),
        (False, RED, "x", "best available"),
    ):
        _points(
            axes,
            [s for s in case.slices if s["accepted"] is accepted],
            "neighbor_distance",
            color,
            marker,
            text,
        )
    limit = (case.record.get("settings") or {}).get("distance_threshold")
    if limit is not None:
        axes.axhline(limit, color=GRAY, linestyle="--", linewidth=1, label=f"threshold {limit:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("slice")
    axes.set_ylabel("distance, gray levels²")
    rounds, drawn = axes.twinx(), {s["slice"]: s["rounds"] for s in case.slices}
    places = np.arange(
        min(drawn, default=0) - 1, max(drawn, default=0) + 2
    )  # a path is drawn faster than bars
    heights = [drawn.get(int(place), 0) for place in places]
    rounds.fill_between(places, heights, color=GRAY, alpha=0.25, linewidth=0, step="mid")
    rounds.set_ylim(0, 4 * max(drawn.values(), default=1))
    rounds.set_yticks(range(0, 1 + max(drawn.values(), default=1)))
    rounds.set_ylabel("rounds", loc="bottom")
    rounds.tick_params(labelsize=8)
    rounds.spines["top"].set_visible(False)
    return _finished(figure, axes, "distance")


def fidelity_by_slice(case: Case) -> Markup:
    """Contour fidelity of each slice, with the limit; suspects stand out."""
    figure, axes = _figure(7, 2.2)
    for suspect, color, marker, text in ((False, BLUE, "o", "passed"), (True, RED, "x", "suspect")):
        _points(
            axes,
            [s for s in case.slices if s.get("suspect") is suspect],
            "fidelity",
            color,
            marker,
            text,
        )
    limit = (case.record.get("settings") or {}).get("fidelity_limit")
    if limit is not None:
        axes.axhline(limit, color=GRAY, linestyle="--", linewidth=1, label=f"limit {limit:g}")
    axes.set_ylim(0, 1)
    axes.set_xlabel("slice")
    axes.set_ylabel("contour fidelity")
    return _finished(figure, axes, "fidelity")


def gray_levels(case: Case, real: np.ndarray | None) -> Markup:
    """Histogram of a translation's gray levels without its background, against real MR's, see [`real_histogram`][]."""
    figure, axes = _figure(7, 2.2)
    path, centers, shown = case.volume("mr"), (np.arange(BINS) + 0.5) * 255 / BINS, []
    if path is not None:
        shown.append(_histogram(_voxels(path)))
        axes.fill_between(centers, shown[0], color=BLUE, alpha=0.5, step="mid", label="translation")
    if real is not None:
        shown.append(real)
        axes.plot(centers, real, color=RED, linewidth=1.2, drawstyle="steps-mid", label="real MR")
    axes.set_xlim(0, 255)
    axes.set_ylim(
        0, 1.3 * max((histogram[4:-1].max() for histogram in shown), default=1) or 1
    )  # the ends may exceed it
    axes.set_xlabel("gray level")
    axes.set_ylabel("share, %")
    return _finished(figure, axes, "gray-levels")


def real_histogram(paths: Sequence[Path], most: int = 20) -> np.ndarray:
    """Mean histogram ``(BINS,)`` in % of at most ``most`` real MR, each scaled to gray levels by its percentiles."""
    chosen = [
        paths[i]
        for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))
    ]
    histograms = []
    for path in chosen:
        voxels = _voxels(path)
        low, high = np.percentile(voxels, MR_PERCENTILES)
        histograms.append(_histogram((voxels - low) * (255 / max(float(high - low), 1e-6))))
    return np.mean(histograms, axis=0)  # type: ignore[no-any-return]


def _voxels(path: Path) -> np.ndarray:
    data = (
        nib.load(path).dataobj
        if is_nifti(path)
        else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    )
    return np.asanyarray(data, dtype=np.float32)


def _histogram(voxels: np.ndarray) -> np.ndarray:
    """Shares in % of the gray levels above 0, which is the background."""
    voxels = voxels.ravel(order="K")  # in the order of the file, without strides
    levels = voxels[voxels > 0] * np.float32(BINS / 255)
    counts = np.bincount(np.minimum(levels, BINS - 1).astype(np.uint8), minlength=BINS)
    return 100 * counts / max(counts.sum(), 1)


def _points(
    axes: Axes, slices: Iterable[dict[str, Any]], name: str, color: str, marker: str, label: str
) -> None:
    given = [(s["slice"], s[name]) for s in slices if s.get(name) is not None]
    if given:
        axes.plot(
            *zip(*given, strict=True),
            marker,
            color=color,
            markersize=3.5,
            label=label,
            linestyle="none",
        )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=6)  # ticks take most of the time of a plot
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finished(figure: Figure, axes: Axes, name: str) -> Markup:
    height = figure.get_figheight()
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.96), ncols=3)
    figure.subplots_adjust(
        left=0.09, right=0.93, bottom=0.45 / height, top=1 - 0.22 / height
    )  # faster than a layout
    return _svg(figure, name)


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an element: its ids begin with ``name``, so that several figures share a page."""
    for axes in figure.axes:
        for item in (axes.xaxis.label, axes.yaxis.label):
            item.set_fontsize(8)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return Markup(
        re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    )  # matplotlib escapes
