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
from contourdiff.data.nifti_names import case_name, case_of, nifti_by_case
from contourdiff.data.training_cases import labelled_cases
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
        parsed = read_config(
            config_files(bundle, overlays), dict(settings or {})
        ).get_parsed_content
        grid = {name: parsed(name) for name in ("axcodes", "slice_axis", "spacing_mm", "margin_px")}
        contour = {
            name: parsed(f"contour_{name}")
            for name in ("sigma_px", "low_threshold", "high_threshold")
        }
        return cls(**grid, **contour)

    def load(
        self, case: Mapping[str, str], percentiles: tuple[float, float] | None = None
    ) -> list[np.ndarray]:
        """Image and label of a case, each ``(slices, H, W)`` on the grid; the image scaled to gray levels if asked."""
        keys = [key for key in ("image", "label") if key in case]
        modes = ["bilinear", "nearest"][: len(keys)]
        steps: list[Any] = [
            LoadImaged(keys, image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes=self.axcodes, labels=None),
            InPlaneResampled(
                keys, self.spacing_mm, self.slice_axis, mode=modes, padding_mode="zeros"
            ),
        ]
        if percentiles is not None:
            steps.append(
                ScaleIntensityRangePercentilesd(
                    "image", *percentiles, b_min=0, b_max=255, clip=True
                )
            )
        data = Compose(steps)(dict(case))
        return [
            np.moveaxis(np.asarray(data[key][0], dtype=np.float32), self.slice_axis, 0)
            for key in keys
        ]

    def contours(self, volume: np.ndarray) -> np.ndarray:
        """Contours of the slices of a volume ``(slices, H, W)`` of gray levels."""
        settings = {
            name: getattr(self, name) for name in ("sigma_px", "low_threshold", "high_threshold")
        }
        return np.stack([contour_of(image, **settings) for image in volume])

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
        parsed = read_config(
            config_files(self.bundle, self.overlays), dict(self.settings)
        ).get_parsed_content
        self._preprocessing, self._check, self._axis = map(
            parsed, ("preprocessing", "fidelity", "slice_axis")
        )
        self._volumes = nifti_by_case(Path(self.ct_dir))

    def fidelity(self, image: str | Path, volume: np.ndarray) -> dict[str, float]:
        """Medians of the contour fidelity of a translation over its slices, and of invented and lost contours.

        ``image`` is the file of the translation, ``volume (slices, H, W)`` its gray levels on the quality's grid. NaN
        without a CT of its name on the same grid. See [`contourdiff.metrics.contour_fidelity.slice_fidelity`][].
        """
        names = ("fidelity", "invented", "lost")
        ct = self._volumes.get(ct_case(image))
        contours = None if ct is None else self._preprocessing({"image": str(ct)})["image"]
        gray = np.moveaxis(volume, 0, self._axis)
        if contours is None or contours.shape[1:] != gray.shape:
            return dict.fromkeys(names, math.nan)
        spacing_mm = [float(size) for size in contours.pixdim]
        summary = self._check(contours[0].as_tensor(), gray, spacing_mm).summary()
        return {
            name: math.nan if (value := summary[f"{name}_median"]) is None else value
            for name in names
        }


def ct_case(image: str | Path) -> str:
    """Case id of the CT that a translation was made from: of the record beside it, or else its own."""
    record = Path(str(image).removesuffix(".nii.gz") + ".json")
    return (
        case_of(json.loads(record.read_text("utf-8"))["image"])
        if record.is_file()
        else case_name(image)
    )


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

    Both folders hold cases with labels ([`contourdiff.data.training_cases.labelled_cases`][]), ``mr_pattern`` is that of case
    ids of the MR. For ``extractor``, which requires ``mr_dir``, and ``foreground_only`` see
    [`contourdiff_lab.metrics.image_quality.image_quality`][]; ``extractor_name`` is recorded. Grid and contour are
    those of ``inference.json`` of the ``bundle``, with ``overlays`` and ``settings``, such as ``{"spacing_mm": 1.6}``.

    Raises ``ValueError`` if there is no labelled case, an extractor without real MR, or an unknown setting.
    """
    if extractor is not None and mr_dir is None:
        raise ValueError(
            "FID and MMD compare with real MR: expected mr_dir beside the extractor, got none; pass both"
        )
    grid = QualityGrid.of_bundle(bundle, overlays, settings)
    given = None if ct_dir is None else CtContours(ct_dir, bundle, overlays, settings or {})
    rows: list[dict[str, Any]] = []
    labelled: list[np.ndarray] = []
    for case in tqdm(labelled_cases(folder), desc="image quality", unit="case"):
        image, label = grid.load(case)
        contours, filled = grid.contours(image), label.any((1, 2))
        labelled += list(image[filled])
        boundaries = _boundaries(image[filled], label[filled], contours[filled], grid.spacing_mm)
        fidelity = {} if given is None else given.fidelity(case["image"], image)
        rows.append(
            {
                "case": case_name(case["image"]),
                **grid.flicker(image, contours),
                **boundaries,
                **fidelity,
            }
        )
    mean = {key: _nanmean([row[key] for row in rows]) for key in rows[0] if key != "case"}
    compared = None
    if mr_dir is not None:
        volumes = [
            grid.load(case, MR_PERCENTILES)[0]
            for case in labelled_cases(mr_dir, pattern=mr_pattern)
        ]
        mean["reference_flicker"] = _nanmean(
            [grid.flicker(v, grid.contours(v))["flicker"] for v in volumes]
        )
        if extractor is not None:
            real = [image for volume in volumes for image in volume]
            compared = image_quality(
                real, labelled, extractor, extractor_name, foreground_only, size_px=grid.size_px
            )
    return {"cases": rows, "mean": mean, "set": compared, "grid": asdict(grid)}


def write_quality(quality: dict[str, Any], output_dir: str | Path) -> None:
    """Write ``quality.csv`` (a line for each case) and, last, ``quality.json``, each whole or not at all."""
    folder = Path(output_dir)
    write_csv(folder / "quality.csv", quality["cases"])
    write_text(
        folder / "quality.json", json.dumps(without_nan(quality), indent=2, allow_nan=False) + "\n"
    )


def _nanmean(values: Sequence[float]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _boundaries(
    images: np.ndarray, labels: np.ndarray, contours: np.ndarray, pixel_mm: float
) -> dict[str, float]:
    """Agreement of labelled slices ``(slices, H, W)`` with their labels, and with those a quarter further on."""

    def mean(partners: np.ndarray) -> float:
        slices = zip(images, partners, [lambda _, own=own: own for own in contours], strict=True)
        return _nanmean(
            [label_boundary_agreement(*each, pixel_mm, (pixel_mm, pixel_mm)) for each in slices]
        )

    means = mean(labels), mean(np.roll(labels, -max(1, len(labels) // 4), axis=0))
    return {"boundary": means[0], "boundary_swapped": means[1], "labelled_slices": len(labels)}
