# SPDX-License-Identifier: Apache-2.0
"""The gap between the contours of CT and of MR: density, fragments and edge directions, tissue by tissue."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
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
BOUNDARY_MM = 3.0
NEAR_MM = 15.0
TOLERANCE_MM = 2.2
RIM_PX = 3  # belongs to no region: gray levels fall where the field of view of an MR ends, and that is an edge too
MIN_AREA_CM2 = 1.0  # a smaller region of a slice says nothing: one pixel would be the whole density
DENSITY = "density_mm_per_cm2"
LENGTHS = (DENSITY, "fragment_median_mm", "fragment_p90_mm")
Masks = Mapping[str, np.ndarray]
Spacing = Sequence[float]


class RegionContour(NamedTuple):
    """Contour of a region; ``directions`` are the shares ``(4,)`` of edge directions."""

    area_cm2: float
    length_mm: float
    density_mm_per_cm2: float
    fragments_mm: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class MeasuredSlice:
    """A labelled slice of a CT or an MR: gray levels, contour and masks of regions ``(H, W)``, and its measures.

    ``contours`` are the measures of each region, ``boundary_share`` is that of
    [`contourdiff_lab.metrics.image_quality.label_boundary_agreement`][].
    """

    side: str
    case: str
    position: int
    image: np.ndarray
    contour: np.ndarray
    regions: dict[str, np.ndarray]
    contours: dict[str, RegionContour]
    boundary_share: float


@dataclass(frozen=True)
class ContourGap:
    """All measured slices of both sides, the names of the four edge directions, and what the figures depend on."""

    slices: list[MeasuredSlice]
    directions: tuple[str, ...]
    settings: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each slice and region; figures of a region below ``MIN_AREA_CM2`` are NaN."""
        rows = []
        for measured in self.slices:
            for region in measured.contours:
                rows.append(_region_row(measured, region, self.directions))
        return rows

    def summary(self) -> list[dict[str, Any]]:
        """Mean and (population) SD over slices of each measure and region, on both sides, and the ratio CT/MR."""
        rows = self.rows()
        lines = []
        for region in REGIONS:
            of_region = [row for row in rows if row["region"] == region]
            for measure in LENGTHS:
                lines.append(_summary_line(of_region, region, measure))
            if region == "boundary":
                lines.append(_summary_line(of_region, region, "boundary_share"))
            for direction in self.directions:
                lines.append(_summary_line(of_region, region, direction))
        return lines

    def density_factor(self) -> float:
        """By what factor the densities differ on average, ``exp(mean |log(CT/MR)|)`` over regions; 1 is no gap."""
        lines = self.summary()
        ratios = np.array([line["ratio"] for line in lines if line["measure"] == DENSITY])
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        if not len(ratios):
            return math.nan
        distances = np.abs(np.log(ratios))
        return float(np.exp(distances.mean()))


def contour_statistics(
    contour: np.ndarray,
    image: np.ndarray,
    regions: Masks,
    spacing_mm: Spacing,
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
    edges = np.asarray(contour) != 0
    image = np.asarray(image, dtype=np.float64)
    _check_slices("contour, image and regions", (edges, image, *regions.values()), spacing_mm)
    pixel_mm = float(np.mean(spacing_mm))
    pixel_cm2 = float(np.prod(spacing_mm)) / 100
    bins = _edge_directions(image, spacing_mm, sigma_px)
    fragments = connected_components(edges, connectivity=2)
    fragment_mm = np.bincount(fragments.ravel()) * pixel_mm
    contours = {}
    for name, mask in regions.items():
        inside = edges & np.asarray(mask, dtype=bool)
        length = float(inside.sum()) * pixel_mm
        area = float(np.count_nonzero(mask)) * pixel_cm2
        directions = np.full(4, math.nan)
        if inside.any():
            counts = np.bincount(bins[inside], minlength=4)
            directions = counts / counts.sum()
        contours[name] = RegionContour(
            area_cm2=area,
            length_mm=length,
            density_mm_per_cm2=length / area if area > 0 else math.nan,
            fragments_mm=fragment_mm[np.unique(fragments[inside])],
            directions=directions,
        )
    return contours


def _edge_directions(image: np.ndarray, spacing_mm: Spacing, sigma_px: float) -> np.ndarray:
    """Bin 0 to 3 of the direction of an edge in each pixel, see [`contour_statistics`][]."""
    weight = gaussian_filter(np.ones(image.shape), sigma_px, mode="constant")
    smooth = gaussian_filter(image, sigma_px, mode="constant") / weight
    along_h = sobel(smooth, axis=0) / spacing_mm[0]
    along_w = sobel(smooth, axis=1) / spacing_mm[1]
    degrees = np.degrees(np.arctan2(along_h, -along_w))
    return np.rint(degrees / 45).astype(np.int64) % 4


def tissue_regions(
    bone: np.ndarray, body: np.ndarray, spacing_mm: Spacing
) -> dict[str, np.ndarray]:
    """Masks ``(H, W)`` of the four ``REGIONS``, without overlap; all but ``rest`` are empty without bone.

    The boundary runs between the pixels of the label and the others. At it is what lies within 3 mm on either side,
    inside what lies deeper; near (discs, canal, muscle) is up to 15 mm away. Regions outside the bone are cut to the
    body. ``bone`` and ``body`` are nonzero ``(H, W)`` on them, ``spacing_mm`` is the size of a pixel along H and W.

    Raises ``ValueError`` if shapes differ or the spacing is not two positive numbers.
    """
    bone = np.asarray(bone) != 0
    body = np.asarray(body) != 0
    _check_slices("bone and body", (bone, body), spacing_mm)
    half_px = float(np.mean(spacing_mm)) / 2  # from a pixel's center to its side
    depth = distance_transform_edt(bone, sampling=spacing_mm) - half_px
    away = np.full(bone.shape, np.inf)
    if bone.any():
        away = distance_transform_edt(~bone, sampling=spacing_mm) - half_px
    inside = bone & (depth > BOUNDARY_MM)
    outside = ~bone & body
    return {
        "inside": inside,
        "boundary": (bone & ~inside) | (outside & (away <= BOUNDARY_MM)),
        "near": outside & (away > BOUNDARY_MM) & (away <= NEAR_MM),
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

    Args:
        ct_dir: CT with labels, see [`contourdiff.data.training_cases.labelled_cases`][].
        mr_dir: real MR with labels, the same.
        ct_pattern: pattern of the case ids of the CT.
        mr_pattern: pattern of the case ids of the MR.
        min_inside_cm2: leave out slices with less area inside the bone; 0 takes every slice with a label.
        label_map: see [`contourdiff.data.label_map.LabelMap`][]; ``None`` takes the bundle's vertebrae.
        bundle: folder of the bundle, see [`contourdiff.bundle.find_bundle`][].
        overlays: overlays of ``inference.json``.
        mr_settings: settings of ``train.json``, such as ``{"upper_percentile": 99}``.
        settings: settings of ``inference.json``, such as ``window_hu=[-160, 240]``.

    Raises ``FileNotFoundError`` for a missing path, ``ValueError`` for an unknown setting or a side without slices.
    """
    root = find_bundle(bundle)
    ct_config = read_config(config_files(root, overlays), settings)
    geometry = {
        name: ct_config.get_parsed_content(name) for name in ("axcodes", "slice_axis", "spacing_mm")
    }
    mr_settings = dict(mr_settings or {})
    mr_config = read_config(config_files(root, base="train"), {**geometry, **mr_settings})
    bones = LabelMap(label_map or root / "label_maps" / "vertebrae.json")
    ct_cases = _cases("ct", ct_dir, ct_pattern)
    mr_cases = _cases("mr", mr_dir, mr_pattern)
    ct_slices = _measured_slices(ct_cases, "ct", ct_config, bones, min_inside_cm2)
    mr_slices = _measured_slices(mr_cases, "mr", mr_config, bones, min_inside_cm2)
    return ContourGap(
        slices=ct_slices + mr_slices,
        directions=direction_names(geometry["axcodes"], geometry["slice_axis"]),
        settings={
            "CT": settings,
            "MR": mr_settings,
            "overlays": list(overlays),
            "patterns": {"ct": ct_pattern, "mr": mr_pattern},
            "min_inside_cm2": min_inside_cm2,
        },
    )


def direction_names(axcodes: str, slice_axis: int) -> tuple[str, ...]:
    """The bins of [`contour_statistics`][] in the patient's axes, as ``("A-P", "AS-PI", "S-I", "AI-PS")``."""
    h, w = [end for axis, end in enumerate(axcodes) if axis != slice_axis]
    from_h = OPPOSITE[h]
    from_w = OPPOSITE[w]
    return f"{h}-{from_h}", f"{h}{w}-{from_h}{from_w}", f"{w}-{from_w}", f"{h}{from_w}-{from_h}{w}"


def _cases(side: str, folder: str | Path, pattern: str) -> list[dict[str, str]]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"expected a folder of {SIDES[side]} with labels at {folder}, found none; pass one"
        )
    return labelled_cases(folder, pattern=pattern)


def _measured_slices(
    cases: Sequence[Mapping[str, str]],
    side: str,
    config: ConfigParser,
    bones: LabelMap,
    min_inside_cm2: float,
) -> list[MeasuredSlice]:
    """All slices of a side whose label holds enough bone."""
    kept: list[MeasuredSlice] = []
    for case in tqdm(cases, desc=f"contours of {SIDES[side]}", unit="case"):
        before = len(kept)
        for measured in _labelled_slices(case, side, config, bones):
            if measured.contours["inside"].area_cm2 >= min_inside_cm2:
                kept.append(measured)
        if len(kept) == before:
            logger.warning("%s: no slice holds enough labelled bone", case_name(case["image"]))
    if not kept:
        values = [*chain.from_iterable(bones.values(side).values())]
        raise ValueError(
            f"expected slices of {SIDES[side]} with label values {values} and {min_inside_cm2} cm2 inside the bone, "
            f"got none in {len(cases)} cases; pass a label map that lists theirs, or a smaller min_inside_cm2"
        )
    return kept


def _labelled_slices(
    case: Mapping[str, str], side: str, config: ConfigParser, bones: LabelMap
) -> Iterator[MeasuredSlice]:
    """Slices of a case that hold bone, each measured."""
    slice_axis = config.get_parsed_content("slice_axis")
    contour_of = config.get_parsed_content("contour").transform
    volume, label = _image_and_bone(case, side, config, bones)
    spacing_mm = [float(size) for axis, size in enumerate(volume.pixdim) if axis != slice_axis]
    images = np.moveaxis(np.asarray(volume[0]), slice_axis, 0)
    labels = np.moveaxis(np.asarray(label[0]), slice_axis, 0)
    for position in np.flatnonzero(labels.any(axis=(1, 2))).tolist():
        image = images[position]
        bone = labels[position]
        contour = np.asarray(contour_of(image[None])[0])
        regions = _regions_in_middle(image, bone, spacing_mm)
        yield MeasuredSlice(
            side=side,
            case=case_name(case["image"]),
            position=position,
            image=image,
            contour=contour,
            regions=regions,
            contours=contour_statistics(
                contour, image, regions, spacing_mm, sigma_px=contour_of.sigma_px
            ),
            boundary_share=label_boundary_agreement(contour, bone, TOLERANCE_MM, spacing_mm),
        )


def _image_and_bone(
    case: Mapping[str, str], side: str, config: ConfigParser, bones: LabelMap
) -> tuple[Any, Any]:
    """Gray levels and label of bone, each ``(1, H, W, D)`` on the grid of the contours."""
    if side == "ct":
        preprocessing = config.get_parsed_content("preprocessing")
        last = len(preprocessing.transforms) - 1  # the last step is the contour
        data = preprocessing({"image": case["image"]}, end=last)
    else:
        data = config.get_parsed_content("volume_transform")({"image": case["image"]})
    add_label = Compose(
        [
            LoadImaged("label", image_only=True),
            EnsureChannelFirstd("label"),
            RemapLabelsd("label", label_map=bones, side=side),
            ResampleToMatchd("label", key_dst="image", mode="nearest", padding_mode="zeros"),
        ]
    )
    data = add_label({**data, "label": case["label"]})
    return data["image"], data["label"]


def _regions_in_middle(
    image: np.ndarray, bone: np.ndarray, spacing_mm: Spacing
) -> dict[str, np.ndarray]:
    """Regions of a slice ``(H, W)`` without the rim of the image."""
    body = binary_dilation(binary_fill_holes(image > 0))  # the skin line may lie one pixel outside
    middle = np.zeros(image.shape, dtype=bool)
    middle[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX] = True
    regions = tissue_regions(bone, body, spacing_mm)
    return {name: mask & middle for name, mask in regions.items()}


def _region_row(measured: MeasuredSlice, region: str, directions: Sequence[str]) -> dict[str, Any]:
    contour = measured.contours[region]
    density = math.nan
    quantiles = [math.nan, math.nan]
    shares = [math.nan] * len(directions)
    if contour.area_cm2 >= MIN_AREA_CM2:
        density = contour.density_mm_per_cm2
        shares = contour.directions.tolist()
        if len(contour.fragments_mm):
            quantiles = np.percentile(contour.fragments_mm, [50, 90]).tolist()
    return {
        "side": measured.side,
        "case": measured.case,
        "slice": measured.position,
        "region": region,
        "area_cm2": contour.area_cm2,
        "length_mm": contour.length_mm,
        DENSITY: density,
        "fragments": len(contour.fragments_mm),
        "fragment_median_mm": quantiles[0],
        "fragment_p90_mm": quantiles[1],
        "boundary_share": measured.boundary_share if region == "boundary" else math.nan,
        **dict(zip(directions, shares, strict=True)),
    }


def _summary_line(rows: Sequence[Mapping[str, Any]], region: str, measure: str) -> dict[str, Any]:
    line: dict[str, Any] = {"region": region, "measure": measure}
    for side in SIDES:
        values = np.array([row[measure] for row in rows if row["side"] == side])
        values = values[np.isfinite(values)]
        line[side] = values.mean() if len(values) else math.nan
        line[f"{side}_sd"] = values.std() if len(values) else math.nan
    line["ratio"] = line["ct"] / line["mr"] if line["mr"] > 0 else math.nan
    return line


def _check_slices(names: str, slices: Sequence[np.ndarray], spacing_mm: Spacing) -> None:
    shapes = {np.shape(image) for image in slices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"expected {names} (H, W) of one shape, got {sorted(shapes)}; cut slices")
    if len(spacing_mm) != 2 or not all(0 < size < math.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be two positive numbers, of H and W, got {spacing_mm}")
