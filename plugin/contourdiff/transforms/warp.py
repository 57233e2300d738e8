# SPDX-License-Identifier: Apache-2.0
"""Random deformation of a CT and its label as one: affine and elastic, in 3-D, in a single resampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import RandAffineGrid, Resample
from numpy.random import RandomState
from scipy.interpolate import BSpline

from contourdiff.limits import SettingError, check_number
from contourdiff.transforms.label_resample import LabelSampler, slabs

BY_AXIS = (3, 1, 1, 1)
KNOT_MM = 48.0
"""Distance of the control points of the elastic deformation."""
FOLDING_MM = KNOT_MM / 2.5
"""Control points that move less along each axis fold nothing (Choi and Lee 2000: 1 / 2.48 of their distance)."""


@dataclass(frozen=True)
class WarpStrength:
    """How far a shape may depart from the anatomy.

    Args:
        rotation_degrees: largest angle about each axis.
        scale: largest change of the size along each axis, as a share: 0.1 is from 0.9 to 1.1.
        elastic_mm: largest shift of a control point along each axis; control points are 48 mm apart.

    Raises ``ValueError`` for a value out of range: a shift of 19.2 mm or more could fold the anatomy.
    """

    rotation_degrees: float = 8.0
    scale: float = 0.1
    elastic_mm: float = 5.0

    def __post_init__(self) -> None:
        check_number("rotation_degrees", self.rotation_degrees, 0, 180)
        check_number("scale", self.scale, 0, 0.9)
        check_number("elastic_mm", self.elastic_mm, 0)
        if self.elastic_mm >= FOLDING_MM:
            raise SettingError(
                f"expected elastic_mm below {FOLDING_MM:g}, got {self.elastic_mm:g}, which can fold "
                "the anatomy; pass a smaller one"
            )


@dataclass(frozen=True)
class Warp:
    """Where each point of a shape comes from: ``matrix @ (p + d(p))``, in mm from the center of its grid.

    ``d`` is a cubic B-spline. As neither of the two folds the anatomy, both together do not.

    Args:
        matrix: ``(3, 3)``.
        shifts_mm: of the control points, ``(3, I, J, K)``, which begin one knot before the first voxel; ``None`` for
            none.

    References:
        Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 18 (1999);
        Choi and Lee, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions", Graph. Models 62 (2000).
    """

    matrix: np.ndarray
    shifts_mm: np.ndarray | None = None

    def source_mm(
        self, shape: Sequence[int], spacing_mm: Sequence[float]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Slabs along the first axis of a grid ``(H, W, D)``, and the points ``(3, h, W, D)`` that they come from."""
        axes_mm = []
        bases = []
        for size, spacing in zip(shape, spacing_mm, strict=True):
            center = (size - 1) / 2
            axes_mm.append((np.arange(size) - center) * spacing)
            bases.append(_basis(size, spacing))
        for slab in slabs(shape):
            axis_mm = axes_mm[0][slab]
            grid = np.meshgrid(axis_mm, *axes_mm[1:], indexing="ij")
            points = np.stack(grid)
            if self.shifts_mm is not None:
                weights = (bases[0][slab], *bases[1:])
                points += np.einsum("cijk,hi,wj,dk->chwd", self.shifts_mm, *weights, optimize=True)
            yield slab, np.tensordot(self.matrix, points, axes=1)


UNWARPED = Warp(np.eye(3))


def random_warp(
    shape: Sequence[int], spacing_mm: Sequence[float], strength: WarpStrength, seed: int
) -> Warp:
    """Draw a warp of a grid ``(H, W, D)``, the same for the same ``seed``, 0 to 2**32 - 1."""
    random = RandomState(seed)
    angle = math.radians(strength.rotation_degrees)
    angles = [angle] * 3
    scales = [strength.scale] * 3
    affine_grid = RandAffineGrid(rotate_range=angles, scale_range=scales)
    affine_grid.set_random_state(state=random)
    affine_grid(spatial_size=(1, 1, 1))
    matrix = np.asarray(affine_grid.get_transformation_matrix(), dtype=np.float64)
    controls = []
    for size, spacing in zip(shape, spacing_mm, strict=True):
        controls.append(_basis(size, spacing).shape[1])
    largest = strength.elastic_mm
    shifts_mm = random.uniform(-largest, largest, (3, *controls))
    return Warp(matrix[:3, :3], shifts_mm)


def _basis(size: int, spacing_mm: float) -> np.ndarray:
    """Weights of the control points at each voxel of an axis: ``(size, controls)``."""
    positions = np.arange(size) * (spacing_mm / KNOT_MM)
    intervals = max(math.ceil(positions[-1]), 1)
    knots = np.arange(-3, intervals + 4, dtype=np.float64)
    weights = BSpline.design_matrix(positions, knots, k=3)
    return np.asarray(weights.toarray())


def warped(
    image: torch.Tensor,
    label: np.ndarray,
    warp: Warp,
    to_source: np.ndarray,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of a shape, resampled once with the same points: float32 and the label's values, ``(H, W, D)``.

    What lies beyond the volume is its mirror image, in both. The image is interpolated linearly, the label as in
    [`contourdiff.transforms.label_resample.LabelSampler`][].

    Args:
        image: ``(1, H, W, D)``.
        label: on the grid of ``image``, ``(H, W, D)``.
        warp: the deformation.
        to_source: maps voxels of the grid of the shape to those of ``image``, ``(4, 4)``.
        shape: size of the grid of the shape.
        spacing_mm: of that grid.
    """
    sample = Resample(mode="bilinear", padding_mode="border", dtype=np.float32)
    sample_label = LabelSampler(label)
    size = np.reshape(label.shape, BY_AXIS)
    center = np.reshape(shape, BY_AXIS) / 2 - 0.5
    voxel_mm = np.reshape(spacing_mm, BY_AXIS)
    matrix = to_source[:3, :3]
    offset = to_source[:3, 3].reshape(BY_AXIS)
    warped_image = np.empty(shape, np.float32)
    warped_label = np.empty(shape, label.dtype)
    for slab, source_mm in warp.source_mm(shape, spacing_mm):
        voxels = source_mm / voxel_mm + center
        points = np.tensordot(matrix, voxels, axes=1) + offset
        points = _mirrored(points, size)
        warped_label[slab] = sample_label(points)
        from_center = points - (size - 1) / 2
        centered = torch.as_tensor(from_center, dtype=torch.float32)
        sampled = sample(image, centered)
        warped_image[slab] = np.asarray(sampled)[0]
    return warped_image, warped_label


def _mirrored(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Points in voxels, those outside mirrored at the faces of the volume."""
    from_face = np.mod(points + 0.5, 2 * size)
    return np.minimum(from_face, 2 * size - from_face) - 0.5
