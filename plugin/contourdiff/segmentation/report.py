# SPDX-License-Identifier: Apache-2.0
"""How good a segmentation is without labels: agreement of variants, sizes out of range, and what to look at first."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.visualize import blend_images
from scipy.ndimage import label as connected_components
from scipy.ndimage import sum_labels

from contourdiff.data.atomic import read_json, save_figure, without_nan, write_csv, write_text
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import nifti_by_case
from contourdiff.metrics.segmentation import write_scores
from contourdiff.pairs.folder import pairs_in
from contourdiff.pictures import image_grid
from contourdiff.segmentation.model_bundle import INFERENCE
from contourdiff.segmentation.results import ENDING, mr_files, score_results, segment
from contourdiff.tables import markdown_table

logger = logging.getLogger(__name__)

VARIANTS: dict[str, dict[str, float]] = {
    "smaller": {"spacing_mm": 1.1},
    "larger": {"spacing_mm": 0.9},
    "clipped": {"lower_percentile": 5.0, "upper_percentile": 95.0},
}
"""Ways to see an MR; ``spacing_mm`` is a factor. The network was trained on larger changes of size and gray levels."""
SMALLEST_PART = 0.1
"""Components of a smaller share of the largest are not counted."""
SHOWN = 12
"""Cases in the picture."""
TRANSPARENCY = 0.5
NOTE = (
    "Agreement is the mean Dice between the result and those for the MR seen smaller, larger, and with clipped gray "
    "levels. It is no accuracy: where all make the same mistake, they agree. Volumes and parts are compared with those "
    "of the labels that were trained on; an MR that shows only a part of a structure is out of range without a fault."
)


@dataclass(frozen=True)
class Size:
    """Size of a class in a volume."""

    volume_ml: float
    parts: int
    """Connected components, without small ones."""


@dataclass(frozen=True)
class CaseQuality:
    """What is known of the segmentation of an MR without a label."""

    case: str
    agreement: float
    """Mean Dice with the variants; NaN where none has any class."""
    sizes: dict[str, Size]
    remarks: list[str]

    @property
    def urgency(self) -> tuple[int, float]:
        """Key to sort by: what lacks a class first, then the lowest agreement."""
        missing = sum(size.parts == 0 for size in self.sizes.values())
        agreement = 0.0 if math.isnan(self.agreement) else self.agreement
        return -missing, agreement


def write_transfer_report(
    folder: str | Path,
    *,
    model: str | Path,
    mr: str | Path,
    results: Sequence[Path],
    pairs: str | Path,
    warnings: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> Path:
    """Write ``report.md``, ``cases.csv`` and ``cases.png``; with labels of the MR, ``scores`` too.

    Args:
        folder: to write to.
        model: bundle that made the results.
        mr: the MR, as for [`contourdiff.segmentation.results.segment`][].
        results: their segmentations.
        pairs: folder of the pairs that were trained on.
        warnings: about the input, to be repeated.
        device: of torch, for the variants.

    Returns the path of ``report.md``.
    """
    folder = Path(folder)
    label_map = LabelMap(Path(model) / "label_map.json")
    config = read_json(Path(model) / INFERENCE)
    variants: list[list[Path]] = []
    for name, changes in VARIANTS.items():
        settings: dict[str, Any] = dict(changes)
        if "spacing_mm" in settings:
            settings["spacing_mm"] *= config["spacing_mm"]
        target = folder / "variants" / name
        variants.append(segment(model, mr, target, device=device, **settings))
    ranges = size_ranges(pairs, label_map)
    cases = []
    for result, *others in zip(results, *variants, strict=True):
        cases.append(case_quality(result, others, label_map.classes, ranges))
    cases.sort(key=lambda case: case.urgency)
    write_csv(folder / "cases.csv", without_nan([_row(case) for case in cases]))
    segmented = folder / "segmentations"
    _write_picture(folder / "cases.png", cases, mr_files(mr), segmented, config["slice_axis"])
    scores = _scores(folder, mr, results, label_map)
    write_text(folder / "report.md", _text(cases, warnings, scores))
    return folder / "report.md"


def case_quality(
    result: Path,
    variants: Sequence[Path],
    classes: Mapping[int, str],
    ranges: Mapping[str, tuple[Size, Size]],
) -> CaseQuality:
    """Agreement of a result with its variants, its sizes, and remarks on those out of ``ranges``.

    ``ranges`` holds the smallest and the largest size of each class in the training.
    """
    image = nib.load(result)
    segmented = np.asarray(image.dataobj)
    agreements = []
    for variant in variants:
        other = np.asarray(nib.load(variant).dataobj)
        for number in classes:
            agreements.append(dice(segmented == number, other == number))
    known = [value for value in agreements if not math.isnan(value)]
    sizes = {}
    remarks = []
    for number, name in classes.items():
        size = size_of(segmented == number, image.affine)
        sizes[name] = size
        remarks += _remarks(name, size, ranges)
    agreement = float(np.mean(known)) if known else math.nan
    return CaseQuality(result.name.removesuffix(ENDING), agreement, sizes, remarks)


def _remarks(name: str, size: Size, ranges: Mapping[str, tuple[Size, Size]]) -> list[str]:
    if size.parts == 0:
        return [f"no {name}"]
    if name not in ranges:
        return []
    least, most = ranges[name]
    remarks = []
    if not least.volume_ml <= size.volume_ml <= most.volume_ml:
        trained = f"{least.volume_ml:.1f} to {most.volume_ml:.1f}"
        remarks.append(f"{name}: {size.volume_ml:.1f} ml, trained on {trained}")
    if not least.parts <= size.parts <= most.parts:
        trained = f"{least.parts} to {most.parts}"
        remarks.append(f"{name}: {size.parts} parts, trained on {trained}")
    return remarks


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two bool masks; NaN where both are empty.

    Examples:
        >>> dice(np.array([True, True]), np.array([True, False])).__round__(3)
        0.667
    """
    total = int(one.sum()) + int(other.sum())
    if total == 0:
        return math.nan
    both = int((one & other).sum())
    return 2 * both / total


def size_of(mask: np.ndarray, affine: np.ndarray) -> Size:
    """Volume and number of parts of a mask on a grid with ``affine`` in mm."""
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    neighbors = np.ones((3,) * mask.ndim)
    components, count = connected_components(mask, structure=neighbors)
    if count == 0:
        return Size(0.0, 0)
    voxels = sum_labels(mask, components, range(1, count + 1))
    parts = int((voxels >= SMALLEST_PART * voxels.max()).sum())
    return Size(float(voxels.sum()) * voxel_ml, parts)


def size_ranges(pairs: str | Path, label_map: LabelMap) -> dict[str, tuple[Size, Size]]:
    """Smallest and largest volume and number of parts of each class in the labels of pairs, where it is present."""
    sizes: dict[str, list[Size]] = {}
    seen = set()
    for pair in pairs_in(Path(pairs)):
        if (pair.patient, pair.shape) in seen:  # contrasts share a label
            continue
        seen.add((pair.patient, pair.shape))
        image = nib.load(pair.files.label)
        values = np.asarray(image.dataobj)
        for number, listed in label_map.values("ct").items():
            size = size_of(np.isin(values, listed), image.affine)
            if size.parts:
                sizes.setdefault(label_map.classes[number], []).append(size)
    ranges = {}
    for name, found in sizes.items():
        volumes = [size.volume_ml for size in found]
        parts = [size.parts for size in found]
        smallest = Size(min(volumes), min(parts))
        largest = Size(max(volumes), max(parts))
        ranges[name] = (smallest, largest)
    return ranges


def _scores(
    folder: Path, mr: str | Path, results: Sequence[Path], label_map: LabelMap
) -> str | None:
    """Table of scores, where MR have labels."""
    labels = Path(mr) / "labels"
    if not nifti_by_case(labels):
        return None
    rows = score_results(results, labels, label_map)
    if not rows:
        logger.warning("no label in %s has the name of an MR; there are no scores", labels)
        return None
    write_scores(rows, folder)
    return (folder / "scores.md").read_text(encoding="utf-8")


def _row(case: CaseQuality) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case.case, "agreement": case.agreement}
    for name, size in case.sizes.items():
        row[f"{name}, ml"] = size.volume_ml
        row[f"{name}, parts"] = size.parts
    row["remarks"] = "; ".join(case.remarks)
    return row


def _text(cases: Sequence[CaseQuality], warnings: Sequence[str], scores: str | None) -> str:
    rows = []
    for case in cases:
        agreement = "n/a" if math.isnan(case.agreement) else f"{case.agreement:.2f}"
        rows.append((case.case, agreement, "; ".join(case.remarks)))
    lines = ["# Segmentation of the MR", ""]
    if warnings:
        lines += [f"- {warning}" for warning in warnings]
        lines.append("")
    lines += ["## What to look at first", "", markdown_table(("MR", "agreement", "remarks"), rows)]
    lines += ["", NOTE, "", "![slices](cases.png)", ""]
    lines += [
        "*The slice of each MR with the largest result, without and with it.*",
        "",
    ]
    if scores is not None:
        lines += ["## Against the labels of the MR", "", scores]
    return "\n".join(lines)


def _write_picture(
    path: Path,
    cases: Sequence[CaseQuality],
    images: Mapping[str, Path],
    segmented: Path,
    slice_axis: int,
) -> None:
    """Draw the first cases, each with its result below."""
    shown = cases[:SHOWN]
    above = []
    below = []
    for case in shown:
        result = segmented / f"{case.case}{ENDING}"
        gray, colored = _fullest_slice(images[case.case], result, slice_axis)
        above.append(gray)
        below.append(colored)
    titles = [[case.case for case in shown]]
    save_figure(image_grid([above, below], titles, white=1), path, dpi=90)


def _fullest_slice(image: Path, result: Path, slice_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The slice with the largest result, in gray and with the classes in color: ``(H, W)``, ``(H, W, 3)``."""
    mr = nib.load(image)
    voxels = nib.as_closest_canonical(mr).get_fdata(dtype=np.float32)
    shaped = np.asarray(nib.load(result).dataobj).reshape(mr.shape)
    classes = nib.as_closest_canonical(nib.Nifti1Image(shaped, mr.affine)).dataobj
    classes = np.moveaxis(np.asarray(classes), slice_axis, 0)
    voxels = np.moveaxis(voxels, slice_axis, 0)
    areas = (classes > 0).sum(axis=(1, 2))
    position = int(areas.argmax()) if areas.any() else len(areas) // 2
    low, high = np.percentile(voxels, [1, 99])
    contrast = max(high - low, 1e-6)
    gray = ((voxels[position] - low) / contrast).clip(0, 1)
    shown = classes[position].astype(int)
    colored = blend_images(gray[None], shown[None], TRANSPARENCY, "tab10", rescale_arrays=False)
    return gray, np.moveaxis(np.asarray(colored), 0, -1)
