# SPDX-License-Identifier: Apache-2.0
"""Everything that serves speed alone: which engine runs a network, and a heap that keeps freed blocks."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from contourdiff.inference.openvino_network import OpenVinoNetwork, has_bfloat16
from contourdiff.limits import check_choice

logger = logging.getLogger(__name__)

Forward = Callable[..., Tensor]

ACCELERATIONS = (None, "lean", "openvino")

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
    """A faster way to call a network, kept until another network, other weights, device or precision come.

    ``acceleration`` is one of, or ``ValueError``:

    - ``None``: the network as it is.
    - ``"lean"``: its weights in channels-last order, in place.
    - ``"openvino"``: on a CPU, [`contourdiff.inference.openvino_network.OpenVinoNetwork`][]; elsewhere as ``"lean"``.

    Changed weights are seen by the version that torch counts for every tensor; ``network.to(...)`` by dtype, device and
    address.
    """

    def __init__(self, acceleration: str | None = None) -> None:
        check_choice("acceleration", acceleration, ACCELERATIONS)
        if acceleration == "openvino" and not _has_openvino():
            raise ValueError(
                "expected OpenVINO for acceleration=openvino, found none; install contourdiff[cpu], or set "
                "acceleration=lean"
            )
        self.acceleration = acceleration
        self._key: Any = None
        self._weights: list[Tensor] = []  # held so that no other tensor takes an address of the key
        self._forward: Forward | None = None

    def __call__(self, network: nn.Module, device: torch.device, half: bool = False) -> Forward:
        """Callable to use in place of ``network``, for inference with its present weights and inputs on ``device``.

        ``half`` converts it to bfloat16 for OpenVINO; for torch, call it within [`autocast`][].
        """
        if self.acceleration is None:
            return network
        key = (network, device.type, half, _versions(network))
        if self._forward is None or self._key != key:
            self._forward = None  # frees the old one before the new one is built
            self._forward = self._converted(network, device, half)
            self._key = (network, device.type, half, _versions(network))
            self._weights = list(network.state_dict().values())
        return self._forward

    def _converted(self, network: nn.Module, device: torch.device, half: bool) -> Forward:
        if self.acceleration == "openvino" and device.type == "cpu":
            return OpenVinoNetwork(network, half)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        return network

    def autocast(self, device: torch.device, half: bool) -> AbstractContextManager[Any]:
        """Context of a chain of calls, in which torch casts each weight once, outside inference mode."""
        if self.acceleration == "openvino" and device.type == "cpu":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def fastest_acceleration(device: torch.device | str) -> str:
    """Default of ``acceleration``: ``"openvino"`` on a CPU where it is installed, else ``"lean"``."""
    on_cpu = torch.device(device).type == "cpu"
    return "openvino" if on_cpu and _has_openvino() else "lean"


def bfloat16_pays(device: torch.device | str, acceleration: str | None) -> bool:
    """Default of ``amp``: on a GPU, and with OpenVINO on a processor that multiplies in bfloat16."""
    kind = torch.device(device).type
    if kind == "cpu":
        return acceleration == "openvino" and _has_openvino() and has_bfloat16()
    return kind == "cuda"


def _has_openvino() -> bool:
    return find_spec("openvino") is not None


def _versions(network: nn.Module) -> list[tuple[Any, ...]]:
    versions = []
    for weight in network.state_dict(keep_vars=True).values():
        version = 0 if weight.is_inference() else weight._version
        address = weight.data_ptr()
        versions.append((address, weight.dtype, weight.device, version))
    return versions
