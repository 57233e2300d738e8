# SPDX-License-Identifier: Apache-2.0
"""MONAI's resampling and its inverse, computed in chunks: the same values in a fraction of the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.utils import to_norm_affine
from monai.transforms import SpatialResample
from monai.utils import TraceKeys, get_equivalent_dtype, get_torch_dtype_from_string
from torch import Tensor
from torch.nn.functional import grid_sample

from contourdiff.data.memory import check_memory

CHUNK_VOXELS = 2**20
"""Voxels in a chunk: their coordinates take about 60 MB in float64."""
UNCHANGED = 1e-3
"""MONAI's tolerance for equal grids, which are not resampled."""


def sample_chunked(
    volume: Tensor,
    affine: Tensor,
    shape: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    chunk_voxels: int = CHUNK_VOXELS,
) -> Tensor:
    """Sample ``volume (C, H, W, D)``, in its own dtype, on another grid: ``(C, *shape)`` float32.

    ``affine``, ``(4, 4)``, maps voxels of the result to those of ``volume``; ``mode`` is ``"bilinear"`` or
    ``"nearest"``; for the rest see ``torch.nn.functional.grid_sample``. Values are bit-identical to those of MONAI's
    ``AffineTransform``, whose ``affine_grid`` takes 56 bytes of float64 for each voxel of the result; here it is
    evaluated for a chunk of ``chunk_voxels`` at a time.
    """
    affines = affine.to(volume)[None]
    thetas = to_norm_affine(affines, volume.shape[1:], shape, align_corners)
    reversed_axes = [2, 1, 0, 3]  # affine_grid counts axes from the last one
    theta = thetas[0, reversed_axes[:3]]
    theta = theta[:, reversed_axes]
    plane_voxels = max(math.prod(shape[1:]), 1)
    thickness = max(chunk_voxels // plane_voxels, 1)
    thickness = min(thickness, shape[0])
    points = theta.new_ones((thickness, *shape[1:], 4))
    planes = _normalized(shape[0], align_corners, theta)
    rows = _normalized(shape[1], align_corners, theta)
    columns = _normalized(shape[2], align_corners, theta)
    points[..., 0] = columns
    points[..., 1] = rows[:, None]
    source = volume.contiguous()[None]
    out_shape = (len(volume), *shape)
    out = volume.new_empty(out_shape, dtype=torch.float32)
    for start in range(0, shape[0], thickness):
        slab = slice(start, start + thickness)
        chunk = out[:, slab]
        chunk_points = points[: chunk.shape[1]]
        chunk_points[..., 2] = planes[slab, None, None]
        flat_points = chunk_points.view(1, -1, 4)
        grid = torch.bmm(flat_points, theta.mT[None])
        grid = grid.view(1, *chunk.shape[1:], 3)
        sampled = grid_sample(source, grid, mode, padding_mode, align_corners)
        chunk.copy_(sampled[0])
    return out


def _normalized(size: int, align_corners: bool, like: Tensor) -> Tensor:
    """Coordinates of an axis in [-1, 1], as in ``affine_grid``."""
    if size <= 1:
        return like.new_zeros(size)
    line = torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
    if align_corners:
        return line
    return line * (size - 1) / size


def _is_volume(img: Tensor) -> bool:
    """Whether an image is a volume ``(C, H, W, D)`` on a grid, and no transform of it is pending."""
    if not isinstance(img, MetaTensor) or img.ndim != 4:
        return False
    return not img.pending_operations


class ChunkedResample(SpatialResample):
    """MONAI's ``SpatialResample`` of a 3-D MetaTensor, computed by [`sample_chunked`][]."""

    def __call__(
        self,
        img: Tensor,
        dst_affine: Any = None,
        spatial_size: Any = None,
        mode: Any = None,
        padding_mode: Any = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> Tensor:
        """Resample ``img (C, H, W, D)`` to the grid of ``dst_affine`` and ``spatial_size``; MONAI does other inputs.

        Raises ``ValueError`` if the result would not fit into memory.
        """
        mode = self.mode if mode is None else mode
        padding_mode = self.padding_mode if padding_mode is None else padding_mode
        align_corners = self.align_corners if align_corners is None else align_corners
        lazy = self.lazy if lazy is None else lazy
        options = (mode, padding_mode, align_corners, dtype, lazy)
        stock = partial(super().__call__, img, dst_affine, spatial_size, *options)
        has_shape = isinstance(spatial_size, Sequence) and len(spatial_size) == 3
        if dst_affine is None or not has_shape or not _is_volume(img):
            return stock()
        if lazy or mode not in ("bilinear", "nearest"):
            return stock()
        image = cast(MetaTensor, img)
        shape = tuple(int(size) for size in spatial_size)
        voxels = len(image) * math.prod(shape)
        size = 4 * voxels
        check_memory(size, f"one that is resampled to {shape}")
        source_affine = np.asarray(image.affine, dtype=np.float64)
        target_affine = np.asarray(dst_affine, dtype=np.float64)
        affine = np.linalg.solve(source_affine, target_affine)
        is_same_grid = np.allclose(source_affine, target_affine, atol=UNCHANGED)
        is_identity = np.allclose(affine, np.eye(4), atol=UNCHANGED)
        if shape == image.shape[1:] and (is_same_grid or is_identity):
            return stock()
        working = get_equivalent_dtype(dtype or self.dtype or image.dtype, Tensor)
        sampling: dict[str, Any] = {
            "mode": str(mode),
            "padding_mode": str(padding_mode),
            "align_corners": align_corners,
        }
        source = image.as_tensor().to(working)
        transform = torch.as_tensor(affine)
        resampled = MetaTensor(sample_chunked(source, transform, shape, **sampling))
        traced = self.track_transform_meta(
            image,
            sp_size=shape,
            affine=transform,
            orig_size=tuple(image.shape[1:]),
            extra_info={
                "dtype": str(working).removeprefix("torch."),
                "src_affine": torch.as_tensor(source_affine),
                **sampling,
            },
            transform_info=self.get_transform_info(),
        )
        return cast(Tensor, resampled.copy_meta_from(traced))

    def inverse(self, data: Tensor) -> Tensor:
        """Resample ``data`` back to its original grid; see MONAI's class."""
        transform = self.pop_transform(data)
        options = dict(transform[TraceKeys.EXTRA_INFO])
        source_affine = options.pop("src_affine")
        options["dtype"] = get_torch_dtype_from_string(options["dtype"])
        if options.get("align_corners") == TraceKeys.NONE:
            options["align_corners"] = False
        with self.trace_transform(False):
            return self(data, source_affine, transform[TraceKeys.ORIG_SIZE], **options)
