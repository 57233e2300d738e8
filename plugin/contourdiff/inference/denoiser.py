# SPDX-License-Identifier: Apache-2.0
"""Denoise candidates in fixed batches, from their own noise to gray levels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pixel_unshuffle

from contourdiff.inference.acceleration import Accelerator
from contourdiff.networks import CascadeUNet, enlarge
from contourdiff.sampling.intensity import to_gray_levels, to_model_range
from contourdiff.sampling.noise import CandidateKey, Item, NoiseStream
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.solvers import OnStep

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Denoiser:
    """Denoise candidates in batches of exactly ``batch_size``; an item's result depends on nothing else in its batch.

    Args:
        network: called with ``(cat[x, conditions] (B, 1 + C, H, W), timesteps (B,))``.
        sampler: solver, steps and training schedule.
        batch_size: items in every call of the network, 1 or more; a smaller batch is padded. Halved, with a warning in
            the log, when the device runs out of memory.
        seed: seed of the noise.
        noise_weights: see [`contourdiff.sampling.noise.NoiseStream`][].
        amp: run the network in bfloat16 where autocast holds it safe.
        accelerator: what to call in place of the network.

    Attributes:
        calls: chains of network calls so far, one for each batch.
        halved: whether the device has run out of memory.

    Notes:
        A forward pass is bit-identical at one batch size whatever the other items are; between two batch sizes it
        differs by rounding, up to 4e-6 in the network's range. So every batch has the same size, and the last one is
        padded. Conditions are written once for a batch, into the buffer that the network reads, and no step waits for
        the device.

    References:
        Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502.

    Examples:
        >>> import torch
        >>> from monai.networks.schedulers import DDPMScheduler
        >>> from contourdiff.inference import Denoiser
        >>> from contourdiff.sampling import Sampler
        >>> class Zero(torch.nn.Module):
        ...     def forward(self, x, timesteps):
        ...         return torch.zeros_like(x[:, :1])
        >>> denoiser = Denoiser(Zero(), Sampler(DDPMScheduler(), num_inference_steps=2), batch_size=4)
        >>> contours = torch.zeros(3, 1, 8, 8)
        >>> denoiser(contours, [("case", index, 0, 0) for index in range(3)]).shape, denoiser.calls
        (torch.Size([3, 8, 8]), 1)
    """

    network: nn.Module
    sampler: Sampler
    batch_size: int = 8
    seed: int = 0
    noise_weights: Sequence[float] = (1.0,)
    amp: bool = False
    accelerator: Accelerator = field(default_factory=Accelerator)
    calls: int = field(default=0, init=False)
    halved: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        self._white: dict[torch.Size, dict[CandidateKey, torch.Tensor]] = {}  # of the last batch

    @torch.inference_mode()
    def fit(self, conditions: torch.Tensor) -> int:
        """Set ``batch_size`` to what fits into the free memory of a CUDA device, for ``conditions (N, C, H, W)``."""
        device = conditions.device

        def needed(items: int) -> int:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            buffer = torch.zeros(
                items, 1 + conditions.shape[1], *conditions.shape[2:], device=device
            )
            with self._autocast(device):
                self.network(buffer, torch.zeros(items, dtype=torch.long, device=device))
            return int(torch.cuda.max_memory_allocated(device)) - before

        self.batch_size = fitting_batch_size(needed, torch.cuda.mem_get_info(device)[0])
        logger.info("batch_size is %d, from the free memory of %s", self.batch_size, device)
        return self.batch_size

    @torch.inference_mode()
    def __call__(
        self, conditions: torch.Tensor, items: Sequence[Item], on_step: OnStep | None = None
    ) -> torch.Tensor:
        """Gray levels in [0, 255], ``(N, H, W)``.

        Args:
            conditions: ``(N, C, H, W)``, what the network is given beside the noisy image.
            items: identifies the noise of each.
            on_step: receives, for each batch, the number of each step and its predicted clean image ``(B, 1, H, W)``
                in [-1, 1], padding included.
        """
        images = []
        start = 0
        while start < len(items):
            stop = start + self.batch_size
            try:
                images.append(self._batch(conditions[start:stop], items[start:stop], on_step))
            except torch.OutOfMemoryError:
                self._halve()
            else:
                start = stop
        return torch.cat(images)

    def _batch(
        self, conditions: torch.Tensor, items: Sequence[Item], on_step: OnStep | None
    ) -> torch.Tensor:
        missing = self.batch_size - len(items)
        conditions = torch.cat([conditions, conditions[:1].expand(missing, -1, -1, -1)]).float()
        device, size = conditions.device, conditions.shape[2:]
        keys = [CandidateKey(self.seed, *item) for item in (*items, *[items[0]] * missing)]
        noise = NoiseStream(keys, (1, *size), device, self.noise_weights, self._white.get(size, {}))
        layout = torch.channels_last if self.accelerator.acceleration else torch.contiguous_format
        buffer = torch.cat([torch.zeros_like(conditions[:, :1]), conditions], dim=1).contiguous(
            memory_format=layout
        )
        with self._autocast(device):
            start = torch.zeros(self.batch_size, dtype=torch.long, device=device)
            forward = self.accelerator(self.network, buffer, start)

        def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            buffer[:, :1] = x
            with self._autocast(device):
                # a copy, for a CUDA graph writes the next step's result into the same memory
                return forward(buffer, timesteps).to(torch.float32, copy=True)

        self.calls += 1
        images = self.sampler(predict, noise.draw, on_step)
        self._white = {size: noise.first}
        return to_gray_levels(images[: len(items), 0]).clamp(0, 255)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.amp, cache_enabled=False
        )

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise MemoryError(
                "one slice does not fit into the device's memory; expected memory for a batch of 1; take a smaller "
                "network, a larger spacing_mm, or device cpu"
            )
        self.batch_size //= 2
        self.halved = True
        logger.warning("out of memory: batch_size is %d from here on", self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(eq=False)
class CascadeDenoiser:
    """Denoise with a cascade: every candidate at low resolution first, then refined to the resolution of its contour.

    Called as [`Denoiser`][], with contours ``(N, 1, H, W)``. Noise of both steps belongs to the candidate, so that a
    result depends on nothing else in its batch.

    Args:
        coarse: denoiser of the first network, with conditions ``(N, factor**2, H / factor, W / factor)``.
        refiner: denoiser of the second, with conditions ``(N, 2, H, W)``: contour and enlarged image in [-1, 1].
        factor: see [`contourdiff.networks.CascadeUNet`][].
    """

    coarse: Denoiser
    refiner: Denoiser
    factor: int = 2

    @property
    def batch_size(self) -> int:
        """Of the second network, which needs more memory."""
        return self.refiner.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.coarse.batch_size = self.refiner.batch_size = value

    @property
    def calls(self) -> int:
        """Chains of network calls so far, of both networks."""
        return self.coarse.calls + self.refiner.calls

    @property
    def halved(self) -> bool:
        """Whether the device has run out of memory."""
        return self.coarse.halved or self.refiner.halved

    def fit(self, conditions: torch.Tensor) -> int:
        """Set ``batch_size`` to what fits into the free memory, see [`Denoiser.fit`][]."""
        self.coarse.batch_size = self.refiner.fit(torch.cat([conditions, conditions], dim=1))
        return self.batch_size

    def __call__(
        self, conditions: torch.Tensor, items: Sequence[Item], on_step: OnStep | None = None
    ) -> torch.Tensor:
        """Gray levels in [0, 255], ``(N, H, W)``; ``on_step`` receives the steps of the first network."""
        folded = pixel_unshuffle(conditions.float(), self.factor)
        enlarged = enlarge(
            to_model_range(self.coarse(folded, items, on_step)[:, None]), self.factor
        )
        named = [(f"{case} refined", *place) for case, *place in items]
        return self.refiner(torch.cat([conditions.to(enlarged), enlarged], dim=1), named)  # type: ignore[arg-type]


def denoiser_of(network: nn.Module, sampler: Sampler, **options: Any) -> Denoiser | CascadeDenoiser:
    """Denoiser for a network or a [`contourdiff.networks.CascadeUNet`][]; options are those of [`Denoiser`][].

    ``accelerators`` is a pair, of which the second is for the second network.
    """
    first, second = options.pop("accelerators", (Accelerator(), Accelerator()))
    if not isinstance(network, CascadeUNet):
        return Denoiser(network, sampler, accelerator=first, **options)
    coarse = Denoiser(network.coarse, sampler, accelerator=first, **options)
    return CascadeDenoiser(
        coarse,
        Denoiser(network.refiner, sampler.refinement, accelerator=second, **options),
        network.factor,
    )


def fitting_batch_size(
    needed: Callable[[int], int], free: int, largest: int = 64, share: float = 0.8
) -> int:
    """Largest power of two up to ``largest`` whose forward pass takes at most a ``share`` of the ``free`` bytes.

    ``needed`` returns the bytes that a forward pass of so many items takes at its peak; it is called for 1 and 2.
    """
    one, two = needed(1), needed(2)
    item = max(two - one, 1)
    fitting = int((share * free - (one - item)) // item)
    return int(2 ** (max(1, min(fitting, largest)).bit_length() - 1))
