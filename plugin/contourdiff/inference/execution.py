# SPDX-License-Identifier: Apache-2.0
"""How a network is run: batch size, precision and acceleration."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from contourdiff.inference.acceleration import Accelerator, retained_heap
from contourdiff.inference.denoiser import CascadeDenoiser, Denoiser
from contourdiff.limits import check_flag, check_whole
from contourdiff.networks import CascadeUNet
from contourdiff.sampling.sampler import Sampler

CPU_BATCH_SIZE = 8


@dataclass(eq=False)
class Execution:
    """How networks are run; results differ by rounding alone.

    Args:
        batch_size: candidates a network call; ``None`` takes what fits into the free memory of a CUDA device, and 8 on
            a CPU or for neighbor-guided translation. Halved when the device runs out of memory.
        amp: run the network in bfloat16 where autocast holds it safe.
        acceleration: see [`contourdiff.inference.acceleration.Accelerator`][].
        retain_heap: on a CPU, see [`contourdiff.inference.acceleration.retained_heap`][]; concerns the process.

    Raises ``ValueError`` for a value out of range or of another type.
    """

    batch_size: int | None = 8
    amp: bool = False
    acceleration: str | None = None
    retain_heap: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 1, 10**6)
        check_flag("amp", self.amp)
        check_flag("retain_heap", self.retain_heap)
        Accelerator(self.acceleration)
        self._network: nn.Module | None = None
        self._sampler: Sampler | None = None
        self._denoiser: Denoiser | CascadeDenoiser | None = None

    def denoiser(self, network: nn.Module, sampler: Sampler) -> Denoiser | CascadeDenoiser:
        """Denoiser for a network or a [`contourdiff.networks.CascadeUNet`][], the same one while these are the same.

        So a batch that was halved for lack of memory stays so, and a network is converted once.
        """
        kept = network is self._network and sampler == self._sampler
        if self._denoiser is not None and kept:
            return self._denoiser
        self._network = network
        self._sampler = sampler
        if isinstance(network, CascadeUNet):
            coarse = self._single(network.coarse, sampler)
            refiner = self._single(network.refiner, sampler.refinement)
            self._denoiser = CascadeDenoiser(coarse, refiner, network.factor)
        else:
            self._denoiser = self._single(network, sampler)
        return self._denoiser

    def heap(self, device: torch.device) -> AbstractContextManager[bool]:
        """Context in which to run networks on ``device``."""
        return retained_heap(self.retain_heap and device.type == "cpu")

    def _single(self, network: nn.Module, sampler: Sampler) -> Denoiser:
        batch_size = self.batch_size or CPU_BATCH_SIZE
        accelerator = Accelerator(self.acceleration)
        return Denoiser(network, sampler, batch_size, self.amp, accelerator)
