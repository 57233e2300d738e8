# SPDX-License-Identifier: Apache-2.0
"""MONAI's resampling to a spacing, and its inverse, in slabs: the same numbers in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import MetaTensor
from monai.networks.utils import to_norm_affine
from monai.transforms import Spacingd, SpatialResample
from monai.transforms.inverse import TraceableTransform
from monai.utils import TraceKeys, get_equivalent_dtype, get_torch_dtype_from_string
from torch.nn.functional import grid_sample

CHUNK_VOXELS = 2**20
"""Voxels that are sampled at a time: their coordinates take about 60 MB in float64."""
UNCHANGED = 1e-3
"""MONAI's tolerance, below which it does not resample."""


def sample_chunked(
    volume: torch.Tensor,
    affine: torch.Tensor,
    shape: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    chunk_voxels: int = CHUNK_VOXELS,
) -> torch.Tensor:
    """Sample a volume on another grid: what MONAI's ``AffineTransform`` returns, bit by bit, but for the memory.

    ``torch.nn.functional.affine_grid`` takes 56 bytes of float64 for each voxel of the result, all at once.

    Args:
        volume: ``(C, H, W, D)``, sampled in its own type.
        affine: ``(4, 4)``, voxels of the result -> voxels of ``volume``.
        shape: ``(H', W', D')`` of the result.
        mode: ``"bilinear"`` or ``"nearest"``.
        padding_mode: see ``torch.nn.functional.grid_sample``, like the next one.
        align_corners: whether -1 and 1 are the centers of the outer voxels.
        chunk_voxels: voxels of the result that are sampled at a time.

    Returns:
        ``(C, H', W', D')`` float32.
    """
    theta = to_norm_affine(affine.to(volume)[None], volume.shape[1:], shape, align_corners)[0]
    order = [2, 1, 0, 3]  # affine_grid counts axes from the last one
    theta = theta[order[:3]][:, order]
    source = volume.contiguous()[None]
    out = torch.empty((len(volume), *shape), dtype=torch.float32, device=volume.device)
    thickness = max(chunk_voxels // max(shape[1] * shape[2], 1), 1)
    for slab, grid in _grids(theta, shape, align_corners, thickness):
        out[:, slab] = grid_sample(source, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)[0]
    return out


def _grids(
    theta: torch.Tensor, shape: Sequence[int], align_corners: bool, thickness: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slabs along the first axis, and the part of ``affine_grid`` that belongs to each: ``(1, slab, W', D', 3)``."""
    first, second, third = (_from_minus_one(size, align_corners, theta) for size in shape)
    base = torch.ones((min(thickness, shape[0]), shape[1], shape[2], 4), dtype=theta.dtype, device=theta.device)
    base[..., 0] = third
    base[..., 1] = second[:, None]
    for start in range(0, shape[0], thickness):
        slab = slice(start, min(start + thickness, shape[0]))
        part = base[: slab.stop - slab.start]
        part[..., 2] = first[slab, None, None]
        yield slab, torch.bmm(part.view(1, -1, 4), theta.mT[None]).view(1, *part.shape[:3], 3)


def _from_minus_one(size: int, align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """Normalized coordinates of an axis, as ``affine_grid`` has them."""
    if size <= 1:
        return torch.zeros(size, dtype=like.dtype, device=like.device)
    line = torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
    return line if align_corners else line * (size - 1) / size


class ChunkedResample(SpatialResample):
    """MONAI's ``SpatialResample`` of a 3-D MetaTensor, computed in slabs by :func:`sample_chunked`."""

    def __call__(  # type: ignore[override]
        self,
        img: torch.Tensor,
        dst_affine: torch.Tensor | None = None,
        spatial_size: Sequence[int] | torch.Tensor | int | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: DtypeLike = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """Resample ``img (C, H, W, D)`` to the grid of ``dst_affine`` and ``spatial_size``; see MONAI's class.

        What is not this very case is left to MONAI.
        """
        chosen: dict[str, Any] = {
            "mode": str(self.mode if mode is None else mode),
            "padding_mode": str(self.padding_mode if padding_mode is None else padding_mode),
            "align_corners": self.align_corners if align_corners is None else align_corners,
        }
        is_volume = isinstance(img, MetaTensor) and img.ndim == 4 and not img.pending_operations
        is_told = dst_affine is not None and isinstance(spatial_size, Sequence) and len(spatial_size) == 3
        is_lazy = self.lazy if lazy is None else lazy
        if not (is_volume and is_told and chosen["mode"] in ("bilinear", "nearest")) or is_lazy:
            return super().__call__(img, dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        image, shape = cast(MetaTensor, img), tuple(int(size) for size in cast(Sequence[int], spatial_size))
        own, other = (np.asarray(matrix, dtype=np.float64) for matrix in (image.affine, dst_affine))
        affine = np.linalg.solve(own, other)
        unchanged = np.allclose(own, other, atol=UNCHANGED) or np.allclose(affine, np.eye(4), atol=UNCHANGED)
        if unchanged and shape == image.shape[1:]:
            return super().__call__(img, dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        working = get_equivalent_dtype(dtype or self.dtype or image.dtype, torch.Tensor)
        noted = TraceableTransform.track_transform_meta(
            image,
            sp_size=shape,
            affine=torch.as_tensor(affine),
            extra_info={"dtype": str(working).removeprefix("torch."), **chosen, "src_affine": torch.as_tensor(own)},
            orig_size=tuple(image.shape[1:]),
            transform_info=self.get_transform_info(),
        )
        resampled = MetaTensor(sample_chunked(image.as_tensor().to(working), torch.as_tensor(affine), shape, **chosen))
        return cast(torch.Tensor, resampled.copy_meta_from(noted))

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Resample back to where ``data`` came from; see MONAI's class, which does it in one piece."""
        transform = self.pop_transform(data)
        told = dict(transform[TraceKeys.EXTRA_INFO])
        told["dtype"] = get_torch_dtype_from_string(told["dtype"])
        if told.get("align_corners") == TraceKeys.NONE:
            told["align_corners"] = False
        with self.trace_transform(False):
            return self(data, dst_affine=told.pop("src_affine"), spatial_size=transform[TraceKeys.ORIG_SIZE], **told)


class ChunkedSpacingd(Spacingd):
    """MONAI's ``Spacingd`` with the memory of :class:`ChunkedResample`: the same arguments, results and inverse."""

    def __init__(self, keys: KeysCollection, *args: Any, **kwargs: Any) -> None:
        super().__init__(keys, *args, **kwargs)
        own = self.spacing_transform
        stock = own.sp_resample
        own.sp_resample = ChunkedResample(
            stock.mode, stock.padding_mode, align_corners=stock.align_corners, dtype=stock.dtype, lazy=stock.lazy
        )


ChunkedSpacingDict = ChunkedSpacingd
