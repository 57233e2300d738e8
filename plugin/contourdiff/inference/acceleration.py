# SPDX-License-Identifier: Apache-2.0
"""Everything that serves speed alone: a faster copy of the network, and a heap that keeps freed blocks."""

from __future__ import annotations

import copy
import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from monai.networks.blocks import UpSample
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

from contourdiff.limits import check_choice

logger = logging.getLogger(__name__)

Forward = Callable[..., Tensor]

MIN_CHANNELS = 128
"""Channels, in and out, from which pairs of rows pay: 1.2 to 1.35 times faster at 128 and more, slower below 64."""

# parameters of mallopt, from malloc.h of the GNU C library
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
RETAIN = {
    M_MMAP_MAX: 0,
    M_TRIM_THRESHOLD: 2**31 - 1,
    M_TOP_PAD: 512 * 2**20,
}
RELEASE = {
    M_MMAP_MAX: 65536,
    M_MMAP_THRESHOLD: 32 * 2**20,
    M_TRIM_THRESHOLD: 64 * 2**20,
    M_TOP_PAD: 128 * 2**10,
}
"""glibc's own values, with the thresholds that it adapts to by itself where big blocks are freed."""

_retaining = 0  # open contexts that retain the heap; the setting is the process's


@contextmanager
def retained_heap(enabled: bool = True) -> Iterator[bool]:
    """Tune glibc's malloc so that freed blocks stay in the process, until the outermost context ends.

    glibc maps each big block anew and unmaps it when it is freed; on a CPU a network then spends much of its time on
    page faults. Results stay the same to the bit. Open the context around a network's work alone, for blocks of a
    volume's size do not fit into what is free between blocks in use. Does nothing if the environment sets
    ``MALLOC_MMAP_MAX_``. Yields whether the heap is retained; ``False`` with another C library. Source: mallopt(3).
    """
    global _retaining
    retained = enabled and "MALLOC_MMAP_MAX_" not in os.environ
    if retained and _retaining == 0:
        retained = _mallopt(RETAIN)
    if enabled and not retained:
        logger.info(
            "the heap is not retained: the environment sets malloc, or this is not the GNU C library"
        )
    _retaining += retained
    try:
        yield retained
    finally:
        _retaining -= retained
        if retained and _retaining == 0:
            _mallopt(RELEASE)
            release_heap()


def release_heap() -> bool:
    """Return the heap's free memory to the kernel; whether there was any. Source: malloc_trim(3)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(ctypes.c_size_t(0)) == 1


def _mallopt(values: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in values.items())


class Accelerator:
    """A faster copy of a network, kept until another network, other weights or another device come.

    Changed weights are seen by the version that torch counts for every tensor; ``network.to(...)`` by dtype, device and
    address. ``acceleration`` ``None`` calls the network as it is. ``"lean"`` puts it into channels-last order, in
    place, and on a CPU in float32 calls a copy whose convolutions take fewer multiplications; else ``ValueError``.
    """

    def __init__(self, acceleration: str | None = None) -> None:
        check_choice("acceleration", acceleration, (None, "lean"))
        self.acceleration = acceleration
        self._key: Any = None
        self._weights: list[Tensor] = []  # held so that no other tensor takes an address of the key
        self._forward: Forward | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the inputs that suit the accelerated network."""
        return torch.channels_last if self.acceleration else torch.contiguous_format

    def __call__(self, network: nn.Module, device: torch.device) -> Forward:
        """Callable to use in place of ``network``, for inference with its present weights and inputs on ``device``."""
        if self.acceleration is None:
            return network
        convert = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        key = (network, convert, _versions(network))
        if self._forward is None or self._key != key:
            self._forward = None  # frees the old copy before the new one is built
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
            self._forward = with_fewer_multiplications(network) if convert else network
            self._key = (network, convert, _versions(network))
            self._weights = list(network.state_dict().values())
        return self._forward


def _versions(network: nn.Module) -> list[tuple[Any, ...]]:
    versions = []
    for weight in network.state_dict(keep_vars=True).values():
        version = 0 if weight.is_inference() else weight._version
        address = weight.data_ptr()
        versions.append((address, weight.dtype, weight.device, version))
    return versions


class RowPairConv2d(nn.Module):
    """A plain 3 x 3 convolution of two rows at a time with 4 kernels of 1 x 3: 2/3 of the multiplications.

    Winograd's minimal filtering F(2, 3) along the rows (Lavin and Gray, CVPR 2016).
    """

    first: Tensor
    sum: Tensor
    difference: Tensor
    last: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        first, middle, last = convolution.weight.detach().unbind(2)
        kernels = {
            "first": first,
            "sum": (first + middle + last) / 2,
            "difference": (first - middle + last) / 2,
            "last": last,
        }
        for name, kernel in kernels.items():
            row = kernel.unsqueeze(2)
            row = row.contiguous(memory_format=torch.channels_last)
            self.register_buffer(name, row)
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', H, W)``, for even and odd H."""
        rows = pad(x, (0, 0, 1, 2))
        above = rows[:, :, :-3:2]
        upper = rows[:, :, 1:-2:2]
        lower = rows[:, :, 2:-1:2]
        below = rows[:, :, 3::2]
        convolved = partial(conv2d, padding=(0, 1))
        half_sum = convolved(upper + lower, self.sum, self.bias)
        half_difference = convolved(lower - upper, self.difference)
        even = convolved(above - lower, self.first)
        even.add_(half_sum).add_(half_difference)
        odd = convolved(upper - below, self.last)
        odd = half_sum.sub_(half_difference).sub_(odd)
        pairs = torch.stack([even, odd], dim=3)
        height = x.shape[2]
        return pairs.flatten(2, 3)[:, :, :height]


class UpsampledConv2d(nn.Module):
    """Nearest-neighbor doubling and a plain 3 x 3 convolution as one transposed one: 4/9 of the multiplications."""

    weight: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        kernel = convolution.weight.detach().flip(2, 3)
        channels_in = kernel.shape[1]
        ones = kernel.new_ones(1, 1, 2, 2)
        planes = kernel.flatten(0, 1).unsqueeze(1)
        spread = conv_transpose2d(planes, ones)
        spread = spread.unflatten(0, (-1, channels_in))
        spread = spread.squeeze(2).transpose(0, 1)
        weight = spread.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.bias = convolution.bias

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, C', 2H, 2W)``; ``emb`` is ignored, as by MONAI's upsampling."""
        del emb
        return conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def with_fewer_multiplications(network: nn.Module) -> nn.Module:
    """Copy of ``network`` for inference, its convolutions replaced where that pays; it shares all other weights."""
    shared: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        shared[id(tensor)] = tensor
    return _replaced(copy.deepcopy(network, shared))


def _replaced(module: nn.Module) -> nn.Module:
    convolution = _upsampled(module)
    if convolution is not None:
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
    leaves = [leaf for leaf in module.modules() if not list(leaf.children())]
    if len(leaves) != 2:
        return None
    upsample, convolution = leaves
    if not isinstance(upsample, nn.Upsample) or not _replaceable(convolution):
        return None
    if upsample.mode != "nearest" or upsample.scale_factor not in (2.0, (2.0, 2.0)):
        return None
    return convolution


def _replaceable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A plain 3 x 3 convolution in float32: nothing that subclasses or parametrizes one."""
    if type(module) is not nn.Conv2d or module.weight.dtype != torch.float32:
        return False
    return (
        module.kernel_size == (3, 3)
        and module.stride == module.padding == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )
