# SPDX-License-Identifier: Apache-2.0
"""A translation beside the real MR of the same person: register CT and MR with elastix, then compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCrop, Spacing
from scipy.ndimage import distance_transform_edt
from skimage.metrics import normalized_mutual_information
from skimage.registration import phase_cross_correlation
from skimage.segmentation import find_boundaries

from contourdiff.contours import contour_of
from contourdiff.data.atomic import write_json, write_text
from contourdiff.data.nifti_names import is_nifti
from contourdiff.tables import markdown_table
from contourdiff_lab.metrics.paired import scaled, similarity

SPACING_MM = 1.1
"""In-plane spacing that the MR is averaged to, or less coarse: images are compared on this grid."""
REGISTRATION_MM = 2.2
"""The same of CT and MR while they are registered."""
ITERATIONS = 250
"""Of the registration, at each of four resolutions."""
WINDOW_HU = (-200.0, 500.0)
OUTSIDE = -5000.0
"""Value of what lies outside of the moving image."""
MOVING = "moving"
"""Name of the CT that is registered, beside the one that is compared."""
STAGES = ("rigid", "bspline")
GRID_MM = 30.0
"""Distance of the control points of the B-spline."""
STARTS_MM = (-54.0, -36.0, -18.0, 0.0, 18.0, 36.0, 54.0)
"""Shifts along the body from which the registration is tried."""
CHANCE_MM = 15.0
"""The label is shifted by this along the body, less than half a vertebra and its disc, for the residual by chance."""
HEADER = ("image", "slices", "SSIM", "NCC", "gradient correlation")
NOTE = """\
CT and real MR of one person, registered by mutual information of CT and MR, without the translations: rigid, then a
B-spline. All images are compared with the real MR on its grid, inside of the body, slice by slice. `others`: the MR of
other people, each shifted to fit best, mean and largest; they share the contrast and not the anatomy. Residual: mean
distance of the boundary of the CT's label to the nearest contour of the real MR, and by chance. One person.
"""
Image = Any


def read_image(path: str | Path, spacing_mm: float | None = None) -> Image:
    """Read a volume with ITK; with ``spacing_mm`` pixels are averaged in plane, to no more than this spacing."""
    import itk

    image = itk.imread(str(path), itk.F)
    if spacing_mm is None:
        return image
    spacing = np.array(image.GetSpacing())
    factors = np.maximum(np.floor(spacing_mm / spacing + 0.1), 1).astype(int)
    factors[spacing.argmax()] = 1
    return itk.bin_shrink_image_filter(image, shrink_factors=factors.tolist())


def center_mm(image: Image) -> np.ndarray:
    """Center of a volume, LPS, mm."""
    import itk

    size = np.array([itk.size(image)[axis] for axis in range(3)])
    direction = itk.array_from_matrix(image.GetDirection())
    half = np.array(image.GetSpacing()) * (size - 1) / 2
    return np.array(image.GetOrigin()) + direction @ half


def place(images: Mapping[str, Image], shift_mm: np.ndarray) -> None:
    """Move volumes by a shift, LPS, mm."""
    for image in images.values():
        image.SetOrigin(np.array(image.GetOrigin()) + shift_mm)


def register(fixed: Image, moving: Image, stages: Sequence[str]) -> Any:
    """Transform of elastix from ``moving`` to ``fixed`` by mutual information, one stage after the other.

    Raises ``ModuleNotFoundError`` without itk-elastix.
    """
    itk = _elastix()
    parameters = itk.ParameterObject.New()
    for stage in stages:
        settings = parameters.GetDefaultParameterMap(stage, 3)
        settings["AutomaticTransformInitialization"] = ["false"]
        settings["Metric"] = ["AdvancedMattesMutualInformation"]
        settings["ImageSampler"] = ["RandomCoordinate"]
        settings["NumberOfSpatialSamples"] = ["3000"]
        settings["MaximumNumberOfIterations"] = [str(ITERATIONS)]
        settings["DefaultPixelValue"] = [str(OUTSIDE)]
        if stage == "bspline":
            settings["FinalGridSpacingInPhysicalUnits"] = [str(GRID_MM)]
        parameters.AddParameterMap(settings)
    method = itk.ElastixRegistrationMethod.New(fixed, moving)
    method.SetParameterObject(parameters)
    method.SetLogToConsole(False)
    method.UpdateLargestPossibleRegion()
    return method.GetTransformParameterObject()


def set_grid(transform: Any, image: Image) -> None:
    """Let a transform give its results on the grid of another image of the same place."""
    import itk

    size = [str(itk.size(image)[axis]) for axis in range(3)]
    transform.SetParameter("Size", size)
    for name in ("Spacing", "Origin"):
        values = getattr(image, f"Get{name}")()
        transform.SetParameter(name, [str(float(value)) for value in values])


def moved(image: Image, transform: Any, *, is_label: bool = False) -> np.ndarray:
    """A volume on the grid of the fixed image: ``(z, y, x)`` as ITK's arrays; ``OUTSIDE`` where it has no value."""
    itk = _elastix()
    order = "0" if is_label else "1"
    transform.SetParameter("FinalBSplineInterpolationOrder", order)
    result = itk.transformix_filter(image, transform, log_to_console=False)
    return np.asarray(itk.array_from_image(result), dtype=np.float32)


def _elastix() -> Any:
    import itk

    if not hasattr(itk, "ElastixRegistrationMethod"):
        raise ModuleNotFoundError(
            "expected itk-elastix, which is not installed; "
            'install it: pip install "contourdiff[registration]"'
        )
    return itk


def boundary_distance_mm(
    label: np.ndarray, contours: np.ndarray, spacing_mm: Sequence[float]
) -> float:
    """Mean distance, in plane, of the boundary of a label to the nearest contour, both ``(slices, H, W)``."""
    distances = []
    for classes, contour in zip(label, contours, strict=True):
        boundary = find_boundaries(classes > 0, mode="inner")
        if boundary.any() and contour.any():
            to_contour = distance_transform_edt(contour == 0, sampling=spacing_mm)
            distances.append(to_contour[boundary])
    return float(np.concatenate(distances).mean()) if distances else float("nan")


def similarity_of_others(
    real: np.ndarray, mask: np.ndarray, others: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """Similarity of a real slice ``(H, W)`` to slices of other people on its grid, each shifted to fit best."""
    rows = []
    for other in others:
        shift, _, _ = phase_cross_correlation(real, other, normalization=None)
        fitted = np.roll(other, np.rint(shift).astype(int), axis=(0, 1))
        rows.append(similarity(fitted[None], real[None], mask[None]))
    return rows


def compare_with_real_mr(
    ct: str | Path,
    label: str | Path,
    mr: str | Path,
    translations: Mapping[str, str | Path],
    output_dir: str | Path,
    *,
    others: str | Path | None = None,
    start_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Path:
    """Register the CT of a person to the MR of the same person, and compare translations of that CT with it.

    Args:
        ct: volume, HU.
        label: on the grid of the CT; its boundary measures the residual.
        mr: real MR, sagittal slices, whose rows run from head to foot and columns from front to back.
        translations: name -> translation of the CT, on its grid.
        output_dir: folder of ``paired.json`` and ``paired.md``.
        others: folder of single sagittal slices of the same contrast by other people, for comparison.
        start_mm: shift of the CT (L, P, S), mm, from where the centers of both volumes coincide. Starts up to
            ``STARTS_MM`` above and below are tried, too, since one that is half a vertebra off ends a vertebra off: the
            rigid registration with most mutual information is taken.

    Returns the path of ``paired.md``. Raises ``ModuleNotFoundError`` without itk-elastix, ``ValueError`` for MR
    of another orientation.
    """
    fixed = read_image(mr, SPACING_MM)
    _check_sagittal(fixed, mr)
    images = {"ct": read_image(ct), "label": read_image(label)}
    for name, path in translations.items():
        images[f"translation {name}"] = read_image(path)
    coarse = read_image(mr, REGISTRATION_MM)
    images[MOVING] = _windowed(read_image(ct, REGISTRATION_MM))
    real = _array(fixed)
    shift_mm = center_mm(fixed) - center_mm(images["ct"]) + np.array(start_mm)
    place(images, shift_mm)
    information = _try_starts(coarse, images)
    spacing_mm = [float(size) for size in fixed.GetSpacing()][1::-1]
    contours = _contours(real)
    residuals = {}
    for count, stage in enumerate(STAGES, start=1):
        transform = register(coarse, images[MOVING], STAGES[:count])
        set_grid(transform, fixed)
        on_mr = moved(images["label"], transform, is_label=True)
        on_mr = np.where(on_mr == OUTSIDE, 0, on_mr)
        rows = round(CHANCE_MM / spacing_mm[0])
        residuals[stage] = {
            "mm": boundary_distance_mm(on_mr, contours, spacing_mm),
            "by_chance_mm": boundary_distance_mm(np.roll(on_mr, rows, 1), contours, spacing_mm),
        }
    results = {}
    mask = moved(images["ct"], transform) > OUTSIDE + 1
    mask &= real > 0
    for name, image in images.items():
        if name not in ("label", MOVING):
            results[name] = similarity(moved(image, transform), real, mask)
    middle = len(real) // 2
    floor = _floor(real[middle], mask[middle], spacing_mm, others)
    record = {
        "similarity": results,
        "others": floor,
        "residual": residuals,
        "mutual_information": information,
    }
    folder = Path(output_dir)
    write_json(folder / "paired.json", record)
    write_text(folder / "paired.md", _markdown(record, len(real)))
    return folder / "paired.md"


def _check_sagittal(image: Image, path: str | Path) -> None:
    """Raise ``ValueError`` unless columns run to the back (P) and rows to the feet (I), the axes of ITK being LPS."""
    import itk

    direction = itk.array_from_matrix(image.GetDirection())
    if direction[1, 0] < 0.7 or direction[2, 1] > -0.7:
        raise ValueError(
            f"expected sagittal slices in {path}, with axes to the back and to the feet, got directions "
            f"{direction.round(2).tolist()}; reorient it"
        )


def _try_starts(coarse: Image, images: Mapping[str, Image]) -> dict[str, float]:
    """Register rigidly from every start, move all volumes to the best, and return the mutual information of each."""
    moving = images[MOVING]
    real = _array(coarse)
    information = {}
    for start_mm in STARTS_MM:
        place({MOVING: moving}, np.array([0.0, 0.0, start_mm]))
        on_mr = moved(moving, register(coarse, moving, STAGES[:1]))
        place({MOVING: moving}, np.array([0.0, 0.0, -start_mm]))
        mask = (on_mr > OUTSIDE + 1) & (real > 0)
        shared = normalized_mutual_information(on_mr[mask], real[mask], bins=64)
        information[start_mm] = float(shared)
    best = max(information, key=lambda start_mm: information[start_mm])
    place(images, np.array([0.0, 0.0, best]))
    return {f"{start_mm:g}": value for start_mm, value in information.items()}


def _array(image: Image) -> np.ndarray:
    import itk

    return np.asarray(itk.array_from_image(image), dtype=np.float32)


def _windowed(ct: Image) -> Image:
    import itk

    low, high = WINDOW_HU
    return itk.intensity_windowing_image_filter(
        ct, window_minimum=low, window_maximum=high, output_minimum=low, output_maximum=high
    )


def _contours(volume: np.ndarray) -> np.ndarray:
    levels = 255 * scaled(volume, volume > 0)
    contours = [
        contour_of(image, sigma_px=1.5, low_threshold=20, high_threshold=40) for image in levels
    ]
    return np.stack(contours)


def _floor(
    real: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], folder: str | Path | None
) -> list[dict[str, float]]:
    """Similarity of the middle slice to those of other people, resampled to its spacing and padded to its size."""
    if folder is None:
        return []
    others = []
    for path in sorted(Path(folder).iterdir()):
        if is_nifti(path):
            others.append(_on_grid(path, real.shape, spacing_mm))
    return similarity_of_others(real, mask, others)


def _on_grid(path: Path, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """A sagittal slice, with rows from head to foot and columns from front to back, as the MR's."""
    image = nib.as_closest_canonical(nib.load(path))
    _, *sizes = image.header.get_zooms()[:3]
    data = np.asarray(image.dataobj, dtype=np.float32)[0]
    # A-P, S-I -> rows from the head, columns from the front
    turned = data.T[::-1, ::-1].copy()
    affine = np.diag([sizes[1], sizes[0], 1.0])
    tensor = MetaTensor(torch.from_numpy(turned[None]), affine=torch.from_numpy(affine))
    resampled = Spacing(pixdim=spacing_mm)(tensor)
    return np.asarray(ResizeWithPadOrCrop(shape)(resampled)[0])


def _markdown(record: Mapping[str, Any], slices: int) -> str:
    names = ("ssim", "ncc", "gradient_correlation")
    rows = []
    for image, values in record["similarity"].items():
        rows.append([image, slices, *[f"{values[name]:.3f}" for name in names]])
    if record["others"]:
        means = []
        for name in names:
            values = [row[name] for row in record["others"]]
            means.append(f"{np.mean(values):.3f}, at most {np.max(values):.3f}")
        rows.append([f"others ({len(record['others'])})", 1, *means])
    lines = ["# A translation beside real MR of the same person", ""]
    lines += [markdown_table(HEADER, rows), "", NOTE]
    for stage, residual in record["residual"].items():
        lines.append(
            f"- residual, {stage}: {residual['mm']:.2f} mm, by chance {residual['by_chance_mm']:.2f} mm"
        )
    return "\n".join(lines) + "\n"
