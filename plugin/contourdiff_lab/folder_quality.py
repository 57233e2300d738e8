# SPDX-License-Identifier: Apache-2.0
"""Image quality of a folder of translations, case by case and as a set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRangePercentilesd,
)
from torch import nn
from tqdm import tqdm

from contourdiff.bundle import config_files, read_config
from contourdiff.contours import contour_of
from contourdiff.data.atomic import without_nan, write_csv, write_text
from contourdiff.data.nifti_names import case_name, nifti_by_case
from contourdiff.data.training_cases import labelled_cases, source_case
from contourdiff.inference.volume_state import contour_box
from contourdiff.metrics.flicker import flicker
from contourdiff.transforms import InPlaneResampled
from contourdiff.transforms.gray_levels import MR_PERCENTILES
from contourdiff_lab.metrics.image_quality import image_quality, label_boundary_agreement


@dataclass(frozen=True)
class QualityGrid:
    """Grid and contour on which quality is measured.

    Slices are stacked along ``slice_axis`` after orientation to ``axcodes``, at ``spacing_mm`` in plane, and padded to
    ``size_px`` for the extractor. Flicker is measured in a box around the contours with a margin of ``margin_px``. For
    ``sigma_px`` and both thresholds see [`contourdiff.contours.contour_of`][].
    """

    axcodes: str
    slice_axis: int
    spacing_mm: float
    margin_px: int
    sigma_px: float
    low_threshold: float
    high_threshold: float
    size_px: tuple[int, int] = (256, 256)

    @classmethod
    def of_bundle(
        cls,
        bundle: str | Path | None = None,
        overlays: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> QualityGrid:
        """Grid and contour of ``inference.json`` with its overlays and settings."""
        config = read_config(config_files(bundle, overlays), settings or {})
        parsed = config.get_parsed_content
        return cls(
            axcodes=parsed("axcodes"),
            slice_axis=parsed("slice_axis"),
            spacing_mm=parsed("spacing_mm"),
            margin_px=parsed("margin_px"),
            sigma_px=parsed("contour_sigma_px"),
            low_threshold=parsed("contour_low_threshold"),
            high_threshold=parsed("contour_high_threshold"),
        )

    def load(
        self, case: Mapping[str, str], percentiles: tuple[float, float] | None = None
    ) -> list[np.ndarray]:
        """Image and label of a case, each ``(slices, H, W)`` on the grid; the image scaled to gray levels if asked."""
        keys = ["image"]
        modes = ["bilinear"]
        if "label" in case:
            keys.append("label")
            modes.append("nearest")
        steps: list[Any] = [
            LoadImaged(keys, image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes=self.axcodes, labels=None),
            InPlaneResampled(
                keys, self.spacing_mm, self.slice_axis, mode=modes, padding_mode="zeros"
            ),
        ]
        if percentiles is not None:
            low, high = percentiles
            steps.append(
                ScaleIntensityRangePercentilesd("image", low, high, b_min=0, b_max=255, clip=True)
            )
        data = Compose(steps)(dict(case))
        volumes = []
        for key in keys:
            volume = np.asarray(data[key][0], dtype=np.float32)
            volumes.append(np.moveaxis(volume, self.slice_axis, 0))
        return volumes

    def contours(self, volume: np.ndarray) -> np.ndarray:
        """Contours of the slices of a volume ``(slices, H, W)`` of gray levels."""
        contours = []
        for image in volume:
            contours.append(
                contour_of(
                    image,
                    sigma_px=self.sigma_px,
                    low_threshold=self.low_threshold,
                    high_threshold=self.high_threshold,
                )
            )
        return np.stack(contours)

    def flicker(self, volume: np.ndarray, contours: np.ndarray) -> dict[str, float]:
        """Flicker of gray levels ``(slices, H, W)`` over the box around their contours, and its number of pairs."""
        measured = flicker(volume, contours, contour_box(contours, self.margin_px))
        return {
            "flicker": math.nan if measured.value is None else measured.value,
            "pairs": measured.pairs,
        }


@dataclass(eq=False)
class CtContours:
    """Contours of CT volumes, extracted as ``inference.json`` of the bundle does, to measure translations by.

    ``ct_dir`` holds ``<case>.nii.gz``; the other arguments are those of [`QualityGrid.of_bundle`][].
    """

    ct_dir: str | Path
    bundle: str | Path | None = None
    overlays: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = read_config(config_files(self.bundle, self.overlays), self.settings)
        self._preprocessing = config.get_parsed_content("preprocessing")
        self._check = config.get_parsed_content("fidelity")
        self._axis = config.get_parsed_content("slice_axis")
        self._volumes = nifti_by_case(Path(self.ct_dir))

    def fidelity(self, image: str | Path, volume: np.ndarray) -> dict[str, float]:
        """Medians of the contour fidelity of a translation over its slices, and of invented and lost contours.

        ``image`` is the file of the translation, ``volume (slices, H, W)`` its gray levels on the quality's grid. NaN
        without a CT of its name on the same grid. See [`contourdiff.metrics.contour_fidelity.slice_fidelity`][].
        """
        medians = dict.fromkeys(("fidelity", "invented", "lost"), math.nan)
        ct = self._volumes.get(source_case(image))
        if ct is None:
            return medians
        contours = self._preprocessing({"image": str(ct)})["image"]
        gray_levels = np.moveaxis(volume, 0, self._axis)
        if contours.shape[1:] != gray_levels.shape:
            return medians
        spacing_mm = [float(size) for size in contours.pixdim]
        summary = self._check(contours[0].as_tensor(), gray_levels, spacing_mm).summary()
        for name in medians:
            median = summary[f"{name}_median"]
            if median is not None:
                medians[name] = median
        return medians


def folder_quality(
    folder: str | Path,
    *,
    ct_dir: str | Path | None = None,
    mr_dir: str | Path | None = None,
    mr_pattern: str = "*",
    extractor: nn.Module | None = None,
    extractor_name: str = "",
    foreground_only: bool = False,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Flicker and label boundaries of every case; with real MR its flicker, and with an extractor also FID and MMD.

    ``boundary`` is the share of a label's boundary within a pixel of a contour of the translation, a mean over labelled
    slices; ``boundary_swapped`` takes the label of the slice a quarter of them further on: the agreement by chance.
    With ``ct_dir``, each case has ``fidelity``, ``invented`` and ``lost`` of [`CtContours.fidelity`][], too.
    ``reference_flicker`` is the mean over ``mr_dir``, a value for the setting of that name. The result has ``cases`` (a
    row each), their ``mean``, ``set`` (what [`image_quality`][] returns, or ``None``) and ``grid``.

    Both folders hold cases with labels, see [`contourdiff.data.training_cases.labelled_cases`][]; ``mr_pattern`` is the
    pattern of the case ids of the MR. For ``extractor``, which requires ``mr_dir``, and ``foreground_only`` see
    [`contourdiff_lab.metrics.image_quality.image_quality`][]; ``extractor_name`` is recorded. Grid and contour are
    those of ``inference.json`` of the ``bundle``, with ``overlays`` and ``settings``, such as ``{"spacing_mm": 1.6}``.

    Raises ``ValueError`` if there is no labelled case, an extractor without real MR, or an unknown setting.
    """
    if extractor is not None and mr_dir is None:
        raise ValueError(
            "FID and MMD compare with real MR: expected mr_dir beside the extractor, got none; pass both"
        )
    settings = settings or {}
    grid = QualityGrid.of_bundle(bundle, overlays, settings)
    ct_contours = None if ct_dir is None else CtContours(ct_dir, bundle, overlays, settings)
    cases: list[dict[str, Any]] = []
    translated: list[np.ndarray] = []
    for case in tqdm(labelled_cases(folder), desc="image quality", unit="case"):
        image, label = grid.load(case)
        contours = grid.contours(image)
        labelled = label.any((1, 2))
        row: dict[str, Any] = {"case": case_name(case["image"])}
        row.update(grid.flicker(image, contours))
        row.update(_boundaries(contours[labelled], label[labelled], grid.spacing_mm))
        if ct_contours is not None:
            row.update(ct_contours.fidelity(case["image"], image))
        cases.append(row)
        translated += list(image[labelled])
    mean = {}
    for name in cases[0]:
        if name != "case":
            mean[name] = nan_mean([row[name] for row in cases])
    distances = None
    if mr_dir is not None:
        real: list[np.ndarray] = []
        flickers = []
        for case in labelled_cases(mr_dir, pattern=mr_pattern):
            volume = grid.load(case, MR_PERCENTILES)[0]
            measured = grid.flicker(volume, grid.contours(volume))
            flickers.append(measured["flicker"])
            real += list(volume)
        mean["reference_flicker"] = nan_mean(flickers)
        if extractor is not None:
            distances = image_quality(
                real, translated, extractor, extractor_name, foreground_only, size_px=grid.size_px
            )
    return {"cases": cases, "mean": mean, "set": distances, "grid": asdict(grid)}


def write_quality(quality: dict[str, Any], output_dir: str | Path) -> None:
    """Write ``quality.csv`` (a line for each case) and, last, ``quality.json``, each whole or not at all."""
    folder = Path(output_dir)
    write_csv(folder / "quality.csv", quality["cases"])
    content = json.dumps(without_nan(quality), indent=2, allow_nan=False)
    write_text(folder / "quality.json", content + "\n")


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    if not np.isfinite(values).any():
        return math.nan
    return float(np.nanmean(values))


def _boundaries(contours: np.ndarray, labels: np.ndarray, pixel_mm: float) -> dict[str, float]:
    """Agreement of contours ``(slices, H, W)`` with the labels of their slices, and with those a quarter further on."""
    quarter = max(1, len(labels) // 4)
    swapped = np.roll(labels, -quarter, axis=0)
    return {
        "boundary": _mean_boundary(contours, labels, pixel_mm),
        "boundary_swapped": _mean_boundary(contours, swapped, pixel_mm),
        "labelled_slices": len(labels),
    }


def _mean_boundary(contours: np.ndarray, labels: np.ndarray, pixel_mm: float) -> float:
    spacing_mm = (pixel_mm, pixel_mm)
    shares = []
    for contour, label in zip(contours, labels, strict=True):
        shares.append(label_boundary_agreement(contour, label, pixel_mm, spacing_mm))
    return nan_mean(shares)
