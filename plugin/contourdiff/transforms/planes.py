# SPDX-License-Identifier: Apache-2.0
"""Single planes of a volume that lies in a file, on the grid of another volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from nibabel.volumeutils import apply_read_scaling


class FilePlanes:
    """Planes of a NIfTI volume where another grid has its slices: what a picture shows, without a volume of floats.

    The voxels are held as they are stored; of them, only the part that a plane passes through is scaled and resampled.

    Args:
        path: NIfTI file.
        window: values that become 0 and 1, with all beyond clipped, before anything is resampled; ``None`` for none.
    """

    def __init__(self, path: str | Path, window: tuple[float, float] | None = None) -> None:
        image = nib.load(path)
        self.affine = np.asarray(image.affine, dtype=np.float64)
        self.window = window
        self._stored = image.dataobj.get_unscaled()
        self._scaling = image.dataobj.slope, image.dataobj.inter

    def plane(self, target: MetaTensor, axis: int, position: int, mode: str) -> np.ndarray:
        """One slice of the grid of ``target (C, H, W, D)``, two-dimensional float32; 0 outside of the file's volume.

        Args:
            target: volume whose grid is wanted.
            axis: spatial axis of ``target`` along which its slices are stacked.
            position: number of the slice.
            mode: ``"bilinear"`` or ``"nearest"``.
        """
        shape = list(target.shape[1:])
        shape[axis] = 1
        affine = np.asarray(target.affine, dtype=np.float64).copy()
        affine[:3, 3] += position * affine[:3, axis]
        part = self._part(np.linalg.inv(self.affine) @ affine, shape, axis)
        begin = np.eye(4)
        begin[:3, 3] = [one.start for one in part]
        stored = self._stored[part]
        if not stored.size:
            return np.zeros([size for other, size in enumerate(shape) if other != axis], dtype=np.float32)
        values = torch.as_tensor(np.asarray(apply_read_scaling(stored, *self._scaling)).astype(np.float32))
        if self.window is not None:
            low, high = self.window
            values = ((values - low) / (high - low)).clamp(0, 1)
        resample = SpatialResample(mode=mode, padding_mode="zeros")
        own = torch.as_tensor(self.affine @ begin)
        plane = resample(MetaTensor(values[None], affine=own), torch.as_tensor(affine), shape)
        return np.asarray(plane)[0].take(0, axis=axis)

    def _part(self, to_file: np.ndarray, shape: list[int], axis: int) -> tuple[slice, ...]:
        """Voxels of the file that the plane passes through: cut along the axis that stands on it, whole otherwise."""
        own_axis = int(np.argmax(np.abs(to_file[:3, axis])))
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
        depths = (corners @ to_file[:3, :3].T + to_file[:3, 3])[:, own_axis]
        part = [slice(0, size) for size in self._stored.shape]
        size = self._stored.shape[own_axis]
        begin, end = np.clip([np.floor(depths.min()) - 1, np.ceil(depths.max()) + 2], 0, size).astype(int)
        part[own_axis] = slice(int(begin), int(end))
        return tuple(part)
