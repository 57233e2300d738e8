# SPDX-License-Identifier: Apache-2.0
"""MONAI's resampling and its inverse, computed in chunks: the same values in a fraction of the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.utils import to_norm_affine
from monai.transforms import SpatialResample
from monai.utils import TraceKeys, get_equivalent_dtype, get_torch_dtype_from_string
from torch import Tensor
from torch.nn.functional import grid_sample

from contourdiff.data.checks import check_memory

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
    theta = to_norm_affine(affine.to(volume)[None], volume.shape[1:], shape, align_corners)[0]
    order = [2, 1, 0, 3]  # affine_grid counts axes from the last one
    theta = theta[order[:3]][:, order]
    source = volume.contiguous()[None]
    out = torch.empty((len(volume), *shape), dtype=torch.float32, device=volume.device)
    thickness = max(chunk_voxels // max(shape[1] * shape[2], 1), 1)
    for slab, grid in _grids(theta, shape, align_corners, thickness):
        out[:, slab] = grid_sample(
            source, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners
        )[0]
    return out


def _grids(
    theta: Tensor, shape: Sequence[int], align_corners: bool, thickness: int
) -> Iterator[tuple[slice, Tensor]]:
    """Chunks along the first axis with the values of ``affine_grid`` for each: ``(1, slab, W', D', 3)``."""
    first, second, third = (_from_minus_one(size, align_corners, theta) for size in shape)
    base = torch.ones(
        (min(thickness, shape[0]), shape[1], shape[2], 4), dtype=theta.dtype, device=theta.device
    )
    base[..., 0] = third
    base[..., 1] = second[:, None]
    for start in range(0, shape[0], thickness):
        slab = slice(start, min(start + thickness, shape[0]))
        part = base[: slab.stop - slab.start]
        part[..., 2] = first[slab, None, None]
        yield slab, torch.bmm(part.view(1, -1, 4), theta.mT[None]).view(1, *part.shape[:3], 3)


def _from_minus_one(size: int, align_corners: bool, like: Tensor) -> Tensor:
    """Normalized coordinates of an axis, as in ``affine_grid``."""
    if size <= 1:
        return torch.zeros(size, dtype=like.dtype, device=like.device)
    line = torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
    return line if align_corners else line * (size - 1) / size


class ChunkedResample(SpatialResample):
    """MONAI's ``SpatialResample`` of a 3-D MetaTensor, computed by [`sample_chunked`][]."""

    def __call__(  # type: ignore[override]
        self, img: Tensor, dst_affine: Any = None, spatial_size: Any = None, **options: Any
    ) -> Tensor:
        """Resample ``img (C, H, W, D)`` to the grid of ``dst_affine`` and ``spatial_size``; MONAI does other inputs."""
        given = {name: value for name, value in options.items() if value is not None}
        chosen = {
            name: given.get(name, getattr(self, name))
            for name in ("mode", "padding_mode", "align_corners")
        }
        is_volume = isinstance(img, MetaTensor) and img.ndim == 4 and not img.pending_operations
        has_grid = (
            dst_affine is not None and isinstance(spatial_size, Sequence) and len(spatial_size) == 3
        )
        can_sample = chosen["mode"] in ("bilinear", "nearest") and not given.get("lazy", self.lazy)
        if not (is_volume and has_grid and can_sample):
            return super().__call__(img, dst_affine, spatial_size, **options)
        chosen |= {name: str(chosen[name]) for name in ("mode", "padding_mode")}
        image, shape = cast(MetaTensor, img), tuple(int(size) for size in spatial_size)
        check_memory(4 * len(image) * math.prod(shape), f"one that is resampled to {shape}")
        own, other = (np.asarray(matrix, dtype=np.float64) for matrix in (image.affine, dst_affine))
        affine = np.linalg.solve(own, other)
        unchanged = np.allclose(own, other, atol=UNCHANGED) or np.allclose(
            affine, np.eye(4), atol=UNCHANGED
        )
        if unchanged and shape == image.shape[1:]:
            return super().__call__(img, dst_affine, spatial_size, **options)
        working = get_equivalent_dtype(given.get("dtype") or self.dtype or image.dtype, Tensor)
        extra = {
            "dtype": str(working).removeprefix("torch."),
            **chosen,
            "src_affine": torch.as_tensor(own),
        }
        traces: dict[str, Any] = {
            "sp_size": shape,
            "orig_size": tuple(image.shape[1:]),
            "extra_info": extra,
        }
        traces |= {"affine": torch.as_tensor(affine), "transform_info": self.get_transform_info()}
        traced = self.track_transform_meta(image, **traces)
        resampled = MetaTensor(
            sample_chunked(image.as_tensor().to(working), torch.as_tensor(affine), shape, **chosen)
        )
        return cast(Tensor, resampled.copy_meta_from(traced))

    def inverse(self, data: Tensor) -> Tensor:
        """Resample ``data`` back to its original grid; see MONAI's class."""
        transform = self.pop_transform(data)
        extra = dict(transform[TraceKeys.EXTRA_INFO])
        extra["dtype"] = get_torch_dtype_from_string(extra["dtype"])
        if extra.get("align_corners") == TraceKeys.NONE:
            extra["align_corners"] = False
        with self.trace_transform(False):
            return self(
                data,
                dst_affine=extra.pop("src_affine"),
                spatial_size=transform[TraceKeys.ORIG_SIZE],
                **extra,
            )
