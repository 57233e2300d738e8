# SPDX-License-Identifier: Apache-2.0
"""Plots of a report as SVG inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import SimpleITK as sitk
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contourdiff.data.nifti_names import is_nifti
from contourdiff.data.volumes import scaled_voxels
from contourdiff.report.cases import Case
from contourdiff.transforms.gray_levels import MR_PERCENTILES

BLUE = "#1f5f99"
RED = "#c23b22"
GRAY = "#8a8a8a"
STYLE: Any = {
    "axes.facecolor": "none",
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
BINS = 64
FRAME = (0.1, 0.95)
"""Left and right end of a distribution's axis, as shares of the plot's width: the page draws its mark between them."""


class Distribution(NamedTuple):
    """A histogram over the cohort, and the values at the ends of its axis."""

    svg: Markup
    low: float
    high: float


@mpl.rc_context(STYLE)
def distribution(name: str, values: Sequence[float], label: str) -> Distribution:
    """Histogram of one number of all cases; at least one value."""
    low = float(min(values))
    high = float(max(values))
    share_of_range = 0.05 * (high - low)
    largest = max(abs(low), abs(high))
    margin = max(share_of_range, 0.001 * largest) or 0.5
    low -= margin
    high += margin
    figure, axes = _figure(4.2, 1.7)
    left, right = FRAME
    figure.subplots_adjust(left=left, right=right, bottom=0.3, top=0.95)
    bins = 2 * int(len(values) ** 0.5)
    bins = max(8, min(bins, 40))
    axes.hist(values, bins=bins, range=(low, high), color=BLUE)
    axes.set_xlim(low, high)
    axes.set_xlabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return Distribution(_svg(figure, name), low, high)


@mpl.rc_context(STYLE)
def neighbor_distances(case: Case) -> Markup:
    """Distance of each slice to its neighbor, its threshold, and the rounds that were drawn."""
    figure, axes = _figure(7, 2.6)
    accepted = [item for item in case.slices if item["accepted"]]
    best_available = [item for item in case.slices if not item["accepted"]]
    _points(axes, accepted, "neighbor_distance", BLUE, "o", "accepted")
    _points(axes, best_available, "neighbor_distance", RED, "x", "best available")
    _limit_line(axes, case, "distance_threshold", "threshold")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("slice")
    axes.set_ylabel("distance, gray levels²")
    rounds: dict[int, int] = {}
    for item in case.slices:
        rounds[item["slice"]] = item["rounds"]
    most = max(rounds.values(), default=1)
    # a path is drawn faster than bars
    first = min(rounds, default=0)
    last = max(rounds, default=0)
    slices = np.arange(first - 1, last + 2)
    heights = [rounds.get(index, 0) for index in slices.tolist()]
    right = axes.twinx()
    right.fill_between(slices, heights, color=GRAY, alpha=0.25, linewidth=0, step="mid")
    right.set_ylim(0, 4 * most)
    right.set_yticks(range(0, 1 + most))
    right.set_ylabel("rounds", loc="bottom")
    right.spines["right"].set_visible(True)
    return _finished(figure, axes, "distance")


@mpl.rc_context(STYLE)
def fidelity_by_slice(case: Case) -> Markup:
    """Contour fidelity of each slice, with the limit; suspects stand out."""
    figure, axes = _figure(7, 2.2)
    passed = [item for item in case.slices if item.get("suspect") is False]
    _points(axes, passed, "fidelity", BLUE, "o", "passed")
    _points(axes, case.suspects, "fidelity", RED, "x", "suspect")
    _limit_line(axes, case, "fidelity_limit", "limit")
    axes.set_ylim(0, 1)
    axes.set_xlabel("slice")
    axes.set_ylabel("contour fidelity")
    return _finished(figure, axes, "fidelity")


@mpl.rc_context(STYLE)
def gray_levels(case: Case, real: np.ndarray | None) -> Markup:
    """Histogram of a translation's gray levels without its background.

    ``real``, if there is one, is that of real MR, ``(BINS,)``, see [`real_histogram`][].
    """
    figure, axes = _figure(7, 2.2)
    path = case.volume("mr")
    middles = np.arange(BINS) + 0.5
    centers = middles * 255 / BINS
    peaks = []
    if path is not None:
        histogram = _histogram(_voxels(path))
        peaks.append(histogram[4:-1].max())
        axes.fill_between(
            centers, histogram, color=BLUE, alpha=0.5, step="mid", label="translation"
        )
    if real is not None:
        peaks.append(real[4:-1].max())
        axes.plot(centers, real, color=RED, linewidth=1.2, drawstyle="steps-mid", label="real MR")
    top = 1.3 * max(peaks, default=1) or 1  # the ends may exceed it
    axes.set_xlim(0, 255)
    axes.set_ylim(0, top)
    axes.set_xlabel("gray level")
    axes.set_ylabel("share, %")
    return _finished(figure, axes, "gray-levels")


def real_histogram(paths: Sequence[Path], most: int = 20) -> np.ndarray:
    """Mean histogram ``(BINS,)`` in % of at most ``most`` real MR, each scaled to gray levels by its percentiles."""
    count = min(most, len(paths))
    last = len(paths) - 1
    spread = np.linspace(0, last, count).astype(int)
    histograms = []
    for index in np.unique(spread):
        voxels = _voxels(paths[index])
        low, high = np.percentile(voxels, MR_PERCENTILES)
        scale = 255 / max(float(high - low), 1e-6)
        levels = (voxels - low) * scale
        histograms.append(_histogram(levels))
    return np.mean(histograms, axis=0)  # type: ignore[no-any-return]


def _voxels(path: Path) -> np.ndarray:
    if is_nifti(path):
        return scaled_voxels(path).astype(np.float32)
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image).astype(np.float32)


def _histogram(voxels: np.ndarray) -> np.ndarray:
    """Shares in % of the gray levels above 0, which is the background."""
    voxels = voxels.ravel(order="K")  # in the order of the file, without strides
    levels = voxels[voxels > 0] * np.float32(BINS / 255)
    bins = np.minimum(levels, BINS - 1).astype(np.uint8)
    counts = np.bincount(bins, minlength=BINS)
    total = max(counts.sum(), 1)
    return 100 * counts / total


def _points(
    axes: Axes, slices: Sequence[dict[str, Any]], name: str, color: str, marker: str, label: str
) -> None:
    """Draw the value ``name`` of each slice that has one."""
    measured = [item for item in slices if item.get(name) is not None]
    if measured:
        indices = [item["slice"] for item in measured]
        values = [item[name] for item in measured]
        axes.plot(indices, values, marker, color=color, label=label)


def _limit_line(axes: Axes, case: Case, setting: str, name: str) -> None:
    limit = case.settings.get(setting)
    if limit is not None:
        label = f"{name} {limit:g}"
        axes.axhline(limit, color=GRAY, linestyle="--", linewidth=1, label=label)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.locator_params(nbins=6)  # ticks take most of the time of a plot
    return figure, axes


def _finished(figure: Figure, axes: Axes, name: str) -> Markup:
    height = figure.get_figheight()
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.96), ncols=3)
    # faster than a layout
    bottom = 0.45 / height
    top = 1 - 0.22 / height
    figure.subplots_adjust(left=0.09, right=0.93, bottom=bottom, top=top)
    return _svg(figure, name)


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an element: its ids begin with ``name``, so that several figures share a page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    _, start, content = buffer.getvalue().partition("<svg")
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", start + content)
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return Markup(text)  # matplotlib escapes
