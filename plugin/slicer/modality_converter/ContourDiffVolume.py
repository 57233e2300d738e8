# SPDX-License-Identifier: Apache-2.0
"""Translate a CT volume to MR with the single graph of ``contourdiff export --single``: no PyTorch, no Slicer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform, correlate1d, gaussian_filter

from .ContourDiffContours import background_filter, contour_of

CONTOUR = "Contourd"
"""The contour that is computed here, by its name in the file."""
REACH = 4
"""Standard deviations after which the kernel of the noise is cut off."""
NO_CONTOUR = "expected slices with a contour, got none: check that the volume is CT in HU with a large field of view"
Report = Callable[[int, int], None]
"""Called with the number of slices that are painted, and of all."""


def facts_of(session: Any) -> dict[str, Any]:
    """What the file of an onnxruntime session says of itself.

    Raises:
        ValueError: for a file of another origin, or with another contour.
    """
    properties = session.get_modelmeta().custom_metadata_map
    if "window_hu" not in properties or "noise_length_mm" not in properties:
        raise ValueError(
            "expected a file of contourdiff export --single, got another; export it again"
        )
    facts = {name: json.loads(text) for name, text in properties.items()}
    if facts["contour"] != CONTOUR:
        raise ValueError(
            f"expected weights trained with {CONTOUR}, got {facts['contour']}; use contourdiff translate for them"
        )
    return facts


def translate_volume(
    voxels: np.ndarray,
    affine: np.ndarray,
    session: Any,
    contrast: str,
    report: Report = lambda done, count: None,
    seed: int = 0,
) -> np.ndarray:
    """Synthetic MR on the grid of a CT.

    Args:
        voxels: Hounsfield units, ``(H, W, D)``.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        session: of onnxruntime, with the file of ``contourdiff export --single``.
        contrast: ``t1``, ``t2`` or ``t2_space``.
        report: called after each slice.
        seed: of the noise.

    Returns gray levels in [0, 255], ``(H, W, D)`` float32, 0 where a slice has no contour. Raises ``ValueError`` as
    [`facts_of`][], for a contrast that the file does not have, and if no slice has a contour.
    """
    facts = facts_of(session)
    contrasts = facts["contrasts"] or [contrast]
    if contrast not in contrasts:
        raise ValueError(f"expected a contrast of {contrasts}, got {contrast!r}; pass another")
    turn, spacing_mm = turn_to(facts["axcodes"], affine)
    axis = facts["slice_axis"]
    slices = np.moveaxis(nib.apply_orientation(voxels, turn), axis, 0)
    distance_mm = spacing_mm.pop(axis)
    step = facts["spacing_mm"] / np.array(spacing_mm)
    contours = np.stack([contour_of_slice(image, step, facts) for image in slices])
    painted = _paint(contours, session, facts, contrasts.index(contrast), distance_mm, report, seed)
    mr = np.empty(slices.shape, np.float32)
    for number, image in enumerate(painted):
        mr[number] = affine_transform(
            image, 1 / step, output_shape=mr.shape[1:], order=1, mode="grid-constant"
        )
    back = nib.orientations.ornt_transform(
        _orientation(facts["axcodes"]), nib.io_orientation(affine)
    )
    return np.ascontiguousarray(nib.apply_orientation(np.moveaxis(mr, 0, axis), back))


def turn_to(axcodes: str, affine: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """How axes are turned to an orientation such as ``RAS``, and the spacing of the turned axes in mm."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), _orientation(axcodes))
    sizes_mm = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.argsort(turn[:, 0])
    return turn, sizes_mm[order].tolist()


def _orientation(axcodes: str) -> np.ndarray:
    return nib.orientations.axcodes2ornt(tuple(axcodes))


def contour_of_slice(image: np.ndarray, step: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Contour of a slice in HU on the grid of the model, whose pixels are ``step`` times those of the slice."""
    low, high = facts["window_hu"]
    gray = (image.clip(low, high).astype(np.float32) - low) / (high - low) * 255
    gray = gaussian_filter(gray, np.maximum(step - 1, 0) / 2, mode="nearest")
    size = np.round((np.array(image.shape) - 1) / step + 1).astype(int)
    gray = affine_transform(gray, step, output_shape=tuple(size), order=1, mode="grid-constant")
    pixel_mm2 = facts["spacing_mm"] ** 2
    body = background_filter(
        gray,
        classes=facts["filter_classes"],
        min_object_px=facts["min_object_mm2"] / pixel_mm2,
        max_hole_px=facts["max_hole_mm2"] / pixel_mm2,
    )
    return contour_of(
        body,
        sigma_px=facts["contour_sigma_px"],
        low_threshold=facts["contour_low_threshold"],
        high_threshold=facts["contour_high_threshold"],
    )


def _paint(
    contours: np.ndarray,
    session: Any,
    facts: dict[str, Any],
    label: int,
    distance_mm: float,
    report: Report,
    seed: int,
) -> np.ndarray:
    """Gray levels ``(N, H, W)`` of slices with these contours, in the box around all contours."""
    if not contours.any():
        raise ValueError(NO_CONTOUR)
    rows = _span(contours.any(axis=(0, 2)), facts["margin_px"])
    columns = _span(contours.any(axis=(0, 1)), facts["margin_px"])
    box = contours[:, rows, columns]
    count, height, width = box.shape
    divisor = facts["size_divisor"]
    framed = np.pad(box, [(0, 0), (0, -height % divisor), (0, -width % divisor)])
    rng = np.random.default_rng(seed)
    deviation = facts["noise_length_mm"] / math.sqrt(2) / distance_mm
    small = (framed.shape[1] // facts["factor"], framed.shape[2] // facts["factor"])
    noise = correlated_noise(rng, (count, *small), deviation)
    refiner_noise = correlated_noise(rng, framed.shape, deviation)
    expected = [entry.name for entry in session.get_inputs()]
    painted = np.zeros(contours.shape, np.float32)
    for number in range(count):
        if framed[number].any():
            inputs = {
                "contour": framed[number, None, None].astype(np.float32),
                "noise": noise[number, None, None],
                "refiner_noise": refiner_noise[number, None, None],
                "class_labels": np.array([label]),
            }
            (mr,) = session.run(["mr"], {name: inputs[name] for name in expected})
            painted[number, rows, columns] = mr[0, 0, :height, :width]
        report(number + 1, count)
    return painted


def _span(lines: np.ndarray, margin: int) -> slice:
    """From the first line that is true to the last, with a margin where there is room."""
    (filled,) = np.nonzero(lines)
    return slice(max(filled[0] - margin, 0), filled[-1] + margin + 1)


def correlated_noise(
    rng: np.random.Generator, shape: tuple[int, ...], deviation: float
) -> np.ndarray:
    """Standard normal noise ``(N, H, W)`` float32, smoothed along the slices by ``deviation`` of them."""
    reach = math.ceil(REACH * deviation)
    white = rng.standard_normal((shape[0] + 2 * reach, *shape[1:]), np.float32)
    if reach == 0:
        return white
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-((offsets / deviation) ** 2) / 2)
    weights /= np.linalg.norm(weights)
    return correlate1d(white, weights, axis=0)[reach:-reach]
