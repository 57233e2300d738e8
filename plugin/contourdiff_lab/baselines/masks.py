# SPDX-License-Identifier: Apache-2.0
"""Coarse body masks, and the two terms of MaskGAN that use them (Phan et al. 2023, arXiv 2307.16143)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Transform
from skimage.measure import label as connected_components
from skimage.morphology import opening, remove_small_holes
from torch.nn.functional import l1_loss

from contourdiff.contours import checked_slice
from contourdiff.transforms.keyed import KeyedTransform
from contourdiff.transforms.slicewise import slicewise
from contourdiff_lab.baselines.cycle import CycleBatch


def coarse_mask(image: np.ndarray, *, threshold: float = 10.0, max_hole_px: int = 20) -> np.ndarray:
    """Coarse body mask of one slice: ``(H, W)`` gray levels in [0, 255] -> ``(H, W)`` float32, 1 in the body.

    It is empty for a slice that is dark throughout.

    Args:
        image: ``(H, W)`` gray levels in [0, 255].
        threshold: gray level above which a pixel is body; fixed, as the window of the images is.
        max_hole_px: largest enclosed hole, in pixels, that is filled; larger ones (gas, lungs) are not body.

    Raises:
        ValueError: if ``image`` is not two-dimensional or not finite.

    Notes:
        1. Threshold. 2. Open with a cross of one pixel, which removes noise and thin bridges. 3. Fill small holes.
        4. Keep the largest connected object, which removes the table.

        The authors' preprocessing takes these steps on volumes; here they are taken on each slice.

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((5, 9))
        >>> image[1:, 1:6], image[2, 7] = 200, 90
        >>> coarse_mask(image)[:3].astype(int)
        array([[0, 0, 0, 0, 0, 0, 0, 0, 0],
               [0, 0, 1, 1, 1, 0, 0, 0, 0],
               [0, 1, 1, 1, 1, 1, 0, 0, 0]])
    """
    mask = opening(checked_slice(image) > threshold)
    if not mask.any():  # a small dark slice would be filled as one hole
        return mask.astype(np.float32)
    objects = connected_components(remove_small_holes(mask, max_size=max_hole_px))
    largest = 1 + np.bincount(objects.ravel())[1:].argmax()
    return (objects == largest).astype(np.float32)


@dataclass(eq=False)
class CoarseMask(Transform):
    """Replace an image by its coarse body mask, slice by slice: see [`coarse_mask`][].

    Slices are stacked along the spatial axis ``slice_axis``, 0 for the first after the channel.
    """

    slice_axis: int = 0
    threshold: float = 10.0
    max_hole_px: int = 20

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Mask of ``img``: ``(C, H, W)`` or ``(C, H, W, D)`` gray levels in [0, 255] -> float32 0/1, same shape."""
        function = partial(coarse_mask, threshold=self.threshold, max_hole_px=self.max_hole_px)
        return slicewise(img, self.slice_axis, function)


class CoarseMaskd(KeyedTransform):
    """Dictionary version of [`CoarseMask`][], whose keyword arguments it takes.

    ``output_keys`` keeps the image beside its mask; without it the mask replaces the image.
    """

    array_class = CoarseMask


@dataclass(eq=False)
class MaskTerm:
    """Teach the generators where the body is: outside of it, a generator should return its input.

    Mean absolute difference of a generator's attention on its input and ``1 - mask``, both ``(B, 1, H, W)``, times
    ``weight``; the sum over real CT and real MR.
    """

    weight: float = 1.0

    def __call__(self, batch: CycleBatch) -> torch.Tensor:
        """The term, a scalar; ``ValueError`` if ``batch`` has no masks or attention."""
        on_ct = _extra(batch, "ct_to_mr_fake_attention")
        on_mr = _extra(batch, "mr_to_ct_fake_attention")
        ct_background = 1 - _extra(batch, "ct_mask")
        mr_background = 1 - _extra(batch, "mr_mask")
        return self.weight * (l1_loss(on_ct, ct_background) + l1_loss(on_mr, mr_background))


@dataclass(eq=False)
class ShapeConsistencyTerm:
    """Let both generators of a cycle find the same body, in a real image and in its translation.

    Mean absolute difference of the attention on an image and on its translation, times ``weight``; the sum over both
    cycles.
    """

    weight: float = 0.5

    def __call__(self, batch: CycleBatch) -> torch.Tensor:
        """The term, a scalar; ``ValueError`` if ``batch`` has no attention."""
        on_ct = _extra(batch, "ct_to_mr_fake_attention")
        on_fake_mr = _extra(batch, "mr_to_ct_cycled_attention")
        on_mr = _extra(batch, "mr_to_ct_fake_attention")
        on_fake_ct = _extra(batch, "ct_to_mr_cycled_attention")
        return self.weight * (l1_loss(on_ct, on_fake_mr) + l1_loss(on_mr, on_fake_ct))


def _extra(batch: CycleBatch, name: str) -> torch.Tensor:
    """An extra of ``batch``, as float32."""
    if name not in batch.extras:
        raise ValueError(
            f"expected {name!r} in the batch, got {sorted(batch.extras)}; train with maskgan.json, where CoarseMaskd "
            "gives masks and AttentionGenerator attention"
        )
    return batch.extras[name].float()
