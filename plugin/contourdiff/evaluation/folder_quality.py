# SPDX-License-Identifier: Apache-2.0
"""Image quality of a folder of translations, case by case and as a set."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from torch import nn
from tqdm import tqdm

from contourdiff.contours import contour_of
from contourdiff.data.atomic import without_nan, write_csv, write_text
from contourdiff.data.cases import case_name, labelled_cases
from contourdiff.metrics.image_quality import flicker, image_quality, label_boundary_agreement
from contourdiff.transforms import InPlaneSmoothd


@dataclass(frozen=True)
class QualityGrid:
    """Grid, gray levels and contour on which quality is measured; the defaults are the bundle's.

    Args:
        axcodes: orientation in which slices are cut.
        slice_axis: axis along which slices are stacked, after orientation.
        spacing_mm: in-plane spacing.
        sigma_px: see :func:`contourdiff.contours.contour_of`, as the next two.
        low_threshold: see :func:`contourdiff.contours.contour_of`.
        high_threshold: see :func:`contourdiff.contours.contour_of`.
        tolerance_mm: distance up to which a contour is near a label's boundary.
        size_px: slices are padded to this size for the extractor.
    """

    axcodes: str = "RAS"
    slice_axis: int = 0
    spacing_mm: float = 2.2
    sigma_px: float = 1.0
    low_threshold: float = 20.0
    high_threshold: float = 40.0
    tolerance_mm: float = 2.2
    size_px: tuple[int, int] = (256, 256)

    def load(self, case: dict[str, str], percentiles: tuple[float, float] | None = None) -> tuple[np.ndarray, ...]:
        """Image in gray levels and label of a case, each ``(slices, H, W)`` on the grid, slices first."""
        keys, pixdim = [key for key in ("image", "label") if key in case], [self.spacing_mm] * 3
        pixdim[self.slice_axis] = -1
        steps: list[Any] = [
            LoadImaged(keys, image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes=self.axcodes, labels=None),
            InPlaneSmoothd("image", self.spacing_mm, self.slice_axis),
            Spacingd(keys, pixdim=pixdim, mode=["bilinear", "nearest"][: len(keys)], padding_mode="zeros"),
        ]
        if percentiles is not None:
            low, high = percentiles
            steps.append(ScaleIntensityRangePercentilesd("image", low, high, b_min=0, b_max=255, clip=True))
        data = Compose(steps)(case)
        return tuple(np.moveaxis(np.asarray(data[key][0], dtype=np.float32), self.slice_axis, 0) for key in keys)

    def contour(self, image: np.ndarray) -> np.ndarray:
        """Contour of one slice ``(H, W)`` of gray levels."""
        return contour_of(
            image, sigma_px=self.sigma_px, low_threshold=self.low_threshold, high_threshold=self.high_threshold
        )


def folder_quality(
    folder: str | Path,
    *,
    mr_dir: str | Path | None = None,
    mr_pattern: str = "*",
    extractor: nn.Module | None = None,
    extractor_name: str = "",
    foreground_only: bool = False,
    grid: QualityGrid | None = None,
) -> dict[str, Any]:
    """Flicker and label boundaries of every case; with real MR and an extractor also FID and MMD of labelled slices.

    ``boundary`` is the share of a label's boundary that lies on a contour of the translation, a mean over slices with
    a label; ``boundary_swapped`` is the same with the label of the slice a quarter of them further on: what agreement
    comes by chance.

    Args:
        folder: translations with their labels, see :func:`contourdiff.data.label_map.labelled_cases`.
        mr_dir: real MR with labels to compare with.
        mr_pattern: pattern of its case ids.
        extractor: see :func:`contourdiff.metrics.image_quality.slice_features`.
        extractor_name: told in the result.
        foreground_only: see :func:`contourdiff.metrics.image_quality.image_quality`.
        grid: where it is measured.

    Returns:
        ``cases`` (a row each), ``mean`` over them, ``set`` (what :func:`image_quality` returns, or ``None``), ``grid``.

    Raises:
        ValueError: if there is no labelled case, or an extractor without real MR.
    """
    grid = grid or QualityGrid()
    if (extractor is None) != (mr_dir is None):
        raise ValueError("FID and MMD want both real MR (mr_dir) and an extractor; give both or neither")
    rows: list[dict[str, Any]] = []
    labelled: list[np.ndarray] = []
    for case in tqdm(labelled_cases(folder), desc="image quality", unit="case"):
        image, label = grid.load(case)
        filled = [index for index in range(len(label)) if label[index].any()]
        labelled += [image[index] for index in filled]
        rows.append({"case": case_name(case["image"]), **flicker(image), **_boundaries(image, label, filled, grid)})
    measures = [key for key in rows[0] if key != "case"]
    compared = None
    if extractor is not None and mr_dir is not None:
        real = [s for case in labelled_cases(mr_dir, pattern=mr_pattern) for s in grid.load(case, (1.0, 95.0))[0]]
        compared = image_quality(real, labelled, extractor, extractor_name, foreground_only, size_px=grid.size_px)
    means = {key: float(np.nanmean([row[key] for row in rows])) for key in measures}
    return {"cases": rows, "mean": means, "set": compared, "grid": asdict(grid)}


def write_quality(quality: dict[str, Any], output_dir: str | Path) -> None:
    """Write ``quality.csv`` (a line for each case) and, last, ``quality.json``, each whole or not at all."""
    folder = Path(output_dir)
    write_csv(folder / "quality.csv", quality["cases"])
    write_text(folder / "quality.json", json.dumps(without_nan(quality), indent=2, allow_nan=False) + "\n")


def _boundaries(image: np.ndarray, label: np.ndarray, filled: Sequence[int], grid: QualityGrid) -> dict[str, float]:
    def mean(shift: int) -> float:
        partners = [filled[(rank + shift) % len(filled)] for rank in range(len(filled))]
        values = [
            label_boundary_agreement(
                image[index], label[partner], grid.contour, grid.tolerance_mm, (grid.spacing_mm, grid.spacing_mm)
            )
            for index, partner in zip(filled, partners, strict=True)
        ]
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    return {"boundary": mean(0), "boundary_swapped": mean(max(1, len(filled) // 4)), "labelled_slices": len(filled)}
