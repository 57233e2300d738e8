# SPDX-License-Identifier: Apache-2.0
"""Single planes of a volume, resampled to the grid of another volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils import convert_to_numpy
from nibabel.affines import apply_affine, from_matvec
from nibabel.volumeutils import apply_read_scaling

from contourdiff.data.volumes import corner_voxels, open_volume, stored_voxels


class ResampledPlanes:
    """Planes of a volume at the slices of another grid, for pictures, without resampling the whole volume.

    Only the voxels that a plane passes through are scaled and resampled.

    Args:
        source: a NIfTI file, or a volume ``(1, H, W, D)``, not copied.
        window: two values that are scaled to 0 and 1, others clipped, before resampling; ``None`` does not scale.

    Attributes:
        voxels: the voxels as they are stored, memory-mapped if the file is not compressed.
        affine: of the volume, ``(4, 4)``.
    """

    def __init__(
        self, source: str | Path | MetaTensor, window: tuple[float, float] | None = None
    ) -> None:
        self.window = window
        if isinstance(source, MetaTensor):
            self.voxels = convert_to_numpy(source[0])
            self._scaling: tuple[float, float] = (1.0, 0.0)
            affine = source.affine
        else:
            image = open_volume(source)
            self.voxels = stored_voxels(source)
            self._scaling = (image.dataobj.slope, image.dataobj.inter)
            affine = image.affine
        self.affine = np.asarray(affine, dtype=np.float64)

    def plane(self, target: MetaTensor, axis: int, position: int, mode: str) -> np.ndarray:
        """A slice of another grid, two-dimensional float32; 0 outside of the volume.

        Args:
            target: volume ``(C, H, W, D)`` with that grid.
            axis: its spatial axis along which slices are stacked.
            position: number of the slice.
            mode: ``"bilinear"`` or ``"nearest"``.
        """
        shape = list(target.shape[1:])
        shape[axis] = 1
        affine = np.array(target.affine, dtype=np.float64)
        affine[:3, 3] += position * affine[:3, axis]
        to_voxels = np.linalg.inv(self.affine) @ affine
        part = self._part(to_voxels, shape, axis)
        stored = self.voxels[part]
        if not stored.size:
            return np.zeros(np.delete(shape, axis), dtype=np.float32)
        values = self._scaled(stored)
        first_voxel = [along.start for along in part]
        part_affine = self.affine @ from_matvec(np.eye(3), first_voxel)
        volume = MetaTensor(values[None], affine=torch.as_tensor(part_affine))
        resample = SpatialResample(mode=mode, padding_mode="zeros")
        resampled = resample(volume, torch.as_tensor(affine), shape)
        plane = np.asarray(resampled[0])
        return np.take(plane, 0, axis=axis)

    def _scaled(self, stored: np.ndarray) -> torch.Tensor:
        """Voxels as the header scales them, float32, from the window to [0, 1] if there is one."""
        slope, intercept = self._scaling
        scaled = np.asarray(apply_read_scaling(stored, slope, intercept))
        values = torch.as_tensor(scaled.astype(np.float32))
        if self.window is None:
            return values
        low, high = self.window
        shares = (values - low) / (high - low)
        return shares.clamp(0, 1)

    def _part(self, to_voxels: np.ndarray, shape: list[int], axis: int) -> tuple[slice, ...]:
        """Voxels near the plane: cut along the axis most nearly perpendicular to it, whole along the others."""
        step = np.abs(to_voxels[:3, axis])
        cut_axis = int(np.argmax(step))
        corners = apply_affine(to_voxels, corner_voxels(shape))
        depths = corners[:, cut_axis]
        first = np.floor(depths.min()) - 1
        last = np.ceil(depths.max()) + 1
        size = self.voxels.shape[cut_axis]
        start = int(np.clip(first, 0, size))
        stop = int(np.clip(last + 1, 0, size))
        part = [slice(0, length) for length in self.voxels.shape]
        part[cut_axis] = slice(start, stop)
        return tuple(part)
