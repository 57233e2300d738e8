# SPDX-License-Identifier: Apache-2.0
"""Single planes of a volume, resampled to the grid of another volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils import convert_to_numpy
from nibabel.volumeutils import apply_read_scaling

SLAB_SLICES = 32
"""Slices of a file that are read at a time."""


class ResampledPlanes:
    """Planes of a volume at the slices of another grid, for pictures, without resampling the whole volume.

    ``source`` is a NIfTI file, or a volume ``(1, H, W, D)``, not copied. The attribute ``voxels`` holds its voxels as
    they are stored, memory-mapped if the file is not compressed; only those that a plane passes through are scaled and
    resampled. ``affine``, ``(4, 4)``, is that of the volume. The two values of ``window`` are scaled to 0 and 1, others
    clipped, before resampling; ``None`` does not scale.
    """

    def __init__(
        self, source: str | Path | MetaTensor, window: tuple[float, float] | None = None
    ) -> None:
        self.window = window
        self._scaling: tuple[float, float] = 1.0, 0.0
        if isinstance(source, MetaTensor):
            affine, self.voxels = source.affine, convert_to_numpy(source[0])
        else:
            image = nib.load(source, keep_file_open=True)
            affine, self.voxels = image.affine, _stored(image)
            self._scaling = image.dataobj.slope, image.dataobj.inter
        self.affine = np.asarray(affine, dtype=np.float64)

    def plane(self, target: MetaTensor, axis: int, position: int, mode: str) -> np.ndarray:
        """Slice ``position`` of the grid of ``target (C, H, W, D)``, two-dimensional float32; 0 outside of the volume.

        ``axis`` is the spatial axis of ``target`` along which slices are stacked, ``mode`` ``"bilinear"`` or
        ``"nearest"``.
        """
        shape = [1 if other == axis else size for other, size in enumerate(target.shape[1:])]
        affine = np.asarray(target.affine, dtype=np.float64).copy()
        affine[:3, 3] += position * affine[:3, axis]
        part = self._part(np.linalg.inv(self.affine) @ affine, shape, axis)
        begin = np.eye(4)
        begin[:3, 3] = [along.start for along in part]
        stored = self.voxels[part]
        if not stored.size:
            return np.zeros(
                [size for other, size in enumerate(shape) if other != axis], dtype=np.float32
            )
        values = torch.as_tensor(
            np.asarray(apply_read_scaling(stored, *self._scaling)).astype(np.float32)
        )
        if self.window is not None:
            low, high = self.window
            values = ((values - low) / (high - low)).clamp(0, 1)
        own = MetaTensor(values[None], affine=torch.as_tensor(self.affine @ begin))
        plane = SpatialResample(mode=mode, padding_mode="zeros")(
            own, torch.as_tensor(affine), shape
        )
        return np.asarray(plane)[0].take(0, axis=axis)

    def _part(self, to_own: np.ndarray, shape: list[int], axis: int) -> tuple[slice, ...]:
        """Voxels near the plane: cut along the axis most nearly perpendicular to it, whole along the others."""
        own_axis = int(np.argmax(np.abs(to_own[:3, axis])))
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
        depths = (corners @ to_own[:3, :3].T + to_own[:3, 3])[:, own_axis]
        part = [slice(0, size) for size in self.voxels.shape]
        near = np.array([np.floor(depths.min()) - 1, np.ceil(depths.max()) + 2])
        part[own_axis] = slice(*near.clip(0, self.voxels.shape[own_axis]).astype(int).tolist())
        return tuple(part)


def _stored(image: nib.Nifti1Image) -> np.ndarray:
    """All voxels as stored: memory-mapped, or, of a compressed file, read in slabs, as nibabel would hold it twice."""
    proxy = image.dataobj
    zipped = Path(image.get_filename()).suffix == ".gz"
    if not zipped or (proxy.slope, proxy.inter) != (1, 0):
        return proxy.get_unscaled()
    voxels = np.empty(proxy.shape, dtype=proxy.dtype, order="F")
    for start in range(0, proxy.shape[-1], SLAB_SLICES):
        slab = (..., slice(start, start + SLAB_SLICES))
        voxels[slab] = proxy[slab]
    return voxels
