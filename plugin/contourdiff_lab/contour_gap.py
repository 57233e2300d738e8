# SPDX-License-Identifier: Apache-2.0
"""The gap between the contours of CT and of MR: density, fragments and edge directions, tissue by tissue."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ResampleToMatchd
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    distance_transform_edt,
    gaussian_filter,
    sobel,
)
from skimage.measure import label as connected_components
from tqdm import tqdm

from contourdiff.bundle import config_files, find_bundle, read_config
from contourdiff.data.label_map import LabelMap
from contourdiff.data.nifti_names import case_name
from contourdiff.data.training_cases import labelled_cases
from contourdiff.transforms import RemapLabelsd
from contourdiff_lab.experiment.label_crop import OPPOSITE
from contourdiff_lab.metrics.image_quality import label_boundary_agreement

logger = logging.getLogger(__name__)
SIDES = {"ct": "CT", "mr": "MR"}
REGIONS = {
    "inside": "inside the bone",
    "boundary": "at its boundary",
    "near": "near it",
    "rest": "rest of the body",
}
BOUNDARY_MM, NEAR_MM, TOLERANCE_MM = 3.0, 15.0, 2.2
RIM_PX = 3  # belongs to no region: gray levels fall where the field of view of an MR ends, and that is an edge too
MIN_AREA_CM2 = 1.0  # a smaller region of a slice says nothing: one pixel would be the whole density
Masks = Mapping[str, np.ndarray]
LENGTHS = ("density_mm_per_cm2", "fragment_median_mm", "fragment_p90_mm")


class RegionContour(NamedTuple):
    """Contour of a region; ``directions`` are the shares ``(4,)`` of edge directions."""

    area_cm2: float
    length_mm: float
    density_mm_per_cm2: float
    fragments_mm: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class MeasuredSlice:
    """A labelled slice of a CT or an MR: gray levels, contour and regions ``(H, W)``, and what was measured."""

    side: str
    case: str
    position: int
    image: np.ndarray
    contour: np.ndarray
    regions: dict[str, np.ndarray]
    found: dict[str, RegionContour]
    boundary_share: float


@dataclass(frozen=True)
class ContourGap:
    """All measured slices of both sides, the names of the four edge directions, and what the figures depend on."""

    slices: list[MeasuredSlice]
    directions: tuple[str, ...]
    settings: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each slice and region; figures of a region below ``MIN_AREA_CM2`` are NaN."""
        return [
            _row(measured, region, self.directions)
            for measured in self.slices
            for region in measured.found
        ]

    def summary(self) -> list[dict[str, Any]]:
        """Mean and (population) SD over slices of each measure and region, on both sides, and the ratio CT/MR."""
        rows, table = self.rows(), []
        for region in REGIONS:
            for measure in (
                *LENGTHS,
                *["boundary_share"] * (region == "boundary"),
                *self.directions,
            ):
                line: dict[str, Any] = {"region": region, "measure": measure}
                for side in SIDES:
                    values = np.array(
                        [r[measure] for r in rows if (r["side"], r["region"]) == (side, region)]
                    )
                    values = values[np.isfinite(values)]
                    line[side], line[f"{side}_sd"] = (
                        (values.mean(), values.std()) if len(values) else (math.nan,) * 2
                    )
                table.append(
                    line | {"ratio": line["ct"] / line["mr"] if line["mr"] > 0 else math.nan}
                )
        return table

    def density_factor(self) -> float:
        """By what factor the densities differ on average, ``exp(mean |log(CT/MR)|)`` over regions; 1 is no gap."""
        ratios = np.array(
            [line["ratio"] for line in self.summary() if line["measure"] == LENGTHS[0]]
        )
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        return float(np.exp(np.abs(np.log(ratios)).mean())) if len(ratios) else math.nan


def contour_statistics(
    contour: np.ndarray,
    image: np.ndarray,
    regions: Masks,
    spacing_mm: Sequence[float],
    *,
    sigma_px: float = 1.0,
) -> dict[str, RegionContour]:
    """Density, fragments and directions of the contour of a slice, region by region.

    A length is a number of pixels times the mean size of a pixel: oblique contours come out up to ``sqrt(2)`` too
    short. A fragment is an 8-connected component of the whole contour; it counts whole in every region that it touches.
    Edges are at a right angle to Canny's gradient, in four bins of 45 degrees: along H, H and W growing together, along
    W, W falling with H. The density is NaN without area, the directions are NaN without contour.

    Contour (nonzero on it), gray levels and the mask of each region are ``(H, W)``; ``spacing_mm`` is the size of a
    pixel along H and W, ``sigma_px`` the smoothing of the contour.

    Raises ``ValueError`` if shapes differ or the spacing is not two positive numbers.
    """
    edges, image = np.asarray(contour) != 0, np.asarray(image, dtype=np.float64)
    _check("contour, image and regions", (edges, image, *regions.values()), spacing_mm)
    pixel_mm, pixel_cm2 = float(np.mean(spacing_mm)), float(np.prod(spacing_mm)) / 100
    blur = {"sigma": sigma_px, "mode": "constant"}
    smooth = gaussian_filter(image, **blur) / gaussian_filter(np.ones(image.shape), **blur)
    along_h, along_w = (sobel(smooth, axis=axis) / spacing_mm[axis] for axis in (0, 1))
    bins = np.rint(np.degrees(np.arctan2(along_h, -along_w)) / 45).astype(np.int64) % 4
    fragments = connected_components(edges, connectivity=2)
    fragment_mm, out = np.bincount(fragments.ravel()) * pixel_mm, {}
    for name, mask in regions.items():
        inside = edges & np.asarray(mask, dtype=bool)
        length, area = float(inside.sum()) * pixel_mm, float(np.count_nonzero(mask)) * pixel_cm2
        counts = np.bincount(bins[inside], minlength=4)
        shares = counts / counts.sum() if inside.any() else np.full(4, math.nan)
        density = length / area if area > 0 else math.nan
        out[name] = RegionContour(
            area, length, density, fragment_mm[np.unique(fragments[inside])], shares
        )
    return out


def tissue_regions(
    bone: np.ndarray, body: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, np.ndarray]:
    """Masks ``(H, W)`` of the four ``REGIONS``, without overlap; all but ``rest`` are empty without bone.

    The boundary lies between the pixels of the label and the others. At it is what lies within 3 mm on either side,
    inside what lies deeper; near (discs, canal, muscle) is up to 15 mm away. Regions outside the bone are cut to the
    body. ``bone`` and ``body`` are nonzero ``(H, W)`` on them, ``spacing_mm`` is the size of a pixel along H and W.

    Raises ``ValueError`` if shapes differ or the spacing is not two positive numbers.
    """
    bone, body = np.asarray(bone) != 0, np.asarray(body) != 0
    _check("bone and body", (bone, body), spacing_mm)
    half_px = float(np.mean(spacing_mm)) / 2  # from a pixel's center to its side
    depth = distance_transform_edt(bone, sampling=spacing_mm) - half_px
    away = (
        distance_transform_edt(~bone, sampling=spacing_mm) - half_px
        if bone.any()
        else np.full(bone.shape, np.inf)
    )
    inside, outside = bone & (depth > BOUNDARY_MM), ~bone & body
    boundary = (bone & ~inside) | (outside & (away <= BOUNDARY_MM))
    near = outside & (away > BOUNDARY_MM) & (away <= NEAR_MM)
    return {
        "inside": inside,
        "boundary": boundary,
        "near": near,
        "rest": outside & (away > NEAR_MM),
    }


def contour_gap(
    ct_dir: str | Path,
    mr_dir: str | Path,
    *,
    ct_pattern: str = "*",
    mr_pattern: str = "*",
    min_inside_cm2: float = 0.0,
    label_map: str | Path | None = None,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    mr_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> ContourGap:
    """Measure the contours of CT as in a translation and of MR as in a training, on all labelled slices.

    CT goes through ``preprocessing`` of ``inference.json``; MR through ``volume_transform`` and ``contour`` of
    ``train.json``, in the orientation and at the spacing of the CT.

    Folders hold cases with labels ([`contourdiff.data.training_cases.labelled_cases`][]) whose ids match the patterns. Slices
    with less area inside the bone than ``min_inside_cm2`` are left out; 0 takes every slice with a label. For
    ``label_map`` see [`contourdiff.data.label_map.LabelMap`][]; ``None`` takes the bundle's vertebrae. ``overlays``
    and ``settings`` are those of ``inference.json``, such as ``window_hu=[-160, 240]``; ``mr_settings`` those of
    ``train.json``, such as ``{"upper_percentile": 99}``. For ``bundle`` see [`contourdiff.bundle.find_bundle`][].

    Raises ``FileNotFoundError`` for a missing path, ``ValueError`` for an unknown setting or a side without slices.
    """
    root, mr_settings = find_bundle(bundle), dict(mr_settings or {})
    inference = read_config(config_files(root, overlays), settings)
    geometry = {
        name: inference.get_parsed_content(name) for name in ("axcodes", "slice_axis", "spacing_mm")
    }
    parsers = {
        "ct": inference,
        "mr": read_config(config_files(root, base="train"), geometry | mr_settings),
    }
    bones = LabelMap(label_map or root / "label_maps" / "vertebrae.json")
    patterns, cases = {"ct": ct_pattern, "mr": mr_pattern}, {}
    for side, folder in (("ct", ct_dir), ("mr", mr_dir)):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"expected a folder of {SIDES[side]} with labels at {folder}, found none; pass one"
            )
        cases[side] = labelled_cases(folder, pattern=patterns[side])
    slices = [
        each
        for side in SIDES
        for each in _measured(cases[side], side, parsers[side], bones, min_inside_cm2)
    ]
    basis = {"CT": settings, "MR": mr_settings, "overlays": list(overlays), "patterns": patterns}
    names = _direction_names(geometry["axcodes"], geometry["slice_axis"])
    return ContourGap(slices, names, basis | {"min_inside_cm2": min_inside_cm2})


def _direction_names(axcodes: str, slice_axis: int) -> tuple[str, ...]:
    """The bins of [`contour_statistics`][] in the patient's axes, as ``("A-P", "AS-PI", "S-I", "AI-PS")``."""
    first, second = (end for axis, end in enumerate(axcodes) if axis != slice_axis)
    a, b = OPPOSITE[first], OPPOSITE[second]
    return f"{first}-{a}", f"{first}{second}-{a}{b}", f"{second}-{b}", f"{first}{b}-{a}{second}"


def _measured(
    cases: Sequence[Mapping[str, str]],
    side: str,
    parser: ConfigParser,
    bones: LabelMap,
    min_inside_cm2: float,
) -> list[MeasuredSlice]:
    """All slices of a side whose label holds enough bone."""
    kept: list[MeasuredSlice] = []
    for case in tqdm(cases, desc=f"contours of {SIDES[side]}", unit="case"):
        slices = _slices_of(case, side, parser, bones)
        enough = [each for each in slices if each.found["inside"].area_cm2 >= min_inside_cm2]
        if not enough:
            logger.warning("%s: no slice holds enough labelled bone", case_name(case["image"]))
        kept += enough
    if not kept:
        values = [value for listed in bones.values(side).values() for value in listed]
        raise ValueError(
            f"expected slices of {SIDES[side]} with label values {values} and {min_inside_cm2} cm2 inside the bone, "
            f"got none in {len(cases)} cases; pass a label map that lists theirs, or a smaller min_inside_cm2"
        )
    return kept


def _slices_of(
    case: Mapping[str, str], side: str, parser: ConfigParser, bones: LabelMap
) -> Iterator[MeasuredSlice]:
    axis, transform = (
        parser.get_parsed_content("slice_axis"),
        parser.get_parsed_content("contour").transform,
    )
    steps = parser.get_parsed_content("preprocessing" if side == "ct" else "volume_transform")
    end = len(steps.transforms) - (
        side == "ct"
    )  # the last step of the translation's is the contour
    data = steps({"image": case["image"]}, end=end) | {"label": case["label"]}
    load = [LoadImaged("label", image_only=True), EnsureChannelFirstd("label")]
    match = ResampleToMatchd("label", key_dst="image", mode="nearest", padding_mode="zeros")
    data = Compose([*load, RemapLabelsd("label", label_map=bones, side=side), match])(data)
    spacing = [float(size) for other, size in enumerate(data["image"].pixdim) if other != axis]
    volumes = [np.moveaxis(np.asarray(data[key][0]), axis, 0) for key in ("image", "label")]
    for position, (image, label) in enumerate(zip(*volumes, strict=True)):
        if label.any():
            contour = np.asarray(transform(image[None])[0])
            body = binary_dilation(
                binary_fill_holes(image > 0)
            )  # the skin line may lie one pixel outside
            middle = np.zeros(image.shape, dtype=bool)
            middle[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX] = True
            regions = {
                name: mask & middle for name, mask in tissue_regions(label, body, spacing).items()
            }
            found = contour_statistics(
                contour, image, regions, spacing, sigma_px=transform.sigma_px
            )
            share = label_boundary_agreement(
                image, label, lambda _, own=contour: own, TOLERANCE_MM, spacing
            )  # type: ignore[misc]
            yield MeasuredSlice(
                side, case_name(case["image"]), position, image, contour, regions, found, share
            )


def _row(measured: MeasuredSlice, region: str, directions: Sequence[str]) -> dict[str, Any]:
    area, length, density, fragments, shares = measured.found[region]
    enough = area >= MIN_AREA_CM2
    quantiles = (
        np.percentile(fragments, [50, 90]) if enough and len(fragments) else np.full(2, math.nan)
    )
    row = {
        "side": measured.side,
        "case": measured.case,
        "slice": measured.position,
        "region": region,
    }
    row |= {"area_cm2": area, "length_mm": length, LENGTHS[0]: density if enough else math.nan}
    row |= {"fragments": len(fragments), **dict(zip(LENGTHS[1:], quantiles.tolist(), strict=True))}
    row["boundary_share"] = measured.boundary_share if region == "boundary" else math.nan
    return row | {
        name: float(share) if enough else math.nan
        for name, share in zip(directions, shares, strict=True)
    }


def _check(names: str, slices: Sequence[np.ndarray], spacing_mm: Sequence[float]) -> None:
    shapes = {np.shape(each) for each in slices}
    if len(shapes) != 1 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"expected {names} (H, W) of one shape, got {sorted(shapes)}; cut slices")
    if len(spacing_mm) != 2 or not all(0 < size < math.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be two positive numbers, of H and W, got {spacing_mm}")
