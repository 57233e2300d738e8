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

    It is empty for a slice that is dark throughout. Raises ``ValueError`` if ``image`` is not two-dimensional or not
    finite.

    Args:
        image: ``(H, W)`` gray levels in [0, 255].
        threshold: gray level above which a pixel is body; fixed, as the window of the images is.
        max_hole_px: largest enclosed hole, in pixels, that is filled; a larger one (gas, a lung) is no body.

    Notes:
        1. Threshold. 2. Open with a cross of one pixel, which removes noise and thin bridges. 3. Fill small holes.
        4. Keep the largest connected object, so that a table is no body.

        These are the steps of the authors' preprocessing, which is of volumes; here a slice is the unit.

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
    """``weight`` times the mean absolute difference of a generator's attention on its input and what is no body.

    Attention and ``1 - mask``, both ``(B, 1, H, W)``: outside the body, a generator returns what it is given. The sum
    over both generators, of real CT and real MR.
    """

    weight: float = 1.0

    def __call__(self, batch: CycleBatch) -> torch.Tensor:
        """The term, a scalar; ``ValueError`` if ``batch`` has no masks or attention."""
        on_ct = l1_loss(_extra(batch, "ct_to_mr_fake_attention"), 1 - _extra(batch, "ct_mask"))
        on_mr = l1_loss(_extra(batch, "mr_to_ct_fake_attention"), 1 - _extra(batch, "mr_mask"))
        return self.weight * (on_ct + on_mr)


@dataclass(eq=False)
class ShapeConsistencyTerm:
    """``weight`` times the mean absolute difference of the attention on an image and on its translation.

    The first generator looks at a real image, the second at the translation: both should find the same body. The sum
    over both cycles.
    """

    weight: float = 0.5

    def __call__(self, batch: CycleBatch) -> torch.Tensor:
        """The term, a scalar; ``ValueError`` if ``batch`` has no attention."""
        of_ct = l1_loss(
            _extra(batch, "ct_to_mr_fake_attention"), _extra(batch, "mr_to_ct_cycled_attention")
        )
        of_mr = l1_loss(
            _extra(batch, "mr_to_ct_fake_attention"), _extra(batch, "ct_to_mr_cycled_attention")
        )
        return self.weight * (of_ct + of_mr)


def _extra(batch: CycleBatch, name: str) -> torch.Tensor:
    """An extra of ``batch``, as float32."""
    if name not in batch.extras:
        raise ValueError(
            f"expected {name!r} in the batch, got {sorted(batch.extras)}; masks are CoarseMaskd's, attention is "
            "AttentionGenerator's: train with maskgan.json"
        )
    return batch.extras[name].float()
