# SPDX-License-Identifier: Apache-2.0
"""Gray levels of images, and the range that networks see and paint."""

from __future__ import annotations

from torch import Tensor


def to_model_range(gray_levels: Tensor) -> Tensor:
    """Gray levels in [0, 255] -> values in [-1, 1], of any shape."""
    return gray_levels / 127.5 - 1


def to_gray_levels(image: Tensor) -> Tensor:
    """Values in [-1, 1] -> gray levels in [0, 255], of any shape; not clipped."""
    return (image + 1) * 127.5
