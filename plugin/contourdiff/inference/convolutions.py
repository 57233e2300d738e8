# SPDX-License-Identifier: Apache-2.0
"""The same convolutions with fewer multiplications, for inference on a CPU.

A 3 x 3 convolution of many channels keeps the multipliers of a CPU busy (228 to 233 GFLOP/s were measured at every
size, where a matrix product reached 184), so only multiplying less makes it faster. Both ways below are exact but for
rounding, about 1e-6 of the largest value, and give each item of a batch the same result whatever lies beside it.
"""

from __future__ import annotations

import copy
from typing import TypeGuard, cast

import torch
from monai.networks.blocks import UpSample
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

MIN_CHANNELS = 128
"""Channels, in and out, from which pairs of rows pay: 1.2 to 1.35 times faster at 128 and more, slower below 64."""


class RowPairConv2d(nn.Module):
    """A 3 x 3 convolution that makes two rows at a time from 4 kernels of 1 x 3, with 2/3 of the multiplications.

    Winograd's minimal filtering F(2, 3) along the rows. Source: Lavin and Gray, Fast Algorithms for Convolutional
    Neural Networks, CVPR 2016.

    Args:
        convolution: 3 x 3, stride 1, zero padding 1, one group.
    """

    first: torch.Tensor
    sum: torch.Tensor
    difference: torch.Tensor
    last: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        first, middle, last = convolution.weight.detach().unbind(2)
        kernels = (first, (first + middle + last) / 2, (first - middle + last) / 2, last)
        for name, kernel in zip(("first", "sum", "difference", "last"), kernels, strict=True):
            self.register_buffer(name, kernel.unsqueeze(2).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W) -> (B, C', H, W)``, for even and odd H."""
        rows = pad(x, (0, 0, 1, 2))
        above, upper, lower, below = rows[:, :, :-3:2], rows[:, :, 1:-2:2], rows[:, :, 2:-1:2], rows[:, :, 3::2]
        half_sum = conv2d(upper + lower, self.sum, self.bias, padding=(0, 1))
        half_difference = conv2d(lower - upper, self.difference, padding=(0, 1))
        even = conv2d(above - lower, self.first, padding=(0, 1)).add_(half_sum).add_(half_difference)
        odd = half_sum.sub_(half_difference).sub_(conv2d(upper - below, self.last, padding=(0, 1)))
        return torch.stack([even, odd], dim=3).flatten(2, 3)[:, :, : x.shape[2]]


class UpsampledConv2d(nn.Module):
    """Doubling by the nearest neighbor and a 3 x 3 convolution, as one transposed convolution: 4/9 of the products.

    Each pixel that is repeated meets sums of the kernel's weights, which are made once.

    Args:
        convolution: 3 x 3, stride 1, zero padding 1, one group.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        kernel = convolution.weight.detach().flip(2, 3)
        channels_in = kernel.shape[1]
        ones = kernel.new_ones(1, 1, 2, 2)
        spread = conv_transpose2d(kernel.flatten(0, 1).unsqueeze(1), ones).unflatten(0, (-1, channels_in)).squeeze(2)
        spread = spread.transpose(0, 1)
        self.register_buffer("weight", spread.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, C, H, W) -> (B, C', 2H, 2W)``; ``emb`` is taken and left, as by MONAI's upsampling."""
        del emb
        return conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def with_fewer_multiplications(network: nn.Module) -> nn.Module:
    """Copy of ``network`` for inference, its convolutions replaced where that pays; it shares all other weights."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return _replaced(copy.deepcopy(network, cast(dict, shared)))


def _replaced(module: nn.Module) -> nn.Module:
    if (convolution := _upsampled(module)) is not None:
        return UpsampledConv2d(convolution)
    if _replaceable(module) and min(module.in_channels, module.out_channels) >= MIN_CHANNELS:
        return RowPairConv2d(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module


def _upsampled(module: nn.Module) -> nn.Conv2d | None:
    """The convolution behind a doubling by the nearest neighbor, if ``module`` is just that."""
    if not isinstance(module, UpSample):
        return None
    leaves = [leaf for leaf in module.modules() if not any(leaf.children())]
    if len(leaves) != 2 or not isinstance(leaves[0], nn.Upsample) or not _replaceable(leaves[1]):
        return None
    doubling = leaves[0]
    factor = doubling.scale_factor
    factors = factor if isinstance(factor, tuple) else (factor, factor)
    return leaves[1] if doubling.mode == "nearest" and factors == (2.0, 2.0) else None


def _replaceable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A plain 3 x 3 convolution in float32: nothing that subclasses or parametrizes one."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.padding == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.weight.dtype == torch.float32
    )
