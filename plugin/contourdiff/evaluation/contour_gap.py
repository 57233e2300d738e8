# SPDX-License-Identifier: Apache-2.0
"""The gap between the contours of CT and of MR: how dense, how long and how directed they are, tissue by tissue."""

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
from scipy.ndimage import binary_dilation, binary_fill_holes, distance_transform_edt, gaussian_filter, sobel
from skimage.measure import label as connected_parts
from tqdm import tqdm

from contourdiff.bundle import config_files, find_bundle, read_config
from contourdiff.data.cases import case_name, labelled_cases
from contourdiff.data.label_map import LabelMap
from contourdiff.evaluation.label_crop import OPPOSITE
from contourdiff.metrics.image_quality import label_boundary_agreement
from contourdiff.transforms import RemapLabelsd

logger = logging.getLogger(__name__)

SIDES = {"ct": "CT", "mr": "MR"}
REGIONS = {"inside": "inside the bone", "boundary": "at its boundary", "near": "near it", "rest": "rest of the body"}
BOUNDARY_MM, NEAR_MM, TOLERANCE_MM = 3.0, 15.0, 2.2
RIM_PX = 3  # belongs to no region: where the field of view of an MR ends, gray levels fall, and that is an edge too
MIN_AREA_CM2 = 1.0  # a smaller region of a slice says nothing: one pixel would be the whole density
LENGTHS = ("density_mm_per_cm2", "fragment_median_mm", "fragment_p90_mm")


class RegionContour(NamedTuple):
    """Contour of one region: its area, its length, its fragments, and the shares of four edge directions."""

    area_cm2: float
    length_mm: float
    density_mm_per_cm2: float
    fragments_mm: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class MeasuredSlice:
    """One labelled slice of a CT or an MR: gray levels, contour and regions ``(H, W)``, and what was measured."""

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
        return [_row(one, region, self.directions) for one in self.slices for region in one.found]

    def summary(self) -> list[dict[str, Any]]:
        """Mean and (population) SD over slices of each measure and region, on both sides, and the ratio CT/MR."""
        rows, table = self.rows(), []
        for region in REGIONS:
            measures = (*LENGTHS, *(["boundary_share"] if region == "boundary" else []), *self.directions)
            for measure in measures:
                line: dict[str, Any] = {"region": region, "measure": measure}
                for side in SIDES:
                    values = np.array([r[measure] for r in rows if (r["side"], r["region"]) == (side, region)])
                    values = values[np.isfinite(values)]
                    line[side], line[f"{side}_sd"] = (values.mean(), values.std()) if len(values) else (math.nan,) * 2
                table.append(line | {"ratio": line["ct"] / line["mr"] if line["mr"] > 0 else math.nan})
        return table

    def density_factor(self) -> float:
        """By what factor the densities differ on average, ``exp(mean |log(CT/MR)|)`` over regions; 1 is no gap."""
        ratios = np.array([line["ratio"] for line in self.summary() if line["measure"] == LENGTHS[0]])
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        return float(np.exp(np.abs(np.log(ratios)).mean())) if len(ratios) else math.nan


def contour_statistics(
    contour: np.ndarray,
    image: np.ndarray,
    regions: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
    *,
    sigma_px: float = 1.0,
) -> dict[str, RegionContour]:
    """Density, fragments and directions of the contour of one slice, region by region.

    The length of a contour is its number of pixels times the size of a pixel (the mean of both sizes). Canny's
    contours are one pixel wide, so an oblique one comes out up to ``sqrt(2)`` too short: compare, do not add up.
    A fragment is a connected part of the whole contour (8-neighbors); it belongs, in its whole length, to every region
    that it touches. The direction of an edge is at a right angle to the gradient of the smoothed gray levels that
    Canny takes (``skimage.feature.canny``), in four bins of 45 degrees: along H, oblique with H and W growing
    together, along W, oblique with one growing and the other falling.

    Args:
        contour: ``(H, W)``, nonzero on the contour.
        image: ``(H, W)`` gray levels that the contour was taken of.
        regions: masks ``(H, W)`` by name.
        spacing_mm: size of a pixel along H and W.
        sigma_px: the contour's smoothing.

    Returns:
        For each region its area, length and density (NaN without area), the lengths of its fragments in mm, and the
        shares ``(4,)`` of the directions (NaN without contour).

    Raises:
        ValueError: if shapes differ or the spacing is not two positive numbers.
    """
    edges, image = np.asarray(contour) != 0, np.asarray(image, dtype=np.float64)
    shapes = {edges.shape, image.shape, *(np.shape(mask) for mask in regions.values())}
    if len(shapes) != 1 or edges.ndim != 2:
        raise ValueError(f"expected contour, image and regions (H, W) of one shape, got {sorted(shapes)}; cut slices")
    _check_spacing(spacing_mm)
    pixel_mm, pixel_cm2 = float(np.mean(spacing_mm)), float(np.prod(spacing_mm)) / 100
    parts = connected_parts(edges, connectivity=2)
    part_mm, bins, out = np.bincount(parts.ravel()) * pixel_mm, _direction_bins(image, spacing_mm, sigma_px), {}
    for name, mask in regions.items():
        mask = np.asarray(mask, dtype=bool)
        inside, area = edges & mask, float(mask.sum()) * pixel_cm2
        length, counts = float(inside.sum()) * pixel_mm, np.bincount(bins[inside], minlength=4)
        shares = counts / counts.sum() if inside.any() else np.full(4, math.nan)
        density = length / area if area > 0 else math.nan
        out[name] = RegionContour(area, length, density, part_mm[np.unique(parts[inside])], shares)
    return out


def tissue_regions(bone: np.ndarray, body: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, np.ndarray]:
    """Four regions of a slice without overlap: inside the bone, at its boundary, near it, and the rest of the body.

    The boundary lies between the pixels of the label and the others. At it is what lies within 3 mm on either side,
    inside what lies deeper; near (discs, canal, muscle) is up to 15 mm away.

    Args:
        bone: ``(H, W)``, nonzero where a bone is labelled.
        body: ``(H, W)``, nonzero on the body; all regions but the inside of the bone are cut to it.
        spacing_mm: size of a pixel along H and W.

    Returns:
        A mask ``(H, W)`` for each name of ``REGIONS``; all but ``rest`` are empty without bone.

    Raises:
        ValueError: if shapes differ or the spacing is not two positive numbers.
    """
    bone, body = np.asarray(bone) != 0, np.asarray(body) != 0
    if bone.shape != body.shape or bone.ndim != 2:
        raise ValueError(f"expected bone and body (H, W) of one shape, got {bone.shape} and {body.shape}")
    _check_spacing(spacing_mm)
    half_px = float(np.mean(spacing_mm)) / 2  # from a pixel's center to its side
    depth = distance_transform_edt(bone, sampling=spacing_mm) - half_px
    away = distance_transform_edt(~bone, sampling=spacing_mm) - half_px if bone.any() else np.full(bone.shape, np.inf)
    inside = bone & (depth > BOUNDARY_MM)
    boundary = (bone & ~inside) | (~bone & body & (away <= BOUNDARY_MM))
    near = ~bone & body & (away > BOUNDARY_MM) & (away <= NEAR_MM)
    return {"inside": inside, "boundary": boundary, "near": near, "rest": ~bone & body & (away > NEAR_MM)}


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
    """Measure the contours of CT as a translation sees them, and of MR as a training does, on all labelled slices.

    CT goes through ``preprocessing`` of ``inference.json``; MR through ``volume_transform`` and ``contour`` of
    ``train.json``, in the orientation and at the spacing of the CT. The outermost ``RIM_PX`` pixels of a slice belong
    to no region.

    Args:
        ct_dir: CT with labels, see :func:`contourdiff.data.label_map.labelled_cases`.
        mr_dir: MR with labels.
        ct_pattern: pattern of the case ids of the CT.
        mr_pattern: pattern of the case ids of the MR.
        min_inside_cm2: slices with a smaller area inside the bone are left out on both sides: those that show nothing
            but processes. 0 takes every slice with a label.
        label_map: JSON file that says which label values are bone, see :class:`contourdiff.data.label_map.LabelMap`; all its
            classes count. ``None`` takes the bundle's vertebrae.
        bundle: folder of the bundle, see :func:`contourdiff.bundle.find_bundle`.
        overlays: names of overlays of ``inference.json``.
        mr_settings: knobs of ``train.json``, such as ``{"upper_percentile": 99}``.
        settings: knobs of ``inference.json``, such as ``window_hu=[-160, 240]``.

    Raises:
        FileNotFoundError: for a missing folder, bundle, overlay or label map.
        ValueError: for an unknown knob, or if a side has no labelled case, or none of the wanted bones.
    """
    root = find_bundle(bundle)
    inference = read_config(config_files(root, overlays), settings)
    geometry = {name: inference.get_parsed_content(name) for name in ("axcodes", "slice_axis", "spacing_mm")}
    train = read_config(config_files(root, base="train"), geometry | dict(mr_settings or {}))
    bones = LabelMap(label_map or root / "label_maps" / "vertebrae.json")
    parsers, patterns = {"ct": inference, "mr": train}, {"ct": ct_pattern, "mr": mr_pattern}
    cases = {side: _cases(folder, side, patterns[side]) for side, folder in (("ct", ct_dir), ("mr", mr_dir))}
    slices = [one for side in SIDES for one in _measured(cases[side], side, parsers[side], bones, min_inside_cm2)]
    told: dict[str, Any] = {"CT": settings, "MR": dict(mr_settings or {}), "overlays": list(overlays)}
    told |= {"patterns": patterns, "min_inside_cm2": min_inside_cm2}
    return ContourGap(slices, _direction_names(geometry["axcodes"], geometry["slice_axis"]), told)


def _direction_names(axcodes: str, slice_axis: int) -> tuple[str, ...]:
    """The bins of :func:`contour_statistics` in the patient's axes, as ``("A-P", "AS-PI", "S-I", "AI-PS")``."""
    first, second = (end for axis, end in enumerate(axcodes) if axis != slice_axis)
    a, b = OPPOSITE[first], OPPOSITE[second]
    return f"{first}-{a}", f"{first}{second}-{a}{b}", f"{second}-{b}", f"{first}{b}-{a}{second}"


def _cases(folder: str | Path, side: str, pattern: str) -> list[dict[str, str]]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"expected a folder of {SIDES[side]} with labels at {folder}, found none; pass another")
    return labelled_cases(folder, pattern=pattern)


def _measured(
    cases: Sequence[Mapping[str, str]], side: str, parser: ConfigParser, bones: LabelMap, min_inside_cm2: float
) -> list[MeasuredSlice]:
    """All slices of a side whose label holds enough bone."""
    found: list[MeasuredSlice] = []
    for case in tqdm(cases, desc=f"contours of {SIDES[side]}", unit="case"):
        before = len(found)
        slices = _slices_of(case, side, parser, bones)
        found += [one for one in slices if one.found["inside"].area_cm2 >= min_inside_cm2]
        if len(found) == before:
            logger.warning("%s: no slice holds enough labelled bone", case_name(case["image"]))
    if not found:
        wanted = [value for values in bones.values(side).values() for value in values]
        raise ValueError(
            f"expected slices of {SIDES[side]} with label values {wanted} and {min_inside_cm2} cm2 inside the bone, "
            f"got none in {len(cases)} cases; pass a label map that lists theirs, or a smaller min_inside_cm2"
        )
    return found


def _slices_of(case: Mapping[str, str], side: str, parser: ConfigParser, bones: LabelMap) -> Iterator[MeasuredSlice]:
    axis, transform = parser.get_parsed_content("slice_axis"), parser.get_parsed_content("contour").transform
    steps = parser.get_parsed_content("preprocessing" if side == "ct" else "volume_transform")
    end = len(steps.transforms) - (side == "ct")  # the last step of the translation's is the contour
    data = steps({"image": case["image"]}, end=end) | {"label": case["label"]}
    labels = [
        LoadImaged("label", image_only=True),
        EnsureChannelFirstd("label"),
        RemapLabelsd("label", label_map=bones, side=side),
    ]
    data = Compose([*labels, ResampleToMatchd("label", key_dst="image", mode="nearest", padding_mode="zeros")])(data)
    spacing = [float(size) for other, size in enumerate(data["image"].pixdim) if other != axis]
    volumes = [np.moveaxis(np.asarray(data[key][0]), axis, 0) for key in ("image", "label")]
    for position, (image, label) in enumerate(zip(*volumes, strict=True)):
        if label.any():
            contour = np.asarray(transform(image[None])[0])
            body = binary_dilation(binary_fill_holes(image > 0))  # the skin line may lie one pixel outside
            middle = np.zeros(image.shape, dtype=bool)
            middle[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX] = True
            regions = {name: mask & middle for name, mask in tissue_regions(label, body, spacing).items()}
            found = contour_statistics(contour, image, regions, spacing, sigma_px=transform.sigma_px)
            share = label_boundary_agreement(image, label, lambda _, own=contour: own, TOLERANCE_MM, spacing)  # type: ignore[misc]
            yield MeasuredSlice(side, case_name(case["image"]), position, image, contour, regions, found, share)


def _row(one: MeasuredSlice, region: str, directions: Sequence[str]) -> dict[str, Any]:
    found, nan = one.found[region], math.nan
    enough = found.area_cm2 >= MIN_AREA_CM2
    median, p90 = np.percentile(found.fragments_mm, [50, 90]) if enough and len(found.fragments_mm) else (nan, nan)
    return {
        "side": one.side,
        "case": one.case,
        "slice": one.position,
        "region": region,
        "area_cm2": found.area_cm2,
        "length_mm": found.length_mm,
        "density_mm_per_cm2": found.density_mm_per_cm2 if enough else nan,
        "fragments": len(found.fragments_mm),
        "fragment_median_mm": float(median),
        "fragment_p90_mm": float(p90),
        "boundary_share": one.boundary_share if region == "boundary" else nan,
        **{name: float(share) if enough else nan for name, share in zip(directions, found.directions, strict=True)},
    }


def _direction_bins(image: np.ndarray, spacing_mm: Sequence[float], sigma_px: float) -> np.ndarray:
    """Of each pixel the bin of the edge direction, 0 to 3, ``(H, W)``: see :func:`contour_statistics`."""
    blur = {"sigma": sigma_px, "mode": "constant"}
    smooth = gaussian_filter(image, **blur) / gaussian_filter(np.ones(image.shape), **blur)
    along_h, along_w = (sobel(smooth, axis=axis) / spacing_mm[axis] for axis in (0, 1))
    return np.rint(np.degrees(np.arctan2(along_h, -along_w)) / 45).astype(np.int64) % 4


def _check_spacing(spacing_mm: Sequence[float]) -> None:
    if len(spacing_mm) != 2 or not all(0 < size < math.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be two positive numbers, of H and W, got {spacing_mm}")
