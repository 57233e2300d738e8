# SPDX-License-Identifier: Apache-2.0
"""Denoise candidates in fixed batches, from their own noise to gray levels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from contourdiff.inference.acceleration import Accelerator
from contourdiff.limits import check_whole
from contourdiff.networks import enlarge
from contourdiff.sampling.intensity import to_gray_levels, to_model_range
from contourdiff.sampling.noise import CandidateNoise, CandidatePlace, Place
from contourdiff.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

LARGEST_BATCH = 64  # that is fitted to a device's memory
PROBE = CandidatePlace("", 0, 0, 0)
ClassLabels = int | Sequence[int] | Tensor
"""Positions in a network's ``contrasts``: one for all candidates, or one for each."""


@dataclass(eq=False)
class Denoiser:
    """Denoise candidates in batches of exactly ``batch_size``; a result depends on nothing else in its batch.

    Args:
        network: called with ``(cat[x, conditions] (B, 1 + C, H, W), timesteps (B,))``, and with MONAI's
            ``class_labels (B,)`` where there are some.
        sampler: solver, steps and training schedule.
        batch_size: candidates in every call of the network, 1 or more; a smaller batch is padded. Halved, with a
            warning in the log, when the device runs out of memory.
        amp: run the network in bfloat16 where autocast holds it safe.
        accelerator: what to call in place of the network.
    """

    network: nn.Module
    sampler: Sampler
    batch_size: int = 8
    amp: bool = False
    accelerator: Accelerator = field(default_factory=Accelerator)

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1, 10**6)
        self.calls = 0  # chains of network calls, one for each batch
        self.largest_batch = LARGEST_BATCH  # what `fit` does not exceed

    @torch.no_grad()
    def fit(self, conditions: Tensor) -> int:
        """Set ``batch_size`` to what fits into the free memory of a CUDA device, for ``conditions (1, C, H, W)``."""
        device = conditions.device
        one_step = replace(self.sampler.refinement, num_inference_steps=1)
        probe = replace(self, sampler=one_step)
        noise = CandidateNoise()

        def needed(count: int) -> int:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            repeated = conditions.repeat(count, 1, 1, 1)
            probe._batch(repeated, [PROBE] * count, noise, {})
            return int(torch.cuda.max_memory_allocated(device)) - before

        needed(1)  # a first call adds what stays: workspaces of libraries, the converted network
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        self.batch_size = fitting_batch_size(needed, free, self.largest_batch)
        logger.info("batch_size is %d, from the free memory of %s", self.batch_size, device)
        return self.batch_size

    @torch.no_grad()  # in inference mode autocast would cast the weights anew at every step
    def __call__(
        self,
        conditions: Tensor,
        places: Sequence[Place],
        noise: CandidateNoise | None = None,
        class_labels: ClassLabels | None = None,
    ) -> Tensor:
        """Gray levels in [0, 255], ``(N, H, W)``.

        ``conditions (N, C, H, W)`` are what the network is given beside the noisy image, ``places`` identify the noise,
        by default independent noise of seed 0; ``class_labels`` are contrasts, ``None`` for the network's own. Raises
        ``MemoryError`` if not even one candidate fits into the device's memory.
        """
        noise = noise or CandidateNoise()
        labels = None
        if class_labels is not None:
            labels = torch.as_tensor(class_labels, device=conditions.device)
            labels = labels.expand(len(places))
        images = []
        start = 0
        while start < len(places):
            count = min(self.batch_size, len(places) - start)
            rows = list(range(start, start + count))
            rows += [start] * (self.batch_size - count)
            batch_places = [places[row] for row in rows]
            keywords = {} if labels is None else {"class_labels": labels[rows]}
            batch = None
            with suppress(torch.OutOfMemoryError):
                batch = self._batch(conditions[rows], batch_places, noise, keywords)
            if batch is None:  # the error is gone, and with its traceback the tensors of the batch
                self._halve()
                continue
            images.append(batch[:count])
            start += count
        return torch.cat(images)

    def _batch(
        self,
        conditions: Tensor,
        places: Sequence[Place],
        noise: CandidateNoise,
        keywords: Mapping[str, Tensor],
    ) -> Tensor:
        """Gray levels of a full batch."""
        device = conditions.device
        conditions = conditions.float()
        image = torch.zeros_like(conditions[:, :1])
        stream = noise.stream(places, image.shape[1:], device)
        buffer = torch.cat([image, conditions], dim=1)
        if self.accelerator.acceleration == "lean":
            buffer = buffer.contiguous(memory_format=torch.channels_last)
        forward = self.accelerator(self.network, device, self.amp)

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            buffer[:, :1] = x
            return forward(buffer, timesteps, **keywords).float()

        self.calls += 1
        with self.accelerator.autocast(device, self.amp):
            images = self.sampler(predict, stream.draw)
        gray_levels = to_gray_levels(images[:, 0])
        return gray_levels.clamp(0, 255)

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise MemoryError(
                "one slice does not fit into the device's memory; expected memory for a batch of 1; take a smaller "
                "network, a larger spacing_mm, or device cpu"
            )
        self.batch_size //= 2
        self.largest_batch = self.batch_size
        logger.warning("out of memory: batch_size is %d from here on", self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(eq=False)
class CascadeDenoiser:
    """Denoise with a cascade: every candidate at low resolution first, then refined to the resolution of its contour.

    Called as [`Denoiser`][], with contours ``(N, 1, H, W)``. Conditions of ``coarse`` are ``(N, factor**2, H / factor,
    W / factor)``, those of ``refiner`` ``(N, 2, H, W)``: contour and enlarged image in [-1, 1].
    """

    coarse: Denoiser
    refiner: Denoiser
    factor: int = 2

    @property
    def batch_size(self) -> int:
        """Of the second network, which needs more memory."""
        return self.refiner.batch_size

    @property
    def calls(self) -> int:
        """Chains of network calls so far, of both networks."""
        return self.coarse.calls + self.refiner.calls

    def fit(self, conditions: Tensor) -> int:
        """Set ``batch_size`` to what fits into the free memory, see [`Denoiser.fit`][]."""
        like_refined = torch.cat([conditions, conditions], dim=1)
        fitting = self.refiner.fit(like_refined)
        self.coarse.batch_size = min(fitting, self.coarse.largest_batch)
        return fitting

    def __call__(
        self,
        conditions: Tensor,
        places: Sequence[Place],
        noise: CandidateNoise | None = None,
        class_labels: ClassLabels | None = None,
    ) -> Tensor:
        """Gray levels in [0, 255], ``(N, H, W)``; ``class_labels`` are for the first network."""
        folded = pixel_unshuffle(conditions.float(), self.factor)
        coarse = self.coarse(folded, places, noise, class_labels)
        both = refiner_conditions(conditions, coarse.unsqueeze(1), self.factor)
        refined: list[CandidatePlace] = []
        for case, *rest in places:
            refined.append(CandidatePlace(f"{case} refined", *rest))
        return self.refiner(both, refined, noise)


def refiner_conditions(contours: Tensor, gray_levels: Tensor, factor: int) -> Tensor:
    """What the second network of a cascade is given beside the noisy image, ``(N, 2, H, W)`` float32.

    ``contours (N, 1, H, W)``, and the first network's ``gray_levels (N, 1, H / factor, W / factor)``, enlarged, in
    [-1, 1].
    """
    coarse = to_model_range(gray_levels)
    enlarged = enlarge(coarse, factor)
    return torch.cat([contours.to(enlarged), enlarged], dim=1)


def fitting_batch_size(
    needed: Callable[[int], int], free: int, largest: int = LARGEST_BATCH, share: float = 0.8
) -> int:
    """Largest power of two up to ``largest`` whose forward pass takes at most a ``share`` of the ``free`` bytes.

    ``needed`` returns the bytes that a forward pass of so many candidates takes at its peak; it is called for 1 and 2.
    """
    alone = needed(1)
    item = max(needed(2) - alone, 1)
    fitting = int((share * free - (alone - item)) // item)
    count = max(1, min(fitting, largest))
    return 1 << (count.bit_length() - 1)
